"""Random excluded content over chains of images: it is an error to read it, and all else is what it was.

The oracle says of each piece of a disk whether it is in use, free or excluded, and knows nothing of extents.
"""

from __future__ import annotations

import contextlib
import random
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.backup import BackupOptions, backup
from engine.convert import convert_points
from engine.restore import restore
from engine.verify import verify
from golden.chains import MemorySource, mixed_disk
from golden.second_reader import EXCLUDED, ExcludedBlockError, Folder
from imageformat.errors import CorruptImageError, ExcludedError, UnsupportedFeatureError
from imageformat.extent import Extent, ExtentKind
from imageformat.formats.native import structs
from imageformat.formats.native.structs import Header, State
from imageformat.formats.native.writer import NativeWriter
from imageformat.layer import ImageType
from imageformat.leftout import EXCLUDED_KEY, LeftOut, record_of
from imageformat.repository import Point, Repository
from imageformat.storage.memory import MemoryStorage
from imageformat.view import ImageView
from property.test_unused_blocks import BLOCK, STEP, MemoryTarget

USED, FREE, OUT = "used", "free", "excluded"
PIECES = BLOCK // STEP
PATTERN = "*.iso"

runs = st.lists(st.tuples(st.integers(1, 20), st.sampled_from((USED, FREE, OUT))), min_size=1, max_size=12)


def told(cells: list[str], size: int, what: str, kind: ExtentKind) -> list[Extent]:
    return [
        Extent(at * STEP, min(STEP, size - at * STEP), kind) for at, cell in enumerate(cells) if cell == what
    ]


def add(repository: Repository, disk: bytes, cells: list[str], kind: ImageType, *, holes: bool) -> None:
    has_any = OUT in cells
    backup(
        MemorySource(disk, holes=holes),
        repository,
        "s",
        BackupOptions(type=kind, block_size=BLOCK, threads=1),
        origin={"source": "x", EXCLUDED_KEY: record_of([LeftOut(0, PATTERN, 1, STEP)])},
        unused=told(cells, len(disk), FREE, ExtentKind.UNUSED),
        excluded=told(cells, len(disk), OUT, ExtentKind.EXCLUDED) if has_any else None,
    )


