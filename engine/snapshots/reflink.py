"""A file as it was at one moment, where its file system lets files share blocks: btrfs, XFS with reflink.

The copy has no name (O_TMPFILE), so that the kernel removes it with the process that made it. It is made in
one step (FICLONE), while nothing can be written into the file; what is mounted from the file is frozen
meanwhile, so that nothing is half written either. The file system in which it lies is not: the copy is
written there.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from engine.devices import ioctl
from engine.snapshots.provider import Picture, SnapshotProvider, SourceFacts
from imageformat import system
from imageformat.errors import SnapshotError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.devices.mountinfo import MountEntry
    from engine.snapshots.journal import Entry

_TMPFILE = getattr(os, "O_TMPFILE", 0)
_SHARING = frozenset({"btrfs", "xfs", "bcachefs", "ocfs2"})
_REFUSED = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.EXDEV, errno.ENOTTY, errno.EISDIR})


def unavailable(facts: SourceFacts) -> str | None:
    """See `SnapshotProvider.unavailable`."""
    if facts.kind != "file":
        return "it is no file"
    if not _TMPFILE or facts.file_system not in _SHARING:
        return f"files cannot share blocks in {facts.file_system or 'its file system'}"
    if not os.access(Path(facts.path).parent, os.W_OK):
        return f"{Path(facts.path).parent} cannot be written"
    return None


def create(facts: SourceFacts, _entry: Entry) -> Picture:
    """See `SnapshotProvider.create`; nothing need be noted."""
    folder = Path(facts.path).parent
    try:
        copy = os.open(folder, os.O_RDWR | _TMPFILE | system.PRIVATE, 0o600)
    except OSError as error:
        raise _error(facts, error) from error
    try:
        source = os.open(facts.path, os.O_RDONLY | system.PRIVATE)
        try:
            ioctl.share_blocks(copy, source)
        finally:
            os.close(source)
    except OSError as error:
        os.close(copy)
        raise _error(facts, error) from error
    return Picture(f"/proc/self/fd/{copy}", close=lambda: os.close(copy))


def _error(facts: SourceFacts, error: OSError) -> SnapshotError:
    if error.errno in _REFUSED:
        return SnapshotError(f"{facts.path}: its file system does not let files share blocks")
    return SnapshotError(f"{facts.path} cannot be copied by sharing its blocks: {error.strerror}")


def remove(_noted: Mapping[str, str]) -> None:
    """See `SnapshotProvider.remove`; the kernel has done it."""


def mounted_from_it(facts: SourceFacts) -> tuple[MountEntry, ...]:
    """See `SnapshotProvider.to_freeze`."""
    return facts.written


PLUGIN = SnapshotProvider("reflink", 20, unavailable, create, remove, to_freeze=mounted_from_it)
