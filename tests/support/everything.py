"""A folder with all that a file system of Unix can hold, for judges that pack a folder. Needs root."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

from support.content import make_tree, mixture, noise, text

_KIB = 1024


def fill(top: Path, *, block: int = 128 * _KIB, crowd: int = 700) -> None:
    """Fill an empty folder: sizes around multiples of ``block``, holes, links, devices, owners, attributes.

    Times are whole seconds, since packed file systems keep no more.
    """
    make_tree(top)
    for number, size in enumerate((1, block - 1, block, block + 1, 2 * block, 5 * block + 12_345)):
        (top / f"noise-{size}").write_bytes(noise(number, size))
        (top / f"text-{size}").write_bytes(text(number, size))
    (top / "mixture").write_bytes(mixture(5, 9 * block + 7, unit=block))
    (top / "zeros").write_bytes(bytes(3 * block))
    with (top / "sparse").open("wb") as file:
        for at in (0, 100_000, 2_000_000):
            file.seek(at)
            file.write(noise(at, 5000))
        file.truncate(3_000_123)
    (top / "crowd").mkdir()
    for number in range(crowd):
        (top / "crowd" / f"{number} is the number of this entry").touch()
    for name in (b"new\nline", b"not utf-8 \xff\xfe", b"back\\slash", b"n" * 250, b" ", b"...", b"semi;1"):
        Path(os.fsdecode(os.fsencode(top) + b"/" + name)).write_bytes(name)
    _links(top)
    _special(top)
    os.utime(top / "hello.txt", (1_234_567_890, 987_654_321))
    os.utime(top / "empty", (0, 1))
    whole_seconds(top)


def _links(top: Path) -> None:
    os.link(top / "photo.jpg", top / "deep" / "the same photo")
    os.link(top / "hello.txt", top / "many" / "the same hello")
    (top / "long link").symlink_to("some folder/" * 25 + "end")
    (top / "dangling").symlink_to("../../nowhere/./x")
    (top / "absolute").symlink_to("/usr/bin/env")


def _special(top: Path) -> None:
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "block", stat.S_IFBLK | 0o660, os.makedev(8, 17))
    os.mknod(top / "character", stat.S_IFCHR | 0o600, os.makedev(300, 70_000))
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(top):
        server.bind("socket")
    (top / "set-id").write_bytes(b"#!")
    os.chown(top / "set-id", 70_000, 3_000_000_000)
    (top / "set-id").chmod(0o6755)
    (top / "many").chmod(0o1777)
    os.chown(top / "link", 1234, 5678, follow_symlinks=False)


def attributes(top: Path) -> None:
    """Add extended attributes to what `fill` made."""
    os.setxattr(top / "hello.txt", "user.comment", b"value")
    os.setxattr(top / "hello.txt", "user.empty", b"")
    os.setxattr(top / "photo.jpg", "user.larger", bytes(range(256)) * 12)
    for name in ("etc", "deep", "empty"):
        os.setxattr(top / name, "user.shared", b"the same text in three places")
        os.setxattr(top / name, "security.shared", b"s" * 500)
    os.setxattr(top / "many", "trusted.folder", b"\0\1\2")


def whole_seconds(top: Path) -> None:
    """Cut the times of all entries to what packed file systems keep."""
    for folder, _, names in os.walk(os.fsencode(top), topdown=False):
        for path in [os.path.join(folder, name) for name in names] + [folder]:  # noqa: PTH118
            seconds = int(os.lstat(path).st_mtime)
            os.utime(path, (seconds, seconds), follow_symlinks=False)