@given(
    st.lists(st.tuples(runs, st.booleans(), st.sampled_from(tuple(ImageType))), min_size=1, max_size=4),
    st.integers(1, 6),
    st.sampled_from((0, 512, 1000)),
    st.integers(0, 1 << 32),
)
def test_excluded_content_is_an_error_and_nothing_else_is_lost(
    steps: list[tuple[list[tuple[int, str]], bool, ImageType]], blocks: int, tail: int, seed: int
) -> None:
    storage, points, chance = MemoryStorage(), [], random.Random(seed)
    disk = bytes(mixed_disk(chance, blocks, tail))
    with contextlib.closing(Repository(storage)) as repository:
        for number, (lengths, holes, kind) in enumerate(steps):
            at = chance.randrange(len(disk))
            disk = disk[:at] + chance.randbytes(min(3000, len(disk) - at)) + disk[at + 3000 :]
            cells = [what for length, what in lengths for _ in range(length)]
            cells = (cells + [USED] * (len(disk) // STEP + 1))[: -(-len(disk) // STEP)]
            add(repository, disk, cells, kind if number else ImageType.FULL, holes=holes)
            points.append((disk, cells, holes))
        found = sorted(repository.image_set("s").points, key=lambda point: point.number)
        assert all(not report.damages for report in verify(repository, found))
        for point, model in zip(found, points, strict=True):
            check(ImageView(repository.chain(point), repository.cache), *model)
        check_second_reader(repository, storage, found)
        with contextlib.closing(Repository(MemoryStorage())) as other:
            converted = convert_points(
                found,
                lambda point: ImageView(repository.chain(point), repository.cache),
                other,
                "c",
                BackupOptions(block_size=BLOCK, threads=1),
                writer="test",
            )
            roots = [entry.result.info.root for entry in converted if entry.result]
        assert roots == [point.info.root for point in found if point.info]


def check(view: ImageView, disk: bytes, cells: list[str], holes: bool) -> None:
    target = MemoryTarget(len(disk))
    restore(view, target, threads=1)
    for at in range(0, len(disk), BLOCK):
        here = disk[at : at + BLOCK]
        kinds = set(cells[at // STEP : at // STEP + PIECES])
        (extent,) = view.extents(at, len(here))
        if OUT in kinds and USED not in kinds and any(here):
            assert extent.kind is ExtentKind.EXCLUDED or holes
        if extent.kind is ExtentKind.EXCLUDED:
            assert USED not in kinds
            assert OUT in kinds
            with pytest.raises(ExcludedError, match=r"left out of the image by --exclude \*\.iso"):
                view.pread(at, 1)
            assert not any(target.content[at : at + len(here)])
            continue
        got = view.pread(at, len(here))
        assert got == target.content[at : at + len(here)]
        if extent.kind is not ExtentKind.UNUSED:
            for piece in range(0, len(here), STEP):
                if cells[(at + piece) // STEP] != FREE:
                    assert got[piece : piece + STEP] == here[piece : piece + STEP]


def check_second_reader(repository: Repository, storage: MemoryStorage, points: list[Point]) -> None:
    files = {}
    for entry in storage.objects("s/"):
        with contextlib.closing(storage.open(entry.key)) as device:
            files[entry.key] = device.pread(0, device.size)
    for mine, other in zip(points, Folder(files).points(), strict=True):
        assert mine.info is not None
        assert other.computed_root() == other.image.root == mine.info.root
        other.check_digests()
        assert other.own_counts() == other.image.counts
        view = ImageView(repository.chain(mine), repository.cache)
        for block, state in enumerate(other.states()):
            is_excluded = next(view.extents(block * BLOCK, 1)).kind is ExtentKind.EXCLUDED
            assert (state == EXCLUDED) == is_excluded
            if is_excluded:
                with pytest.raises(ExcludedBlockError):
                    other.content(block)


def header(incompatible: int, blocks: int) -> Header:
    return Header(
        image_id=uuid.uuid4(),
        set_id=uuid.uuid4(),
        type=ImageType.FULL,
        number=1,
        created_ns=1,
        disk_size=blocks * BLOCK,
        sector_size=512,
        block_size=BLOCK,
        incompatible=incompatible,
        extensions=(structs.EXCLUDED_FILES_NAME,),
    )


def commit_and_read(writer: NativeWriter, storage: MemoryStorage) -> None:
    """Publishing reads the end back; the start may be refused only when it is read."""
    writer.commit()
    with contextlib.closing(Repository(storage)) as repository:
        (point,) = repository.image_set("s").points
        ImageView(repository.chain(point), repository.cache).pread(0, 1)


@pytest.mark.parametrize("excluded", [3, 600])
@pytest.mark.parametrize("blocks", [3, 600])
def test_the_state_is_legal_only_with_its_feature(blocks: int, excluded: int) -> None:
    excluded = min(excluded, blocks)
    for incompatible, is_legal in ((structs.EXCLUDED_FILES, True), (0, False)):
        storage = MemoryStorage()
        target = storage.create("s/0001-full.mfi")
        writer = NativeWriter(target, header(incompatible, blocks))
        writer.fill(0, excluded, State.EXCLUDED)
        writer.fill(excluded, blocks - excluded, State.ZERO)
        if is_legal:
            assert writer.commit().details["excluded_blocks"] == excluded
            continue
        with pytest.raises(CorruptImageError, match="illegal"):
            commit_and_read(writer, storage)


def test_who_does_not_know_it_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = structs.pack_header(header(structs.EXCLUDED_FILES, 1))
    monkeypatch.setattr(structs, "KNOWN_INCOMPATIBLE", 3)
    with pytest.raises(UnsupportedFeatureError, match="needs excluded files"):
        structs.unpack_header(raw, "image")
