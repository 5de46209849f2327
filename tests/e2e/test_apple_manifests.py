"""HFS+ and APFS volumes that macOS wrote, against what macOS itself said of them."""

from __future__ import annotations

import hashlib
import json
import lzma
from typing import Any

import pytest

from imageformat.device import MemoryDevice, Slice
from mountfs.drivers import apfs, hfsplus
from mountfs.tree import FileSystemInfo, FileTree, NodeKind, walk
from support.requirements import run, shared_data_folder

CASES = {
    "hfsp-goapfs-basic-dmg": (hfsplus.PLUGIN, "hfs+"),
    "apfs-goapfs-dmg": (apfs.PLUGIN, "apfs"),
}
FORK = "com.apple.ResourceFork"


@pytest.fixture(scope="module", params=CASES)
def volume(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FileTree, dict[str, dict[str, Any]]]:
    """The tree of an image, and the facts about its files."""
    images = shared_data_folder() / "fs-images"
    driver, name = CASES[request.param]
    (case,) = (
        case
        for case in json.loads((images / "expectations.json").read_text())["good"]
        if case["id"] == request.param
    )
    folder = tmp_path_factory.mktemp("apple")
    packed = folder / "disk"
    packed.write_bytes(lzma.decompress((images / "images" / f"{request.param}.disk.dmg.xz").read_bytes()))
    run("qemu-img", "convert", "-f", "dmg", "-O", "raw", packed, folder / "raw")
    raw = (folder / "raw").read_bytes()
    (system,) = case["filesystems"]
    lengths = [part["length"] for part in case["partitions"] if part["start"] == system["offset"]]
    device = Slice(MemoryDevice(raw), system["offset"], lengths[0])
    manifest = json.loads((images / "images" / f"{request.param}.macos-manifest.json").read_text())
    return driver.open(device, FileSystemInfo(name)), manifest["files"]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_every_file_is_what_macos_says(volume: tuple[FileTree, dict[str, dict[str, Any]]]) -> None:
    tree, manifest = volume
    assert len(manifest) > 8
    assert any(facts.get("compressed") for facts in manifest.values())
    for path, facts in manifest.items():
        node = walk(tree, path.encode())
        assert node.kind.value == {"dir": "directory"}.get(facts["type"], facts["type"])
        if node.kind is NodeKind.SYMLINK:
            assert tree.readlink(node).decode() == facts["target"]
        if node.kind is NodeKind.FILE:
            content = tree.read(node, 0, node.size)
            assert (path, len(content), digest(content)) == (path, facts["size"], facts["sha256"])
            assert oct(node.mode) == facts["mode"]
        held = dict(tree.xattrs(node))
        for stream in tree.streams(node):
            held[FORK] = tree.read(node, 0, stream.size, stream.name)
        found = {name: {"size": len(value), "sha256": digest(value)} for name, value in held.items()}
        assert (path, found) == (path, facts.get("xattrs", {}))
