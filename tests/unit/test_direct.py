"""Reading and writing past the page cache: the same bytes as through it, at any offset and length."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from imageformat.direct import ALIGNMENT, AlignedMemory, DirectFile
from imageformat.storage.local import LocalStorage
from support.content import noise

if TYPE_CHECKING:
    from pathlib import Path

SIZE = (3 << 20) + 777


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder whose files can be read directly."""
    probe = tmp_path / "probe"
    probe.write_bytes(b"x")
    if not os.major(probe.stat().st_dev):
        if os.environ.get("CI"):
            pytest.fail("the folder for temporary files lies on no block device")
        pytest.skip("the folder for temporary files lies on no block device")
    return tmp_path


def test_large_aligned_reads_are_direct_and_right(place: Path) -> None:
    content = noise(1, SIZE)
    path = place / "file"
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    direct, aligned = DirectFile(fd), AlignedMemory()
    rng = random.Random(5)
    taken = 0
    for _ in range(200):
        offset = rng.randrange(SIZE) // ALIGNMENT * ALIGNMENT + rng.choice([0, 0, 0, 512])
        size = rng.randrange(0, max(1, SIZE - offset) + 1)
        memory = aligned.of(size)
        if direct.read_into(memory, offset, size):
            taken += 1
            assert memory[:size] == content[offset : offset + size]
    assert taken > 50
    behind = SIZE // ALIGNMENT * ALIGNMENT
    assert not direct.read_into(aligned.of(1 << 20), behind, 1 << 20), "past the end: left to the usual way"
    direct.close()
    assert not direct.read_into(aligned.of(1 << 20), 0, 1 << 20)
    os.close(fd)


def test_writes_meet_those_through_the_page_cache(place: Path) -> None:
    path = place / "file"
    model = bytearray(noise(2, SIZE))
    path.write_bytes(model)
    fd = os.open(path, os.O_RDWR)
    direct = DirectFile(fd, writable=True)
    rng = random.Random(6)
    taken = 0
    for number in range(120):
        offset = rng.randrange(SIZE - 1) // ALIGNMENT * ALIGNMENT + rng.choice([0, 0, 512])
        data = noise(number, rng.randrange(1, SIZE - offset + 1))
        done = direct.pwrite(offset, memoryview(data))
        taken += bool(done)
        assert done % ALIGNMENT == 0
        model[offset : offset + done] = data[:done]
        if rng.random() < 0.3:
            rest = data[done : done + 5000]
            os.pwrite(fd, rest, offset + done)
            model[offset + done : offset + done + len(rest)] = rest
        if number % 10 == 0:
            assert os.pread(fd, SIZE, 0) == bytes(model)
    assert taken > 30
    direct.close()
    os.close(fd)
    assert path.read_bytes() == bytes(model)


@pytest.mark.parametrize("piece", [1, 700, 4095, 4096, 70_000, 1_500_000])
def test_an_object_of_any_pieces_is_whole(place: Path, piece: int) -> None:
    storage = LocalStorage(place)
    content = noise(3, min(SIZE, piece * 3000))
    writer = storage.create("set/object")
    for start in range(0, len(content), piece):
        writer.append(content[start : start + piece])
        assert writer.position == min(len(content), start + piece)
    writer.commit()
    assert (place / "set" / "object").read_bytes() == content
