"""The server that the mount tests start: it mounts a tree with everything that is hard to show.

demo_server.py demo MOUNTPOINT [--background] [--allow-other] [--source TEXT] [--uid N] [--umask N]
demo_server.py points MOUNTPOINT FOLDER       a point for every file in FOLDER, by its content
demo_server.py hang MOUNTPOINT                reading the file never returns
demo_server.py broken-root MOUNTPOINT [--background]
"""

import argparse
import logging
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Never, Self

import mountfs.adapters
from imageformat.errors import CorruptImageError, MountfsError
from imageformat.extent import Extent, ExtentKind
from imageformat.plugins import discover
from mountfs.adapters import MountAdapter, MountOptions
from mountfs.daemon import run_in_background
from mountfs.foldertree import Entry, FolderTree
from mountfs.memorytree import Item, MemoryTree, folder
from mountfs.tree import NodeKind

BIG = 5 << 30
BAD_START, BAD_END, BAD_SIZE = 1 << 20, (1 << 20) + 4096, 2 << 20
MTIME_NS = 1_234_567_890_123_456_789
NASTY = (
    b"plain", b"with space", b"new\nline", b"tab\t", b"\x1b[31mred", b"caf\xc3\xa9", b"invalid-\xff\xfe",
    b"-rf", b"back\\slash", b"quote\"'", b"star*?", b"comma,", b"a:b", b"x" * 255, b"\xe2\x80\xaertl",
    b".", b"..", b"in/side", b"nul\0byte", b"per%2Fcent", b"%", b"y" * 700,
)  # fmt: skip

XATTRS = {"user.colour": b"blue", "user.bin": bytes(range(256)), "user.n\0l": b"no"}
STREAMS = {b"Zone.Identifier": b"[ZoneTransfer]\n", b"b/c": b"slash"}


def pattern(offset: int, size: int) -> bytes:
    """Content of the large file: every 8 bytes hold their own offset."""
    first = offset // 8
    count = (offset + size + 7) // 8 - first
    words = struct.pack(f"<{count}Q", *range(first * 8, (first + count) * 8, 8))
    return words[offset - first * 8 :][:size]


def _damaged(offset: int, size: int) -> bytes:
    if offset < BAD_END and offset + size > BAD_START:
        raise CorruptImageError(f"block at {BAD_START} does not match its checksum")
    return pattern(offset, size)


def _buggy(offset: int, size: int) -> bytes:
    raise ZeroDivisionError(f"a bug at {offset}+{size}")


