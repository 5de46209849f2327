"""A second writer of sparse VMDK files, from VMware's specification alone."""

from __future__ import annotations

import struct
import zlib

SECTOR = 512
GRAIN = 128 * SECTOR
NO_PARENT = "ffffffff"


def descriptor(
    extents: list[str],
    *,
    cid: str = "12345678",
    parent: str = NO_PARENT,
    hint: str = "",
    kind: str = "custom",
) -> bytes:
    lines = ["# Disk DescriptorFile", "version=1", 'encoding="UTF-8"', f"CID={cid}", f"parentCID={parent}"]
    lines += [f'createType="{kind}"'] + ([f'parentFileNameHint="{hint}"'] if hint else [])
    lines += [
        "",
        "# Extent description",
        *extents,
        "",
        "# The Disk Data Base",
        'ddb.adapterType = "lsilogic"',
        "",
    ]
    return "\n".join(lines).encode()


def header(
    capacity: int, flags: int, place: int, redundant: int, desc: tuple[int, int], *, version: int = 1
) -> bytes:
    return struct.pack(
        "<4sIIQQQQIQQQB4sH",
        b"KDMV",
        version,
        flags,
        capacity // SECTOR,
        GRAIN // SECTOR,
        *desc,
        512,
        redundant,
        place,
        128,
        0,
        b"\n \r\n",
        1 if flags & 1 << 16 else 0,
    ).ljust(SECTOR, b"\0")


def sparse(
    content: bytes, text: bytes, *, absent: frozenset[int] = frozenset(), zeroed: bool = False
) -> bytes:
    """A sparse file with both directories; grains that are zero are left out, or marked when ``zeroed``."""
    grains = -(-len(content) // GRAIN)
    tables = -(-grains // 512)
    desc = (1, 20) if text else (0, 0)
    first = 21
    copy_size = 1 + -(-tables * 4 // SECTOR) - 1 + tables * 4
    redundant, place = first, first + copy_size
    data = -(-(first + 2 * copy_size) // 128) * 128
    entries, body = [], b""
    for at in range(grains):
        piece = content[at * GRAIN : (at + 1) * GRAIN].ljust(GRAIN, b"\0")
        if at in absent:
            entries.append(0)
        elif not any(piece):
            entries.append(1 if zeroed else 0)
        else:
            entries.append(data + len(body) // SECTOR)
            body += piece
    entries += [0] * (tables * 512 - grains)
    directory_size = copy_size - tables * 4
    found = header(
        len(content), 3 | (4 if zeroed else 0), place, redundant, desc, version=2 if zeroed else 1
    ) + text.ljust(20 * SECTOR, b"\0")
    for start in (redundant, place):
        directory = struct.pack(f"<{tables}I", *(start + directory_size + at * 4 for at in range(tables)))
        found += directory.ljust(directory_size * SECTOR, b"\0")
        found += struct.pack(f"<{len(entries)}I", *entries)
    return found.ljust(data * SECTOR, b"\0") + body


def stream(content: bytes, text: bytes) -> bytes:
    """A stream as VMware writes it: markers, tables behind their grains, a second header at the end."""
    found = bytearray(header(len(content), 1 | 3 << 16, (1 << 64) - 1, 0, (1, 20), version=3))
    found += text.ljust(20 * SECTOR, b"\0")
    found = bytearray(found.ljust(128 * SECTOR, b"\0"))

    def align() -> int:
        found.extend(bytes(-len(found) % SECTOR))
        return len(found) // SECTOR

    def marker(kind: int, sectors: int) -> None:
        align()
        found.extend(struct.pack("<QII", sectors, 0, kind).ljust(SECTOR, b"\0"))

    grains = -(-len(content) // GRAIN)
    directory = []
    for table in range(-(-grains // 512)):
        entries = [0] * 512
        for at in range(table * 512, min(grains, table * 512 + 512)):
            piece = content[at * GRAIN : (at + 1) * GRAIN].ljust(GRAIN, b"\0")
            if any(piece):
                entries[at % 512] = align()
                packed = zlib.compress(piece)
                found += struct.pack("<QI", at * GRAIN // SECTOR, len(packed)) + packed
        marker(1, 4)
        directory.append(align())
        found += struct.pack("<512I", *entries)
    marker(2, 1)
    place = align()
    found += struct.pack(f"<{len(directory)}I", *directory)
    marker(3, 1)
    found += header(len(content), 1 | 3 << 16, place, 0, (1, 20), version=3)
    found += bytes(SECTOR)
    return bytes(found)


def cowd(content: bytes, absent: frozenset[int] = frozenset()) -> bytes:
    """A COW disk of ESX with grains of one sector; those named are absent."""
    sectors = len(content) // SECTOR
    tables = -(-sectors // 4096)
    directory_size = -(-tables * 4 // SECTOR)
    data = 4 + directory_size + tables * 32
    entries, body = [], b""
    for at in range(tables * 4096):
        if at >= sectors or at in absent:
            entries.append(0)
        else:
            entries.append(data + len(body) // SECTOR)
            body += content[at * SECTOR : (at + 1) * SECTOR]
    found = struct.pack("<4sIIIIIII", b"COWD", 1, 3, sectors, 1, 4, tables, data + len(body) // SECTOR)
    found = found.ljust(4 * SECTOR, b"\0")
    directory = struct.pack(f"<{tables}I", *(4 + directory_size + at * 32 for at in range(tables)))
    return (
        found
        + directory.ljust(directory_size * SECTOR, b"\0")
        + struct.pack(f"<{len(entries)}I", *entries)
        + body
    )
