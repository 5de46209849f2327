"""What other programs say is free on a volume, as (start, length) in bytes, neighbours joined."""

from __future__ import annotations

import re
import struct
from itertools import pairwise
from typing import TYPE_CHECKING

from support.requirements import require_tool, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

Ranges = list[tuple[int, int]]


def joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Sort ranges and join neighbours."""
    found: Ranges = []
    for start, length in sorted(ranges):
        if found and sum(found[-1]) == start:
            found[-1] = (found[-1][0], found[-1][1] + length)
        elif length:
            found.append((start, length))
    return found


def of_bits(bitmap: bytes, first: int, unit: int, count: int) -> Ranges:
    """Read a bitmap bit by bit."""
    clear = (bit for bit in range(count) if not bitmap[bit // 8] >> bit % 8 & 1)
    return joined((first + bit * unit, unit) for bit in clear)


def ext(path: Path) -> Ranges:
    """Ask dumpe2fs; of a cluster it names only the first block where that is the last of a range."""
    require_tool("dumpe2fs")
    told = run("dumpe2fs", path)
    block = _number(r"Block size: +(\d+)", told)
    cluster = max(block, int((re.findall(r"Cluster size: +(\d+)", told) or ["0"])[0]))
    ranges = []
    for line in re.findall(r"^  Free blocks: (.+)$", told, re.MULTILINE):
        for part in line.split(", "):
            first, _, last = part.partition("-")
            end = int(last or first) * block
            ranges.append((int(first) * block, end - int(first) * block + cluster))
    return joined(ranges)


def xfs(path: Path) -> Ranges:
    """Ask xfs_db, which counts the blocks of a group's own list as free, and take those away."""
    require_tool("xfs_db")
    header = _xfs_db(path, "sb 0", "p blocksize agblocks agcount")
    size, group_blocks, groups = (
        _number(rf"^{name} = (\d+)", header) for name in ("blocksize", "agblocks", "agcount")
    )
    rows = re.findall(r"^ +(\d+) +(\d+) +(\d+) *$", _xfs_db(path, "freesp -d"), re.MULTILINE)
    free = [
        ((int(group) * group_blocks + int(first)) * size, int(count) * size) for group, first, count in rows
    ]
    taken: set[int] = set()
    for group in range(groups):
        header = _xfs_db(path, f"agf {group}", "p flfirst fllast flcount")
        first, last, count = (
            _number(rf"^{name} = (\d+)", header) for name in ("flfirst", "fllast", "flcount")
        )
        listed = _xfs_list(_xfs_db(path, f"agfl {group}", "p bno"))
        order = [*range(first, last + 1)] if first <= last else [*range(first, len(listed)), *range(last + 1)]
        taken |= {(group * group_blocks + listed[at]) * size for at in order[:count]}
    return joined(part for start, length in free for part in _cut(start, length, taken, size))


def _cut(start: int, length: int, taken: set[int], size: int) -> Ranges:
    """What is left of a range without blocks."""
    places = [start - size, *sorted(at for at in taken if start <= at < start + length), start + length]
    return [(one + size, other - one - size) for one, other in pairwise(places)]


def _xfs_db(path: Path, *commands: str) -> str:
    return run("xfs_db", "-r", *(part for command in commands for part in ("-c", command)), path)


def _xfs_list(told: str) -> dict[int, int]:
    """Read ``bno[0-3] = 0:6 1:7 2:null``."""
    return {int(at): int(block) for at, block in re.findall(r"(\d+):(\d+)", told)}


