"""Writes UDF volumes as ECMA-167 and OSTA UDF 2.60 describe them: what no tool of this machine makes.

Metadata and virtual partitions with files in them, streams, device nodes, chained allocation. The reader
of 7-Zip agrees with the plain ones and with those of metadata partitions.
"""

from __future__ import annotations

import binascii
import struct
from dataclasses import dataclass, field

BLOCK = 2048
PARTITION = 300
BLOCKS = 900
ZONE = 0x1000 | 60
"""Local time, one hour east of Greenwich."""
STAMP = struct.pack("<HhBBBBBBBB", ZONE, 2021, 2, 3, 4, 5, 6, 70, 80, 90)
STAMP_NS = 1_612_321_506_708_090_000
METADATA_FILE = 250


@dataclass
class File:
    """Content, or the path components of a link, or device numbers; what else it has."""

    content: bytes = b""
    kind: int = 5
    children: dict[str, File] = field(default_factory=dict)
    streams: dict[str, File] = field(default_factory=dict)
    device: tuple[int, int] | None = None
    permissions: int = 0b00111_00101_00101
    flags: int = 0
    uid: int = 1000
    gid: int = 2000
    pieces: int = 1
    """Extents that the content is split into."""
    chained: bool = False
    """All extents but the first are described in blocks of their own."""
    hole: bool = False
    """A hole of one block follows the first extent."""
    place: int | None = None


def link(*components: tuple[int, str]) -> File:
    raw = b""
    for kind, name in components:
        encoded = cs0(name) if name else b""
        raw += struct.pack("<BBH", kind, len(encoded), 0) + encoded
    return File(raw, kind=12)


def folder(children: dict[str, File]) -> File:
    return File(kind=4, children=children)


def cs0(name: str) -> bytes:
    try:
        return b"\x08" + name.encode("latin-1")
    except UnicodeEncodeError:
        return b"\x10" + name.encode("utf-16-be")


def dstring(name: str, size: int) -> bytes:
    raw = cs0(name)
    return raw.ljust(size - 1, b"\0") + bytes([len(raw)])


def regid(name: bytes, suffix: bytes = b"") -> bytes:
    return b"\0" + name.ljust(23, b"\0") + suffix.ljust(8, b"\0")


def tagged(kind: int, location: int, body: bytes, *, version: int = 3) -> bytes:
    crc = binascii.crc_hqx(body, 0)
    tag = bytearray(struct.pack("<HHBBHHHI", kind, version, 0, 0, 0, crc, len(body), location))
    tag[4] = (sum(tag[:4]) + sum(tag[5:])) & 0xFF
    return bytes(tag) + body


def long_ad(length: int, block: int, partition: int, kind: int = 0) -> bytes:
    return struct.pack("<IIH6x", kind << 30 | length, block, partition)


