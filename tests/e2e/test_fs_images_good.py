"""Every stored good image whose file system we open, against what other tools say it holds.

`expected/*.json` was made by the kernel, ntfs-3g, exfat-fuse, 7z and xorriso. Where we differ, the
difference is listed here with its reason; nothing is left out silently.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import mmap
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from imageformat.device import MemoryDevice, Slice
from imageformat.errors import MountfsError
from mountfs.drivers import apfs, btrfs, ext, fat, hfsplus, iso9660, tsk, xfs
from mountfs.tree import FileSystemInfo, NodeKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mountfs.tree import FileTree, Node

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("MOUNTFS_SHARED_DATA", REPOSITORY.parent / "shared" / "data")) / "fs-images"

DRIVERS = {
    name: module.PLUGIN
    for module in (apfs, btrfs, ext, fat, hfsplus, iso9660, tsk, xfs)
    for name in module.PLUGIN.types
}
TYPES = {"vfat": "fat32", "hfsplus": "hfs+"}
KINDS = {"dir": NodeKind.DIRECTORY, "file": NodeKind.FILE, "symlink": NodeKind.SYMLINK}

NOT_SERVED = {"crypto_LUKS"}

NOT_UNPACKED = {
    "e01-dfvfs-ext2": "no unpacker for EWF here",
    "e01-nps-emails": "no unpacker for EWF here",
    "bitlk-aes-xts-128": "BitLocker: the file system is inside",
}

DEVIATIONS = [
    # case, path (regular expression), what differs, reason
    (
        "ext4-ext4view-disk1",
        r"encrypted_dir/.*",
        "missing",
        "the kernel lists names of ciphertext; we refuse",
    ),
    (
        "exfat-sr",
        r".*",
        "mtime_ns",
        "exfat-fuse ignores the field of 10 ms; whole seconds are compared below",
    ),
    ("iso-dfvfs", r".*", "mode", "no Rock Ridge: xorriso's 0755 is made up; ours are 0444 and 0555"),
    ("iso-dftt14-dirtree1", r".*", "mode", "no Rock Ridge: xorriso's 0644 is made up; ours is 0444"),
    ("iso-libcdio-copying-rr", r".*", "mode", "xorriso adds the owner's write bit when it extracts"),
    ("iso-libcdio-copying-rr", r".*Copy2|.*/COPYING", "mtime_ns", "of a link: when xorriso extracted it"),
    ("iso-libarchive-joliet", r"symlink", "mtime_ns", "of a link: when xorriso extracted it"),
    ("iso-libcdio-copying-rr", r"fd0|zero", "extra", "device nodes, which xorriso did not extract"),
    ("hfsp-goapfs-basic-dmg", r"hello.txt|hardlink-to-hello", "mtime_ns", "7z shows the link's own time"),
]


def load_cases() -> list[Any]:
    if not (SHARED / "expectations.json").exists():
        return []
    found = []
    for case in json.loads((SHARED / "expectations.json").read_text())["good"]:
        for system in case.get("filesystems", []):
            name = TYPES.get(system["type"], system["type"])
            if name not in NOT_SERVED and case["id"] not in NOT_UNPACKED:
                found.append(pytest.param(case, system, name, id=case["id"]))
    return found


CASES = load_cases()


def missing(what: object) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"missing: {what}")
    pytest.skip(f"missing: {what}")


def unpack(case: dict[str, Any], folder: Path) -> Path:
    """Unpack an image, sparse where it holds zeros, and convert it to raw bytes."""
    packed = next(held for name, held in case["packed"].items() if name.startswith("disk."))
    raw = folder / "disk"
    with lzma.open(SHARED / packed) as source, raw.open("wb") as target:
        while piece := source.read(1 << 20):
            if any(piece):
                target.write(piece)
            else:
                target.seek(len(piece), os.SEEK_CUR)
        target.truncate()
    if case["format"] == "raw":
        return raw
    if shutil.which("qemu-img") is None:
        missing("qemu-img")
    names = {"vhd": "vpc"}
    command = ["qemu-img", "convert", "-f", names.get(case["format"], case["format"]), "-O", "raw"]
    subprocess.run([*command, raw, folder / "raw"], check=True, capture_output=True)
    return folder / "raw"


def open_tree(case: dict[str, Any], system: dict[str, Any], name: str, path: Path) -> FileTree:
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    device = MemoryDevice(content)
    offset = system["offset"]
    lengths = [part["length"] for part in case.get("partitions", []) if part["start"] == offset]
    part = Slice(device, offset, min([*lengths, device.size - offset]))
    return DRIVERS[name].open(part, FileSystemInfo(name))


def all_nodes(tree: FileTree) -> dict[str, Node]:
    found, pending = {}, [("", tree.root())]
    while pending:
        path, parent = pending.pop()
        try:
            for node in tree.children(parent):
                below = f"{path}/{node.name.decode('utf-8', 'surrogateescape')}".removeprefix("/")
                found[below] = node
                if node.kind is NodeKind.DIRECTORY:
                    pending.append((below, node))
        except MountfsError as error:
            assert "encrypted" in str(error)  # noqa: PT017 (any other error fails the case)
    return found


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def differences(tree: FileTree, node: Node, truth: dict[str, Any]) -> Iterator[str]:
    """Yield what of a node is not as the truth has it."""
    expected = KINDS.get(truth["type"])
    if node.kind is not expected:
        yield "type"
        return
    try:
        content = tree.read(node, 0, node.size) if expected is NodeKind.FILE else b""
    except MountfsError:
        content = None
    compared = {
        "size": lambda: node.size,
        "sha256": lambda: content is not None and digest(content),
        "mode": lambda: oct(node.mode),
        "uid": lambda: node.uid,
        "gid": lambda: node.gid,
        "mtime_ns": lambda: node.mtime_ns,
        "target": lambda: tree.readlink(node).decode(),
    }
    yield from (key for key, value in compared.items() if key in truth and truth[key] != value())
    for key in {"xattrs", "streams", "ads"} & set(truth):
        wanted = {name: (value["size"], value["sha256"]) for name, value in truth[key].items()}
        try:
            held = dict(tree.xattrs(node))
            held |= {s.name.decode(): tree.read(node, 0, s.size, s.name) for s in tree.streams(node)}
        except MountfsError:
            yield key
            continue
        if {name: (len(value), digest(value)) for name, value in held.items()} != wanted:
            yield key


def covers(deviation: tuple[str, ...], case: str, path: str, what: str) -> bool:
    known, pattern, difference, _ = deviation
    return case == known and what == difference and re.fullmatch(pattern, path) is not None


def test_the_stored_images_are_there() -> None:
    if not CASES:
        missing(SHARED)
    assert len(CASES) >= 30


@pytest.mark.parametrize(("case", "system", "name"), CASES)
def test_image_holds_what_others_say(
    case: dict[str, Any], system: dict[str, Any], name: str, tmp_path: Path
) -> None:
    truth = {entry["path"]: entry for entry in json.loads((SHARED / system["truth"]).read_text())}
    tree = open_tree(case, system, name, unpack(case, tmp_path))
    found = all_nodes(tree)
    wrong = [(path, "missing") for path in truth.keys() - found.keys()]
    wrong += [(path, "extra") for path in found.keys() - truth.keys()]
    for path in truth.keys() & found.keys():
        wrong += [(path, what) for what in differences(tree, found[path], truth[path])]
        if name == "exfat":
            assert found[path].mtime_ns // 10**9 == truth[path]["mtime_ns"] // 10**9
    listed = [deviation for deviation in DEVIATIONS if deviation[0] == case["id"]]
    assert [pair for pair in wrong if not any(covers(entry, case["id"], *pair) for entry in listed)] == []
    stale = [entry for entry in listed if not any(covers(entry, case["id"], *pair) for pair in wrong)]
    assert stale == [], "a deviation is listed that no longer happens"


def test_hard_links_share_a_number(tmp_path: Path) -> None:
    cases = [param.values for param in CASES if param.id == "hfsp-goapfs-basic-dmg"]
    if not cases:
        missing(SHARED)
    case, system, name = cases[0]
    found = all_nodes(open_tree(case, system, name, unpack(case, tmp_path)))
    assert found["hello.txt"].inode == found["hardlink-to-hello"].inode != 0
    assert found["hello.txt"].links == 2
