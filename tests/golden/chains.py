"""Chains of native images made by the product, and their files as plain bytes."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from engine.backup import BackupOptions, backup
from imageformat.device import MemoryDevice
from imageformat.extent import Extent, ExtentKind
from imageformat.layer import ImageType
from imageformat.repository import Point, Repository
from imageformat.storage import Storage
from imageformat.storage.memory import MemoryStorage
from imageformat.view import ImageView

BLOCK = 4096
SET = "set"


class MemorySource(MemoryDevice):
    """A disk in memory; with ``holes``, runs of zeros of 1 KiB are told as such."""

    def __init__(self, content: bytes, *, sector_size: int = 512, holes: bool = False) -> None:
        super().__init__(content, block_size=sector_size)
        self.sector_size = sector_size
        self._content = content
        self._holes = holes

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        at, end = offset, offset + size
        while at < end:
            step = min(end, (at // 1024 + 1) * 1024) - at
            zero = self._holes and not any(self._content[at : at + step])
            yield Extent(at, step, ExtentKind.ZERO if zero else ExtentKind.DATA)
            at += step


@dataclass
class MadeChain:
    """Points as they were made: the disks that the images must equal, and the files."""

    disks: list[bytes] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    roots: list[bytes] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)


def add_point(
    storage: Storage,
    disk: bytes,
    kind: ImageType,
    *,
    holes: bool = False,
    sector: int = 512,
    differences: bool = True,
) -> str:
    """Image a disk as the next point of the set; the key of its file."""
    with contextlib.closing(Repository(storage)) as repository:
        result = backup(
            MemorySource(disk, holes=holes, sector_size=sector),
            repository,
            SET,
            BackupOptions(type=kind, block_size=BLOCK, threads=1, differences=differences),
            origin={"source": "/dev/fake"},
        )
    return result.key


def make_chain(steps: list[tuple[ImageType, bytes]]) -> MadeChain:
    """Image every disk in turn into one set in memory."""
    storage, made = MemoryStorage(), MadeChain()
    for kind, disk in steps:
        made.keys.append(add_point(storage, disk, kind))
        made.disks.append(disk)
    made.files = files_of(storage)
    with contextlib.closing(Repository(storage)) as repository:
        made.roots = [point.info.root for point in repository.image_set(SET).points if point.info]
    return made


def files_of(storage: Storage) -> dict[str, bytes]:
    """All files of the set by key."""
    files = {}
    for entry in storage.objects(f"{SET}/"):
        with contextlib.closing(storage.open(entry.key)) as device:
            files[entry.key] = device.pread(0, device.size)
    return files


def storage_with(files: Mapping[str, bytes]) -> MemoryStorage:
    """A storage that holds these files."""
    storage = MemoryStorage()
    for key, content in files.items():
        storage.publish(key, content)
    return storage


@contextlib.contextmanager
def repository_with(files: Mapping[str, bytes], *, capacity: int | None = None) -> Iterator[Repository]:
    """A repository over these files alone."""
    with contextlib.closing(Repository(storage_with(files), capacity=capacity)) as repository:
        yield repository


def points_by_key(repository: Repository) -> dict[str, Point]:
    return {point.key: point for point in repository.image_set(SET).points}


def read_point(repository: Repository, point: Point) -> bytes:
    """All bytes of a point, as a mount would serve them."""
    view = ImageView(repository.chain(point), repository.cache)
    return view.pread(0, view.size)


def mixed_disk(chance: random.Random, blocks: int, tail: int = 0) -> bytearray:
    """A disk with blocks that do not compress, blocks that do, and zeros."""
    disk = bytearray()
    for _ in range(blocks):
        disk += (chance.randbytes(BLOCK), chance.randbytes(16) * (BLOCK // 16), bytes(BLOCK))[
            chance.randrange(3)
        ]
    return disk + chance.randbytes(tail)


def change(chance: random.Random, disk: bytes, block: int, count: int = 1) -> bytes:
    """The disk with other bytes in some blocks."""
    changed = bytearray(disk)
    start, stop = block * BLOCK, min(len(disk), (block + count) * BLOCK)
    changed[start:stop] = chance.randbytes(stop - start)
    return bytes(changed)
