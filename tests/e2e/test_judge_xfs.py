"""XFS of every kind, filled by a kernel, against that kernel's own mount of it: entry by entry, no exception.

The running kernel judges version 5. Version 4 and case-insensitive names are filled and judged by
User-mode Linux, since kernels are built without them today.
"""

from __future__ import annotations

import mmap
import os
import pickle
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imageformat.device import MemoryDevice
from mountfs.drivers import xfs
from mountfs.signatures import identify
from mountfs.tree import FileSystemInfo
from support.disks import MIB
from support.entries import differences
from support.kernel import kernel_mount, loop_device
from support.requirements import require_root, require_tool, run
from support.umlkernel import run_in_uml
from support.xfstree import ACCESS_ACL, kernel_entries, populate, tree_entries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mountfs.tree import FileTree
    from support.entries import Entries

pytestmark = [pytest.mark.root]

SUPPORT = Path(__file__).resolve().parents[1]
SIZE = 320 * MIB
VERSION_5 = {
    "usual": (),
    "many extents": ("-i", "nrext64=1"),
    "old times, nothing shared": ("-m", "bigtime=0,reflink=0", "-i", "sparse=0"),
    "64 KiB folder blocks": ("-n", "size=64k"),
    "1 KiB blocks, 16 KiB folder blocks": ("-b", "size=1k", "-n", "size=16k"),
    "64 KiB blocks": ("-b", "size=64k"),
    "sectors of 4096": ("-s", "size=4096"),
    "inodes of 2048": ("-i", "size=2048"),
    "64 groups": ("-d", "agcount=64", "-l", "size=8m", "--unsupported"),
}
VERSION_4 = {
    "usual": (),
    "512-byte blocks": ("-b", "size=512"),
    "no types in folders": ("-n", "ftype=0"),
    "names without case": ("-n", "version=ci"),
    "oldest": ("-i", "size=256,attr=1,projid32bit=0", "-l", "version=1,lazy-count=0"),
    "1 KiB blocks, 64 KiB folder blocks": ("-b", "size=1k", "-n", "size=64k"),
}
MANY = 20_000
"""How many names a large folder holds."""


def make(path: Path, options: tuple[str, ...]) -> Path:
    path.touch()
    os.truncate(path, 4 * SIZE if "agcount=64" in options else SIZE)
    run("mkfs.xfs", "-q", "-L", "judged", *options, path)
    return path


@contextmanager
def opened(path: Path) -> Iterator[FileTree]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        tree = xfs.PLUGIN.open(MemoryDevice(content), FileSystemInfo("xfs"))
        yield tree
        tree.close()


def shown(path: Path) -> Entries:
    with opened(path) as tree:
        return tree_entries(tree)


def filled(path: Path, options: tuple[str, ...], names: int) -> Entries:
    """Make and fill a volume; what the kernel shows of it."""
    with loop_device(make(path, options)) as device:
        with kernel_mount(device, "xfs", read_only=False, options=("noatime",)) as top:
            populate(top, names)
        with kernel_mount(device, "xfs") as top:
            return kernel_entries(top)


@pytest.fixture(scope="module", autouse=True)
def _needed() -> None:
    require_root()
    require_tool("mkfs.xfs")


@pytest.mark.parametrize("kind", VERSION_5)
def test_version_5_is_what_the_kernel_shows(kind: str, tmp_path: Path) -> None:
    truth = filled(tmp_path / "volume", VERSION_5[kind], MANY if kind == "usual" else 1200)
    assert len({entry["kind"] for entry in truth.values()}) == 7
    assert truth[b"attributes/acl"]["xattrs"]["system.posix_acl_access"] == ACCESS_ACL
    assert differences(truth, shown(tmp_path / "volume")) == []


@pytest.fixture(scope="module")
def version_4(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Entries]]:
    """Each kind of volume and what User-mode Linux shows of it, in one run."""
    folder = tmp_path_factory.mktemp("version-4")
    volumes = {
        kind: make(folder / f"{n}", ("-m", "crc=0", *VERSION_4[kind])) for n, kind in enumerate(VERSION_4)
    }
    program = shlex.join(
        ["env", f"PYTHONPATH={SUPPORT}", sys.executable, str(SUPPORT / "support" / "xfstree.py")]
    )
    commands: list[str] = []
    for number, (kind, path) in enumerate(volumes.items()):
        device = f"/dev/ubd{'abcdefgh'[number]}"
        commands += [
            f"mount -t xfs -o noatime {device} /mnt/top",
            f"{program} populate /mnt/top {3000 if kind == '512-byte blocks' else 1200}",
            "umount /mnt/top",
            f"mount -t xfs -o ro {device} /mnt/top",
            f"{program} read /mnt/top {shlex.quote(f'{path}.truth')}",
            "umount /mnt/top",
        ]
    run_in_uml(commands, list(volumes.values()))
    return {kind: (path, pickle.loads(Path(f"{path}.truth").read_bytes())) for kind, path in volumes.items()}


@pytest.mark.parametrize("kind", VERSION_4)
def test_version_4_is_what_user_mode_linux_shows(
    kind: str, version_4: dict[str, tuple[Path, Entries]]
) -> None:
    path, truth = version_4[kind]
    assert len({entry["kind"] for entry in truth.values()}) == 7
    assert differences(truth, shown(path)) == []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        info = identify(MemoryDevice(content))
    assert (info.type, info.label, info.note) == ("xfs", "judged", "") if info else False
