"""ISO 9660 volumes made here byte by byte: what the stored images do not hold."""

from __future__ import annotations

import struct

import pytest

from imageformat.device import MemoryDevice
from imageformat.errors import VolumeError
from mountfs.drivers import iso9660
from mountfs.tree import FileSystemInfo, FileTree, NodeKind

SECTOR = 2048
ROOT, FIRST_DATA = 20, 30


def record(
    name: bytes, block: int, size: int, *, flags: int = 0, unit: int = 0, use: bytes = b"", extended: int = 0
) -> bytes:
    head = bytes([extended]) + struct.pack("<I", block) + struct.pack(">I", block)
    head += struct.pack("<I", size) + struct.pack(">I", size) + bytes([120, 1, 2, 3, 4, 5, 4])
    head += bytes([flags, unit, 0]) + struct.pack("<H", 1) + struct.pack(">H", 1) + bytes([len(name)]) + name
    head += b"" if len(name) % 2 else b"\0"
    whole = head + use + (b"\0" if (1 + len(head) + len(use)) % 2 else b"")
    return bytes([1 + len(whole)]) + whole


def volume(*records: bytes, root_use: bytes = b"", joliet: tuple[bytes, ...] = ()) -> FileTree:
    image = bytearray(SECTOR * 60)

    def descriptor(number: int, kind: int, root: int, escape: bytes) -> None:
        at = number * SECTOR
        image[at : at + 7] = bytes([kind]) + b"CD001\1"
        image[at + 88 : at + 91] = escape
        struct.pack_into("<H", image, at + 128, SECTOR)
        image[at + 156 : at + 190] = record(b"\0", root, SECTOR, flags=2)

    def directory(block: int, entries: tuple[bytes, ...], use: bytes) -> None:
        raw = record(b"\0", block, SECTOR, flags=2, use=use) + record(b"\1", block, SECTOR, flags=2)
        raw += b"".join(entries)
        image[block * SECTOR : block * SECTOR + len(raw)] = raw

    descriptor(16, 1, ROOT, b"\0\0\0")
    directory(ROOT, records, root_use)
    if joliet:
        descriptor(17, 2, ROOT + 1, b"%/E")
        directory(ROOT + 1, joliet, b"")
    image[18 * SECTOR : 18 * SECTOR + 7] = b"\xffCD001\1"
    for block in range(FIRST_DATA, 60):
        image[block * SECTOR : (block + 1) * SECTOR] = bytes([block]) * SECTOR
    return iso9660.PLUGIN.open(MemoryDevice(bytes(image)), FileSystemInfo("iso9660"))


def names(tree: FileTree) -> list[bytes]:
    return [node.name for node in tree.children(tree.root())]


def test_a_file_in_several_extents_is_one_file() -> None:
    tree = volume(
        record(b"BIG.;1", 30, 2 * SECTOR, flags=0x80),
        record(b"BIG.;1", 40, SECTOR, flags=0x80),
        record(b"BIG.;1", 35, 100),
        record(b"NEXT.TXT;2", 50, 10),
    )
    big, following = tree.children(tree.root())
    assert (big.name, big.size, following.name) == (b"BIG", 3 * SECTOR + 100, b"NEXT.TXT")
    parts = bytes([30]) * SECTOR + bytes([31]) * SECTOR + bytes([40]) * SECTOR + bytes([35]) * 100
    assert tree.read(big, 0, 10**6) == parts


def test_a_file_whose_last_part_is_missing_is_told() -> None:
    tree = volume(record(b"BIG;1", 30, SECTOR, flags=0x80), record(b"SOUND;1", 40, 5))
    with pytest.raises(VolumeError, match="BIG"):
        names(tree)
    assert tree.child(tree.root(), b"SOUND") is not None
    with pytest.raises(VolumeError):
        tree.child(tree.root(), b"BIG")


