"""Macrium sets that grow, are merged and split, at random: every point reads back as it was."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from imageformat.cache import BlockCache
from imageformat.chain import Chain
from imageformat.extent import ExtentKind
from imageformat.formats import open_image
from imageformat.formats.mrimgx import index
from imageformat.layer import ImageType, Opening
from imageformat.secrets import Secrets
from imageformat.siblings import Siblings
from imageformat.storage.memory import MemoryStorage
from imageformat.view import ImageView
from support.content import mixture, noise
from support.mrimgx import Disk, MacriumSet, Part, Written

if TYPE_CHECKING:
    from imageformat.layer import ImageLayer

KIB = 1024
PAGES = st.sampled_from([1, 3, 2048])
SECRETS = Secrets((b"wrong", b"geheim"))


def stored(files: dict[str, bytes]) -> MemoryStorage:
    storage = MemoryStorage()
    for name, content in files.items():
        storage.publish(name, content)
    return storage


def opened(storage: MemoryStorage, name: str) -> ImageLayer:
    siblings = Siblings(storage, name)
    return open_image(Opening(storage.open(name), name, BlockCache(0), siblings, SECRETS))


def no_ancestor(_: object) -> ImageLayer:
    raise AssertionError("an image of another tool has no ancestors for the chain")


def check_point(storage: MemoryStorage, point: Written) -> None:
    with closing(opened(storage, point.name)) as layer:
        assert layer.info.number == point.increment + 1
        assert layer.info.created_ns == (1_700_000_000 + 3600 * point.increment) * 10**9
        assert list(layer.prove()) == []
        for number, truth in enumerate(point.truth):
            view = ImageView(Chain(layer, no_ancestor), BlockCache(1 << 20), disk=number)
            assert view.size == len(truth)
            assert view.pread(0, view.size) == truth, f"{point.name}: disk {number}"
            position = 0
            for extent in view.extents(0, view.size):
                assert extent.offset == position
                position = extent.end
                if extent.kind is not ExtentKind.DATA:
                    assert not any(truth[extent.offset : extent.end])
            assert position == view.size


def check_points(made: MacriumSet, page: int) -> None:
    """Read every point, with pages of the index so small that there are several."""
    storage = stored(made.files)
    with mock.patch.object(index, "PAGE", page):
        for point in made.points:
            check_point(storage, point)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Disk, ...]:
    disks = []
    for number in range(draw(st.integers(1, 2))):
        start = draw(st.sampled_from([17408, 32256, 64 * KIB, 1 << 20]))
        parts = []
        for place in range(draw(st.integers(1, 2))):
            block = draw(st.sampled_from([4 * KIB, 16 * KIB, 64 * KIB, 12 * KIB]))
            reserved = draw(st.sampled_from([0, 0, 512, 5 * 512, 33 * KIB]))
            length = reserved + draw(st.integers(1, 24)) * block // 2
            length -= length % 512
            parts.append(Part(start, max(length, reserved + 512), place, block, reserved, label=f"V{place}"))
            start = parts[-1].start + parts[-1].length + draw(st.sampled_from([0, 512, 64 * KIB]))
        size = start + draw(st.sampled_from([0, 512, 100 * KIB]))
        content = bytearray(mixture(draw(st.integers(0, 99)), size, unit=2048))
        is_mbr = draw(st.booleans())
        records = (start - 512,) if is_mbr and draw(st.booleans()) else ()
        style = "mbr" if is_mbr else "gpt"
        disks.append(Disk(content, tuple(parts), number * 3 + 1, style, records))
    return tuple(disks)


def change(data: st.DataObject, disks: tuple[Disk, ...], seed: int) -> None:
    """Write to, and clear, places anywhere."""
    for disk in disks:
        for at in range(data.draw(st.integers(0, 3))):
            offset = data.draw(st.integers(0, len(disk.content) - 1))
            size = min(data.draw(st.sampled_from([1, 512, 30 * KIB, 200 * KIB])), len(disk.content) - offset)
            clear = data.draw(st.booleans())
            disk.content[offset : offset + size] = bytes(size) if clear else noise(seed * 10 + at, size)


@settings(max_examples=60, deadline=None)
@given(
    disks=layouts(),
    compression=st.sampled_from(["none", "medium", "high"]),
    aes=st.sampled_from(["none", "none", "aes-128", "aes-192", "aes-256"]),
    store_zeros=st.booleans(),
    page=PAGES,
    data=st.data(),
)
def test_every_point_of_any_set(
    disks: tuple[Disk, ...], compression: str, aes: str, store_zeros: bool, page: int, data: st.DataObject
) -> None:
    made = MacriumSet(disks, compression=compression, aes=aes, store_zeros=store_zeros)
    made.full(parts=data.draw(st.integers(1, 3)), shuffle=data.draw(st.booleans()))
    for step in range(data.draw(st.integers(0, 4))):
        change(data, disks, step + 1)
        options = {"parts": data.draw(st.sampled_from([1, 1, 2])), "shuffle": data.draw(st.booleans())}
        match data.draw(st.sampled_from(["delta", "delta", "complete", "diff"])):
            case "delta":
                made.incremental(**options)
            case "complete":
                made.incremental(delta=False, **options)
            case _:
                made.differential(**options)
    check_points(made, page)


@settings(max_examples=40, deadline=None)
@given(
    disks=layouts(),
    aes=st.sampled_from(["none", "aes-256"]),
    keep=st.booleans(),
    page=PAGES,
    data=st.data(),
)
def test_merged_files(disks: tuple[Disk, ...], aes: str, keep: bool, page: int, data: st.DataObject) -> None:
    made = MacriumSet(disks, aes=aes)
    made.full()
    count = data.draw(st.integers(2, 5))
    for step in range(count):
        change(data, disks, step + 1)
        made.incremental()
    if data.draw(st.booleans()):
        first = data.draw(st.integers(1, count - 1))
        last = data.draw(st.integers(first + 1, count))
        made.merge_deltas(first, last, keep_first=keep)
    else:
        made.merge_full(data.draw(st.integers(1, count)), keep_first=keep)
    check_points(made, page)


def test_what_each_point_is_called() -> None:
    disk = Disk(bytearray(noise(1, 1 << 20)), (Part(64 * KIB, 512 * KIB, label="Daten"),))
    made = MacriumSet((disk,))
    made.full()
    for kind in ("inc", "diff", "inc-complete"):
        disk.content[100 * KIB : 101 * KIB] = noise(len(kind), KIB)
        if kind == "diff":
            made.differential()
        else:
            made.incremental(delta=kind == "inc")
    storage = stored(made.files)
    infos = []
    for point in made.points:
        with closing(opened(storage, point.name)) as layer:
            infos.append(layer.info)
    kinds = [ImageType.FULL, ImageType.INCREMENTAL, ImageType.DIFFERENTIAL, ImageType.INCREMENTAL]
    assert [info.type for info in infos] == kinds
    assert [info.number for info in infos] == [1, 2, 3, 4]
    assert len({info.set_id for info in infos}) == 1
    assert len({info.id for info in infos}) == 4
    assert [info.details["data_blocks"] for info in infos] == [8, 1, 1, 1]
    assert {info.details["label"] for info in infos} == {"Daten"}
    assert {info.details["host"] for info in infos} == {"WORKSTATION"}
    assert "example.org" not in str(infos)
