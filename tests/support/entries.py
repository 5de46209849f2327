"""What a folder holds, entry by entry, as values: two folders are compared without trusting either."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

Entries: TypeAlias = dict[bytes, dict[str, Any]]

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}
SPECIAL = frozenset({"fifo", "socket", "character device", "block device"})
EMPTY = hashlib.sha256().hexdigest()


def read_entries(top: Path) -> Entries:
    """Everything below a folder by its path.

    Attributes, the digest of files, the target of links, extended attributes, and for hard links
    ``twin``: the first path of the same file.
    """
    start = os.fsencode(top)
    paths = [
        os.path.join(folder, name)  # noqa: PTH118 (names need not be text)
        for folder, folders, files in os.walk(start, onerror=_fail)
        for name in folders + files
    ]
    twins: dict[tuple[int, int], bytes] = {}
    found: Entries = {}
    for path in sorted(paths):
        name = os.path.relpath(path, start)
        found[name] = _entry(path)
        inode = found[name].pop("inode")
        if found[name]["kind"] != "directory" and found[name]["links"] > 1:
            found[name]["twin"] = twins.setdefault(inode, name)
    return found


def _fail(error: OSError) -> None:
    raise error


def _entry(path: bytes) -> dict[str, Any]:
    status = os.lstat(path)
    kind = KINDS[stat.S_IFMT(status.st_mode)]
    entry = {
        "kind": kind,
        "mode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "links": status.st_nlink,
        "atime_ns": status.st_atime_ns,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
        "device": (os.major(status.st_rdev), os.minor(status.st_rdev)),
        "inode": (status.st_dev, status.st_ino),
        "xattrs": _xattrs(path),
    }
    if kind != "directory":
        entry["size"] = status.st_size
    if kind == "file":
        with open(path, "rb") as file:  # noqa: PTH123 (names need not be text)
            entry["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    if kind == "symlink":
        entry["target"] = os.readlink(path)  # noqa: PTH115 (the same)
    return entry


def _xattrs(path: bytes) -> dict[str, bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return {}
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def as_mounted(entries: Entries) -> Entries:
    """What a mount shows of them: no set-id bits, and no device that anybody could open."""
    shown: Entries = {}
    for path, entry in entries.items():
        changed = {**entry, "mode": entry["mode"] & 0o777}
        if entry["kind"] in SPECIAL:
            told = {"user.mountfs.type": entry["kind"].encode()}
            if "device" in entry["kind"]:
                told["user.mountfs.device"] = b"%d:%d" % entry["device"]
            changed |= {"kind": "file", "device": (0, 0), "size": 0, "sha256": EMPTY}
            changed |= {"mode": entry["mode"] & 0o666, "xattrs": entry["xattrs"] | told}
        shown[path] = changed
    return shown


def differences(
    expected: Mapping[bytes, Mapping[str, Any]],
    found: Mapping[bytes, Mapping[str, Any]],
    *,
    ignoring: Collection[str] = (),
) -> list[str]:
    """Say what differs, one line for each value."""
    lines = [f"{path!r} is missing" for path in expected.keys() - found.keys()]
    lines += [f"{path!r} is too much" for path in found.keys() - expected.keys()]
    for path in expected.keys() & found.keys():
        one, other = expected[path], found[path]
        for name in (one.keys() | other.keys()) - set(ignoring):
            if one.get(name) != other.get(name):
                lines.append(f"{path!r}: {name} is {other.get(name)!r:.200}, not {one.get(name)!r:.200}")
    return sorted(lines)