def test_associated_files_are_left_out_and_attribute_records_skipped() -> None:
    tree = volume(record(b"FORK;1", 30, 5, flags=4), record(b"FORK;1", 31, 5, extended=2))
    (node,) = tree.children(tree.root())
    assert tree.read(node, 0, 10) == bytes([33]) * 5


def test_interleaved_files_are_refused() -> None:
    tree = volume(record(b"TAPE;1", 30, 5000, unit=1))
    (node,) = tree.children(tree.root())
    with pytest.raises(VolumeError, match="interleaved"):
        tree.read(node, 0, 1)


def test_joliet_names() -> None:
    wide = "wide ü😀 name; 1.text;1".encode("utf-16-be")
    tree = volume(record(b"PLAIN;1", 30, 5), joliet=(record(wide, 30, 5),))
    assert names(tree) == ["wide ü😀 name; 1.text".encode()]


def px(mode: int, links: int = 1) -> bytes:
    fields = b"".join(struct.pack("<I", n) + struct.pack(">I", n) for n in (mode, links, 1000, 2000))
    return b"PX\x24\1" + fields


SP = b"SP\7\1\xbe\xef\0"


def test_rock_ridge_values() -> None:
    link = b"SL\x13\1\0" + b"\x08\0" + b"\1\2ab" + b"\0\2cd" + b"\4\0" + b"\2\0"
    long_time = b"TF\x16\1\x82" + b"2020010203040506" + b"\x04"
    tree = volume(
        record(b"A;1", 30, 5, use=px(0o104751, 2) + b"NM\x08\1\1new" + b"NM\x0a\1\0 \xff\nme" + long_time),
        record(b"B;1", 30, 5, use=px(0o104751, 2) + b"NM\7\1\0b "),
        record(b"C;1", 0, 0, use=px(0o120777) + link),
        record(b"D;1", 0, 0, use=px(0o020600) + b"PN\x14\1" + struct.pack("<I4xI4x", 300, 70_000)),
        root_use=SP + px(0o40755),
        joliet=(record(b"\0x", 30, 5),),
    )
    first, second, third, fourth = tree.children(tree.root())
    assert (first.name, second.name) == (b"new \xff\nme", b"b ")
    assert (first.mode, first.uid, first.gid, first.links) == (0o4751, 1000, 2000, 2)
    assert first.inode == second.inode != third.inode
    assert first.mtime_ns == 1_577_934_245 * 10**9 - 3600 * 10**9 + 60_000_000
    assert third.kind is NodeKind.SYMLINK
    assert tree.readlink(third) == b"/abcd/../."
    assert (fourth.kind, fourth.device) == (NodeKind.CHARACTER_DEVICE, (300, 70_000))
    assert tree.root().mode == 0o755


def test_a_moved_directory_is_where_it_belongs() -> None:
    tree = volume(
        record(
            b"LINK;1", 0, 0, use=px(0o100644) + b"NM\x0b\1\0folder" + b"CL\x0c\1" + struct.pack("<I4x", ROOT)
        ),
        record(b"REAL", ROOT, SECTOR, flags=2, use=px(0o40755) + b"RE\4\1"),
        root_use=SP + px(0o40700),
    )
    (node,) = tree.children(tree.root())
    assert (node.name, node.kind, node.mode) == (b"folder", NodeKind.DIRECTORY, 0o700)


def test_continuations_without_end_are_damage() -> None:
    own_place = len(record(b"\0", 0, 0, use=SP + px(0))) + len(record(b"\1", 0, 0)) + 36
    loop = volume(
        record(b"A;1", 30, 5, use=b"CE\x1c\1" + struct.pack("<I4xI4xI4x", ROOT, own_place, 28)),
        record(b"B;1", 31, 5, use=px(0o100644)),
        root_use=SP + px(0o40755),
    )
    with pytest.raises(VolumeError, match="without end"):
        names(loop)
    assert loop.child(loop.root(), b"B") is not None
