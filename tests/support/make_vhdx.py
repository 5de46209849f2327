"""A second writer of VHDX, from [MS-VHDX] alone: what no tool here makes (differences, dirty logs)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

MIB = 1 << 20
LOG_AT, BAT_AT, META_AT = MIB, 2 * MIB, 3 * MIB
_DATA_WRITE, _NO_LOG, _DISK_ID = UUID(int=0x1234), UUID(int=0), UUID(int=0x77)
NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, FULLY, PARTIALLY = 0, 1, 2, 3, 6, 7


def crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value = (value >> 8) ^ CRC[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def _crc_entry(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


CRC = [_crc_entry(value) for value in range(256)]


def sealed(block: bytes) -> bytes:
    """Put the checksum at offset 4."""
    plain = block[:4] + bytes(4) + block[8:]
    return plain[:4] + struct.pack("<I", crc32c(plain)) + plain[8:]


@dataclass
class Vhdx:
    size: int
    block_size: int = MIB
    sector: int = 512
    locator: dict[str, str] | None = None
    data_write: UUID = _DATA_WRITE
    log: UUID = _NO_LOG
    log_content: bytes = b""
    states: dict[int, int] = field(default_factory=dict)
    payload: dict[int, bytes] = field(default_factory=dict)
    here: dict[int, set[int]] = field(default_factory=dict)
    """Of a partly present block: numbers of the sectors, within the block, that it holds."""
    disk_id: UUID = _DISK_ID
    extra_items: tuple[tuple[UUID, bytes, int], ...] = ()
    extra_regions: tuple[tuple[UUID, int, int, int], ...] = ()

    @property
    def ratio(self) -> int:
        return (1 << 23) * self.sector // self.block_size

    def place(self, block: int) -> int:
        """Where the payload of a block is put."""
        return 4 * MIB + sorted(self.payload).index(block) * self.block_size

    def bat_index(self, block: int) -> int:
        return block + block // self.ratio

    def header(self, sequence: int) -> bytes:
        block = struct.pack(
            "<4sIQ16s16s16sHHIQ",
            b"head",
            0,
            sequence,
            UUID(int=5).bytes_le,
            self.data_write.bytes_le,
            self.log.bytes_le,
            0,
            1,
            MIB,
            LOG_AT,
        )
        return sealed(block.ljust(4096, b"\0"))

    def regions(self) -> bytes:
        entries = [
            (UUID("2dc27766-f623-4200-9d64-115e9bfd4a08"), BAT_AT, MIB, 1),
            (UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e"), META_AT, MIB, 1),
            *self.extra_regions,
        ]
        block = struct.pack("<4sIII", b"regi", 0, len(entries), 0)
        for guid, offset, size, required in entries:
            block += struct.pack("<16sQII", guid.bytes_le, offset, size, required)
        return sealed(block.ljust(65536, b"\0"))

    def metadata(self) -> bytes:
        flags = 2 if self.locator is not None else 0
        items = [
            ("caa16737-fa36-4d43-b3b6-33f0aa44e76b", struct.pack("<II", self.block_size, flags), 4),
            ("2fa54224-cd1b-4876-b211-5dbed83bf4b8", struct.pack("<Q", self.size), 6),
            ("beca12ab-b2e6-4523-93ef-c309e000c746", self.disk_id.bytes_le, 6),
            ("8141bf1d-a96f-4709-ba47-f233a8faab5f", struct.pack("<I", self.sector), 6),
            ("cda348c7-445d-4471-9cc9-e9885251c556", struct.pack("<I", 4096), 6),
        ]
        if self.locator is not None:
            items.append(("a8d35f2d-b30b-454d-abf7-d3d84834ab0c", self.pack_locator(self.locator), 4))
        items += [(str(guid), content, flags) for guid, content, flags in self.extra_items]
        table, content = struct.pack("<8sHH20x", b"metadata", 0, len(items)), b""
        for guid, value, flags in items:
            place = 65536 + len(content)
            table += struct.pack("<16sIIII", UUID(guid).bytes_le, place, len(value), flags, 0)
            content += value
        return (table.ljust(65536, b"\0") + content).ljust(MIB, b"\0")

    @staticmethod
    def pack_locator(entries: dict[str, str]) -> bytes:
        kind = UUID("b04aefb7-d19e-4a81-b789-25b8e9445913")
        head = struct.pack("<16sHH", kind.bytes_le, 0, len(entries))
        place, table, strings = len(head) + 12 * len(entries), b"", b""
        for key, value in entries.items():
            packed_key, packed_value = key.encode("utf-16-le"), value.encode("utf-16-le")
            at = place + len(strings)
            table += struct.pack("<IIHH", at, at + len(packed_key), len(packed_key), len(packed_value))
            strings += packed_key + packed_value
        return head + table + strings

    def write(self, path: Path) -> Path:
        chunks = sorted({block // self.ratio for block in self.here})
        bitmap_at = 4 * MIB + len(self.payload) * self.block_size
        bat = bytearray(MIB)
        for block, state in self.states.items():
            entry = state | (self.place(block) if block in self.payload else 0)
            struct.pack_into("<Q", bat, self.bat_index(block) * 8, entry)
        for number, chunk in enumerate(chunks):
            index = (chunk + 1) * self.ratio + chunk
            struct.pack_into("<Q", bat, index * 8, 6 | (bitmap_at + number * MIB))
        with path.open("wb") as file:
            file.write(b"vhdxfile" + "a second writer".encode("utf-16-le"))
            for at, content in (
                (65536, self.header(1)),
                (131072, self.header(2)),
                (196608, self.regions()),
                (262144, self.regions()),
                (LOG_AT, self.log_content.ljust(MIB, b"\0")),
                (BAT_AT, bytes(bat)),
                (META_AT, self.metadata()),
            ):
                file.seek(at)
                file.write(content)
            for block, content in self.payload.items():
                assert len(content) == self.block_size
                file.seek(self.place(block))
                file.write(content)
            per_block = self.block_size // self.sector
            for number, chunk in enumerate(chunks):
                bitmap = bytearray(MIB)
                for block, sectors in self.here.items():
                    if block // self.ratio == chunk:
                        for sector in sectors:
                            bit = (block - chunk * self.ratio) * per_block + sector
                            bitmap[bit // 8] |= 1 << bit % 8
                file.seek(bitmap_at + number * MIB)
                file.write(bitmap)
            file.truncate(bitmap_at + len(chunks) * MIB)
        return path


def log_entry(
    log: UUID,
    sequence: int,
    tail: int,
    writes: list[tuple[int, bytes | int]],
    flushed: int,
    last: int,
) -> bytes:
    """One entry of the log; a write is 4096 bytes, or how many zeros."""
    descriptors, sectors = b"", b""
    for offset, value in writes:
        if isinstance(value, int):
            descriptors += struct.pack("<4s4xQQQ", b"zero", value, offset, sequence)
        else:
            descriptors += struct.pack("<4s4s8sQQ", b"desc", value[-4:], value[:8], offset, sequence)
            high, low = sequence >> 32, sequence & 0xFFFFFFFF
            sectors += b"data" + struct.pack("<I", high) + value[8:-4] + struct.pack("<I", low)
    size = -(-(64 + len(descriptors)) // 4096) * 4096 + len(sectors)
    head = struct.pack(
        "<4sIIIQI4x16sQQ",
        b"loge",
        0,
        size,
        tail,
        sequence,
        len(writes),
        log.bytes_le,
        flushed,
        last,
    )
    return sealed((head + descriptors).ljust(size - len(sectors), b"\0") + sectors)
