"""What the disk is filled with: system files, small files, a database, logs, random and deleted data."""

from __future__ import annotations

import functools
import os
import random
import re
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

BLOCK = 4096
MIB = 1 << 20
SMALL_FILES = 20_000
_SYSTEM = Path("/usr/lib")
_STEMS = ("disk", "user", "GET /index", "failed", "ok")
_WORDS = [f"{stem}{number}" for number in range(40) for stem in _STEMS]
_EXTENT = re.compile(r"^\s*\d+/\s*\d+\s+\d+/\s*\d+\s+\d+ -\s+\d+\s+(\d+) -\s+(\d+)\s+\d+", re.MULTILINE)


def text(chance: random.Random, size: int) -> bytes:
    """Lines as in a log."""
    lines: list[str] = []
    length = 0
    moment = chance.randrange(1 << 30)
    while length < size:
        moment += chance.randrange(900)
        lines.append(f"{moment} host[{chance.randrange(9000)}]: {' '.join(chance.choices(_WORDS, k=6))}\n")
        length += len(lines[-1])
    return "".join(lines).encode()[:size]


def page(chance: random.Random, size: int) -> bytes:
    """Compresses to about a half, as database pages do."""
    return text(chance, 256) + chance.randbytes(size // 2) + bytes(size // 2 - 256)


def make_ext4(image: Path, size: int) -> list[tuple[int, int]]:
    """Write a file system; return where in it file contents lie, deleted ones included."""
    chance = random.Random(1)
    with tempfile.TemporaryDirectory(dir=image.parent) as name:
        root = Path(name)
        _fill(root, size, chance, small=min(SMALL_FILES, size // MIB * 27), system=0.22)
        with image.open("wb") as file:
            file.truncate(size)
        seed = f"lazy_itable_init=0,nodiscard,hash_seed={uuid.UUID(int=1)}"
        features = ["-E", seed, "-U", str(uuid.UUID(int=2))]
        inodes = ["-N", str(sum(1 for _ in root.rglob("*")) + 1000)]
        _run("mke2fs", "-q", "-F", "-t", "ext4", "-b", str(BLOCK), *inodes, *features, "-d", name, str(image))
        inside = [f"/{path.relative_to(root)}" for path in sorted(root.rglob("*")) if path.is_file()]
    places = _extents(image, [path for path in inside if not path.startswith("/small/")])
    deleted = [path for path in inside if path.startswith("/deleted/")]
    _debugfs(image, [f'rm "{path}"' for path in deleted], "-w")
    return places


def make_ntfs(image: Path, size: int) -> None:
    """Write a file system; without root only as much as ntfscp can put into its root folder."""
    chance = random.Random(2)
    with image.open("wb") as file:
        file.truncate(size)
    _run("mkntfs", "-q", "-Q", "-F", "-p", "2048", "-H", "255", "-S", "63", str(image))
    with tempfile.TemporaryDirectory(dir=image.parent) as name:
        root, mounted = Path(name, "root"), Path(name, "mnt")
        root.mkdir()
        mounted.mkdir()
        _fill(root, size, chance, small=min(2000, size // MIB * 20), system=0.2)
        if os.geteuid() != 0:
            for path in sorted(path for path in root.rglob("*") if path.stat().st_size > 64 << 10):
                _run("ntfscp", str(image), str(path), path.name)
            return
        _run("ntfs-3g", str(image), str(mounted))
        try:
            _run("cp", "-r", "--no-preserve=all", f"{root}/.", str(mounted))
            shutil.rmtree(mounted / "deleted")
        finally:
            _run("umount", str(mounted))


def _fill(root: Path, size: int, chance: random.Random, *, small: int, system: float) -> None:
    for name in ("system", "small", "data", "logs", "media", "deleted"):
        (root / name).mkdir()
    _copy_system(root / "system", int(size * system), chance)
    for number in range(small):
        if number % 100 == 0:
            folder = root / "small" / f"{number // 100:03}"
            folder.mkdir()
        length = min(16_000, int(chance.lognormvariate(7.6, 0.9)))
        (folder / f"{number:05}.txt").write_bytes(text(chance, length))
    _write(root / "data/database.db", int(size * 0.10), lambda: page(chance, 8192))
    for number in range(8):
        _write(root / f"logs/{number}.log", int(size * 0.005), lambda: text(chance, 1 << 16))
        _write(root / f"media/{number}.jpg", int(size * 0.01), lambda: chance.randbytes(1 << 16))
        _write(root / f"deleted/{number}.tmp", int(size * 0.008), lambda: page(chance, 8192))


def _write(path: Path, size: int, piece) -> None:  # noqa: ANN001 - a function without arguments
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(piece())


@functools.cache
def _system_files() -> tuple[Path, ...]:
    found = (Path(folder, name) for folder, _, names in os.walk(_SYSTEM) for name in names)
    return tuple(sorted(path for path in found if _is_readable_file(path)))


def _is_readable_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and os.access(path, os.R_OK)


def _copy_system(target: Path, budget: int, chance: random.Random) -> None:
    """Copy a seeded choice of this machine's system files, each under a number."""
    found = list(_system_files())
    chance.shuffle(found)
    for number, path in enumerate(found):
        size = path.stat().st_size
        if size > budget // 4:
            continue
        budget -= -(-size // BLOCK) * BLOCK
        if budget < 0:
            return
        shutil.copyfile(path, target / f"{number:05}{path.suffix.replace(' ', '')[:8]}")


def _extents(image: Path, paths: list[str]) -> list[tuple[int, int]]:
    """Where the contents of files lie, as (offset, length) in the file system."""
    told = _debugfs(image, [f'dump_extents -l "{path}"' for path in paths])
    found = sorted((int(first), int(last)) for first, last in _EXTENT.findall(told))
    return [(first * BLOCK, (last - first + 1) * BLOCK) for first, last in found]


def _debugfs(image: Path, commands: list[str], *options: str) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".debugfs") as script:
        script.write("\n".join(commands) + "\n")
        script.flush()
        return _run("debugfs", *options, "-f", script.name, str(image))


def _run(*command: str) -> str:
    path = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
    ended = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    return ended.stdout
