"""A tree that makes XFS use every form it has, and what a driver shows of it. Other kernels run this too."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import pickle
import random
import socket
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.entries import Entries, read_entries

if TYPE_CHECKING:
    from mountfs.tree import FileTree

_CLONE = 0x4004_9409  # FICLONE
_KEEP_SIZE = 1
ACCESS_ACL = bytes.fromhex(
    "02000000 01000600ffffffff 02000400e8030000 04000400ffffffff"
    "08000500d2040000 10000500ffffffff 20000400ffffffff"
)
SECOND = 10**9
TIMES = {
    "before 1970": -5 * SECOND + 1,
    "of 1902": -(2**31 - 86_400) * SECOND + 987_654_321,
    "with nanoseconds": 1_234_567_890_123_456_789,
    "of 2038": (2**31 - 1) * SECOND + 999_999_999,
    "after 2038": (2**31 + 5) * SECOND + 3,
    "of 2400": 13_569_465_600 * SECOND + 1,
}
"""What does not fit is cut by the kernel."""


def populate(top: Path, names: int = 900) -> None:
    """Fill an empty XFS; ``names`` is how many the largest folder holds."""
    block = os.statvfs(top).f_bsize
    _files(top / "files", block)
    _folders(top / "folders", names)
    _links(top / "links")
    _special(top / "special")
    _attributes(top / "attributes")
    (top / "times").mkdir()
    for name, moment in TIMES.items():
        (top / "times" / name).touch()
        os.utime(top / "times" / name, ns=(moment, moment + 1))


def _noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def _files(top: Path, block: int) -> None:
    top.mkdir()
    (top / "empty").touch()
    for size in (1, block - 1, block, block + 1, 100_003):
        (top / f"of {size} bytes").write_bytes(_noise(size, size))
    for count in (2, 40, 700 if block <= 4096 else 120):
        with (top / f"in {count} extents").open("wb") as file:
            for number in range(count):
                file.seek(number * 2 * block)
                file.write(_noise(number, 60) * (block // 60))
            file.truncate(count * 2 * block + 17)
    with (top / "preallocated").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 64 * block)
        for number in (3, 4, 20, 63):
            file.seek(number * block + 11)
            file.write(_noise(number, block))
    with (top / "preallocated behind its end").open("wb") as file:
        file.write(_noise(8, 3 * block + 5))
        file.flush()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.fallocate(file.fileno(), _KEEP_SIZE, ctypes.c_long(0), ctypes.c_long(50 * block)):
            raise OSError(ctypes.get_errno(), "fallocate")
    with (top / "sparse").open("wb") as file:
        file.seek(30_000_000)
        file.write(b"in the middle")
        file.truncate(50_000_001)
    _clone(top, block)


def _clone(top: Path, block: int) -> None:
    original = top / "original"
    original.write_bytes(_noise(5, 50 * block))
    with original.open("rb") as source, (top / "clone").open("w+b") as target:
        try:
            fcntl.ioctl(target.fileno(), _CLONE, source.fileno())
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.ENOTTY}:
                raise
            return
        for number in range(0, 50, 7):
            target.seek(number * block + 5)
            target.write(b"changed in the clone")


def _folders(top: Path, names: int) -> None:
    """From inside the inode over one block to leaves and nodes; some with gaps."""
    top.mkdir()
    for count in (0, 1, 4, 30, 80, 300, names):
        folder = top / f"of {count}"
        folder.mkdir()
        for number in range(count):
            (folder / f"{'long ' * (number % 5)}name number {number}").touch()
        for number in range(0, count, 7):
            if count >= 300:
                (folder / f"{'long ' * (number % 5)}name number {number}").unlink()
    (top / "emptied").mkdir()
    for number in range(200):
        (top / "emptied" / f"{number} {'x' * 100}").touch()
    for number in range(199):
        (top / "emptied" / f"{number} {'x' * 100}").unlink()
    (top / "deep" / "er" / "and" / "deeper").mkdir(parents=True)
    (top / "odd").mkdir()
    odd = (
        b"new\nline",
        b"not utf-8 \xff\xfe",
        b"back\\slash",
        b"n" * 255,
        b"\xff" * 255,
        b" ",
        b"...",
        b"MixedCase",
    )
    for name in odd:
        Path(os.fsdecode(os.fsencode(top / "odd") + b"/" + name)).write_bytes(name)


def _links(top: Path) -> None:
    top.mkdir()
    for length in (1, 40, 155, 156, 157, 300, 330, 400, 450, 500, 968, 1000, 1022):
        (top / f"to {length} bytes").symlink_to("t" * length)
    (top / "file").write_bytes(b"one of many")
    for number in range(20):
        os.link(top / "file", top / f"the same {number}")
    Path(top / "dangling").symlink_to("../nowhere")
    os.setxattr(top / "dangling", "trusted.of a link", b"value", follow_symlinks=False)
    os.chown(top / "dangling", 1234, 5678, follow_symlinks=False)


def _special(top: Path) -> None:
    top.mkdir()
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "block", stat.S_IFBLK | 0o660, os.makedev(8, 17))
    os.mknod(top / "character", stat.S_IFCHR | 0o600, os.makedev(300, 70_000))
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(top):
        server.bind("socket")
    (top / "set-id").write_bytes(b"#!")
    os.chown(top / "set-id", 70_000, 4_000_000_000)
    (top / "set-id").chmod(0o6755)
    (top / "sticky").mkdir(0o777)
    (top / "sticky").chmod(0o1777)


def _attributes(top: Path) -> None:
    """Inside the inode, in one leaf, in a tree; values in the leaf and in blocks of their own."""
    top.mkdir()
    for name in ("short", "leaf", "tree", "large", "removed", "acl"):
        (top / name).write_bytes(name.encode())
    os.setxattr(top / "short", "user.comment", b"value")
    os.setxattr(top / "short", "user.empty", b"")
    os.setxattr(top / "short", "trusted.name", b"\0\1\2")
    os.setxattr(top / "short", "security.name", b"\xff")
    for number in range(25):
        os.setxattr(top / "leaf", f"user.number {number}", _noise(number, number))
    for number in range(400):
        space = ("user", "trusted", "security")[number % 3]
        os.setxattr(
            top / "tree", f"{space}.a rather long name, number {number}", _noise(number, number % 250)
        )
    for size in (200, 255, 256, 257, 1000, 3000, 4000, 4040, 4041, 5000, 20_000, 65_536):
        os.setxattr(top / "large", f"user.of {size} bytes", _noise(size, size))
    for number in range(300):
        os.setxattr(top / "removed", f"user.number {number}", _noise(number, 40))
    for number in range(299):
        os.removexattr(top / "removed", f"user.number {number}")
    os.setxattr(top, "user.name with \xfc", b"of a folder")
    os.setxattr(top / "acl", "system.posix_acl_access", ACCESS_ACL)
    os.setxattr(top, "system.posix_acl_default", ACCESS_ACL)
    (top / "heir").mkdir()
    (top / "heir" / "file").touch()


def kernel_entries(top: Path) -> Entries:
    """What a kernel shows, without the raw form of ACLs, which XFS lists beside the form of the system."""
    found = read_entries(top)
    for entry in found.values():
        entry["xattrs"] = {k: v for k, v in entry["xattrs"].items() if not k.startswith("trusted.SGI_ACL_")}
    return found


def tree_entries(tree: FileTree) -> Entries:
    """What a driver shows, in the same form."""
    found: Entries = {}
    pending = [(b"", tree.root())]
    inodes: dict[bytes, int] = {}
    while pending:
        path, parent = pending.pop()
        for node in tree.children(parent):
            below = (path + b"/" + node.name).removeprefix(b"/")
            inodes[below] = node.inode
            kind = node.kind.value
            entry: dict[str, Any] = {
                **{name: getattr(node, name) for name in ("mode", "uid", "gid", "links", "device")},
                **{name: getattr(node, name) for name in ("atime_ns", "mtime_ns", "ctime_ns")},
                "kind": kind,
                "xattrs": dict(tree.xattrs(node)),
            }
            if kind == "directory":
                pending.append((below, node))
            else:
                entry["size"] = node.size
            if kind == "file":
                digest = hashlib.sha256()
                for at in range(0, node.size, 1 << 24):
                    digest.update(tree.read(node, at, 1 << 24))
                entry["sha256"] = digest.hexdigest()
            if kind == "symlink":
                entry["target"] = tree.readlink(node)
            found[below] = entry
    twins: dict[int, bytes] = {}
    for path in sorted(found):
        if found[path]["kind"] != "directory" and found[path]["links"] > 1:
            found[path]["twin"] = twins.setdefault(inodes[path], path)
    return found


def main(action: str, top: str, *rest: str) -> None:
    """``populate FOLDER NAMES``, or ``read FOLDER RESULT``: for the processes of another kernel."""
    if action == "populate":
        populate(Path(top), int(rest[0]))
    else:
        Path(rest[0]).write_bytes(pickle.dumps(kernel_entries(Path(top))))


if __name__ == "__main__":
    main(*sys.argv[1:])
