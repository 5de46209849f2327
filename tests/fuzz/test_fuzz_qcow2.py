"""qcow2 images made and damaged at random: what a model says they hold, or an error of ours.

The images are written here from the specification, so that they hold what no tool writes: every kind of
entry side by side, tables anywhere, and values that lie. `MOUNTFS_FUZZ_EXAMPLES` makes more of them.
"""

from __future__ import annotations

import os
import random
import struct
import zlib
from contextlib import closing
from dataclasses import dataclass, field

import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from imageformat.errors import MountfsError
from imageformat.extent import ExtentKind
from support.content import noise, text
from support.images import MadeImage, WatchedStorage, open_stored
from support.judge import view_of

EXAMPLES = int(os.environ.get("MOUNTFS_FUZZ_EXAMPLES", "150"))
KINDS = ["absent", "zero", "zero-kept", "stored", "packed"]
COPIED, COMPRESSED = 1 << 63, 1 << 62


@dataclass
class Plan:
    """What an image is to hold."""

    bits: int
    entries: list[str]
    """The kind of every cluster."""
    tail: int
    """Bytes of the last cluster."""
    version: int
    zstd: bool
    extended: bool
    below: int
    """Length of the raw backing file; -1: none."""
    seed: int
    bitmaps: list[int] = field(default_factory=list)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    extended = draw(st.booleans())
    version = 3 if extended else draw(st.sampled_from([2, 3]))
    zstd = version == 3 and draw(st.booleans())
    bits = draw(st.sampled_from([14, 15] if extended else [9, 10, 12, 16]))
    kinds = [kind for kind in KINDS if version == 3 or not kind.startswith("zero")]
    count = draw(st.integers(1, 150 if bits < 12 else 12))
    entries = draw(st.lists(st.sampled_from(kinds), min_size=count, max_size=count))
    states = st.lists(st.sampled_from("asz"), min_size=32, max_size=32)
    bitmaps = [bitmap_of("".join(draw(states))) for _ in range(count)] if extended else []
    size = count << bits
    below = draw(st.one_of(st.just(-1), st.integers(0, size + 4096)))
    tail = draw(st.sampled_from([1 << bits, 512, 1]))
    return Plan(bits, entries, tail, version, zstd, extended, below, draw(st.integers(0, 99)), bitmaps)


def bitmap_of(states: str) -> int:
    """The bitmap of 32 subclusters: absent, stored, zero."""
    stored = sum(1 << bit for bit, state in enumerate(states) if state == "s")
    return stored | sum(1 << bit for bit, state in enumerate(states) if state == "z") << 32


def pack(cluster: bytes, *, zstd: bool) -> bytes:
    if zstd:
        return zstandard.ZstdCompressor().compress(cluster)
    engine = zlib.compressobj(6, zlib.DEFLATED, -12)
    return engine.compress(cluster) + engine.flush()


