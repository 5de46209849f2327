"""Random work on a file system, the same for the same seed: what a journal holds when the machine stops."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import sys
from pathlib import Path

_CLONE = 0x4004_9409


def churn(top: Path, seed: int, rounds: int) -> None:
    """Make, change, rename and remove files, folders, links and attributes; syncs now and then."""
    rng = random.Random(seed)
    folders = [top]
    for _ in range(rounds):
        with contextlib.suppress(OSError):
            _step(rng, top, folders)
        if rng.random() < 0.004:
            os.sync()


def _step(rng: random.Random, top: Path, folders: list[Path]) -> None:
    folder = rng.choice(folders)
    path = folder / f"{'x' * rng.choice([0, 0, 0, 60, 200])}{rng.randrange(60)}"
    choice = rng.random()
    if choice < 0.25:
        path.write_bytes(rng.randbytes(rng.choice([0, 1, 3000, 40_000])))
    elif choice < 0.35:
        with path.open("r+b") as file:
            for _ in range(rng.randrange(1, 40)):
                file.seek(rng.randrange(200) * 8192)
                file.write(rng.randbytes(3000))
            os.fsync(file.fileno())
    elif choice < 0.40:
        os.truncate(path, rng.randrange(300_000))
    elif choice < 0.50:
        path.unlink()
    elif choice < 0.58:
        made = rng.choice(folders[:20]) / f"folder {rng.randrange(30)}"
        made.mkdir()
        folders.append(made)
    elif choice < 0.60 and len(folders) > 5:
        gone = rng.choice(folders[1:])
        shutil.rmtree(gone)
        folders[:] = [top] + [one for one in folders[1:] if gone != one and gone not in one.parents]
    elif choice < 0.68:
        path.rename(rng.choice(folders) / f"{rng.randrange(60)}")
    elif choice < 0.72:
        path.hardlink_to(rng.choice(folders) / f"{rng.randrange(60)}")
    elif choice < 0.76:
        path.symlink_to("t" * rng.choice([3, 100, 400, 1000]))
    elif choice < 0.90:
        name = f"{rng.choice(['user', 'trusted'])}.{rng.randrange(40)}"
        if rng.random() < 0.7:
            os.setxattr(
                path, name, rng.randbytes(rng.choice([5, 60, 300, 2000, 9000])), follow_symlinks=False
            )
        elif name in os.listxattr(path, follow_symlinks=False):
            os.removexattr(path, name, follow_symlinks=False)
    elif choice < 0.93:
        os.chown(path, rng.randrange(2**31), rng.randrange(2**31), follow_symlinks=False)
    elif choice < 0.95:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), rng.randrange(100) * 4096, 50_000)
    else:
        with path.open("rb") as source, (folder / "clone").open("w+b") as target:
            fcntl.ioctl(target.fileno(), _CLONE, source.fileno())


if __name__ == "__main__":
    churn(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
