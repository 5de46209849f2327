"""A second writer of evidence files, from J. Metz' specifications alone: bad sectors, Ex01, wrong hashes."""

from __future__ import annotations

import bz2
import hashlib
import struct
import zlib

GUID = bytes(range(16))


def adler(content: bytes) -> bytes:
    return struct.pack("<I", zlib.adler32(content))


def section(kind: bytes, at: int, content: bytes, *, last: bool = False) -> bytes:
    following = at if last else at + 76 + len(content)
    head = struct.pack("<16sQQ40x", kind, following, 0 if last else 76 + len(content))
    return head + adler(head) + content


def text_v1() -> bytes:
    tags = "c\tn\ta\te\tt\tav\tov\tm\tu\tp"
    values = "case\tnumber\tname\tme\tnotes\t1\tX\t2020 1 2 3 4 5\t0\t0"
    return zlib.compress(f"1\nmain\n{tags}\n{values}\n\n".encode())


def volume(chunks: int, chunk_sectors: int, sectors: int, guid: bytes = GUID) -> bytes:
    head = struct.pack("<IIIIQ", 1, chunks, chunk_sectors, 512, sectors).ljust(64, b"\0")
    content = (head + guid).ljust(1048, b"\0")
    return content + adler(content)


def pack_chunks(content: bytes, chunk_size: int, *, compress: bool) -> list[tuple[bytes, bool]]:
    found = []
    for at in range(0, len(content), chunk_size):
        piece = content[at : at + chunk_size]
        packed = zlib.compress(piece)
        if compress and len(packed) < len(piece):
            found.append((packed, True))
        else:
            found.append((piece + adler(piece), False))
    return found


def version1(
    content: bytes,
    *,
    chunk_sectors: int = 64,
    compress: bool = True,
    errors: tuple[tuple[int, int], ...] = (),
    md5: bytes | None = None,
    sha1: bytes | None = None,
    per_table: int = 1000,
    base: int = 0,
    segments: int = 1,
    guid: bytes = GUID,
) -> list[bytes]:
    """The segments of an image. ``base``: what tables count places from."""
    chunks = pack_chunks(content, chunk_sectors * 512, compress=compress)
    shape = volume(len(chunks), chunk_sectors, len(content) // 512, guid)
    per_segment = -(-len(chunks) // segments)
    made = []
    for number in range(1, segments + 1):
        found = struct.pack("<8sBHH", b"EVF\t\r\n\xff\0", 1, number, 0)
        if number == 1:
            found += section(b"header", len(found), text_v1())
            found += section(b"volume", len(found), shape)
        else:
            found += section(b"data", len(found), shape)
        own = chunks[(number - 1) * per_segment : number * per_segment]
        for start in range(0, len(own), per_table):
            part = own[start : start + per_table]
            place, entries = len(found) + 76 - base, b""
            for packed, compressed in part:
                entries += struct.pack("<I", place | compressed << 31)
                place += len(packed)
            found += section(b"sectors", len(found), b"".join(packed for packed, _ in part))
            head = struct.pack("<I4xQ4x", len(part), base)
            table = head + adler(head) + entries + adler(entries)
            found += section(b"table", len(found), table)
            found += section(b"table2", len(found), table)
        if number < segments:
            made.append(found + section(b"next", len(found), b"", last=True))
            continue
        if errors:
            listed = b"".join(struct.pack("<II", *entry) for entry in errors)
            head = struct.pack("<I", len(errors)).ljust(516, b"\0")
            found += section(b"error2", len(found), head + adler(head) + listed + adler(listed))
        md5 = hashlib.md5(content).digest() if md5 is None else md5
        digest = (md5 + (hashlib.sha1(content).digest() if sha1 is None else sha1)).ljust(76, b"\0")
        found += section(b"digest", len(found), digest + adler(digest))
        hashed = md5 + bytes(16)
        found += section(b"hash", len(found), hashed + adler(hashed))
        made.append(found + section(b"done", len(found), b"", last=True))
    return made


def version2(
    content: bytes,
    *,
    method: int = 1,
    chunk_sectors: int = 64,
    errors: tuple[tuple[int, int], ...] = (),
    patterns: bool = True,
    flags: int = 1,
    segments: int = 1,
) -> list[bytes]:
    """The segments of an Ex01."""
    pack = {0: lambda data: data, 1: zlib.compress, 2: bz2.compress}[method]
    size = chunk_sectors * 512
    count = -(-len(content) // size)
    device = f"1\nmain\nsn\tmd\tlb\tts\tdt\tbp\tph\nserial\tmodel\t\t{len(content) // 512}\tf\t512\t1\n\n"
    case = (
        "1\nmain\nnm\tcn\ten\tex\tnt\tav\tos\ttt\tat\ttb\tcp\tsb\tgr\n"
        f"name\tcase\tnumber\tme\tnotes\t7\tW\t1577934245\t1577934245\t{count}\t{method}\t{chunk_sectors}\t64\n\n"
    )
    made = []
    per_segment = -(-count // segments)
    for number in range(1, segments + 1):
        found = struct.pack("<8sBBHI16s", b"EVF2\r\n\x81\0", 2, 1, method, number, GUID)
        previous = 0

        def add(kind: int, data: bytes) -> None:
            nonlocal found, previous
            padding = -len(data) % 16
            data += bytes(padding)
            found += data
            head = struct.pack(
                "<IIQQII16s12x", kind, flags, previous, len(data), 64, padding, hashlib.md5(data).digest()
            )
            previous = len(found)
            found += head + adler(head)

        add(1, pack(device.encode("utf-16")))
        add(2, pack(case.encode("utf-16")))
        body, entries, start = b"", b"", len(found)
        first = (number - 1) * per_segment
        numbers = range(first, min(count, first + per_segment))
        for at in numbers:
            piece = content[at * size : (at + 1) * size]
            packed = pack(piece)
            if patterns and piece == piece[:8] * (len(piece) // 8):
                entries += piece[:8] + struct.pack("<II", 0, 5)
                continue
            compressed = method and len(packed) < len(piece)
            stored = packed if compressed else piece + adler(piece)
            entries += struct.pack("<QII", start + len(body), len(stored), 1 if compressed else 2)
            body += stored + bytes(-len(stored) % 16)
        add(3, body)
        head = struct.pack("<QI4x", first, len(numbers))
        add(4, (head + adler(head)).ljust(32, b"\0") + entries + adler(entries).ljust(16, b"\0"))
        if number < segments:
            add(13, b"")
            made.append(found)
            continue
        if errors:
            listed = b"".join(struct.pack("<QI4x", *entry) for entry in errors)
            head = struct.pack("<I12x", len(errors))
            add(5, (head + adler(head)).ljust(32, b"\0") + listed + adler(listed).ljust(16, b"\0"))
        add(8, hashlib.md5(content).digest() + adler(hashlib.md5(content).digest()))
        add(9, hashlib.sha1(content).digest() + adler(hashlib.sha1(content).digest()))
        add(15, b"")
        made.append(found)
    return made
