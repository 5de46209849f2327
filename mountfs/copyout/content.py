"""The bytes of one file: holes stay holes, everything else is read, proven by the tree, and written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from imageformat import system
from imageformat.errors import UnreadableBlockError, VolumeError
from imageformat.extent import Extent, ExtentKind, coalesce

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mountfs.tree import FileTree, Node

PIECE = 1 << 20
"""Bytes read at once."""
_MAX_SIZE = (1 << 63) - 1


def data_extents(tree: FileTree, node: Node) -> Iterator[Extent]:
    """Yield what must be read of a file.

    Raises:
        VolumeError: the extents do not cover the file exactly, so that what lies between is unknown.
    """
    position = 0
    for extent in coalesce(tree.extents(node)):
        if extent.offset != position or extent.length <= 0 or extent.end > node.size:
            raise VolumeError(f"the extents of the file contradict each other at byte {position}")
        position = extent.end
        if extent.kind is not ExtentKind.ZERO:
            yield extent
    if position != node.size:
        raise VolumeError(f"nothing is known of the file from byte {position} to its end at {node.size}")


def data_size(tree: FileTree, node: Node, limit: int) -> int:
    """Return how many bytes of a file must be read; stop counting beyond ``limit``."""
    total = 0
    for extent in data_extents(tree, node):
        total += extent.length
        if total > limit:
            break
    return total


def write_content(tree: FileTree, node: Node, fd: int, advance: Callable[[int], None]) -> None:
    """Write a file into a new, empty one; ``advance`` is told of every piece.

    Raises:
        MountfsError: bytes cannot be had or proven; the new file is then worthless.
        OSError: the target refused.
    """
    if not 0 <= node.size <= _MAX_SIZE:
        raise VolumeError(f"no file can have {node.size} bytes")
    os.ftruncate(fd, node.size)
    for extent in data_extents(tree, node):
        for offset in range(extent.offset, extent.end, PIECE):
            length = min(PIECE, extent.end - offset)
            _write_at(fd, read_exactly(tree, node, offset, length), offset)
            advance(length)
        if extent.kind is ExtentKind.BAD:
            raise UnreadableBlockError(
                f"bytes from {extent.offset} to {extent.end} were unreadable at the source"
            )


def read_exactly(tree: FileTree, node: Node, offset: int, length: int, stream: bytes | None = None) -> bytes:
    """Read all of a range or raise `VolumeError`."""
    piece = tree.read(node, offset, length, stream)
    if len(piece) != length:
        raise VolumeError(f"{len(piece)} bytes were read instead of {length} at byte {offset}")
    return piece


def _write_at(fd: int, piece: bytes, offset: int) -> None:
    view = memoryview(piece)
    while view:
        written = system.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
