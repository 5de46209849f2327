"""Errors of the device come out of every driver as they are: never an empty list, never other bytes.

Reads that a driver makes are failed once, and pieces of the volume are made unreadable for good; what is then
seen of the tree is either exactly what a sound device shows, or the device's own error.
"""

from __future__ import annotations

import lzma
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from imageformat.device import MemoryDevice
from imageformat.errors import CorruptImageError, VolumeError
from mountfs.drivers import ext, fat, hfsplus, iso9660, ntfs
from mountfs.tree import FileSystemInfo, NodeKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from mountfs.tree import FileSystemDriver

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("MOUNTFS_SHARED_DATA", REPOSITORY.parent / "shared" / "data")) / "fs-images"

CASES = {
    "ext4": (ext.PLUGIN, "ext4-discutils"),
    "fat12": (fat.PLUGIN, "fat12-rust"),
    "exfat": (fat.PLUGIN, "exfat-sr"),
    "iso9660": (iso9660.PLUGIN, "iso-libcdio-copying-rr"),
    "ntfs": (ntfs.PLUGIN, "ntfs-colinfinck"),
    "hfs+": (hfsplus.PLUGIN, "hfsp-dfvfs"),
}
STEP = 4096


class FaultyDevice(MemoryDevice):
    """Fails the reads that a rule picks."""

    def __init__(self, content: bytes, fails: Callable[[int, int, int], bool]) -> None:
        super().__init__(content)
        self._fails = fails
        self.reads = 0
        self.touched: set[int] = set()

    def pread(self, offset: int, size: int) -> bytes:
        """Read, or fail as a damaged image does."""
        self.reads += 1
        self.touched.update(range(offset // STEP, -(-(offset + size) // STEP)))
        if self._fails(self.reads, offset, size):
            raise CorruptImageError(f"block at {offset} does not match its checksum")
        return super().pread(offset, size)


def missing(what: object) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"missing: {what}")
    pytest.skip(f"missing: {what}")


def load(name: str) -> tuple[FileSystemDriver, str, bytes]:
    driver, case = CASES[name]
    packed = SHARED / "images" / f"{case}.disk.img.xz"
    if not packed.exists():
        missing(packed)
    return driver, name, lzma.decompress(packed.read_bytes())


def picture(driver: FileSystemDriver, fs_type: str, device: FaultyDevice) -> list[Any]:
    """Everything that can be seen of a tree; the device's error ends it."""
    tree = driver.open(device, FileSystemInfo(fs_type))
    seen: list[Any] = []
    pending = [tree.root()]
    while pending:
        for node in tree.children(pending.pop()):
            seen.append(node)
            if node.kind is NodeKind.DIRECTORY:
                pending.append(node)
            elif node.kind is NodeKind.FILE:
                seen += [tree.read(node, 0, node.size), list(tree.extents(node)), tree.streams(node)]
                seen += [tree.read(node, 0, stream.size, stream.name) for stream in tree.streams(node)]
            elif node.kind is NodeKind.SYMLINK:
                seen.append(tree.readlink(node))
            seen.append(dict(tree.xattrs(node)))
    tree.close()
    return seen


def sound_or_error(driver: FileSystemDriver, fs_type: str, device: FaultyDevice, sound: list[Any]) -> bool:
    """Return whether the error came; anything but that error and the sound picture fails."""
    try:
        seen = picture(driver, fs_type, device)
    except CorruptImageError:
        return True
    same = seen == sound
    assert same, "other than the sound volume, and no error"
    return False


@pytest.mark.parametrize("name", CASES)
def test_a_read_that_fails_once(name: str) -> None:
    driver, fs_type, content = load(name)
    healthy = FaultyDevice(content, lambda *_: False)
    sound = picture(driver, fs_type, healthy)
    assert healthy.reads > 5
    errors = 0
    for failing in range(1, healthy.reads + 1, 1 + healthy.reads // 40):
        device = FaultyDevice(content, lambda count, *_, failing=failing: count == failing)
        errors += sound_or_error(driver, fs_type, device, sound)
    assert errors > 3


@pytest.mark.parametrize("name", CASES)
def test_a_place_that_cannot_be_read(name: str) -> None:
    driver, fs_type, content = load(name)
    healthy = FaultyDevice(content, lambda *_: False)
    sound = picture(driver, fs_type, healthy)
    errors = 0
    for place in sorted(healthy.touched)[:120]:
        start = place * STEP

        def fails(_: int, offset: int, size: int, start: int = start) -> bool:
            return offset < start + STEP and start < offset + size

        errors += sound_or_error(driver, fs_type, FaultyDevice(content, fails), sound)
    assert errors > 3


@pytest.mark.parametrize("name", CASES)
def test_a_volume_that_ends_too_early_is_an_error_or_smaller(name: str) -> None:
    """A cut volume must not show other bytes than the whole one."""
    driver, fs_type, content = load(name)
    sound = picture(driver, fs_type, FaultyDevice(content, lambda *_: False))
    for size in (0, 1, 511, 512, 4096, 40_000, len(content) // 2):
        device = FaultyDevice(content[:size], lambda *_: False)
        try:
            seen = picture(driver, fs_type, device)
        except VolumeError:
            continue
        same = seen == sound
        assert same, size
