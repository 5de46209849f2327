"""A second writer of VHD, from Microsoft's specification alone: what qemu-img does not make."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4


def summed(block: bytes, at: int) -> bytes:
    plain = block[:at] + bytes(4) + block[at + 4 :]
    return plain[:at] + struct.pack(">I", ~sum(plain) & 0xFFFFFFFF) + plain[at + 4 :]


@dataclass
class Vhd:
    size: int
    kind: int = DYNAMIC
    block_size: int = 1 << 16
    identity: bytes = b"i" * 16
    created: int = 500_000_000
    creator: bytes = b"win "
    geometry: tuple[int, int, int] = (10, 4, 17)
    blocks: dict[int, bytes] = field(default_factory=dict)
    here: dict[int, set[int]] = field(default_factory=dict)
    """Sectors of a block that it holds; all when it is not named."""
    parent: bytes = bytes(16)
    parent_time: int = 0
    parent_name: str = ""
    locators: tuple[tuple[bytes, bytes], ...] = ()

    def footer(self) -> bytes:
        block = struct.pack(
            ">8sIIQI4sI4sQQHBBII16sB",
            b"conectix",
            2,
            0x10000,
            512 if self.kind != FIXED else (1 << 64) - 1,
            self.created,
            self.creator,
            0,
            b"Wi2k",
            self.size,
            self.size,
            *self.geometry,
            self.kind,
            0,
            self.identity,
            0,
        )
        return summed(block.ljust(512, b"\0"), 64)

    def header(self, count: int, table_at: int, locators_at: int) -> bytes:
        block = struct.pack(
            ">8sQQIIII16sI4x512s",
            b"cxsparse",
            (1 << 64) - 1,
            table_at,
            0x10000,
            count,
            self.block_size,
            0,
            self.parent,
            self.parent_time,
            self.parent_name.encode("utf-16-be"),
        )
        for number, (code, value) in enumerate(self.locators):
            block += struct.pack(">4sIIIQ", code, 512, len(value), 0, locators_at + number * 512)
        return summed(block.ljust(1024, b"\0"), 36)

    def pack(self) -> bytes:
        count = -(-self.size // self.block_size)
        table_at, bitmap_size = 1536, max(512, -(-self.block_size // 4096 // 512) * 512)
        table_size = -(-count * 4 // 512) * 512
        locators_at = table_at + table_size
        position = locators_at + 512 * len(self.locators)
        table, body = [0xFFFFFFFF] * count, b""
        for block, content in self.blocks.items():
            assert len(content) == self.block_size
            table[block] = (position + len(body)) // 512
            bitmap = bytearray(bitmap_size)
            for sector in self.here.get(block, range(self.block_size // 512)):
                bitmap[sector // 8] |= 0x80 >> sector % 8
            body += bytes(bitmap) + content
        found = self.footer() + self.header(count, table_at, locators_at)
        found += struct.pack(f">{count}I", *table).ljust(table_size, b"\xff")
        found += b"".join(value.ljust(512, b"\0") for _, value in self.locators)
        return found + body + self.footer()

    def write(self, path: Path) -> Path:
        path.write_bytes(self.pack())
        return path
