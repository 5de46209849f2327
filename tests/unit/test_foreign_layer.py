"""A disk of another tool as a layer: every range of it, through the view, against the device itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imageformat.cache import BlockCache
from imageformat.chain import Chain
from imageformat.codec import digest
from imageformat.device import MemoryDevice, check_range
from imageformat.errors import CorruptImageError, UnreadableBlockError
from imageformat.extent import Extent, ExtentKind, clip, coalesce
from imageformat.foreign import ForeignDisk, ForeignImage, ForeignLayer
from imageformat.layer import BlockRef, refuse_difference
from imageformat.view import ImageView
from support.content import noise

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 4096
KINDS = {0: ExtentKind.ZERO, 1: ExtentKind.UNUSED, 2: ExtentKind.DATA}


class Patchwork(MemoryDevice):
    """A device whose extents begin and end anywhere; what is no data reads as zeros."""

    def __init__(self, runs: list[tuple[int, int]]) -> None:
        self.runs: list[Extent] = []
        content = b""
        for length, kind in runs:
            self.runs.append(Extent(len(content), length, KINDS[kind]))
            content += noise(len(content), length) if kind == 2 else bytes(length)
        super().__init__(content, block_size=BLOCK)
        self.reads: list[tuple[int, int]] = []

    def pread(self, offset: int, size: int) -> bytes:
        self.reads.append((offset, size))
        return super().pread(offset, size)

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        check_range(self.size, offset, size)
        return coalesce(clip(iter(self.runs), offset, size))


def view_of(layer: ForeignLayer, disk: int = 0) -> ImageView:
    def find(_: object) -> ForeignLayer:
        raise AssertionError("it has no ancestors")

    return ImageView(Chain(layer, find), BlockCache(1 << 20), disk=disk)


RUNS = st.lists(
    st.tuples(st.one_of(st.integers(1, 3 * BLOCK), st.sampled_from([BLOCK, 2 * BLOCK])), st.integers(0, 2)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(runs=RUNS, data=st.data())
def test_every_range_is_the_devices_own(runs: list[tuple[int, int]], data: st.DataObject) -> None:
    device = Patchwork(runs)
    oracle = MemoryDevice.pread(device, 0, device.size)
    view = view_of(ForeignLayer("x", ForeignImage("test", (ForeignDisk(device),), b"id")))
    for _ in range(6):
        offset = data.draw(st.integers(0, device.size))
        size = data.draw(st.integers(0, device.size - offset))
        assert view.pread(offset, size) == oracle[offset : offset + size]
        extents = list(view.extents(offset, size))
        assert sum(extent.length for extent in extents) == size
        for extent in extents:
            if extent.kind is not ExtentKind.DATA:
                assert not any(oracle[extent.offset : extent.end])
    assert all(offset % BLOCK == 0 for offset, _ in device.reads), "only whole blocks are asked for"


def test_disks_of_one_image_are_told_apart() -> None:
    first, second = Patchwork([(3 * BLOCK + 7, 2)]), Patchwork([(BLOCK, 0), (2 * BLOCK, 2)])
    layer = ForeignLayer("x", ForeignImage("test", (ForeignDisk(first), ForeignDisk(second)), b"id"))
    cache = BlockCache(1 << 20)
    for number, device in enumerate((first, second)):
        view = ImageView(Chain(layer, lambda _: layer), cache, disk=number)
        assert view.pread(0, view.size) == MemoryDevice.pread(device, 0, device.size)


def test_neighbours_are_read_together() -> None:
    device = Patchwork([(64 * BLOCK, 2)])
    view_of(ForeignLayer("x", ForeignImage("test", (ForeignDisk(device),), b"id"))).pread(0, 64 * BLOCK)
    assert device.reads == [(0, 64 * BLOCK)]


def test_a_child_finds_out_that_the_file_was_changed() -> None:
    device = Patchwork([(2 * BLOCK, 2)])
    layer = ForeignLayer("x", ForeignImage("test", (ForeignDisk(device),), b"id"))
    right = BlockRef(0, BLOCK, BLOCK, 1, BLOCK, digest(device.pread(BLOCK, BLOCK)))
    assert layer.load((right,), refuse_difference) == (device.pread(BLOCK, BLOCK),)
    for wrong in (
        right._replace(digest=digest(b"other")),
        right._replace(offset=0),
        right._replace(offset=2 * BLOCK),
        right._replace(offset=1 << 60),
        right._replace(offset=-BLOCK),
        right._replace(raw_length=5),
    ):
        with pytest.raises(CorruptImageError):
            layer.load((wrong,), refuse_difference)


def test_unreadable_ranges_are_errors() -> None:
    device = Patchwork([(BLOCK, 2), (BLOCK, 1), (BLOCK, 2)])
    device.runs[1] = Extent(BLOCK, BLOCK, ExtentKind.BAD)
    view = view_of(ForeignLayer("x", ForeignImage("test", (ForeignDisk(device),), b"id")))
    assert view.pread(0, BLOCK)
    with pytest.raises(UnreadableBlockError):
        view.pread(BLOCK, 1)


def test_identity_follows_content() -> None:
    device = Patchwork([(BLOCK, 2)])
    infos = [
        ForeignLayer("x", ForeignImage("test", (ForeignDisk(device),), identity, set_identity=b"set")).info
        for identity in (b"a", b"a", b"b")
    ]
    assert infos[0] == infos[1]
    assert infos[0].id != infos[2].id
    assert infos[0].root != infos[2].root
    assert infos[0].set_id == infos[2].set_id


def test_checks_and_close() -> None:
    closed = []
    device = Patchwork([(BLOCK, 2)])
    image = ForeignImage(
        "test",
        (ForeignDisk(device),),
        b"id",
        checks=lambda: iter(["the stored hash differs"]),
        close=lambda: closed.append(1),
    )
    layer = ForeignLayer("x", image)
    assert list(layer.prove()) == ["the stored hash differs"]
    layer.close()
    layer.close()
    assert closed == [1]
