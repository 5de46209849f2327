"""Every point of random chains equals a bytearray, through the mounted disk and through a restore.

The third door, `ImageView.pread`, is held against the same oracle in test_chain_oracle.py.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.backup import BackupOptions, backup
from engine.devices.source import open_source
from engine.devices.target import open_target
from engine.restore import restore
from imageformat.layer import ImageType
from imageformat.repository import Repository
from imageformat.storage.local import LocalStorage
from mountfs.session import Session, point_name
from support.product import mounted, mountfs

BLOCK = 4096
SIZES = st.one_of(st.sampled_from([1, BLOCK, BLOCK + 1, 257 * BLOCK]), st.integers(1, 400 * BLOCK))
STEPS = st.lists(
    st.tuples(st.sampled_from(ImageType), st.one_of(st.none(), SIZES), st.integers(0, 3), st.booleans()),
    min_size=1,
    max_size=4,
)
_sets = itertools.count(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A repository and where it is mounted all the time, while new sets and points appear in it."""
    folder = tmp_path_factory.mktemp("doors")
    disk = folder / "first.img"
    disk.write_bytes(b"x")
    mountfs("backup", disk, folder / "repo")
    with mounted(folder / "repo") as point:
        yield folder, point


def change(disk: bytearray, size: int | None, count: int, chance: random.Random) -> None:
    if size is not None:
        del disk[size:]
        disk.extend(bytes(size - len(disk)))
    for _ in range(count):
        start = chance.randrange(len(disk))
        length = min(len(disk) - start, chance.randint(1, 3 * BLOCK))
        disk[start : start + length] = chance.choice([bytes(length), chance.randbytes(length), b"a" * length])


def write_points(
    folder: Path,
    name: str,
    steps: list[tuple[ImageType, int | None, int, bool]],
    sector_size: int,
    chance: random.Random,
) -> list[bytes]:
    disk, oracle = bytearray(chance.randbytes(BLOCK)), []
    repository = Repository(LocalStorage(folder / "repo"))
    for wanted, size, count, branch in steps:
        change(disk, size, count, chance)
        source = folder / "disk.img"
        source.write_bytes(disk)
        points = repository.image_set(name).points
        parent = chance.choice(points) if branch and points and wanted is not ImageType.FULL else None
        stands_on_full = parent is None or (parent.info and parent.info.type is ImageType.FULL)
        kind = wanted if stands_on_full else ImageType.INCREMENTAL
        device = open_source(str(source), sector_size=sector_size)
        options = BackupOptions(type=kind, block_size=BLOCK, threads=2)
        backup(device, repository, name, options, origin={"source": name}, parent=parent)
        device.close()
        oracle.append(bytes(disk))
    repository.close()
    return oracle


@pytest.mark.fuse
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, sector_size=st.sampled_from([512, 4096]), seed=st.integers(0, 1 << 30))
def test_mount_and_restore_equal_the_oracle(
    place: tuple[Path, Path],
    steps: list[tuple[ImageType, int | None, int, bool]],
    sector_size: int,
    seed: int,
) -> None:
    folder, mount = place
    chance = random.Random(seed)
    name = f"set{next(_sets)}"
    oracle = write_points(folder, name, steps, sector_size, chance)
    with Session(str(folder / "repo" / name)) as session:
        points = session.location.points()
        assert len(points) == len(oracle)
        for point, content in zip(points, oracle, strict=True):
            shown = mount / name / point_name(point) / "disk.img"
            check_file(shown, content, chance)
            view = session.view(point)
            assert view.sector_size == sector_size
            target = open_target(str(folder / "restored.img"), view.size)
            restore(view, target, check=True)
            target.commit()
            assert (folder / "restored.img").read_bytes() == content


def check_file(path: Path, content: bytes, chance: random.Random) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        assert os.fstat(handle).st_size == len(content)
        for _ in range(8):
            start = chance.randint(0, len(content))
            length = chance.randint(0, 5 * BLOCK)
            assert os.pread(handle, length, start) == content[start : start + length]
        assert os.pread(handle, len(content) + 1, 0) == content
    finally:
        os.close(handle)
