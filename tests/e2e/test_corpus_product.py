"""The stored images through the product: backed up, opened, every disk and every listed file right.

The oracle is what other tools read from these images (expectations.json), published with them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import re
from pathlib import Path
from typing import Any

import pytest

from engine.backup import BackupOptions, backup
from engine.devices.source import open_source
from imageformat.plugins import discover
from imageformat.repository import Repository
from imageformat.storage.local import LocalStorage
from mountfs import drivers
from mountfs.session import Session
from mountfs.tree import Node, NodeKind
from support.limits import MOST_MEMORY, peak_of, run_limited
from support.product import mounted

PIECE = 1 << 20
SERVED = frozenset().union(*(driver.types for driver in discover(drivers).available))
TYPES = {"vfat": "fat32", "hfsplus": "hfs+"}
UNREADABLE = {("ext4-ext4view-disk1", r"encrypted_dir/.*"): "fscrypt: the names are ciphertext, and refused"}


def unpack(shared: Path, packed: str, target: Path) -> None:
    """Unpack, leaving what is zeros a hole."""
    with lzma.open(shared / "fs-images" / packed) as source, target.open("wb") as file:
        while piece := source.read(PIECE):
            if piece.strip(b"\0"):
                file.write(piece)
            else:
                file.seek(len(piece), 1)
        file.truncate(file.tell())


def image(disk: Path, repository: Path, name: str) -> None:
    device = open_source(str(disk))
    opened = Repository(LocalStorage(repository))
    backup(device, opened, name, BackupOptions(), origin={"source": str(disk)})
    opened.close()
    device.close()


def find(session_tree: Any, path: str) -> Node | None:
    node = session_tree.root()
    for part in path.encode("utf-8", "surrogateescape").split(b"/"):
        node = session_tree.child(node, part)
        if node is None:
            return None
    return node


def content_hash(tree: Any, node: Node) -> str:
    digest, offset = hashlib.sha256(), 0
    while piece := tree.read(node, offset, PIECE):
        digest.update(piece)
        offset += len(piece)
    return digest.hexdigest()


def raw_cases(shared: Path) -> list[dict[str, Any]]:
    cases = json.loads((shared / "fs-images" / "expectations.json").read_text())["good"]
    return [case for case in cases if case["format"] == "raw"]


def check_partitions(case: dict[str, Any], tree: Any) -> list[str]:
    known = {volume.number: (volume.offset, volume.size) for volume in tree.volumes()}
    wrong = []
    for part in case.get("partitions", []):
        if part["type"] in {"0x5", "0xf", "0x85"}:
            continue  # containers: what is in them is listed
        place = part["start"], part["length"]
        if place not in known.values():
            wrong.append(f"{case['id']}: no partition at {place}: {known}")
    return wrong


def check_files(shared: Path, case: dict[str, Any], tree: Any) -> tuple[list[str], int]:
    wrong, files = [], 0
    for system in case.get("filesystems", []):
        if "truth" not in system or TYPES.get(system["type"], system["type"]) not in SERVED:
            continue
        for entry in json.loads((shared / "fs-images" / system["truth"]).read_text()):
            path = entry["path"].strip("/")
            if "sha256" not in entry or any(
                case["id"] == name and re.fullmatch(pattern, path) for name, pattern in UNREADABLE
            ):
                continue
            node = find(tree, f"{system['partition']}/{path}")
            if node is None or node.kind is not NodeKind.FILE:
                wrong.append(f"{case['id']}: {path} is not there")
            elif content_hash(tree, node) != entry["sha256"]:
                wrong.append(f"{case['id']}: {path} has other content")
            files += 1
    return wrong, files


def test_every_good_raw_image(shared_data: Path, tmp_path: Path) -> None:
    wrong: list[str] = []
    total = 0
    for case in raw_cases(shared_data):
        disk = tmp_path / f"{case['id']}.img"
        unpack(shared_data, case["packed"]["disk.img"], disk)
        image(disk, tmp_path / "repo", case["id"])
        disk.unlink()
        with Session(str(tmp_path / "repo" / case["id"])) as session:
            tree = session.disk_tree(session.location.point())
            whole = find(tree, "disk.img")
            if whole is None or content_hash(tree, whole) != case["disk"]["sha256"]:
                wrong.append(f"{case['id']}: the disk has other bytes")
            wrong += check_partitions(case, tree)
            found, files = check_files(shared_data, case, tree)
            wrong += found
            total += files
            tree.close()
    assert wrong == []
    assert total > 11_000


ODD = r"""
import sys
from pathlib import Path
from mountfs.cli.__main__ import run
from mountfs.session import Session
from mountfs.traversal import Walk, Visit
from mountfs.tree import NodeKind
from imageformat.errors import MountfsError
from support.limits import bound_memory, restart_clock, tell_peak