class Writer:
    """Lays an image out and keeps what its disk must read as."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.cluster = 1 << plan.bits
        self.size = (len(plan.entries) - 1) * self.cluster + plan.tail
        self.below = noise(plan.seed, plan.below) if plan.below >= 0 else b""
        self.file = bytearray(self.cluster)
        self.disk = bytearray(self.below[: self.size].ljust(self.size, b"\0"))

    def place(self, content: bytes) -> int:
        """Put content into clusters of its own."""
        self.file += bytes(-len(self.file) % self.cluster)
        start = len(self.file)
        self.file += content
        return start

    def show(self, offset: int, content: bytes) -> None:
        content = content[: max(0, self.size - offset)]
        self.disk[offset : offset + len(content)] = content

    def entry(self, number: int) -> bytes:
        kind, start = self.plan.entries[number], number * self.cluster
        content = (text, noise)[number % 2](self.plan.seed + number, self.cluster)
        if kind == "packed":
            return self._packed(start, text(number, self.cluster))
        if self.plan.extended:
            return self._extended(number, start, content)
        if kind == "absent":
            return bytes(8)
        if kind.startswith("zero"):
            self.show(start, bytes(self.cluster))
            kept = COPIED | self.place(content) if kind == "zero-kept" else 0
            return struct.pack(">Q", 1 | kept)
        self.show(start, content)
        return struct.pack(">Q", COPIED | self.place(content))

    def _packed(self, start: int, content: bytes) -> bytes:
        stored = pack(content, zstd=self.plan.zstd)
        place = len(self.file)
        self.file += stored
        sectors = (place + len(stored) - 1) // 512 - place // 512
        shift = 62 - (self.plan.bits - 8)
        if sectors >> (62 - shift):
            self.show(start, bytes(self.cluster))
            return struct.pack(">Q", 1) if self.plan.version == 3 else self._plain_zeros()
        self.show(start, content)
        tail = bytes(8) if self.plan.extended else b""
        return struct.pack(">Q", COMPRESSED | sectors << shift | place) + tail

    def _plain_zeros(self) -> bytes:
        return struct.pack(">Q", COPIED | self.place(bytes(self.cluster)))

    def _extended(self, number: int, start: int, content: bytes) -> bytes:
        bitmap, unit = self.plan.bitmaps[number], self.cluster // 32
        for bit in range(32):
            at = bit * unit
            if bitmap >> bit & 1:
                self.show(start + at, content[at : at + unit])
            elif bitmap >> (bit + 32) & 1:
                self.show(start + at, bytes(unit))
        place = COPIED | self.place(content) if bitmap & 0xFFFF_FFFF or number % 2 else 0
        return struct.pack(">QQ", place, bitmap)

    def finish(self) -> tuple[dict[str, bytes], bytes]:
        per_table = self.cluster // (16 if self.plan.extended else 8)
        entries = [b""] * len(self.plan.entries)
        order = list(range(len(entries)))
        random.Random(self.plan.seed).shuffle(order)
        for number in order if self.plan.seed % 3 else range(len(entries)):
            entries[number] = self.entry(number)
        tables = []
        for first in range(0, len(entries), per_table):
            table = b"".join(entries[first : first + per_table])
            tables.append(COPIED | self.place(table.ljust(self.cluster, b"\0")) if any(table) else 0)
        l1 = self.place(struct.pack(f">{len(tables)}Q", *tables))
        self.file += bytes(-len(self.file) % self.cluster)
        self.file[: self.cluster] = self._header(l1, len(tables)).ljust(self.cluster, b"\0")
        files = {"top.qcow2": bytes(self.file)}
        if self.plan.below >= 0:
            files["base.raw"] = self.below
        return files, bytes(self.disk)

    def _header(self, l1: int, tables: int) -> bytes:
        plan = self.plan
        rest = b""
        if plan.version == 3:
            features = plan.zstd << 3 | plan.extended << 4
            rest = struct.pack(">QQQII", features, 0, 0, 4, 112) + bytes([plan.zstd]) + bytes(7)
        name = b"base.raw" if plan.below >= 0 else b""
        extension = struct.pack(">II", 0xE2792ACA, 3) + b"raw".ljust(8, b"\0") + bytes(8)
        at = 72 + len(rest) + len(extension) if name else 0
        fixed = struct.pack(
            ">4sIQIIQIIQQIIQ",
            b"QFI\xfb",
            plan.version,
            at,
            len(name),
            plan.bits,
            self.size,
            0,
            tables,
            l1,
            self.cluster,
            1,
            0,
            0,
        )
        return fixed + rest + extension + name


MADE = MadeImage("qcow2", "top.qcow2", ())


@settings(max_examples=EXAMPLES, deadline=None)
@given(plan=plans(), data=st.data())
def test_any_sound_image_reads_as_the_model_says(plan: Plan, data: st.DataObject) -> None:
    files, disk = Writer(plan).finish()
    with closing(open_stored(WatchedStorage(files), MADE)) as layer:
        view = view_of(layer)
        assert view.size == len(disk)
        assert view.pread(0, view.size) == disk
        for _ in range(4):
            offset = data.draw(st.integers(0, len(disk)))
            size = data.draw(st.integers(0, len(disk) - offset))
            device = layer.device(0)  # type: ignore[attr-defined]
            assert device.pread(offset, size) == disk[offset : offset + size]
            position = offset
            for extent in device.extents(offset, size):
                assert extent.offset == position
                position = extent.end
                if extent.kind is not ExtentKind.DATA:
                    assert not any(disk[extent.offset : extent.end])
            assert position == offset + size


def read_everything(files: dict[str, bytes]) -> None:
    """Right or wrong bytes, or an error of ours; nothing stays open."""
    storage = WatchedStorage(files)
    try:
        layer = open_stored(storage, MADE)
    except MountfsError:
        assert not storage.left_open()
        return
    with closing(layer):
        view = view_of(layer)
        for offset in range(0, min(view.size, 4 << 20), 64 << 10):
            try:
                view.pread(offset, min(64 << 10, view.size - offset))
            except MountfsError:
                continue
        try:
            for number, _ in enumerate(view.extents(0, view.size)):
                if number > 1000:
                    break
            list(layer.prove())
        except MountfsError:
            pass
    assert not storage.left_open()


WORDS = [0, 1, 9, 21, 22, 63, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 62, 1 << 63, (1 << 64) - 1, (1 << 56) - 512]


@settings(max_examples=2 * EXAMPLES, deadline=None)
@given(plan=plans(), seed=st.integers(0, 1 << 32))
def test_any_damaged_image_is_read_or_refused(plan: Plan, seed: int) -> None:
    """Header fields, table entries and places get values that lie; then single bytes."""
    files, _ = Writer(plan).finish()
    content, source = bytearray(files["top.qcow2"]), random.Random(seed)
    (l1,) = struct.unpack_from(">Q", content, 40)
    for _ in range(source.choice([1, 2, 5])):
        choice = source.randrange(4)
        if choice == 0:
            at = source.choice([4, 8, 16, 20, 24, 32, 36, 40, 48, 60, 64, 72, 80, 88, 96, 100, 104, 108, 112])
        elif choice == 1:
            at = l1 + source.randrange(0, max(8, min(64, len(content) - l1)), 8)
        else:
            at = source.randrange(0, len(content) - 8, 8)
        width = source.choice([1, 2, 4, 8])
        value = source.choice([*WORDS, source.getrandbits(64), len(content), l1, 1 << 63 | l1])
        content[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "big")
    length = source.choice([len(content)] * 5 + [source.randrange(len(content))])
    read_everything({**files, "top.qcow2": bytes(content[:length])})


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    version=st.sampled_from([1, 2, 3, 4]),
    tail=st.binary(max_size=600),
    fields=st.lists(st.sampled_from(WORDS), min_size=14, max_size=14),
)
def test_any_header_is_read_or_refused(version: int, tail: bytes, fields: list[int]) -> None:
    widths = "QIIQIIQQIIQ"
    values = [
        value % (1 << (64 if width == "Q" else 32)) for width, value in zip(widths, fields, strict=False)
    ]
    header = struct.pack(f">4sI{widths}", b"QFI\xfb", version, *values)
    read_everything({"top.qcow2": header + tail})
