"""Times do not depend on the zone of the machine that reads them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("MOUNTFS_SHARED_DATA", REPOSITORY.parent / "shared" / "data")) / "fs-images"

WORKER = r"""
import json, lzma, sys
from pathlib import Path

from imageformat.device import MemoryDevice
from mountfs.drivers import fat, hfsplus, iso9660, ntfs
from mountfs.tree import FileSystemInfo, NodeKind

CASES = {
    "fat12-dftt5-daylight": (fat, "fat12"),
    "exfat-sr": (fat, "exfat"),
    "iso-libcdio-copying-rr": (iso9660, "iso9660"),
    "iso-dfvfs": (iso9660, "iso9660"),
    "ntfs-colinfinck": (ntfs, "ntfs"),
    "hfsp-dfvfs": (hfsplus, "hfs+"),
}
found = {}
for case, (module, name) in CASES.items():
    content = lzma.decompress((Path(sys.argv[1]) / f"{case}.disk.img.xz").read_bytes())
    tree = module.PLUGIN.open(MemoryDevice(content), FileSystemInfo(name))
    for node in tree.children(tree.root()):
        key = f"{case} {node.name.decode()}"
        found[key] = [node.atime_ns, node.mtime_ns, node.ctime_ns, node.birth_ns]
print(json.dumps(found))
"""


def times(zone: str) -> dict[str, list[int]]:
    result = subprocess.run(
        [sys.executable, "-c", WORKER, str(SHARED / "images")],
        cwd=REPOSITORY,
        env={**os.environ, "TZ": zone},
        check=True,
        capture_output=True,
        text=True,
    )
    return dict(json.loads(result.stdout))


def test_times_are_the_same_in_every_zone() -> None:
    if not SHARED.exists():
        if os.environ.get("CI"):
            pytest.fail(f"missing: {SHARED}")
        pytest.skip(f"missing: {SHARED}")
    here = times("UTC")
    assert times("America/New_York") == here
    assert times("Asia/Tokyo") == here
    assert here["fat12-dftt5-daylight summer.txt"][1] == 1_086_102_004 * 10**9
    assert here["fat12-dftt5-daylight winter.txt"][1] == 1_072_965_602 * 10**9
