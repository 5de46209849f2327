"""Damaged copies of an XFS volume: bytes replaced, checksums put right, and everything read."""

from __future__ import annotations

import os
import resource
import signal
import struct
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, settings

from imageformat.crc32c import crc32c
from imageformat.device import check_range
from imageformat.errors import MountfsError
from imageformat.extent import Extent, ExtentKind
from mountfs.drivers import xfs
from mountfs.tree import FileSystemInfo, NodeKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mountfs.tree import FileTree

EDGES = (
    0,
    1,
    2,
    7,
    8,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
)
SECONDS = 20
LIMITS = settings(
    max_examples=int(os.environ.get("MOUNTFS_FUZZ_ROUNDS", "80")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


AT = {b"XFSB": 224, b"IN": 100, b"XDB3": 4, b"XDD3": 4, b"BMA3": 64, b"XARM": 12, b"XSLM": 12}
AT_EIGHT = {b"\x3b\xee": 12, b"\x3e\xbe": 12}
"""Magic numbers of attribute blocks, which stand at byte 8."""


def checksum_at(unit: bytes | bytearray) -> int | None:
    """Where a structure of version 5 has its checksum; None when it is no such structure."""
    if unit[:2] == b"IN" and unit[4] == 3:
        return AT[b"IN"]
    return AT.get(bytes(unit[:4]), AT_EIGHT.get(bytes(unit[8:10])))


def repair(unit: bytearray) -> None:
    """Give a structure that is all of ``unit`` a right checksum."""
    at = checksum_at(unit)
    if at is not None and at + 4 <= len(unit):
        unit[at : at + 4] = bytes(4)
        struct.pack_into("<I", unit, at, crc32c(bytes(unit)))


class Damaged:
    """A volume with some of its bytes replaced; the rest stays in its file."""

    block_size = 512

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = path.stat().st_size
        self.units: dict[int, bytearray] = {}

    def unit(self, offset: int, size: int) -> bytearray:
        if offset not in self.units:
            self.units[offset] = bytearray(self._sound(offset, size))
        return self.units[offset]

    def _sound(self, offset: int, size: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def pread(self, offset: int, size: int) -> bytes:
        check_range(self.size, offset, size)
        data = bytearray(self._sound(offset, size))
        for start, unit in self.units.items():
            low, high = max(start, offset), min(start + len(unit), offset + size)
            if low < high:
                data[low - offset : high - offset] = unit[low - start : high - start]
        return bytes(data)

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        yield Extent(offset, size, ExtentKind.DATA)

    def close(self) -> None:
        """Nothing is held."""


def open_tree(device: Damaged) -> FileTree:
    return xfs.PLUGIN.open(device, FileSystemInfo("xfs"))


def visit(tree: FileTree) -> None:
    pending, budget = [tree.root()], 600
    while pending and budget > 0:
        try:
            for node in tree.children(pending.pop()):
                budget -= 1
                try:
                    if node.kind is NodeKind.DIRECTORY:
                        pending.append(node)
                    elif node.kind is NodeKind.FILE:
                        tree.read(node, 0, 65_536)
                        tree.read(node, max(0, node.size - 10), 65_536)
                        list(tree.placements(node))
                    elif node.kind is NodeKind.SYMLINK:
                        tree.readlink(node)
                    tree.xattrs(node)
                except MountfsError:
                    pass
        except MountfsError:
            pass


@contextmanager
def bounded() -> Iterator[None]:
    """End what hangs, and what takes a GiB more than is in use."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), before[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before)
