"""Runs against a model: a file as a plain array of bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageformat.device import MemoryDevice
from imageformat.errors import VolumeError
from imageformat.extent import ExtentKind
from mountfs.drivers._content import RunContent, RunList

VOLUME = bytes((index * 7 + index // 256) % 251 + 1 for index in range(5000))


@st.composite
def files(draw: st.DrawFn) -> tuple[RunList, bytes]:
    """A run list and the bytes that it means."""
    runs, content = RunList(), bytearray()
    for _ in range(draw(st.integers(0, 8))):
        content += bytes(draw(st.sampled_from([0, 0, 1, 100])))
        length = draw(st.integers(1, 300))
        source = draw(st.integers(0, len(VOLUME) - length))
        runs.add(len(content), length, source)
        content += VOLUME[source : source + length]
    size = draw(st.integers(max(0, len(content) - 50), len(content) + 400))
    return runs, bytes(content[:size].ljust(size, b"\0"))


@given(files(), st.data())
def test_reads_agree_with_the_model(made: tuple[RunList, bytes], data: st.DataObject) -> None:
    runs, content = made
    reader = RunContent(MemoryDevice(VOLUME), runs, len(content))
    start = data.draw(st.integers(0, len(content)))
    size = data.draw(st.integers(0, len(content) - start))
    assert reader.read(start, size) == content[start : start + size]


@given(files())
def test_extents_cover_the_file_and_tell_holes_from_data(made: tuple[RunList, bytes]) -> None:
    runs, content = made
    position, before = 0, None
    for extent in RunContent(MemoryDevice(VOLUME), runs, len(content)).extents():
        assert extent.offset == position
        assert extent.kind is not before
        part = content[extent.offset : extent.end]
        assert any(part) == all(part) == (extent.kind is ExtentKind.DATA)
        position, before = extent.end, extent.kind
    assert position == len(content)


def test_neighbours_are_one_run() -> None:
    runs = RunList()
    for number in range(1000):
        runs.add(number * 512, 512, 4096 + number * 512)
    assert [tuple(run) for run in runs] == [(0, 512_000, 4096)]


@pytest.mark.parametrize(
    "second", [(0, 10, 50), (9, 10, 50), (20, 10, -1), (2**63, 10, 0), (20, 2**63, 0), (20, 1, 2**63)]
)
def test_runs_that_make_no_sense_are_damage(second: tuple[int, int, int]) -> None:
    runs = RunList()
    runs.add(0, 10, 0)
    with pytest.raises(VolumeError):
        runs.add(*second)


def test_a_run_outside_the_volume_is_damage() -> None:
    runs = RunList()
    runs.add(0, 100, len(VOLUME) - 50)
    reader = RunContent(MemoryDevice(VOLUME), runs, 100)
    assert reader.read(0, 50) == VOLUME[-50:]
    with pytest.raises(VolumeError, match="outside the volume"):
        reader.read(0, 51)


def test_sharing_of_bytes_is_seen() -> None:
    runs = RunList()
    runs.add(0, 100, 1000)
    runs.add(100, 100, 500)
    assert not runs.overlaps_itself()
    runs.add(200, 100, 599)
    assert runs.overlaps_itself()
