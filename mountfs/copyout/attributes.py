"""Attributes of what was copied: set as far as the target goes, then read back, so that a loss is known."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from mountfs.copyout.folder import FATAL
from mountfs.copyout.report import LossKind
from mountfs.names import safe_text
from mountfs.tree import NOT_COPIED_XATTRS, UNLISTED_XATTRS, NodeKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mountfs.copyout.places import Place
    from mountfs.copyout.report import CopyOptions
    from mountfs.tree import Node

    Lose = Callable[[LossKind, str], None]

_SPECIAL = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX
_CAPABILITY = "security.capability"
_NO_ID = (1 << 32) - 1
_OF_NTFS = f"{UNLISTED_XATTRS}attrib"


def set_attributes(
    place: Place, node: Node, extended: Mapping[str, bytes], options: CopyOptions, lose: Lose
) -> os.stat_result:
    """Set everything that a node says, report what did not come out, return how it came out.

    Raises:
        OSError: the target failed in a way that concerns every file.
    """
    if options.keep_owner:
        _set_owner(place, node)
    for name, value in extended.items():
        if not name.startswith(UNLISTED_XATTRS):
            _set_extended(place, name, value, options, lose)
    wanted = _wanted_mode(place, node, options, lose)
    if node.kind is not NodeKind.SYMLINK:
        with _tolerated():
            place.set_mode(wanted)
        _set_unlisted(place, extended, lose)
    times = (node.atime_ns or node.mtime_ns, node.mtime_ns)
    with _tolerated():
        place.set_times(times)
    status = place.status()
    if place.posix or _OF_NTFS not in extended:
        _compare(status, node, wanted, options, lose)
    unit = place.time_unit_ns
    if (status.st_atime_ns // unit, status.st_mtime_ns // unit) != (times[0] // unit, times[1] // unit):
        lose(LossKind.TIMES, "")
    return status


def _compare(status: os.stat_result, node: Node, wanted: int, options: CopyOptions, lose: Lose) -> None:
    """Report owner and mode that did not come out; what came from NTFS has none to lose on another one."""
    if options.keep_owner and (status.st_uid, status.st_gid) != (node.uid, node.gid):
        lose(LossKind.OWNER, f"{node.uid}:{node.gid}")
    if node.kind is not NodeKind.SYMLINK and stat.S_IMODE(status.st_mode) != wanted:
        lose(LossKind.MODE, f"{wanted:04o}")


def _set_owner(place: Place, node: Node) -> None:
    # 2**32 - 1 is chown's "leave as it is"
    if not (0 <= node.uid < _NO_ID and 0 <= node.gid < _NO_ID):
        return
    try:
        place.set_owner(node.uid, node.gid)
    except OSError as error:
        if error.errno in FATAL:
            raise
        with _tolerated():
            place.set_owner(-1, node.gid)


def _wanted_mode(place: Place, node: Node, options: CopyOptions, lose: Lose) -> int:
    wanted = node.mode & 0o7777
    if node.kind is NodeKind.SYMLINK or not wanted & _SPECIAL:
        return wanted
    if not options.keep_special_bits:
        lose(LossKind.SPECIAL_BITS, f"{wanted:04o}")
        return wanted & ~_SPECIAL
    status = place.status()
    if wanted & (stat.S_ISUID | stat.S_ISGID) and (status.st_uid, status.st_gid) != (node.uid, node.gid):
        lose(LossKind.SPECIAL_BITS, f"{wanted:04o}: the owner is another")
        return wanted & ~(stat.S_ISUID | stat.S_ISGID)
    return wanted


def _set_extended(place: Place, name: str, value: bytes, options: CopyOptions, lose: Lose) -> None:
    if name == _CAPABILITY and not options.keep_special_bits:
        lose(LossKind.SPECIAL_BITS, name)
        return
    kind = LossKind.ATTRIBUTE
    try:
        encoded = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        lose(kind, safe_text(name))
        return
    if b"\0" in encoded:
        lose(kind, safe_text(name))
        return
    try:
        place.set_attribute(encoded, value)
    except OSError as error:
        # ENOSPC here mostly means that attributes of this length have no room in an inode
        if error.errno in FATAL - {errno.ENOSPC}:
            raise
        lose(kind, f"{safe_text(name)}, {len(value)} bytes: {os.strerror(error.errno or errno.EIO)}")


def _set_unlisted(place: Place, extended: Mapping[str, bytes], lose: Lose) -> None:
    """Give another NTFS what only NTFS has, after the mode, which ntfs-3g may turn into an access list."""
    for name, value in extended.items():
        if name.startswith(UNLISTED_XATTRS) and name not in NOT_COPIED_XATTRS:
            try:
                place.set_attribute(name.encode("utf-8", "surrogateescape"), value)
            except OSError as error:
                # File systems of POSIX refuse them, and an error there says nothing about the target.
                if not place.posix:
                    lose(LossKind.ATTRIBUTE, f"{name}: {error.strerror or error}")


@contextlib.contextmanager
def _tolerated() -> Iterator[None]:
    """Let a refusal pass: reading back tells what it cost."""
    try:
        yield
    except OverflowError:
        return
    except OSError as error:
        if error.errno in FATAL:
            raise