def btrfs(path: Path) -> Ranges:
    """Read the chunks and the extents from what ``btrfs inspect-internal dump-tree`` prints."""
    require_tool("btrfs")
    dump = ("btrfs", "inspect-internal", "dump-tree", "-t")
    used: list[tuple[int, int]] = []
    node = _number(r"nodesize\s+(\d+)", run("btrfs", "inspect-internal", "dump-super", path))
    size = _number(r"dev_item.total_bytes\s+(\d+)", run("btrfs", "inspect-internal", "dump-super", path))
    for start, kind, length in re.findall(
        r"key \((\d+) (EXTENT_ITEM|METADATA_ITEM) (\d+)\)", run(*dump, "extent", path)
    ):
        used.append((int(start), node if kind == "METADATA_ITEM" else int(length)))
    free = bytearray(b"\1" * (size // 4096))
    for text in run(*dump, "chunk", path).split("item ")[1:]:
        chunk = re.search(r"CHUNK_ITEM (\d+)\).*?length (\d+)", text, re.DOTALL)
        if chunk is None:
            continue
        logical, length = int(chunk[1]), int(chunk[2])
        for place in map(int, re.findall(r"stripe \d+ devid 1 offset (\d+)", text)):
            for start, count in used:
                if logical <= start < logical + length:
                    at = (place + start - logical) // 4096
                    free[at : at + -(-count // 4096)] = bytes(-(-count // 4096))
    for at, count in ((0, 256), (0x400_0000 // 4096, 16)):
        free[at : at + count] = bytes(len(free[at : at + count]))
    return joined((at * 4096, 4096) for at, is_free in enumerate(free) if is_free)


def ntfs(path: Path) -> Ranges:
    """Have ntfscat read the bitmap."""
    require_tool("ntfscat", "ntfsinfo")
    told = run("ntfsinfo", "-m", path)
    size = _number(r"Cluster Size: (\d+)", told)
    clusters = _number(r"Volume Size in Clusters: (\d+)", told)
    copy = path.with_name("bitmap")
    run("sh", "-c", 'ntfscat "$1" "\\$Bitmap" > "$2"', "sh", path, copy)
    free = of_bits(copy.read_bytes(), 0, size, clusters)
    assert sum(length for _, length in free) == size * _number(r"Free Clusters: (\d+)", told)
    return free


def fat(path: Path) -> Ranges:
    """Read the first table entry by entry."""
    raw = path.read_bytes()
    sector, per_cluster, reserved, tables, root, small, _, size16 = struct.unpack_from("<HBHBHHBH", raw, 11)
    large, size32 = struct.unpack_from("<II", raw, 32)
    data = reserved + tables * (size16 or size32) + root * 32 // sector
    count = ((small or large) - data) // per_cluster
    bits = 32 if not size16 else 12 if count < 4085 else 16
    table = int.from_bytes(raw[reserved * sector : (reserved + (size16 or size32)) * sector], "little")
    if bits == 32:
        words = struct.unpack_from(f"<{count + 2}I", raw, reserved * sector)
        entries = [word & 0xFFF_FFFF for word in words]
    elif bits == 16:
        entries = list(struct.unpack_from(f"<{count + 2}H", raw, reserved * sector))
    else:
        entries = [table >> 12 * n & 0xFFF for n in range(count + 2)]
    unit = per_cluster * sector
    free = (n for n in range(2, count + 2) if not entries[n])
    return joined((data * sector + (n - 2) * unit, unit) for n in free)


def exfat(path: Path) -> Ranges:
    """Have dump.exfat say where things lie, and read the bitmap, which mkfs.exfat lays in one piece."""
    require_tool("dump.exfat")
    told = run("dump.exfat", path)
    sector = 1 << _number(r"Sector Size Bits:\s+(\d+)", told)
    unit = sector << _number(r"Sector per Cluster bits:\s+(\d+)", told)
    heap = _number(r"Cluster Heap Offset \(sector offset\):\s+(\d+)", told) * sector
    count = _number(r"Cluster Count:\s+(\d+)", told)
    first = _number(r"Bitmap start cluster:\s+(\d+)", told)
    raw = path.read_bytes()[heap + (first - 2) * unit :]
    free = of_bits(raw, heap, unit, count)
    assert sum(length for _, length in free) == unit * _number(r"Free Clusters:\s+(\d+)", told)
    return free


def swap(path: Path) -> Ranges:
    """All but the first page."""
    return [(4096, path.stat().st_size // 4096 * 4096 - 4096)]


ORACLES: dict[str, Callable[[Path], Ranges]] = {
    "ext": ext,
    "xfs": xfs,
    "btrfs": btrfs,
    "ntfs": ntfs,
    "fat": fat,
    "exfat": exfat,
    "swap": swap,
}


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text, re.MULTILINE)
    assert found is not None, (pattern, text[:2000])
    return int(found[1])