class Image:
    """One medium. ``layout``: "plain", "metadata" or "virtual".

    The metadata file is split after ``metadata_first`` blocks.
    """

    def __init__(self, layout: str, root: File, *, metadata_first: int = 8) -> None:
        self._metadata_first = metadata_first
        self.layout = layout
        self.raw = bytearray(BLOCK * BLOCKS)
        self._next_data = 200
        self._next_meta = 0
        self._table: list[int] = []
        self._meta = 0 if layout == "plain" else 1
        self._write_volume()
        file_set = self._take()
        root_place = self._take()
        self._write_file_set(file_set, root_place)
        self._write_file(root, root_place, root_place)
        self._finish()

    def _take(self) -> int:
        """Take a block for metadata; its number in the partition of metadata."""
        number = self._next_meta
        self._next_meta += 1
        if self.layout == "virtual":
            self._table.append(self._take_data())
        return number

    def _take_data(self, count: int = 1) -> int:
        number = self._next_data
        self._next_data += count
        return number

    def physical(self, number: int) -> int:
        """Where a block of metadata lies in the plain partition."""
        if self.layout == "virtual":
            return self._table[number]
        if self.layout == "metadata":
            return 16 + number + (44 if number >= self._metadata_first else 0)
        return number

    def put(self, block: int, data: bytes) -> None:
        """Write to the plain partition."""
        at = (PARTITION + block) * BLOCK
        self.raw[at : at + len(data)] = data

    def _put_meta(self, number: int, data: bytes) -> None:
        assert len(data) <= BLOCK
        self.put(self.physical(number), data)

    def _write_volume(self) -> None:
        for block, name in ((16, b"BEA01"), (17, b"NSR03"), (18, b"TEA01")):
            self.raw[block * BLOCK : block * BLOCK + 7] = b"\0" + name + b"\1"
        for start in (32, 48):
            for number, (kind, body) in enumerate(self._descriptors()):
                raw = tagged(kind, start + number, body)
                self.raw[(start + number) * BLOCK : (start + number) * BLOCK + len(raw)] = raw
        integrity = STAMP + struct.pack("<I8x", 1) + struct.pack("<Q24x", 100)
        integrity += struct.pack("<II", 1, 46) + struct.pack("<II", 0, BLOCKS - PARTITION - 20)
        integrity += regid(b"*mountfs") + struct.pack("<IIHHH", 1, 1, 0x250, 0x250, 0x260)
        raw = tagged(9, 64, integrity)
        self.raw[64 * BLOCK : 64 * BLOCK + len(raw)] = raw
        anchor = struct.pack("<IIII", 16 * BLOCK, 32, 16 * BLOCK, 48).ljust(496, b"\0")
        for block in (256, BLOCKS - 1) if self.layout != "virtual" else (256,):
            self.raw[block * BLOCK : block * BLOCK + 512] = tagged(2, block, anchor)

    def _descriptors(self) -> list[tuple[int, bytes]]:
        charset = b"\0" + b"OSTA Compressed Unicode".ljust(63, b"\0")
        primary = struct.pack("<II", 1, 0) + dstring("Volume", 32) + struct.pack("<HHHHII", 1, 1, 2, 2, 1, 1)
        primary += dstring("0123456789abcdef set", 128) + charset + charset + bytes(16) + regid(b"*app")
        primary += STAMP + regid(b"*mountfs") + bytes(64 + 4 + 2 + 22)
        partition = struct.pack("<IHH", 2, 1, 0) + regid(b"+NSR03") + bytes(128)
        size = BLOCKS - PARTITION - 20
        partition += struct.pack("<III", 1, PARTITION, size) + regid(b"*mountfs") + bytes(128 + 156)
        maps = struct.pack("<BBHH", 1, 6, 1, 0)
        kind = {"metadata": b"*UDF Metadata Partition", "virtual": b"*UDF Virtual Partition"}.get(self.layout)
        if kind is not None:
            one = struct.pack("<BBH", 2, 64, 0) + regid(kind, b"\x50\x02") + struct.pack("<HH", 1, 0)
            if self.layout == "metadata":
                one += struct.pack("<IIIIHB", 0, 1, 0xFFFF_FFFF, 32, 32, 0)
            maps += one.ljust(64, b"\0")
        logical = struct.pack("<I", 3) + charset + dstring("Ünïcode 中 label", 128) + struct.pack("<I", BLOCK)
        logical += regid(b"*OSTA UDF Compliant", b"\x50\x02") + long_ad(BLOCK, 0, self._meta)
        logical += struct.pack("<II", len(maps), 2 if kind else 1) + regid(b"*mountfs") + bytes(128)
        logical += struct.pack("<II", BLOCK, 64) + maps
        return [(1, primary), (6, logical), (5, partition), (8, bytes(496))]

    def _write_file_set(self, number: int, root: int) -> None:
        charset = b"\0" + b"OSTA Compressed Unicode".ljust(63, b"\0")
        body = STAMP + struct.pack("<HHIIII", 3, 3, 1, 1, 0, 0) + charset + dstring("label", 128) + charset
        body += dstring("set", 32) + bytes(64) + long_ad(BLOCK, root, self._meta)
        body += regid(b"*OSTA UDF Compliant", b"\x50\x02") + bytes(32 + 48)
        self._put_meta(number, tagged(256, number, body))

    def _write_file(self, file: File, number: int, parent: int) -> None:
        content = self._directory(file, number, parent) if file.kind in {4, 13} else file.content
        streams = bytes(16)
        if file.streams:
            place = self._take()
            self._write_file(File(kind=13, children=file.streams), place, number)
            streams = long_ad(BLOCK, place, self._meta)
        attributes = b""
        if file.device is not None:
            body = struct.pack("<IBxxxIIII", 12, 1, 24, 0, *file.device)
            attributes = tagged(262, number, struct.pack("<II", 0xFFFF_FFFF, 0xFFFF_FFFF) + body)
        form, allocation = self._allocate(file, content, 216 + len(attributes))
        self._put_meta(
            number,
            entry(file, number, len(content) + BLOCK * file.hole, form, allocation, attributes, streams),
        )

    def _directory(self, file: File, number: int, parent: int) -> bytes:
        raw = identifier(number, "", parent, self._meta, 0b1010)
        for name, child in file.children.items():
            place = child.place
            if place is None:
                place = self._take()
                self._write_file(child, place, number)
                child.place = place
            raw += identifier(number, name, place, self._meta, 2 if child.kind == 4 else 0)
        return raw + identifier(number, "gone", 77, self._meta, 4)

    def _allocate(self, file: File, content: bytes, used: int) -> tuple[int, bytes]:
        if used + len(content) <= BLOCK and file.pieces == 1:
            return 3, content
        step = -(-len(content) // file.pieces // BLOCK) * BLOCK
        extents = []
        for at in range(0, len(content), step):
            piece = content[at : at + step]
            block = self._take_data(-(-len(piece) // BLOCK) + 1)
            self.put(block, piece)
            extents.append(long_ad(len(piece), block, 0))
            if file.hole and not at:
                extents.append(long_ad(BLOCK, 0, 0, 2))
        if not file.chained:
            return 1, b"".join(extents)
        following = b""
        for extent in reversed(extents[1:]):
            block = self._take_data()
            body = struct.pack("<II", 0, len(extent + following)) + extent + following
            self.put(block, tagged(258, block, body))
            following = long_ad(BLOCK, block, 0, 3)
        return 1, extents[0] + following

    def _finish(self) -> None:
        if self.layout == "metadata":
            length = self._next_meta * BLOCK
            first = min(length, self._metadata_first * BLOCK)
            allocation = struct.pack("<II", first, 16)
            if length > first:
                allocation += struct.pack("<II", length - first, 60 + self._metadata_first)
            for block, kind in ((0, METADATA_FILE), (1, METADATA_FILE + 1)):
                self.put(block, entry(File(kind=kind), block, length, 0, allocation))
        if self.layout == "virtual":
            header = (
                struct.pack("<HH", 152, 0)
                + dstring("label", 128)
                + struct.pack("<IIIHHHH", 0xFFFF_FFFF, 1, 1, 0x201, 0x201, 0x201, 0)
            )
            table = header + struct.pack(f"<{len(self._table)}I", *self._table)
            block = self._take_data()
            self.put(block, entry(File(kind=248), block, len(table), 3, table))
            del self.raw[(PARTITION + block + 1) * BLOCK :]


def identifier(directory: int, name: str, place: int, partition: int, characteristics: int) -> bytes:
    raw = cs0(name) if name else b""
    body = struct.pack("<HBB", 1, characteristics, len(raw)) + long_ad(BLOCK, place, partition)
    body += struct.pack("<H", 0) + raw
    return tagged(257, directory, body + bytes(-(16 + len(body)) % 4))


def entry(
    file: File,
    number: int,
    size: int,
    form: int,
    allocation: bytes,
    attributes: bytes = b"",
    streams: bytes = bytes(16),
) -> bytes:
    icb = struct.pack("<IHHHBB6xH", 0, 4, 0, 1, 0, file.kind, form | file.flags)
    body = icb + struct.pack("<IIIHBBI", file.uid, file.gid, file.permissions, 1, 0, 0, 0)
    body += (
        struct.pack("<QQQ", size, size, -(-len(allocation) // BLOCK)) + STAMP * 4 + struct.pack("<II", 1, 0)
    )
    body += bytes(16) + streams + regid(b"*mountfs") + struct.pack("<Q", 16 + number)
    body += struct.pack("<II", len(attributes), len(allocation)) + attributes + allocation
    return tagged(266, number, body)
