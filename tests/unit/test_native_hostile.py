"""Native images written by a forger: checksums agree, the content lies. Right bytes, or an error."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engine.verify import verify
from golden.chains import (
    BLOCK,
    SET,
    MadeChain,
    change,
    make_chain,
    points_by_key,
    read_point,
    repository_with,
)
from imageformat.cache import BlockCache
from imageformat.chain import Chain
from imageformat.codec import digest
from imageformat.device import MemoryDevice
from imageformat.errors import CorruptImageError, MountfsError
from imageformat.formats.native.index import logical_root, page_digest
from imageformat.formats.native.reader import open_native, scan_frames
from imageformat.formats.native.structs import (
    DIRECTORY_RECORD_SIZE,
    FOOTER_SIZE,
    FRAME_HEADER_SIZE,
    HEADER_SIZE,
    RECORD_SIZE,
    FrameHeader,
    FrameKind,
    Header,
    State,
    fill_record,
    pack_frame,
    unpack_footer,
    unpack_header,
)
from imageformat.layer import (
    Ancestor,
    Ancestry,
    DiskInfo,
    Fill,
    ImageInfo,
    ImageLayer,
    ImageType,
    Older,
    Piece,
)
from imageformat.view import ImageView
from support.forge import forge

BLOCKS = 300
FULL, INC = 0, 1


def _made() -> MadeChain:
    """A full whose index has two levels, and an increment that changes its second leaf only."""
    chance = random.Random(5)
    disk = bytearray(chance.randbytes(64) * (BLOCKS * BLOCK // 64))
    for block in range(BLOCKS):
        disk[block * BLOCK : block * BLOCK + 8] = block.to_bytes(8, "little")
    disk[20 * BLOCK : 30 * BLOCK] = bytes(10 * BLOCK)
    return make_chain(
        [(ImageType.FULL, bytes(disk)), (ImageType.INCREMENTAL, change(chance, bytes(disk), 280, 2))]
    )


MADE = _made()


def files_with(which: int, image: bytes) -> dict[str, bytes]:
    return {**MADE.files, MADE.keys[which]: image}


def outcome(files: dict[str, bytes], which: int) -> bytes | MountfsError:
    """What a reader gets of a point."""
    with repository_with(files) as repository:
        try:
            return read_point(repository, points_by_key(repository)[MADE.keys[which]])
        except MountfsError as error:
            return error


def blockwise(files: dict[str, bytes], which: int) -> Iterator[tuple[int, bytes | MountfsError]]:
    """What a reader gets of a point, block by block."""
    with repository_with(files) as repository:
        try:
            view = ImageView(repository.chain(points_by_key(repository)[MADE.keys[which]]), repository.cache)
        except MountfsError as error:
            yield 0, error
            return
        for offset in range(0, view.size, BLOCK):
            try:
                yield offset, view.pread(offset, min(BLOCK, view.size - offset))
            except MountfsError as error:
                yield offset, error


def damages(files: dict[str, bytes], which: int) -> list[str]:
    """What `verify` says of a file."""
    with repository_with(files) as repository:
        point = points_by_key(repository)[MADE.keys[which]]
        return [damage.message for report in verify(repository, [point]) for damage in report.damages]


def test_forging_nothing_changes_nothing() -> None:
    for which in (FULL, INC):
        same = files_with(which, forge(MADE.files[MADE.keys[which]]))
        assert outcome(same, which) == MADE.disks[which]
        assert damages(same, which) == []


def patched(level: int, page: int, record: int, at: int, new: bytes) -> Callable[[int, int, bytes], bytes]:
    """A change of some bytes of one record of one index page."""
    step = DIRECTORY_RECORD_SIZE if level else RECORD_SIZE

    def apply(kind: int, number: int, raw: bytes) -> bytes:
        if kind != FrameKind.PAGE or number != level << 56 | page:
            return raw
        start = record * step + at
        return raw[:start] + new + raw[start + len(new) :]

    return apply


ILLEGAL = {
    "state 0": (0, 0, 3, 28, b"\0"),
    "state 6": (0, 0, 3, 28, b"\6"),
    "a page in a leaf": (0, 0, 3, 28, bytes([State.PAGE])),
    "data in a directory": (1, 0, 0, 28, bytes([State.DATA])),
    "a younger layer": (0, 0, 3, 29, b"\1\0\0"),
    "a layer of two bytes": (0, 0, 3, 29, b"\0\1\0"),
    "a layer of three bytes": (0, 0, 3, 29, b"\0\0\1"),
    "a younger layer in a directory": (1, 0, 0, 29, b"\1\0\0"),
    "a data block told as zeros": (0, 0, 3, 28, bytes([State.ZERO])),
    "zeros told as unreadable": (0, 0, 22, 28, bytes([State.BAD])),
    "zeros told as unused": (0, 0, 22, 28, bytes([State.UNUSED])),
    "a page of data told as zeros": (1, 0, 0, 0, fill_record(State.ZERO, 0)),
    "a frame in the header": (0, 0, 3, 16, (100).to_bytes(8, "little")),
    "a frame behind the end": (0, 0, 3, 16, (1 << 40).to_bytes(8, "little")),
    "an endless frame": (0, 0, 3, 24, b"\xff\xff\xff\xff"),
    "a frame of no bytes": (0, 0, 3, 24, b"\0\0\0\0"),
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_an_illegal_or_lying_record_is_an_error_and_verify_finds_it(name: str) -> None:
    files = files_with(FULL, forge(MADE.files[MADE.keys[FULL]], patched(*ILLEGAL[name])))
    assert isinstance(outcome(files, FULL), CorruptImageError)
    assert damages(files, FULL)
    wrong = [
        offset
        for offset, got in blockwise(files, FULL)
        if not isinstance(got, CorruptImageError) and got != MADE.disks[FULL][offset : offset + BLOCK]
    ]
    assert wrong == []


def test_an_inherited_page_must_be_the_one_that_the_root_names() -> None:
    """A child that says of its first leaf one thing in its root and points to another in its parent."""
    other = change(random.Random(9), MADE.disks[FULL], 5)
    liar = make_chain(
        [(ImageType.FULL, other), (ImageType.INCREMENTAL, change(random.Random(1), other, 280))]
    )
    full = unpack_footer(MADE.files[MADE.keys[FULL]][-FOOTER_SIZE:], len(MADE.files[MADE.keys[FULL]]), "")
    with contextlib.closing(native(MADE.files[MADE.keys[FULL]])) as layer:
        directory = layer.page(full.top, 1, 0, layer.geometry.page_size(1, 0))
    truth = directory[:RECORD_SIZE]

    def point_elsewhere(kind: int, number: int, raw: bytes) -> bytes:
        if kind == FrameKind.ANCESTORS:
            return MADE_ANCESTRY.packed
        if kind == FrameKind.PAGE and number == 1 << 56:
            return truth + raw[RECORD_SIZE:]
        return raw

    parent = unpack_header(MADE.files[MADE.keys[FULL]][:HEADER_SIZE], "")

    def adopt(header: Header) -> Header:
        return replace(header, set_id=parent.set_id, parent_id=parent.image_id, parent_root=full.root)

    forged = forge(liar.files[liar.keys[INC]], point_elsewhere, header=adopt)
    files = {MADE.keys[FULL]: MADE.files[MADE.keys[FULL]], MADE.keys[INC]: forged}
    with repository_with(files) as repository:
        point = points_by_key(repository)[MADE.keys[INC]]
        assert point.problem is None, "the lie is deeper than what opening looks at"
        view = ImageView(repository.chain(point), repository.cache)
        with pytest.raises(CorruptImageError, match="not what the root names"):
            view.pread(5 * BLOCK, BLOCK)


def native(image: bytes) -> ImageLayer:
    return open_native(MemoryDevice(image), "image", BlockCache(0))  # type: ignore[return-value]


MADE_ANCESTRY = native(MADE.files[MADE.keys[INC]]).ancestors()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_byte_of_any_page_may_lie(data: st.DataObject) -> None:
    which = data.draw(st.sampled_from([FULL, INC]))
    level, page = data.draw(st.sampled_from([(0, 0), (0, 1), (1, 0)] if which == FULL else [(0, 1), (1, 0)]))
    records = 2 if level else (256, BLOCKS - 256)[page]
    record = data.draw(st.integers(0, records - 1))
    at = data.draw(st.integers(0, (DIRECTORY_RECORD_SIZE if level else RECORD_SIZE) - 1))
    flip = data.draw(st.integers(1, 255))
    step = DIRECTORY_RECORD_SIZE if level else RECORD_SIZE

    def lie(kind: int, number: int, raw: bytes) -> bytes:
        if kind != FrameKind.PAGE or number != level << 56 | page:
            return raw
        changed = bytearray(raw)
        changed[record * step + at] ^= flip
        return bytes(changed)

    files = files_with(which, forge(MADE.files[MADE.keys[which]], lie))
    for offset, got in blockwise(files, which):
        if not isinstance(got, MountfsError):
            assert got == MADE.disks[which][offset : offset + BLOCK]
    assert damages(files, which)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(block=st.integers(0, BLOCKS - 1), at=st.integers(0, BLOCK - 1), flip=st.integers(1, 255))
def test_a_block_that_was_exchanged_with_all_its_checksums_is_refused(block: int, at: int, flip: int) -> None:
    def lie(kind: int, number: int, raw: bytes) -> bytes:
        if kind != FrameKind.BLOCK or number != block:
            return raw
        changed = bytearray(raw)
        changed[at] ^= flip
        return bytes(changed)

    if any(MADE.disks[FULL][block * BLOCK : block * BLOCK + BLOCK]):
        files = files_with(FULL, forge(MADE.files[MADE.keys[FULL]], lie))
        got = dict(blockwise(files, FULL))[block * BLOCK]
        assert isinstance(got, CorruptImageError)


def test_a_forger_who_makes_a_new_root_is_refused_by_the_child() -> None:
    def lie(kind: int, number: int, raw: bytes) -> bytes:
        return raw[:-1] + b"!" if kind == FrameKind.BLOCK and number == 4 else raw

    image = MADE.files[MADE.keys[FULL]]
    leaves: dict[int, bytes] = {}

    def with_digests(kind: int, number: int, raw: bytes) -> bytes:
        raw = lie(kind, number, raw)
        if kind == FrameKind.PAGE and number >> 56 == 0:
            leaves[number] = page_digest(raw, 0)
        if kind == FrameKind.PAGE and number == 1 << 56:
            raw = b"".join(raw[at : at + 32] + leaves[at // 64] for at in range(0, len(raw), 64))
            leaves[-1] = page_digest(raw, 1)
        return raw

    forge(image, with_digests)
    with contextlib.closing(native(image)) as layer:
        root = logical_root(layer.geometry, leaves[-1])  # type: ignore[attr-defined]
    forged = forge(image, with_digests, top=lambda top: top[:32] + leaves[-1], root=root)
    files = files_with(FULL, forged)
    assert isinstance(outcome(files, FULL), bytes), "alone it is a sound image of another disk"
    assert isinstance(outcome(files, INC), MountfsError)


BAD_HEADERS: dict[str, Callable[[Header], Header]] = {
    "number 0": lambda header: replace(header, number=0),
    "a full with a parent root": lambda header: replace(header, parent_root=b"x" * 32),
    "a full with a parent": lambda header: replace(header, parent_id=uuid4()),
    "a full with a depth": lambda header: replace(header, depth=1),
    "an increment without a parent": lambda header: replace(header, type=ImageType.INCREMENTAL),
    "no id": lambda header: replace(header, image_id=UUID(int=0)),
    "odd blocks": lambda header: replace(header, block_size=4097),
    "small blocks": lambda header: replace(header, block_size=2048),
    "large blocks": lambda header: replace(header, block_size=8 << 20),
    "odd sectors": lambda header: replace(header, sector_size=513),
    "large sectors": lambda header: replace(header, sector_size=8192),
    "a disk too large": lambda header: replace(header, disk_size=(1 << 60) + 1),
    "another disk": lambda header: replace(header, disk_size=header.disk_size + (1 << 40)),
    "small pages": lambda header: replace(header, page_bits=3),
    "large pages": lambda header: replace(header, page_bits=13),
    "a chain too long": lambda header: replace(header, depth=1025, type=ImageType.INCREMENTAL),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_header_that_breaks_a_rule_is_damaged(name: str) -> None:
    forged = forge(MADE.files[MADE.keys[FULL]], header=BAD_HEADERS[name])
    with pytest.raises(CorruptImageError):
        native(forged)


def test_a_scan_does_not_believe_a_length() -> None:
    """Headers that claim mebibytes cost a look each, not what they claim."""

    class Counting(MemoryDevice):
        seen = 0

        def pread(self, offset: int, size: int) -> bytes:
            Counting.seen += size
            return super().pread(offset, size)

    image_id = b"i" * 16
    claimed = pack_frame(FrameHeader(FrameKind.BLOCK, 0, 0, 4096, 1, image_id, bytes(16)), b"")
    liar = claimed[:8] + (15 << 20).to_bytes(4, "little") + claimed[12:]
    sound = pack_frame(FrameHeader(FrameKind.BLOCK, 0, 5, 5, 7, image_id, digest(b"right")), b"right")
    filler = bytes(16 << 20)
    device = Counting(bytes(HEADER_SIZE) + liar * 16 + sound + filler)
    found = list(scan_frames(device, image_id))
    assert [(header.number, header.payload_length) for _, header in found] == [(7, 5)]
    assert Counting.seen < len(filler) + (2 << 20)


class Redirecting:
    """A layer of some format that knows nothing and asks the one below it."""

    def __init__(self, depth: int, line: Ancestry) -> None:
        disks = (DiskInfo(BLOCK, BLOCK),)
        self.info = ImageInfo(
            "x", UUID(int=depth + 1), UUID(int=9), ImageType.FULL, 1, 0, disks, b"r" * 32, depth=depth
        )
        self._line = line

    def pieces(
        self, _disk: int, offset: int, size: int, _ancestor: Callable[[int], ImageLayer] | None = None
    ) -> Iterator[Piece]:
        below = Older(self.info.depth - 1) if self.info.depth else Fill.ZERO
        for start in range(offset, offset + size, 1024):
            yield Piece(start, min(1024, offset + size - start), below, 0)

    def ancestors(self) -> Ancestry:
        return self._line


def test_a_thousand_redirections_are_followed_without_recursion() -> None:
    line = Ancestry()
    layers = []
    for depth in range(1001):
        layers.append(Redirecting(depth, line))
        line = line.followed_by(Ancestor(UUID(int=depth + 1), b"r" * 32))
    by_id = {layer.info.id: layer for layer in layers}
    chain = Chain(layers[-1], lambda wanted: by_id[wanted.id])  # type: ignore[arg-type,return-value]
    resolved = list(chain.resolve(0, 100, 3000))
    assert resolved[0][:2] == (100, 1024)
    assert sum(length for _, length, *_ in resolved) == 3000
    assert {source for _, _, source, _ in resolved} == {Fill.ZERO}


@pytest.mark.parametrize("target", [7, 5])
def test_a_layer_that_refers_to_itself_or_a_younger_one_is_refused(target: int) -> None:
    class Circular(Redirecting):
        def pieces(self, _disk: int, offset: int, size: int, _ancestor: object = None) -> Iterator[Piece]:
            yield Piece(offset, size, Older(target), 0)

    layer = Circular(5, Ancestry(b"a" * 48 * 5))
    chain = Chain(layer, lambda _: layer)  # type: ignore[arg-type,return-value]
    with pytest.raises(CorruptImageError, match="not older"):
        list(chain.resolve(0, 0, BLOCK))


BOMB = bytes.fromhex("28b52ffde0000000000001000001000000")
"""A zstd frame header that states 2^40 bytes and more."""


@pytest.mark.parametrize("payload", [BOMB, BOMB[:9], b"", b"\x28\xb5\x2f\xfd", bytes(64)])
def test_a_block_that_states_an_absurd_size_allocates_nothing(payload: bytes) -> None:
    image = MADE.files[MADE.keys[FULL]]
    frame_at = image.index(b"MFfr")
    header = FrameHeader(FrameKind.BLOCK, 1, len(payload), BLOCK, 0, image[48:64], bytes(16))
    frame = pack_frame(header, payload)
    end = frame_at + FRAME_HEADER_SIZE + int.from_bytes(image[frame_at + 8 : frame_at + 12], "little")
    assert len(frame) <= end - frame_at
    damaged = image[:frame_at] + frame + bytes(end - frame_at - len(frame)) + image[end:]
    got = dict(blockwise(files_with(FULL, damaged), FULL))
    assert isinstance(got[0], CorruptImageError)
    assert got[BLOCK] == MADE.disks[FULL][BLOCK : 2 * BLOCK]


def _sealed(body: bytes) -> bytes:
    return body[:-16] + digest(body[:-16])


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    which=st.sampled_from([FULL, INC]),
    in_footer=st.booleans(),
    changes=st.lists(
        st.tuples(st.integers(0, 560), st.sampled_from([1, 2, 128, 255])), min_size=1, max_size=3
    ),
)
@example(which=FULL, in_footer=True, changes=[(200, 0)])
def test_any_byte_of_header_and_footer_may_lie(
    which: int, in_footer: bool, changes: list[tuple[int, int]]
) -> None:
    """Right bytes or one of our errors, whatever they claim; memory is bounded by what is there."""
    image = MADE.files[MADE.keys[which]]
    header, footer = bytearray(image[:HEADER_SIZE]), bytearray(image[-FOOTER_SIZE:])
    part = footer if in_footer else header
    for at, flip in changes:
        part[at % (len(part) - 16)] ^= flip
    sealed = _sealed(bytes(header))
    footer[200:216] = digest(sealed)
    forged = sealed + image[HEADER_SIZE:-FOOTER_SIZE] + _sealed(bytes(footer))
    with repository_with(files_with(which, forged)) as repository:
        for point in repository.image_set(SET).points:
            if point.key != MADE.keys[which]:
                continue
            with contextlib.suppress(MountfsError):
                view = ImageView(repository.chain(point), repository.cache)
                for offset in range(0, min(view.size, 2 << 20), 64 << 10):
                    with contextlib.suppress(MountfsError):
                        size = min(64 << 10, view.size - offset)
                        assert view.pread(offset, size) == MADE.disks[which][offset : offset + size]
        list(verify(repository, repository.image_set(SET).points))
