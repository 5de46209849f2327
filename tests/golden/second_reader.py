"""A second reader of native images, written from docs/format.md alone.

It shares no code with the product and makes no attempt to be fast: every point is read block by block, every
checksum and digest is computed again, and everything the document forbids is refused. When it and the product
disagree, one of them or the document is wrong.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash
import zstandard

DATA, ZERO, UNUSED, BAD, PAGE, EXCLUDED = 1, 2, 3, 4, 5, 6
FILLS = (ZERO, UNUSED, BAD, EXCLUDED)
HEADER, FOOTER, FRAME = 4096, 512, 64
NO_CHECKSUM = bytes(16)


class DamagedError(Exception):
    """The file is not what docs/format.md allows."""


class BadBlockError(Exception):
    """The point holds a block that was unreadable at the source."""


class ExcludedBlockError(Exception):
    """The point holds a block of files that were left out on purpose."""


def need(condition: bool, what: str) -> None:
    if not condition:
        raise DamagedError(what)


def xxh128(data: bytes) -> bytes:
    return bytes(xxhash.xxh3_128(data).digest())


def xxh64(data: bytes) -> bytes:
    return bytes(xxhash.xxh3_64(data).digest())


def blake(person: str, data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32, person=person.encode().ljust(16, b"\0")).digest()


def number(data: bytes, at: int, length: int) -> int:
    return int.from_bytes(data[at : at + length], "little")


@dataclass(frozen=True)
class Frame:
    offset: int
    length: int
    kind: int
    codec: int
    raw_length: int
    number: int
    image: bytes
    raw_checksum: bytes
    payload: bytes


@dataclass(frozen=True)
class Record:
    checksum: bytes
    offset: int
    length: int
    state: int
    layer: int

    @classmethod
    def read(cls, data: bytes) -> Record:
        checksum, offset, length, word = struct.unpack("<16sQII", data[:32])
        record = cls(checksum, offset, length, word & 255, word >> 8)
        need(record.state in (DATA, PAGE, *FILLS), "illegal state")
        if record.state in FILLS:
            need((checksum, offset, length) == (NO_CHECKSUM, 0, 0), "a fill with a frame")
        return record


class Image:
    """One file, alone."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        need(len(content) >= HEADER + FOOTER, "too short")
        self._header(content[:HEADER])
        self._footer(content[-FOOTER:])
        self.ancestors = self._ancestors()

    def _header(self, h: bytes) -> None:
        need(h[:8] == b"\x89MFI\r\n\x1a\n", "magic")
        need(xxh128(h[:4080]) == h[4080:], "header checksum")
        need(number(h, 8, 2) == 0, "major version")
        need(number(h, 12, 4) == HEADER, "header length")
        need(number(h, 16, 8) <= 7, "unknown incompatible feature")
        self.deltas, self.has_base, self.excludes = bool(h[16] & 1), bool(h[16] & 2), bool(h[16] & 4)
        self.id, self.set_id, self.parent = h[32:48], h[48:64], h[64:80]
        self.parent_root = h[80:112]
        self.created = number(h, 112, 8)
        self.size = number(h, 120, 8)
        self.sector = number(h, 128, 4)
        self.block = number(h, 132, 4)
        self.type, self.page_bits = h[136], h[137]
        self.depth, self.number = number(h, 140, 4), number(h, 144, 4)
        need(any(self.id), "nil id")
        need(self.size <= 1 << 60, "disk size")
        need(4096 <= self.block <= 4194304 and self.block.bit_count() == 1, "block size")
        need(256 <= self.sector <= self.block and self.sector.bit_count() == 1, "sector size")
        need(self.type in (0, 1, 2), "type")
        need(4 <= self.page_bits <= 12, "page bits")
        need(self.depth <= 1024, "depth")
        need(self.number >= 1, "number")
        full = self.type == 0
        need(full == (not any(self.parent)) == (self.depth == 0), "parent, type and depth disagree")
        need(not full or not any(self.parent_root), "full image with a parent root")
        self.extensions = list(self._extensions(h[512:4080]))
        self.blocks = -(-self.size // self.block)
        self.fan = 1 << self.page_bits

    @staticmethod
    def _extensions(area: bytes) -> Iterator[tuple[int, bytes]]:
        at = 0
        while True:
            need(at + 8 <= len(area), "extension list without an end")
            kind, length = struct.unpack_from("<II", area, at)
            if not kind:
                return
            need(at + 8 + length <= len(area), "extension record too long")
            yield kind, area[at + 8 : at + 8 + length]
            at += 8 + -(-length // 8) * 8

    def _footer(self, f: bytes) -> None:
        need(f[:8] == b"MFI-END\n", "incomplete")
        need(xxh128(f[:496]) == f[496:], "footer checksum")
        need(f[8:24] == self.id, "footer of another image")
        need(number(f, 24, 8) == len(self.content), "file size")
        need(f[200:216] == xxh128(self.content[:HEADER]), "footer of another header")
        self.root, self.top = f[32:64], f[64:128]
        self.table = number(f, 128, 8), number(f, 136, 4)
        self.height = number(f, 140, 4)
        self.counts = dict(
            zip(("data", "zero", "unused", "bad"), struct.unpack_from("<4Q", f, 144), strict=True)
        )
        self.counts["excluded"] = number(f, 216, 8)
        need(self.excludes or not self.counts["excluded"], "excluded blocks without the feature")
        self.raw_bytes, self.stored_bytes, self.finished = struct.unpack_from("<3Q", f, 176)
        height = 0
        while self.blocks and (height == 0 or self.fan**height < self.blocks):
            height += 1
        need(self.height == height, "height")

    def _ancestors(self) -> list[tuple[bytes, bytes]]:
        offset, length = self.table
        if self.depth == 0:
            need(self.table == (0, 0), "ancestor table of a full image")
            return []
        frame = self.frame(offset, length)
        need((frame.kind, frame.codec, frame.number) == (3, 0, 0), "not an ancestor table")
        data = self.decode(frame, self.depth * 48)
        entries = [(data[at : at + 16], data[at + 16 : at + 48]) for at in range(0, len(data), 48)]
        need(entries[-1] == (self.parent, self.parent_root), "last ancestor is not the parent")
        return entries

    def frame(self, offset: int, length: int | None = None) -> Frame:
        """The frame at ``offset``; the record that names it also knows its length."""
        end = len(self.content) - FOOTER
        need(offset >= HEADER and offset + FRAME <= end, "frame outside the file")
        h = self.content[offset : offset + FRAME]
        need(h[:4] == b"MFfr" and h[4] in (1, 2, 3) and h[5] in (0, 1, 2), "frame header")
        size = number(h, 8, 4)
        need(offset + FRAME + size <= end, "payload outside the file")
        need(length is None or length == FRAME + size, "frame length")
        payload = self.content[offset + FRAME : offset + FRAME + size]
        need(xxh64(h[:56] + payload) == h[56:64], "stored checksum")
        need(h[24:40] == self.id, "frame of another image")
        return Frame(
            offset, FRAME + size, h[4], h[5], number(h, 12, 4), number(h, 16, 8), h[24:40], h[40:56], payload
        )

    def decode(self, frame: Frame, expected: int, older: Sequence[Image | None] = ()) -> bytes:
        need(frame.raw_length == expected, "raw length")
        payload, dictionary = frame.payload, None
        if frame.codec == 2:
            need(frame.kind == 1 and self.deltas, "a difference where none may be")
            base = Record.read(payload[:32])
            need(base.state == DATA and base.layer < len(older), "a difference from something not older")
            holder = older[base.layer]
            if holder is None:
                raise DamagedError("a difference from a base")
            plain = holder.frame(base.offset, base.length)
            need((plain.kind, plain.number) == (1, frame.number), "a difference from another block")
            need(plain.codec != 2, "a difference from a difference")
            need(plain.raw_checksum == base.checksum, "a difference from other content")
            raw_base = holder.decode(plain, expected)
            dictionary = zstandard.ZstdCompressionDict(raw_base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
            payload = payload[32:]
        if frame.codec == 0:
            raw = payload
        else:
            parameters = zstandard.get_frame_parameters(payload)
            need(parameters.content_size == expected, "content size of the zstd frame")
            need(parameters.dict_id == 0, "dictionary")
            raw = zstandard.ZstdDecompressor(dict_data=dictionary).decompress(payload, allow_extra_data=False)
        need(len(raw) == expected, "decoded length")
        need(xxh128(raw) == frame.raw_checksum, "raw checksum")
        return raw

    def scan(self) -> Iterator[Frame]:
        """Section 8: every frame that proves itself, without header, footer or index."""
        at = HEADER
        while (at := self.content.find(b"MFfr", at)) >= 0:
            try:
                found = self.frame(at)
            except DamagedError:
                at += 1
                continue
            yield found
            at += found.length


class Folder:
    """All complete images of a folder, by id; names mean nothing. ``base``: a disk of another tool."""

    def __init__(self, contents: Mapping[str, bytes], base: bytes | None = None) -> None:
        self.base = base
        self.images: dict[bytes, Image] = {}
        for name, content in contents.items():
            if name.endswith(".mfi"):
                image = Image(content)
                need(image.id not in self.images, "two images with one id")
                self.images[image.id] = image

    @classmethod
    def open(cls, path: Path) -> Folder:
        return cls({entry.name: entry.read_bytes() for entry in sorted(path.iterdir()) if entry.is_file()})

    def points(self) -> list[Point]:
        return sorted((Point(self, image) for image in self.images.values()), key=lambda p: p.image.number)


class Point:
    """One disk as it was: an image and its proven ancestors."""

    def __init__(self, folder: Folder, image: Image) -> None:
        self.image = image
        self.layers: list[Image | None] = []
        self._base = folder.base
        need(not image.has_base or (image.depth > 0 and folder.base is not None), "no base")
        for depth, (image_id, root) in enumerate(image.ancestors):
            if image.has_base and depth == 0:
                self.layers.append(None)
                continue
            need(image_id in folder.images, "ancestor missing")
            layer = folder.images[image_id]
            need(layer.root == root, "ancestor with another root")
            need(layer.depth == depth, "ancestor of another depth")
            need(layer.ancestors == image.ancestors[:depth], "ancestor with other ancestors")
            need(layer.block == image.block, "block size differs in the chain")
            need(layer.page_bits == image.page_bits, "page bits differ in the chain")
            need(layer.set_id == image.set_id, "ancestor of another set")
            need(image.excludes or not layer.excludes, "excluded files of an ancestor that are not named")
            self.layers.append(layer)
        self.layers.append(image)
        self._pages: dict[tuple[int, int, int], bytes] = {}

    def _length(self, block: int) -> int:
        return min(self.image.block, self.image.size - block * self.image.block)

    def _load(self, record: Record, kind: int, wanted: int, expected: int) -> bytes:
        layer = self.layers[record.layer]
        if layer is None:
            need(kind == 1 and record.length == expected and self._base is not None, "no frame in a base")
            raw = (self._base or b"")[record.offset : record.offset + record.length]
            need(len(raw) == expected and xxh128(raw) == record.checksum, "the base was changed")
            return raw
        frame = layer.frame(record.offset, record.length)
        need((frame.kind, frame.number) == (kind, wanted), "record names another frame")
        need(frame.raw_checksum == record.checksum, "record and frame have different checksums")
        return layer.decode(frame, expected, self.layers[: record.layer])

    def _page(self, record: Record, level: int, page: int) -> bytes:
        key = (level, record.layer, record.offset)
        if key not in self._pages:
            below = self.image.fan**level
            units = -(-self.image.blocks // below)
            count = min(self.image.fan, units - page * self.image.fan)
            raw = self._load(record, 2, level << 56 | page, count * (64 if level else 32))
            self._pages[key] = raw
        return self._pages[key]

    def record(self, block: int) -> Record:
        """The look-up of section 5."""
        bits = self.image.page_bits
        record = Record.read(self.image.top)
        need(record.layer <= self.image.depth, "layer younger than the image")
        for level in range(self.image.height - 1, -1, -1):
            need(record.state != DATA, "data in a directory")
            if record.state != PAGE:
                break
            page = self._page(record, level, block >> bits * (level + 1))
            width = 64 if level else 32
            at = (block >> bits * level & self.image.fan - 1) * width
            holder, record = record.layer, Record.read(page[at : at + width])
            need(record.layer <= holder, "a record younger than the file that holds it")
        need(record.state != PAGE, "page in a leaf")
        need(record.state != EXCLUDED or self.image.excludes, "an excluded block without the feature")
        return record

    def content(self, block: int) -> bytes:
        record = self.record(block)
        if record.state == BAD:
            raise BadBlockError(block)
        if record.state == EXCLUDED:
            raise ExcludedBlockError(block)
        if record.state != DATA:
            return bytes(self._length(block))
        raw = self._load(record, 1, block, self._length(block))
        need(any(raw), "a block of zeros stored as data")
        return raw

    def states(self) -> list[int]:
        return [self.record(block).state for block in range(self.image.blocks)]

    def read_all(self) -> bytes:
        """Every byte of the disk. BAD blocks raise."""
        return b"".join(self.content(block) for block in range(self.image.blocks))

    def own_counts(self) -> dict[str, int]:
        """What the counters of the footer claim to be, counted."""
        counts = dict.fromkeys(("data", "zero", "unused", "bad", "excluded"), 0)
        names = {DATA: "data", ZERO: "zero", UNUSED: "unused", BAD: "bad", EXCLUDED: "excluded"}
        for block in range(self.image.blocks):
            record = self.record(block)
            if record.layer == self.image.depth:
                counts[names[record.state]] += 1
        return counts

    def computed_root(self) -> bytes:
        """The root from the decoded blocks alone; no stored digest or checksum is used."""
        image = self.image
        entries = []
        for block in range(image.blocks):
            state = self.record(block).state
            entries.append(bytes([state]) + (xxh128(self.content(block)) if state == DATA else NO_CHECKSUM))
        digests = [blake("mfi leaf", part) for part in joined(entries, image.fan)] or [blake("mfi leaf", b"")]
        while len(digests) > 1:
            digests = [blake("mfi node", part) for part in joined(digests, image.fan)]
        return blake("mfi root", struct.pack("<QII", image.size, image.block, image.page_bits) + digests[0])

    def check_digests(self) -> None:
        """Every stored digest of the tree is the digest of what stands below it."""
        if not self.image.height:
            need(self.image.top == bytes(32) + blake("mfi leaf", b""), "top of an empty disk")
            return
        self._check(self.image.top, self.image.height - 1, 0)

    def _check(self, directory: bytes, level: int, page: int) -> bytes:
        record = Record.read(directory)
        need(record.state != DATA, "data in a directory")
        need(record.layer <= self.image.depth, "layer younger than the image")
        fan = self.image.fan
        units = -(-self.image.blocks // fan**level)
        count = min(fan, units - page * fan)
        if record.state == PAGE:
            raw = self._page(record, level, page)
            width = 64 if level else 32
            rows = [raw[at : at + width] for at in range(0, len(raw), width)]
        else:
            rows = [directory[:32] + bytes(32 if level else 0)] * count
        if level == 0:
            found = blake("mfi leaf", b"".join(row[28:29] + row[:16] for row in rows))
        elif record.state == PAGE:
            below = [self._check(row, level - 1, page * fan + at) for at, row in enumerate(rows)]
            found = blake("mfi node", b"".join(below))
        else:
            below = [self._fill(record.state, level - 1, page * fan + at) for at in range(count)]
            found = blake("mfi node", b"".join(below))
        need(found == directory[32:], "logical digest")
        return found

    def _fill(self, state: int, level: int, page: int) -> bytes:
        fan = self.image.fan
        count = min(fan, -(-self.image.blocks // fan**level) - page * fan)
        if level == 0:
            return blake("mfi leaf", (bytes([state]) + NO_CHECKSUM) * count)
        return blake(
            "mfi node", b"".join(self._fill(state, level - 1, page * fan + at) for at in range(count))
        )


def joined(parts: list[bytes], fan: int) -> list[bytes]:
    return [b"".join(parts[at : at + fan]) for at in range(0, len(parts), fan)]


def rebuild(layers: list[Image]) -> list[int | bytes | None]:
    """Sections 5 and 8: a point from what each image of its chain, oldest first, changed itself.

    Each block is its bytes, the state of a fill, or None when nothing is known of it.
    """
    found: list[int | bytes | None] = []
    for depth, layer in enumerate(layers):
        lengths = [min(layer.block, layer.size - block * layer.block) for block in range(layer.blocks)]
        found = [*found, *[None] * layer.blocks][: layer.blocks]
        for block, length in enumerate(lengths):
            known = found[block]
            if isinstance(known, bytes) and len(known) != length:
                found[block] = None
        if layer.height:
            _own_fills(layer, depth, layer.top, layer.height - 1, 0, found)
        for frame in layer.scan():
            if frame.kind == 1:
                found[frame.number] = layer.decode(frame, lengths[frame.number], layers[:depth])
    return found


def _own_fills(
    layer: Image, depth: int, row: bytes, level: int, page: int, found: list[int | bytes | None]
) -> None:
    record = Record.read(row)
    if record.layer != depth:
        return
    if record.state in FILLS:
        span = layer.fan ** (level + 1)
        for block in range(page * span, min((page + 1) * span, layer.blocks)):
            found[block] = record.state
        return
    need(record.state == PAGE, "data in a directory")
    count = min(layer.fan, -(-layer.blocks // layer.fan**level) - page * layer.fan)
    width = 64 if level else 32
    raw = layer.decode(layer.frame(record.offset, record.length), count * width)
    for at in range(count):
        child, entry = page * layer.fan + at, raw[at * width : (at + 1) * width]
        if level:
            _own_fills(layer, depth, entry, level - 1, child, found)
        elif (leaf := Record.read(entry)).layer == depth and leaf.state in FILLS:
            found[child] = leaf.state
