"""Opens and reads damaged virtual disks: ``worker.py MAKER FIRST ROUNDS``. Says ``done`` at a good end.

Half of the rounds change any bytes; the others change fields and then make the checksums right again, so
that the damage gets past them.
"""

from __future__ import annotations

import plistlib
import random
import resource
import signal
import struct
import sys
import tempfile
import zlib
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from imageformat.errors import MountfsError
from imageformat.extent import ExtentKind
from support.images import MadeImage, StoredImage, folder_files, makers, open_stored
from support.make_vhdx import sealed

if TYPE_CHECKING:
    from collections.abc import Callable

    from imageformat.layer import ImageLayer

SECONDS = 10
MEMORY = 1 << 30


def number(rng: random.Random, width: int) -> int:
    top = 256**width
    return rng.choice(
        [0, 1, 2, 7, top - 1, top // 2, top // 2 - 1, 1 << rng.randrange(8 * width), rng.randrange(top)]
    )


def change(content: bytearray, start: int, end: int, rng: random.Random, order: str) -> None:
    width = rng.choice([1, 2, 4, 8])
    if end - start > width:
        at = rng.randrange(start, end - width)
        at -= (at - start) % width if rng.random() < 0.8 else 0
        content[at : at + width] = number(rng, width).to_bytes(width, order)  # type: ignore[arg-type]


def any_bytes(content: bytearray, made: MadeImage, rng: random.Random) -> None:
    ranges = [*made.structures, *made.proven, (0, len(content))]
    for _ in range(rng.choice([1, 2, 5, 20])):
        start, end = rng.choice(ranges)
        change(content, start, min(end, len(content)), rng, rng.choice(["big", "little"]))


def in_vhdx(content: bytearray, rng: random.Random) -> None:
    places = [(65536, 4096), (131072, 4096), (196608, 65536), (262144, 65536)]
    for at, used in (
        (65536, 80),
        (131072, 80),
        (196608, 80),
        (2 << 20, 64),
        (3 << 20, 200),
        ((3 << 20) + 65536, 400),
    ):
        if rng.random() < 0.4:
            change(content, at, at + used, rng, "little")
    content[262144 : 262144 + 65536] = content[196608 : 196608 + 65536]
    if content[1 << 20 : (1 << 20) + 4] == b"loge":
        change(content, 1 << 20, (1 << 20) + 160, rng, "little")
        size = int.from_bytes(content[(1 << 20) + 8 : (1 << 20) + 12], "little")
        places.append((1 << 20, min(size, 1 << 16)))
    for at, size in places:
        content[at : at + size] = sealed(bytes(content[at : at + size]))


def in_vhd(content: bytearray, rng: random.Random) -> None:
    for at, size, place in ((len(content) - 512, 512, 64), (0, 512, 64), (512, 1024, 36)):
        if content[at : at + 8] not in (b"conectix", b"cxsparse"):
            continue
        if rng.random() < 0.6:
            change(content, at + 8, at + 90, rng, "big")
        block = bytearray(content[at : at + size])
        block[place : place + 4] = bytes(4)
        block[place : place + 4] = (~sum(block) & 0xFFFFFFFF).to_bytes(4, "big")
        content[at : at + size] = block
    change(content, 1536, 1600, rng, "big")


def in_vmdk(content: bytearray, rng: random.Random) -> None:
    for at, used in ((0, 80), (21 * 512, 600), (26 * 512, 600), (len(content) - 1024, 80), (512, 400)):
        if rng.random() < 0.4:
            change(content, at, min(at + used, len(content)), rng, "little")


def in_e01(content: bytearray, rng: random.Random) -> None:
    """Sections of version 1: the header, then what has a checksum behind it."""
    at = 13
    while at + 76 <= len(content):
        kind, following = struct.unpack_from("<16sQ", content, at)
        kind = kind.rstrip(b"\0")
        start = at + 76
        if rng.random() < 0.15:
            change(content, at + 16, at + 32, rng, "little")
        content[at + 72 : start] = zlib.adler32(content[at : at + 72]).to_bytes(4, "little")
        if kind in (b"volume", b"data") and rng.random() < 0.4:
            change(content, start, start + 90, rng, "little")
        sizes = {b"volume": [1048], b"data": [1048], b"table": [20], b"table2": [20], b"digest": [76]}
        if kind in (b"table", b"table2") and rng.random() < 0.4:
            change(content, start, min(start + 100, len(content) - 8), rng, "little")
            count = min(int.from_bytes(content[start : start + 4], "little"), 1000)
            end = start + 24 + 4 * count
            content[end : end + 4] = zlib.adler32(content[start + 24 : end]).to_bytes(4, "little")
        for size in sizes.get(kind, []):
            content[start + size : start + size + 4] = zlib.adler32(content[start : start + size]).to_bytes(
                4, "little"
            )
        if following <= at:
            return
        at = following


def in_ex01(content: bytearray, rng: random.Random) -> None:
    at = len(content) - 64
    while at >= 32:
        previous, size = struct.unpack_from("<QQ", content, at + 8)
        if rng.random() < 0.2:
            change(content, at, at + 30, rng, "little")
        if rng.random() < 0.3 and at - size > 32:
            change(content, at - size, at, rng, "little")
        content[at + 4 : at + 8] = bytes(4)  # no MD5
        content[at + 60 : at + 64] = zlib.adler32(content[at : at + 60]).to_bytes(4, "little")
        if previous >= at:
            return
        at = previous


def in_dmg(content: bytearray, rng: random.Random) -> None:
    trailer = content[-512:]
    start, size = struct.unpack_from(">QQ", trailer, 216)
    parsed = plistlib.loads(bytes(content[start : start + size]))
    tables = parsed["resource-fork"]["blkx"]
    for table in tables:
        data = bytearray(table["Data"])
        change(data, 0, 200, rng, "big")
        for _ in range(rng.randrange(4)):
            change(data, 200, len(data), rng, "big")
        table["Data"] = bytes(data)
    if rng.random() < 0.1:
        tables[0]["Data"] = rng.choice([1, "x", [], b"", True])
    listed = plistlib.dumps(parsed)
    sums = b"".join(table["Data"][72:76] for table in tables if isinstance(table["Data"], bytes))
    trailer[224:232] = len(listed).to_bytes(8, "big")
    trailer[360:364] = zlib.crc32(sums).to_bytes(4, "big")
    if rng.random() < 0.3:
        change(trailer, 8, 512, rng, "big")
    content[start:] = listed + trailer


AWARE: dict[str, Callable[[bytearray, random.Random], None]] = {
    "vhdx": in_vhdx,
    "vhd": in_vhd,
    "vmdk": in_vmdk,
    "ewf": in_e01,
    "ewf-ex01": in_ex01,
    "dmg": in_dmg,
}


def visit(layer: ImageLayer, rng: random.Random) -> None:
    """Read what can be read, at both ends and anywhere."""
    device = layer.device()  # type: ignore[attr-defined]
    extents = device.extents(0, device.size)
    found = []
    with suppress(MountfsError):
        found = list(islice(extents, 500))
    assert all(extent.length > 0 for extent in found)
    for extent in found[:50]:
        if extent.kind is ExtentKind.DATA:
            read(device, extent.offset, min(extent.length, 1 << 16))
    for _ in range(20):
        offset = rng.choice([0, max(0, device.size - 70_000), rng.randrange(device.size)])
        read(device, offset, min(70_000, device.size - offset))
    with suppress(MountfsError):
        list(islice(layer.pieces(0, 0, min(device.size, 1 << 24)), 500))
        if device.size <= 1 << 26:
            list(islice(layer.prove(), 100))


def read(device: object, offset: int, size: int) -> None:
    with suppress(MountfsError):
        assert len(device.pread(offset, size)) == size  # type: ignore[attr-defined]


def main(name: str, first: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = makers()[name](Path(folder))
        image = StoredImage(made, folder_files(Path(folder)))
    aware = AWARE.get(name) or AWARE[name.split("-", maxsplit=1)[0]]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    opened = 0
    for seed in range(first, first + rounds):
        print(seed, flush=True)
        rng = random.Random(seed)
        content = bytearray(image.content)
        if seed % 2:
            aware(content, rng)
        else:
            any_bytes(content, made, rng)
        if rng.random() < 0.1:
            del content[rng.randrange(len(content)) :]
        signal.alarm(SECONDS)
        storage = image.storage(bytes(content))
        try:
            layer = open_stored(storage, made)
        except MountfsError:
            assert not storage.left_open()
            continue
        opened += 1
        with closing(layer):
            visit(layer, rng)
        assert not storage.left_open()
    assert opened > rounds // 20, "the damage is always found at once; nothing behind it is tried"
    print("done")


main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
