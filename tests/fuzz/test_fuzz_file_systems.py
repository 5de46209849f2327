"""Damaged copies of sound volumes: no crash, no hang, only errors of ours.

They run in subprocesses, because a crash of libtsk would end the process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("MOUNTFS_SHARED_DATA", REPOSITORY.parent / "shared" / "data")) / "fs-images"

CASES = {
    "ext4": ("ext", "ext4-discutils"),
    "fat12": ("fat", "fat12-rust"),
    "exfat": ("fat", "exfat-sr"),
    "iso9660": ("iso9660", "iso-libcdio-copying-rr"),
    "ntfs": ("ntfs", "ntfs-colinfinck"),
    "hfs+": ("hfsplus", "hfsp-dfvfs"),
    "apfs": ("apfs", "apfs-dfvfs"),
}
ROUNDS = 80

WORKER = r"""
import importlib, json, lzma, random, resource, signal, struct, sys
from itertools import accumulate
from pathlib import Path

from imageformat.device import MemoryDevice
from imageformat.errors import MountfsError
from mountfs.drivers._apfs_objects import checksum_fits
from mountfs.tree import FileSystemInfo, NodeKind

module, name, path, first, rounds = sys.argv[1:]
driver = importlib.import_module(f"mountfs.drivers.{module}").PLUGIN
sound = lzma.decompress(Path(path).read_bytes())
used = [at for at in range(0, len(sound), 512) if any(sound[at : at + 512])]
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))


def damaged(rng):
    content = bytearray(sound)
    for _ in range(rng.choice([1, 3, 10, 50])):
        at, width = rng.choice(used) + rng.randrange(504), rng.choice([1, 2, 4, 8])
        top = 256**width
        value = rng.choice([0, 1, top - 1, top // 2, top // 2 - 1, rng.randrange(top)])
        content[at : at + width] = value.to_bytes(width, "little")
    if name == "apfs":
        repair(content)
    return bytes(content)


def repair(content):
    # Every block that was an intact object gets a right checksum: damage must get past that check.
    for at in range(0, len(content), 4096):
        if not checksum_fits(sound[at : at + 4096]):
            continue
        words = struct.unpack_from("<1022I", content, at + 8)
        one, two = sum(words) % 0xFFFFFFFF, sum(accumulate(words)) % 0xFFFFFFFF
        low = 0xFFFFFFFF - (one + two) % 0xFFFFFFFF
        struct.pack_into("<II", content, at, low, 0xFFFFFFFF - (one + low) % 0xFFFFFFFF)


def visit(tree):
    pending, budget = [tree.root()], 2000
    while pending and budget:
        try:
            for node in tree.children(pending.pop()):
                budget = max(0, budget - 1)
                try:
                    if node.kind is NodeKind.DIRECTORY:
                        pending.append(node)
                    elif node.kind is NodeKind.FILE:
                        tree.read(node, 0, 65536)
                        list(tree.extents(node))
                    elif node.kind is NodeKind.SYMLINK:
                        tree.readlink(node)
                    tree.xattrs(node)
                    tree.streams(node)
                except MountfsError:
                    pass
        except MountfsError:
            pass


for seed in range(int(first), int(first) + int(rounds)):
    print(seed, flush=True)
    signal.alarm(10)
    try:
        visit(driver.open(MemoryDevice(damaged(random.Random(seed))), FileSystemInfo(name)))
    except MountfsError:
        pass
print("done")
"""


@pytest.mark.parametrize("name", CASES)
def test_damaged_volumes(name: str) -> None:
    module, case = CASES[name]
    packed = SHARED / "images" / f"{case}.disk.img.xz"
    if not packed.exists():
        if os.environ.get("CI"):
            pytest.fail(f"missing: {packed}")
        pytest.skip(f"missing: {packed}")
    first = int(os.environ.get("MOUNTFS_FUZZ_SEED", "0"))
    rounds = int(os.environ.get("MOUNTFS_FUZZ_ROUNDS", str(ROUNDS)))
    result = subprocess.run(
        [sys.executable, "-c", WORKER, module, name, str(packed), str(first), str(rounds)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    last = result.stdout.splitlines()[-1:]
    assert (result.returncode, last) == (0, ["done"]), json.dumps([last, result.stderr[-2000:]])
