"""What every reader of an image format must do, asked of every image that a maker writes.

A new format needs a file in ``support/imagemakers`` and no more.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from imageformat.cache import BlockCache
from imageformat.chain import Chain
from imageformat.errors import ImageError, MountfsError, UsageError
from imageformat.extent import ExtentKind
from imageformat.formats import image_formats
from imageformat.layer import Ancestry, BlockRef
from imageformat.view import ImageView
from support.images import StoredImage, folder_files, makers, open_stored

if TYPE_CHECKING:
    from imageformat.layer import ImageLayer
    from support.images import MadeImage

NATIVE = "mfi"
"""Has suites of its own."""
STEP = 64 << 10
MAKERS = makers()


@pytest.fixture(scope="module", params=sorted(MAKERS))
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StoredImage:
    folder = tmp_path_factory.mktemp(request.param)
    made = MAKERS[request.param](folder)
    return StoredImage(made, folder_files(folder))


def test_every_format_has_a_maker() -> None:
    covered = {name.split("-")[0] for name in MAKERS}
    missing = {record.name for record in image_formats()} - covered - {NATIVE}
    assert not missing, f"a maker called NAME or NAME-VARIANT is needed for {missing}"


def view_of(layer: ImageLayer, disk: int, capacity: int = 1 << 20) -> ImageView:
    def find(_: object) -> ImageLayer:
        raise AssertionError("an image of another tool has no ancestors for the chain")

    return ImageView(Chain(layer, find), BlockCache(capacity), disk=disk)


def test_content_tells_the_format(image: StoredImage) -> None:
    with closing(image.storage().open(image.made.name)) as device:
        sure = [record.name for record in image_formats() if not record.vague and record.probe(device)]
    with image.opened() as layer:
        assert layer.info.format == image.made.format
    assert len(sure) <= 1, "only one format may be sure of it"


def test_what_it_says_of_itself(image: StoredImage) -> None:
    with image.opened() as layer, image.opened() as again:
        assert layer.info == again.info, "opening twice tells the same"
        assert [disk.size for disk in layer.info.disks] == [len(disk) for disk in image.made.disks]
        assert {disk.sector_size for disk in layer.info.disks} == {image.made.sector_size}
        assert layer.ancestors() == Ancestry()
        for disk in layer.info.disks:
            assert disk.block_size.bit_count() == 1
            assert 512 <= disk.block_size <= 4 << 20
        assert list(layer.prove()) == []


def test_whole_disks(image: StoredImage) -> None:
    with image.opened() as layer:
        for number, truth in enumerate(image.made.disks):
            view = view_of(layer, number)
            for offset in range(0, len(truth), 1 << 20):
                size = min(1 << 20, len(truth) - offset)
                assert view.pread(offset, size) == truth[offset : offset + size], f"disk {number} at {offset}"


@pytest.mark.parametrize("capacity", [0, 1 << 20])
def test_any_range_from_many_threads(image: StoredImage, capacity: int) -> None:
    with image.opened(BlockCache(capacity)) as layer:
        views = [view_of(layer, number, capacity) for number in range(len(image.made.disks))]

        def work(seed: int) -> None:
            source = random.Random(seed)
            for _ in range(40):
                number = source.randrange(len(views))
                truth = image.made.disks[number]
                offset = source.randrange(len(truth) + 1)
                longest = source.choice([1, 512, 4096, STEP, 5 * STEP])
                size = min(source.randrange(longest + 1), len(truth) - offset)
                device = source.choice([views[number], layer.device(number)])  # type: ignore[attr-defined]
                assert device.pread(offset, size) == truth[offset : offset + size]

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(8)))


def test_extents_cover_and_never_call_data_a_hole(image: StoredImage) -> None:
    source = random.Random(1)
    with image.opened() as layer:
        for number, truth in enumerate(image.made.disks):
            view = view_of(layer, number)
            ranges = [(0, len(truth)), (0, 0), (len(truth), 0), (len(truth) - 1, 1)]
            for _ in range(40):
                offset = source.randrange(len(truth))
                ranges.append((offset, source.randrange(len(truth) - offset + 1)))
            for device in (view, layer.device(number)):  # type: ignore[attr-defined]
                for offset, size in ranges:
                    position = offset
                    for extent in device.extents(offset, size):
                        assert extent.offset == position
                        assert extent.length > 0
                        position = extent.end
                        if extent.kind is not ExtentKind.DATA:
                            assert not any(truth[extent.offset : extent.end]), extent
                    assert position == offset + size


def test_pieces_cover_the_range_by_blocks(image: StoredImage) -> None:
    with image.opened() as layer:
        for number, truth in enumerate(image.made.disks):
            block_size = layer.info.disks[number].block_size
            position = 0
            for piece in layer.pieces(number, 0, len(truth)):
                assert piece.offset == position
                position += piece.length
                if isinstance(piece.source, BlockRef):
                    assert piece.source.block == piece.offset // block_size
            assert position == len(truth)


def test_ranges_outside_are_refused(image: StoredImage) -> None:
    with image.opened() as layer:
        for number, truth in enumerate(image.made.disks):
            for device in (view_of(layer, number), layer.device(number)):  # type: ignore[attr-defined]
                for offset, size in ((-1, 1), (0, -1), (0, len(truth) + 1), (len(truth), 1), (1 << 62, 1)):
                    with pytest.raises(UsageError):
                        device.pread(offset, size)
                    with pytest.raises(UsageError):
                        list(device.extents(offset, size))


def served(image: StoredImage, content: bytes) -> list[str]:
    """Open other content in the place of the image and read everything; what was served and is wrong.

    Errors of ours are right answers. Whatever happens, nothing may stay open.
    """
    storage = image.storage(content)
    wrong: list[str] = []
    try:
        layer = open_stored(storage, image.made)
    except MountfsError:
        assert not storage.left_open(), "what fails to open closes what it opened"
        return []
    with closing(layer):
        sizes = [disk.size for disk in layer.info.disks]
        if sizes != [len(disk) for disk in image.made.disks]:
            wrong.append(f"the disks have {sizes} bytes")
        for number, truth in enumerate(image.made.disks[: len(sizes)]):
            wrong += wrong_blocks(view_of(layer, number), truth)
    assert not storage.left_open(), "closing closes everything"
    return wrong


def wrong_blocks(view: ImageView, truth: bytes) -> list[str]:
    wrong: list[str] = []
    for offset in range(0, min(len(truth), view.size), STEP):
        size = min(STEP, view.size - offset)
        try:
            data = view.pread(offset, size)
        except MountfsError:
            continue
        assert len(data) == size
        if data != truth[offset : offset + size]:
            wrong.append(f"wrong bytes at {offset}")
    return wrong


def test_a_cut_file_is_an_error_or_serves_what_is_there(image: StoredImage) -> None:
    content, source = image.content, random.Random(2)
    lengths = {0, 1, 511, 512, len(content) // 2, len(content) - 1, len(content) - 512}
    lengths |= {source.randrange(len(content)) for _ in range(24)}
    for length in sorted(length for length in lengths if 0 <= length < len(content)):
        wrong = served(image, content[:length])
        if image.made.cut_is_noticed:
            assert not wrong, f"cut to {length} bytes: {wrong}"


def places(image: StoredImage, count: int) -> list[int]:
    """Bytes to change: of the structures and of what is proven, else of the whole file."""
    source = random.Random(3)
    ranges = [*image.made.structures, *image.made.proven] or [(0, min(4096, len(image.content)))]
    found = [source.randrange(*source.choice(ranges)) for _ in range(count)]
    return found + [source.randrange(len(image.content)) for _ in range(count // 4)]


def test_a_changed_byte_is_an_error_or_harmless(image: StoredImage) -> None:
    source = random.Random(4)
    for place in places(image, 60):
        changed = bytearray(image.content)
        changed[place] ^= source.choice([0x01, 0x80, 0xFF, 1 << source.randrange(8)])
        wrong = served(image, bytes(changed))
        if any(start <= place < end for start, end in image.made.proven):
            assert not wrong, f"byte {place} changed: {wrong}"


def test_all_is_closed(image: StoredImage) -> None:
    storage = image.storage()
    layer = open_stored(storage, image.made)
    for number, truth in enumerate(image.made.disks):
        view_of(layer, number).pread(0, min(STEP, len(truth)))
    layer.close()
    assert not storage.left_open()
    layer.close()


def test_a_failing_storage_is_an_error_and_leaves_nothing_open(image: StoredImage) -> None:
    storage = image.storage()
    with closing(open_stored(storage, image.made)):
        needed = storage.reads
    source = random.Random(5)
    for number in sorted({0, needed - 1, *(source.randrange(needed) for _ in range(12))}):
        storage = image.storage()
        storage.fail_at = number
        try:
            layer = open_stored(storage, image.made)
        except MountfsError:
            pass
        else:
            with closing(layer):
                any_read_fails(layer, image.made)
        assert not storage.left_open(), f"failed at read {number}"
    storage = image.storage()
    storage.fail_at = needed
    with closing(open_stored(storage, image.made)) as layer:
        assert any_read_fails(layer, image.made)


def any_read_fails(layer: ImageLayer, made: MadeImage) -> bool:
    """Read everything while the storage fails: right bytes or errors, never zeros in the place of data."""
    failed = False
    for number, truth in enumerate(made.disks):
        view = view_of(layer, number)
        for offset in range(0, len(truth), STEP):
            size = min(STEP, len(truth) - offset)
            try:
                assert view.pread(offset, size) == truth[offset : offset + size]
            except MountfsError:
                failed = True
    return failed


def test_foreign_bytes_are_no_image(image: StoredImage) -> None:
    """The name alone does not make an image: noise is an error, unless the format has no signs at all."""
    if image.made.format == "raw":
        return
    noise = random.Random(6).randbytes(1 << 16)
    with pytest.raises(ImageError):
        open_stored(image.storage(noise), image.made)
