"""Sets of many points, made once and kept: each takes a command, and a thousand commands take minutes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import machine, product
from benchmarks.runner import MIB
from benchmarks.workload import change, prepare

if TYPE_CHECKING:
    from benchmarks.runner import Bench
    from benchmarks.workload import Workload

_ROOT = Path(__file__).parents[1]
_SOURCES = ("mountfs", "imageformat", "engine")

# The command line, without starting an interpreter for each of a thousand points.
_MAKER = """
import json
import sys
from pathlib import Path
from benchmarks.points import change_a_little
from mountfs.cli.__main__ import run
disk, repo, count, *options = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *sys.argv[4:]
places = json.load(sys.stdin)
for number in range(count):
    if number:
        change_a_little(disk, places, number)
    code = run(["backup", "--raw", "--quiet", "--set", "disk", *options, str(disk), repo])
    if code:
        sys.exit(code)
"""


def change_a_little(disk: Path, places: list[tuple[int, int]], number: int) -> None:
    """What happens between two points of a long chain: 0.2 % of the blocks."""
    change(disk, places, 0.002, seed=1000 + number)


def many_points(bench: Bench, size: int, count: int, *options: str) -> tuple[Path, Path, Workload]:
    """Return a repository with a set of so many points, the disk as the last has it, and its workload.

    ``options`` are given to every backup.
    """
    work = bench.workload.folder.parent
    kind = f"points{''.join(options)}-{count}-{size // MIB}MiB"
    folder = work / f"{kind}-{_product_digest()}"
    disk, repo, done = folder / "disk.img", folder / "repo", folder / "done"
    source = bench.workload if size == bench.workload.size else prepare(work, size)
    if done.exists():
        return repo, disk, source
    for old in work.glob(f"{kind}-*"):
        shutil.rmtree(old)
    folder.mkdir()
    bench.say(f"making {count} points of a disk of {size // MIB} MiB")
    subprocess.run(["cp", "--sparse=always", str(source.days[0]), str(disk)], check=True)
    command = [sys.executable, "-c", _MAKER, str(disk), str(repo), str(count), *options]
    environment = {**machine.environment(), "PYTHONPATH": str(_ROOT)}
    places = json.dumps(source.changeable)
    quiet = subprocess.DEVNULL
    subprocess.run(command, check=True, input=places, text=True, stdout=quiet, env=environment)
    done.touch()
    return repo, disk, source


def _product_digest() -> str:
    """Changes with the product: what another version wrote must not be measured as this one's."""
    summed = hashlib.sha256()
    for name in _SOURCES:
        for path in sorted((_ROOT / name).rglob("*.py")):
            summed.update(path.read_bytes())
    return summed.hexdigest()[:12]


def single_full(disk: Path, repo: Path) -> str:
    """Back up a disk alone; return the name of its point."""
    product.run(product.backup(disk, repo))
    return f"{repo}/disk@1"
