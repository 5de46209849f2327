"""What no stored HFS+ image has: extents that overflow, attributes in pieces, devices, linked folders.

The volumes are made here after TN1150; 7-Zip reads them too.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from imageformat.device import MemoryDevice
from imageformat.errors import VolumeError
from mountfs.drivers import hfsplus
from mountfs.signatures import identify
from mountfs.tree import FileSystemInfo, FileTree, Node, NodeKind, walk
from support.content import noise
from support.requirements import require_tool, run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BLOCK = 4096
BLOCKS = 256
EPOCH = 2_082_844_800
Records = list[tuple[bytes, bytes]]


def btree(records: Records, *, root: int = 1) -> bytes:
    """A header node and one leaf."""
    header = struct.pack(">HIIIIHHII", 1, root, len(records), 1, 1, BLOCK, 516, 2, 0).ljust(106, b"\0")
    first = struct.pack(">IIbBHH", 0, 0, 1, 0, 3, 0) + header
    leaf, starts = struct.pack(">IIbBHH", 0, 0, -1, 1, len(records), 0), []
    for key, value in records:
        starts.append(len(leaf))
        leaf += struct.pack(">H", len(key)) + key + bytes(len(key) % 2) + value
    starts.append(len(leaf))
    ends = struct.pack(f">{len(starts)}H", *reversed(starts))
    head_ends = struct.pack(">4H", BLOCK - 8, 248, 120, 14)
    return first.ljust(BLOCK - 8, b"\0") + head_ends + leaf.ljust(BLOCK - len(ends), b"\0") + ends


def fork(size: int, extents: Sequence[tuple[int, int]], blocks: int | None = None) -> bytes:
    count = sum(length for _, length in extents) if blocks is None else blocks
    return struct.pack(">QII", size, 0, count) + packed(extents)


def packed(extents: Sequence[tuple[int, int]]) -> bytes:
    return b"".join(struct.pack(">II", *extent) for extent in extents).ljust(64, b"\0")


def text(name: str) -> bytes:
    return struct.pack(">H", len(name)) + name.encode("utf-16-be")


def times() -> bytes:
    return struct.pack(">5I", *(EPOCH + moment for moment in (1000, 2000, 3000, 4000, 0)))


def folder(number: int, mode: int = 0o40755) -> bytes:
    rights = struct.pack(">IIBBHI", 501, 20, 0, 0, mode, 0)
    return struct.pack(">hHII", 1, 0, 0, number) + times() + rights + bytes(40)


def file(
    number: int,
    mode: int,
    data: bytes,
    *,
    special: int = 0,
    kind: bytes = bytes(8),
    resource: bytes = bytes(80),
    flags: int = 0,
) -> bytes:
    rights = struct.pack(">IIBBHI", 501, 20, 0, flags, mode, special)
    return struct.pack(">hHII", 2, 0, 0, number) + times() + rights + kind.ljust(40, b"\0") + data + resource


def thread(parent: int, name: str) -> bytes:
    return struct.pack(">hHI", 3, 0, parent) + text(name)


def key(parent: int, name: str) -> bytes:
    return struct.pack(">I", parent) + text(name)


def attribute_key(number: int, name: str, start: int = 0) -> bytes:
    return struct.pack(">HII", 0, number, start) + text(name)


CONTENT = noise(1, 11 * BLOCK - 100)
LONG = noise(2, 9 * BLOCK + 7)
PLACES = [(20 + 2 * index, 1) for index in range(11)]
LONG_PLACES = [(100 + 3 * index, 1) for index in range(10)]
SMALL = noise(3, 50)
STORED = b"\x06" + SMALL
EMPTY = fork(0, [])
PRIVATE = "\0\0\0\0HFS+ Private Data"
FOLDERS = ".HFS+ Private Directory Data\r"


def make(*, header_block_size: int = BLOCK) -> bytes:
    catalogue: Records = [
        (key(1, "Volume"), folder(2)),
        (key(2, ""), thread(1, "Volume")),
        (key(2, PRIVATE), folder(18)),
        (key(2, FOLDERS), folder(19)),
        (key(2, "a/b"), file(30, 0o100644, fork(len(SMALL), [(60, 1)]))),
        (key(2, "bare"), file(31, 0, fork(len(SMALL), [(60, 1)]))),
        (key(2, "device"), file(32, 0o20600, EMPTY, special=5 << 24 | 70_000)),
        (key(2, "fragments"), file(33, 0o100600, fork(len(CONTENT), PLACES[:8], 11))),
        (key(2, "linked"), file(34, 0o100444, EMPTY, special=7, kind=b"hlnkhfs+")),
        (key(2, "nowhere"), file(35, 0o100444, EMPTY, special=8, kind=b"hlnkhfs+")),
        (key(2, "packed"), file(36, 0o100644, EMPTY, flags=0x20)),
        (key(2, "twice"), file(37, 0o100444, EMPTY, special=50, kind=b"fdrpMACS")),
        (key(18, ""), thread(2, PRIVATE)),
        (key(18, "iNode7"), file(40, 0o100640, fork(len(SMALL), [(60, 1)]), special=2)),
        (key(19, ""), thread(2, FOLDERS)),
        (key(19, "dir_50"), folder(50)),
        (key(50, ""), thread(19, "dir_50")),
        (
            key(50, "inside"),
            file(51, 0o100600, fork(len(SMALL), [(60, 1)]), resource=fork(len(SMALL), [(60, 1)])),
        ),
    ]
    overflow: Records = [(struct.pack(">BBII", 0, 0, 33, 8), packed(PLACES[8:]))]
    inline = struct.pack(">IIII", 0x10, 0, 0, 5) + b"value\0"
    header = struct.pack("<4sIQ", b"fpmc", 7, len(SMALL)) + STORED
    attributes: Records = [
        (attribute_key(33, "com.example.inline"), inline),
        (
            attribute_key(33, "com.example.long"),
            struct.pack(">II", 0x20, 0) + fork(len(LONG), LONG_PLACES[:8], 10),
        ),
        (attribute_key(33, "com.example.long", 8), struct.pack(">II", 0x30, 0) + packed(LONG_PLACES[8:])),
        (
            attribute_key(36, "com.apple.decmpfs"),
            struct.pack(">IIII", 0x10, 0, 0, len(header)) + header + bytes(len(header) % 2),
        ),
    ]
    volume = bytearray(BLOCKS * BLOCK)
    volume[1024:1536] = (
        struct.pack(">2sHIIIIIIIII", b"H+", 4, 0x100, 0, 0, EPOCH, EPOCH, 0, 0, 9, 4)
        + struct.pack(">IIIIIIIIQ", header_block_size, BLOCKS, 0, 0, 0, 0, 100, 0, 1)
        + bytes(32)
        + fork(BLOCK, [(10, 1)])
        + fork(2 * BLOCK, [(1, 2)])
        + fork(2 * BLOCK, [(3, 2)])
        + fork(2 * BLOCK, [(5, 2)])
        + fork(0, [])
    )
    for start, tree in ((1, overflow), (3, catalogue), (5, attributes)):
        volume[start * BLOCK : (start + 2) * BLOCK] = btree(tree)
    volume[60 * BLOCK : 60 * BLOCK + len(SMALL)] = SMALL
    for data, places in ((CONTENT, PLACES), (LONG, LONG_PLACES)):
        for index, (place, _) in enumerate(places):
            piece = data[index * BLOCK : (index + 1) * BLOCK]
            volume[place * BLOCK : place * BLOCK + len(piece)] = piece
    return bytes(volume)


def opened(volume: bytes) -> FileTree:
    return hfsplus.PLUGIN.open(MemoryDevice(volume), FileSystemInfo("hfs+"))


def whole(tree: FileTree, node: Node) -> bytes:
    return tree.read(node, 0, node.size)


def test_a_file_in_more_than_eight_pieces() -> None:
    tree = opened(make())
    assert whole(tree, walk(tree, b"fragments")) == CONTENT


def test_attributes_in_the_tree_and_in_pieces() -> None:
    tree = opened(make())
    found = tree.xattrs(walk(tree, b"fragments"))
    assert found == {"com.example.inline": b"value", "com.example.long": LONG}


def test_a_compressed_file_has_its_real_size_and_no_trace_of_it() -> None:
    tree = opened(make())
    node = walk(tree, b"packed")
    assert (node.size, whole(tree, node)) == (len(SMALL), SMALL)
    assert tree.xattrs(node) == {}
    assert tree.streams(node) == ()


def test_hard_links_of_files_and_folders() -> None:
    tree = opened(make())
    linked = walk(tree, b"linked")
    assert (linked.inode, linked.links, linked.mode, whole(tree, linked)) == (40, 2, 0o640, SMALL)
    assert walk(tree, b"twice").kind is NodeKind.DIRECTORY
    inside = walk(tree, b"twice/inside")
    assert whole(tree, inside) == SMALL
    (stream,) = tree.streams(inside)
    assert (stream.name, tree.read(inside, 0, 100, b"rsrc")) == (b"rsrc", SMALL)


def test_names_kinds_and_modes() -> None:
    tree = opened(make())
    names: list[bytes] = []
    with pytest.raises(VolumeError, match="iNode8"):
        names.extend(node.name for node in tree.children(tree.root()))
    nodes = {name: tree.child(tree.root(), name) for name in (b"a:b", b"bare", b"device")}
    assert all(nodes.values())
    assert nodes[b"device"].device == (5, 70_000)  # type: ignore[union-attr]
    assert nodes[b"bare"].mode == 0o644  # type: ignore[union-attr]
    times_of = nodes[b"a:b"]
    assert times_of is not None
    seconds = [getattr(times_of, f"{name}_ns") // 10**9 for name in ("birth", "mtime", "ctime", "atime")]
    assert seconds == [1000, 2000, 3000, 4000]


def test_inside_a_wrapper_of_hfs() -> None:
    inner = make()
    wrapper = bytearray(64 * 1024 + len(inner) + 1024)
    struct.pack_into(">2s", wrapper, 1024, b"BD")
    struct.pack_into(">I", wrapper, 1024 + 20, BLOCK)
    struct.pack_into(">H", wrapper, 1024 + 28, 16)
    struct.pack_into(">2sHH", wrapper, 1024 + 124, b"H+", 14, BLOCKS)
    start = 16 * 512 + 14 * BLOCK
    wrapper[start : start + len(inner)] = inner
    info = identify(MemoryDevice(bytes(wrapper)))
    assert info is not None
    assert info.type == "hfs+"
    tree = opened(bytes(wrapper))
    assert whole(tree, walk(tree, b"fragments")) == CONTENT


def test_seven_zip_reads_the_same(tmp_path: Path) -> None:
    """It proves that the volume made here is one; attributes in pieces are beyond 7-Zip, which says so."""
    require_tool("7zz")
    (tmp_path / "volume.hfs").write_bytes(make())
    command = ["7zz", "x", "-y", "-thfs", f"-o{tmp_path / 'out'}", str(tmp_path / "volume.hfs")]
    run("sh", "-c", '"$@"; test $? -le 2', "sh", *command)
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found["fragments"] == CONTENT
    assert found["bare"] == found["inside"] == found["packed"] == SMALL


@pytest.mark.parametrize("size", [0, 3, 4095, 1 << 25])
def test_a_header_that_makes_no_sense(size: int) -> None:
    with pytest.raises(VolumeError, match="header is damaged"):
        opened(make(header_block_size=size))


def test_a_map_that_ends_too_early() -> None:
    volume = bytearray(make())
    volume[BLOCK : 3 * BLOCK] = btree([])
    tree = opened(bytes(volume))
    with pytest.raises(VolumeError, match="ends at byte"):
        whole(tree, walk(tree, b"fragments"))


def test_a_name_that_is_longer_than_its_key() -> None:
    volume = bytearray(make())
    at = volume.index(text("bare")) + 1
    volume[at] = 200
    tree = opened(bytes(volume))
    with pytest.raises(VolumeError, match="longer than its key"):
        list(tree.children(tree.root()))
    assert tree.child(tree.root(), b"fragments") is not None