bound_memory()
repo = sys.argv[1]
for disk in sys.argv[2:]:
    restart_clock()
    code = run(["backup", disk, repo, "--quiet", "--json"])
    assert code == 0, (disk, code)
    name = Path(disk).stem
    assert run(["info", f"{repo}/{name}", "--json"]) == 0, disk
    with Session(f"{repo}/{name}") as session:
        tree = session.disk_tree(session.location.point())
        entries = 0
        for step in Walk(tree, tree.root(), b""):
            entries += 1
            if step.visit is Visit.ENTRY and step.node.kind is NodeKind.FILE:
                try:
                    tree.read(step.node, 0, 65536)
                    list(tree.extents(step.node))
                except MountfsError:
                    pass
        assert entries > 1, disk
        tree.close()
tell_peak()
"""
MOUNTED = r"""
import os, sys
from support.limits import bound_memory, restart_clock, tell_peak

def look(path):
    with open(path, "rb", buffering=0) as file:
        file.read(65536)
        os.lseek(file.fileno(), 0, os.SEEK_HOLE)

bound_memory()
for top in sys.argv[1:]:
    restart_clock()
    seen, entries = set(), 0
    for folder, folders, files in os.walk(top, onerror=lambda error: None):
        inode = os.stat(folder)[:2]
        if inode in seen or folder.count(os.sep) > 60:
            folders.clear()
        seen.add(inode)
        entries += len(folders) + len(files)
        for name in files:
            path = os.path.join(folder, name)
            try:
                os.listxattr(path, follow_symlinks=False)
                os.readlink(path) if os.path.islink(path) else look(path)
            except OSError:
                pass
    assert entries > 1, top
tell_peak()
"""


def odd_disks(shared: Path, folder: Path, batch: int) -> dict[Path, str]:
    """A quarter of the odd images, unpacked, and what their SHA-256 must still be at the end."""
    odd = json.loads((shared / "fs-images" / "odd.json").read_text())[batch::4]
    disks = {folder / f"odd-{number}.img": case["sha256"] for number, case in enumerate(odd)}
    for disk, case in zip(disks, odd, strict=True):
        unpack(shared, case["packed"], disk)
    return disks


def server_of(mountpoint: Path) -> int:
    """The process that serves a mount."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if bytes(mountpoint) in (process / "cmdline").read_bytes().split(b"\0"):
                return int(process.name)
    raise AssertionError(f"nobody serves {mountpoint}")


@pytest.mark.fuse
@pytest.mark.parametrize("batch", range(4))
def test_odd_images_do_no_harm(shared_data: Path, tmp_path: Path, batch: int) -> None:
    disks, repository = odd_disks(shared_data, tmp_path, batch), tmp_path / "repo"
    run_limited(ODD, repository, *disks)
    with mounted(repository) as shown:
        run_limited(MOUNTED, *(shown / disk.stem / "latest" for disk in disks))
        assert peak_of(server_of(shown)) < MOST_MEMORY
    for disk, sha256 in disks.items():
        assert hashlib.sha256(disk.read_bytes()).hexdigest() == sha256, "it was written to"