def demo() -> MemoryTree:
    special = {
        b"fifo": NodeKind.FIFO,
        b"socket": NodeKind.SOCKET,
        b"char": NodeKind.CHARACTER_DEVICE,
        b"block": NodeKind.BLOCK_DEVICE,
    }
    holes = (
        Extent(0, 65536, ExtentKind.ZERO),
        Extent(65536, 4096, ExtentKind.DATA),
        Extent(69632, 61440, ExtentKind.UNUSED),
        Extent(131072, 100, ExtentKind.BAD),
    )
    return MemoryTree(
        folder({
            b"hello.txt": Item(b"hello\n", mode=0o640, uid=1234, gid=4321, mtime_ns=MTIME_NS),
            b"empty": Item(b""),
            b"nasty": folder({name: Item(name) for name in NASTY}),
            b"many": folder({b"file%05d" % number: Item(b"%d" % number) for number in range(5000)}),
            b"deep": folder({b"a": folder({b"b": folder({b"c": Item(b"deep\n")})})}),
            b"big": Item(size=BIG, read=pattern),
            b"damaged": Item(size=BAD_SIZE, read=_damaged),
            b"buggy": Item(size=4096, read=_buggy),
            b"short": Item(size=10000, read=lambda offset, size: pattern(offset, size // 2)),
            b"sparse": Item(size=131172, read=lambda _offset, size: bytes(size), holes=holes),
            b"hard1": Item(b"linked\n", links=2, inode=(1 << 62) + 7),
            b"hard2": Item(b"linked\n", links=2, inode=(1 << 62) + 7),
            b"link": Item(b"deep/a/b/c", kind=NodeKind.SYMLINK),
            b"dangling": Item(b"/no/such/\xff", kind=NodeKind.SYMLINK),
            b"setuid": Item(b"#!/bin/sh\n", mode=0o6755),
            b"sticky": folder({}, mode=0o1777),
            b"special": folder({
                name: Item(kind=kind, mode=0o660, device=(8, 1)) for name, kind in special.items()
            }),
            b"attrs": Item(b"x", xattrs=XATTRS),
            b"streams.txt": Item(b"main", streams=STREAMS),
            b"streams.txt:plain": Item(b"a file with a colon"),
            b"secret": Item(b"root only\n", mode=0o600),
        })
    )  # fmt: skip


def points(source: Path) -> FolderTree:
    def entries() -> dict[bytes, Entry]:
        found = {}
        for path in sorted(source.iterdir()):
            content = path.read_bytes()
            found[os.fsencode(path.name)] = Entry(open=lambda c=content: _point(c), identity=content)
            found[b"latest"] = Entry(link=os.fsencode(path.name))
        return found

    return FolderTree(lambda: {b"set": Entry(open=lambda: FolderTree(entries, refresh_s=0.2))}, refresh_s=0.2)


def _point(content: bytes) -> MemoryTree:
    if content == b"broken":
        raise CorruptImageError("the footer does not match its checksum")
    return MemoryTree(folder({b"id.txt": Item(content), b"sub": folder({b"id.txt": Item(content)})}))


class BrokenRoot(MemoryTree):
    def root(self) -> Never:
        raise CorruptImageError("no top folder: the volume is damaged")


def _hang(offset: int, size: int) -> bytes:
    time.sleep(3600)
    return bytes(size)


class Server:
    """A server in a process of its own, for the tests."""

    def __init__(
        self,
        kind: str,
        mountpoint: Path,
        *arguments: str | Path,
        command: tuple[str | Path, ...] = (),
        env: dict[str, str] | None = None,
    ) -> None:
        self.mountpoint = mountpoint
        start = command or (sys.executable, __file__)
        self.process = subprocess.Popen(
            [*start, kind, mountpoint, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env or os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )

    def __enter__(self) -> Self:
        line = self.process.stdout.readline()
        if line != "ready\n":
            self.process.kill()
            raise AssertionError(f"no mount: {line!r} {self.process.communicate()}")
        return self

    def __exit__(self, *_reason: object) -> None:
        subprocess.run(["umount", "-l", self.mountpoint], check=False, stderr=subprocess.DEVNULL)
        self.process.kill()
        self.process.communicate()

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


def adapter() -> MountAdapter:
    """The adapter that the test asks for."""
    name = os.environ.get("DEMO_ADAPTER", "fuse")
    return next(found for found in discover(mountfs.adapters).available if found.name == name)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("mountpoint", type=Path)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--background", action="store_true")
    parser.add_argument("--allow-other", action="store_true")
    parser.add_argument("--source", default="demo")
    parser.add_argument("--uid", type=int)
    parser.add_argument("--umask", type=lambda text: int(text, 8))
    given = parser.parse_args()
    logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(message)s")
    tree = {
        "demo": demo,
        "points": lambda: points(given.folder),
        "hang": lambda: MemoryTree(
            folder({b"file%d" % number: Item(size=10, read=_hang) for number in range(4)})
        ),
        "broken-root": lambda: BrokenRoot(folder({})),
    }[given.kind]()
    options = MountOptions(
        given.mountpoint, given.source, uid=given.uid, umask=given.umask, allow_other=given.allow_other
    )
    try:
        if given.background:
            run_in_background(lambda ready: adapter().mount(tree, options, ready))
        else:
            adapter().mount(tree, options, lambda: print("ready", flush=True))
    except MountfsError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    print("done", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
