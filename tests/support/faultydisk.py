"""A disk with bad sectors: a file of a FUSE server that answers EIO for ranges of it, and loop devices on it.

faultydisk.py MOUNTPOINT CONTENT RANGES    RANGES: offset+length,...; serves MOUNTPOINT/disk in the foreground
"""

# ruff: noqa: ARG002 (the library calls them so)
from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PATIENCE = 20.0


@contextlib.contextmanager
def faulty_disk(content: Path, bad: Sequence[tuple[int, int]]) -> Iterator[Path]:
    """Serve a file as a disk of which ranges (offset, length) cannot be read; the path of that disk."""
    from support.requirements import require_fuse  # noqa: PLC0415 (this file is a program, too)

    require_fuse()
    folder = Path(tempfile.mkdtemp(prefix="faulty-"))
    ranges = ",".join(f"{offset}+{length}" for offset, length in bad)
    server = subprocess.Popen([sys.executable, __file__, str(folder), str(content), ranges])
    try:
        until = time.monotonic() + PATIENCE
        while not (folder / "disk").exists():
            if time.monotonic() > until or server.poll() is not None:
                raise RuntimeError(f"the faulty disk does not come up: {server.poll()}")
            time.sleep(0.02)
        yield folder / "disk"
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(folder)], check=False)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(PATIENCE)
        server.kill()
        server.wait()
        folder.rmdir()


def serve(mountpoint: str, content: str, ranges: str) -> None:
    """Serve until unmounted."""
    import mfusepy  # noqa: PLC0415

    bad = [tuple(map(int, text.split("+"))) for text in ranges.split(",") if text]
    size = Path(content).stat().st_size

    class Disk(mfusepy.Operations):  # type: ignore[misc]
        use_ns = True

        def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
            if path != "/disk":
                raise mfusepy.FuseOSError(errno.ENOENT)
            return {"st_mode": stat.S_IFREG | 0o444, "st_nlink": 1, "st_size": size}

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", "disk"]

        def open(self, path: str, flags: int) -> int:
            return os.open(content, os.O_RDONLY)

        def read(self, path: str, length: int, offset: int, fh: int) -> bytes:
            if any(start < offset + length and offset < start + count for start, count in bad):
                raise mfusepy.FuseOSError(errno.EIO)
            return os.pread(fh, length, offset)

        def release(self, path: str, fh: int) -> int:
            os.close(fh)
            return 0

    mfusepy.FUSE(Disk(), mountpoint, foreground=True, ro=True, direct_io=True, nothreads=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
