"""Writes Macrium sets of every kind for tests, byte by byte from the description of the format.

Nothing of the product is used here, so that its reader is held against a second understanding of the
format: containers, indexes, ciphers and the rules by which files of a set stand on each other. The truth
of each point is kept beside it as plain bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import struct
from dataclasses import dataclass, field
from typing import Any

import zstandard
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

KIB = 1024
SEGMENT = 4 << 20
KEY_BITS = {"aes-128": 16, "aes-192": 24, "aes-256": 32}
ABSENT = bytes(30)


@dataclass(frozen=True)
class Part:
    """A partition to be imaged. Places in bytes."""

    start: int
    length: int
    number: int = 0
    block_size: int = 64 * KIB
    reserved: int = 0
    file_system: str = "NTFS"
    label: str = ""
    json_changes: dict[str, Any] = field(default_factory=dict)
    """Keys of ``_file_system`` that are to be other than they would be."""

    @property
    def first(self) -> int:
        return self.start + self.reserved

    @property
    def blocks(self) -> int:
        return -(-(self.length - self.reserved) // self.block_size)


@dataclass(frozen=True)
class Disk:
    """A disk with the content it has now."""

    content: bytearray
    parts: tuple[Part, ...]
    number: int = 0
    format: str = "gpt"
    boot_records: tuple[int, ...] = ()
    """Where the sectors of extended boot records lie."""


@dataclass
class Written:
    """One point: the file that is opened for it, and what its disks must read as."""

    name: str
    truth: tuple[bytes, ...]
    file_number: int
    increment: int


@dataclass(frozen=True)
class Stored:
    """An entry of an index, taken apart."""

    position: int
    md5: bytes
    length: int
    file_number: int

    def packed(self) -> bytes:
        return struct.pack("<q16sIH", self.position, self.md5, self.length, self.file_number)


class MacriumSet:
    """A set that grows by points. ``files`` is its folder."""

    def __init__(
        self,
        disks: tuple[Disk, ...],
        *,
        compression: str = "medium",
        aes: str = "none",
        password: bytes = b"geheim",
        iterations: int = 10,
        seed: int = 1,
        suffix: str = ".mrimgx",
        store_zeros: bool = False,
    ) -> None:
        self.disks = disks
        self.compression = compression
        self.aes = aes
        self.iterations = iterations
        self.suffix = suffix
        self.store_zeros = store_zeros
        self.random = random.Random(seed)
        self.image_id = self.random.randbytes(8)
        salt = hashlib.sha256(self.image_id).digest()
        self.key = hashlib.pbkdf2_hmac("sha256", password, salt, iterations, 32)
        self.files: dict[str, bytes] = {}
        self.points: list[Written] = []
        self.names: list[str] = []
        self.maps: list[dict[tuple[int, int], dict[int, Stored]]] = []
        """After each point: for each partition, where its blocks are."""
        self.deltas: dict[int, dict[tuple[int, int], dict[int, Stored | None]]] = {}
        """What a delta file changes, by its number."""
        self.full_map: dict[tuple[int, int], dict[int, Stored]] = {}
        self.extra: dict[str, Any] = {}
        self.contents: dict[int, tuple[bytes, ...]] = {}
        """Of the disks when the file of that number was made."""

    # What is stored -----------------------------------------------------------------------------------

    def encode(self, plain: bytes, disk: int, part: int, index: int) -> bytes:
        stored = self.pack(plain)
        if self.aes == "none":
            return stored
        nonce = self.image_id + struct.pack("<HHI", disk & 0xFFFF, part & 0xFFFF, index)
        ecb = Cipher(algorithms.AES(hashlib.sha256(self.key).digest()), modes.ECB()).encryptor()
        vector = ecb.update(nonce) + ecb.finalize()
        cbc = Cipher(algorithms.AES(self.key[: KEY_BITS[self.aes]]), modes.CBC(vector)).encryptor()
        filled = stored + b"\xa5" * (-len(stored) % 16)
        return cbc.update(filled) + cbc.finalize()

    def pack(self, plain: bytes) -> bytes:
        return plain if self.compression == "none" else zstandard.ZstdCompressor(level=1).compress(plain)

    def used_blocks(self, disk: Disk, part: Part) -> dict[int, bytes]:
        found = {}
        for index in range(part.blocks):
            start = part.first + index * part.block_size
            block = bytes(disk.content[start : min(start + part.block_size, part.start + part.length)])
            if self.store_zeros or any(block):
                found[index] = block
        return found

    def truth(self) -> tuple[bytes, ...]:
        """What the disks read as when the image is restored, painted in the order the format says."""
        painted = []
        for disk in self.disks:
            result = bytearray(len(disk.content))
            result[: 63 * 512] = disk.content[: 63 * 512]
            for offset in disk.boot_records if disk.format == "mbr" else ():
                result[offset : offset + 512] = disk.content[offset : offset + 512]
            for part in disk.parts:
                result[part.start : part.first] = disk.content[part.start : part.first]
                for index, block in self.used_blocks(disk, part).items():
                    start = part.first + index * part.block_size
                    result[start : start + len(block)] = block
            painted.append(bytes(result))
        return tuple(painted)

    # Points -------------------------------------------------------------------------------------------

    def full(self, **options: Any) -> Written:
        written = self._point("full", {}, delta=False, **options)
        self.full_map = self.maps[-1]
        return written

    def differential(self, **options: Any) -> Written:
        return self._point("diff", self.full_map, delta=False, **options)

    def incremental(self, *, delta: bool = True, **options: Any) -> Written:
        return self._point("inc", self.maps[-1], delta=delta, **options)

    def _point(
        self,
        backup_type: str,
        known: dict[tuple[int, int], dict[int, Stored]],
        *,
        delta: bool,
        parts: int = 1,
        shuffle: bool = False,
    ) -> Written:
        increment = len(self.points)
        numbers = [len(self.names) + at for at in range(parts)]
        for number in numbers:
            self.names.append(f"{self.image_id.hex().upper()}-{increment:02}-{number:02}{self.suffix}")
        bodies = [bytearray() for _ in numbers]
        turn = 0

        def store(plain: bytes, disk: Disk, part: Part, index: int) -> Stored:
            nonlocal turn
            body, number = (
                bodies[turn * parts // max(1, self._count())],
                numbers[turn * parts // self._count()],
            )
            turn += 1
            stored = self.encode(plain, disk.number, part.number, index)
            if self.random.random() < 0.1:
                body += self.random.randbytes(self.random.randrange(40))  # gaps are allowed
            body += stored
            digest = hashlib.md5(plain).digest()
            return Stored(len(body) - len(stored), digest, len(stored), number)

        current: dict[tuple[int, int], dict[int, Stored]] = {}
        changes: dict[tuple[int, int], dict[int, Stored | None]] = {}
        reserved: dict[tuple[int, int], list[Stored]] = {}
        for at, disk in enumerate(self.disks):
            for place, part in enumerate(disk.parts):
                key = at, place
                area = bytes(disk.content[part.start : part.first])
                reserved[key] = [
                    store(area[offset : offset + SEGMENT], disk, part, offset // SEGMENT)
                    for offset in range(0, len(area), SEGMENT)
                ]
                old, current[key], changes[key] = known.get(key, {}), {}, {}
                used = list(self.used_blocks(disk, part).items())
                if shuffle:
                    self.random.shuffle(used)
                for index, block in used:
                    before = old.get(index)
                    if before is None or before.md5 != hashlib.md5(block).digest():
                        current[key][index] = changes[key][index] = store(block, disk, part, index)
                    else:
                        current[key][index] = before
                for index in old.keys() - current[key].keys():
                    changes[key][index] = None
        for number, body in zip(numbers[:-1], bodies[:-1], strict=True):
            header = self._header(number, increment, backup_type, delta=False, split=True)
            self.files[self.names[number]] = self._container(body, header, None)
        last = numbers[-1]
        self.contents[last] = tuple(bytes(disk.content) for disk in self.disks)
        header = self._header(last, increment, backup_type, delta=delta)
        indexes = {
            key: self._index(reserved[key], changes[key] if delta else current[key], delta, self._part(key))
            for key in current
        }
        self.files[self.names[last]] = self._container(bodies[-1], header, indexes, self.contents[last])
        if delta:
            self.deltas[last] = changes
        self.maps.append(current)
        self.points.append(Written(self.names[last], self.truth(), last, increment))
        return self.points[-1]

    def _part(self, key: tuple[int, int]) -> Part:
        return self.disks[key[0]].parts[key[1]]

    def _count(self) -> int:
        """At least as many blocks as can be stored for a point."""
        return sum(part.blocks + -(-part.reserved // SEGMENT) for disk in self.disks for part in disk.parts)

    def merge_deltas(self, first: int, last: int, *, keep_first: bool) -> str:
        """Make one delta file of those numbered ``first`` to ``last``; the name of the file."""
        numbers = list(range(first, last + 1))
        newest: dict[tuple[int, int], dict[int, Stored | None]] = {}
        for number in numbers:
            for key, changes in self.deltas[number].items():
                newest.setdefault(key, {}).update(changes)
        return self._merge(numbers, newest, keep_first=keep_first, delta=True)

    def merge_full(self, last: int, *, keep_first: bool) -> str:
        """Make one full file of everything up to the point whose file is ``last``."""
        at = next(at for at, point in enumerate(self.points) if point.file_number == last)
        return self._merge(list(range(last + 1)), dict(self.maps[at]), keep_first=keep_first, delta=False)

    def _merge(
        self,
        numbers: list[int],
        newest: Any,
        *,
        keep_first: bool,
        delta: bool,
    ) -> str:
        body, moved = bytearray(), {}
        for key, entries in newest.items():
            moved[key] = {}
            for index, entry in self.random.sample(sorted(entries.items()), len(entries)):
                if entry is None:
                    moved[key][index] = None
                    continue
                source = self.files[self.names[entry.file_number]]
                data = source[entry.position : entry.position + entry.length]
                owned = self.random.choice(numbers)
                moved[key][index] = Stored(len(body), entry.md5, entry.length, owned)
                body += data
        newest_point = next(point for point in self.points if point.file_number == numbers[-1])
        oldest_point = next(point for point in self.points if point.file_number >= numbers[0])
        identity = oldest_point if keep_first else newest_point
        reserved = {}
        for key in moved:
            disk, part = self.disks[key[0]], self._part(key)
            reserved[key] = []
            area = self.contents[numbers[-1]][key[0]][part.start : part.first]
            for offset in range(0, len(area), SEGMENT):
                plain = area[offset : offset + SEGMENT]
                stored = self.encode(plain, disk.number, part.number, offset // SEGMENT)
                entry = Stored(len(body), hashlib.md5(plain).digest(), len(stored), numbers[0])
                reserved[key].append(entry)
                body += stored
        header = self._header(identity.file_number, identity.increment, "inc", delta=delta)
        header["merged_files"] = [number for number in numbers if number != identity.file_number]
        indexes = {key: self._index(reserved[key], moved[key], delta, self._part(key)) for key in moved}
        container = self._container(body, header, indexes, self.contents[numbers[-1]])
        for number in numbers:
            self.files.pop(self.names[number], None)
        self.files[self.names[identity.file_number]] = container
        kept = [point for point in self.points if point.file_number not in numbers]
        merged = Written(
            self.names[identity.file_number],
            newest_point.truth,
            identity.file_number,
            identity.increment,
        )
        self.points = sorted([*kept, merged], key=lambda point: point.file_number)
        return merged.name

    # Bytes --------------------------------------------------------------------------------------------

    def _index(self, reserved: list[Stored], entries: Any, delta: bool, part: Part) -> bytes:
        head = struct.pack("<I", len(reserved)) + b"".join(entry.packed() for entry in reserved)
        if delta:
            body = b"".join(
                (entry.packed() if entry is not None else ABSENT) + struct.pack("<I", index)
                for index, entry in sorted(entries.items())
            )
            return head + struct.pack("<I", len(entries)) + body
        body = b"".join(
            entries[index].packed() if index in entries else ABSENT for index in range(part.blocks)
        )
        return head + struct.pack("<I", part.blocks) + body

    def block(self, name: bytes, payload: bytes, *, last: bool = False, plain: bool = False) -> bytes:
        packed = self.compression != "none" and not plain
        stored = self.pack(payload) if packed and payload else payload
        flags = int(last) | (2 if packed else 0)
        digest = hashlib.md5(stored).digest() if stored else bytes(16)
        return name.ljust(8) + struct.pack("<I", len(stored)) + digest + bytes([flags, 0, 0, 0]) + stored

    def _container(
        self,
        body: bytes | bytearray,
        header: dict[str, Any],
        indexes: dict[tuple[int, int], bytes] | None,
        contents: tuple[bytes, ...] = (),
    ) -> bytes:
        data = bytes(body) + bytes(-len(body) % 4096)
        header["index_file_position"] = len(data)
        if indexes is not None:
            for at, (disk, content) in enumerate(zip(self.disks, contents, strict=True)):
                data += self.block(b"$TRACK0", content[: 63 * 512], last=not disk.boot_records)
                if disk.boot_records:
                    ept = struct.pack("<I", len(disk.boot_records)) + b"".join(
                        content[offset : offset + 512] + struct.pack("<QH6x", offset, number)
                        for number, offset in enumerate(disk.boot_records, 4)
                    )
                    data += self.block(b"$EPT", ept, last=True)
                for place in range(len(disk.parts)):
                    data += self.block(b"$BITMAP", b"") + self.block(b"$CBT", b"other things")
                    data += self.block(b"$INDEX", indexes[at, place], last=True, plain=True)
        root = len(data)
        document = json.dumps(self._document(header), sort_keys=True, indent=4, ensure_ascii=False) + "\n"
        data += self.block(b"$JSON", document.encode())
        data += self.block(b"$AUXDATA", self.random.randbytes(32), last=True, plain=True)
        return data + struct.pack("<Q", root) + b"MACRIUM_FILE"

    def _header(
        self, number: int, increment: int, backup_type: str, *, delta: bool, split: bool = False
    ) -> dict[str, Any]:
        return {
            "backup_format": "partition",
            "backup_time": 1_700_000_000 + 3600 * increment,
            "backup_type": backup_type,
            "delta_index": delta,
            "file_number": number,
            "imageid": self.image_id.hex().upper(),
            "increment_number": increment,
            "json_version": 1,
            "netbios_name": "WORKSTATION",
            "split_file": split,
            **self.extra,
        }

    def _document(self, header: dict[str, Any]) -> dict[str, Any]:
        encryption: dict[str, Any] = {"enable": False, "key_iterations": 0}
        if self.aes != "none":
            check = hmac.new(self.key, b"", "sha256").hexdigest()
            encryption = {"enable": True, "aes_type": self.aes, "key_derivation": "pbkdf2", "hmac": check}
            encryption["key_iterations"] = self.iterations
        return {
            "_auxiliary_data": {
                "backup_definition": {"email": {"success_recipients": "someone@example.org"}}
            },
            "_compression": {"compression_level": self.compression, "compression_method": "zstd"},
            "_encryption": encryption,
            "_header": header,
            "disks": [self._disk(disk, header) for disk in self.disks],
        }

    def _disk(self, disk: Disk, header: dict[str, Any]) -> dict[str, Any]:
        cylinder = 63 * 255 * 512
        is_full = not header["increment_number"] or ("merged_files" in header and not header["delta_index"])
        size = len(disk.content) if is_full else len(disk.content) // cylinder * cylinder
        return {
            "_descriptor": {"disk_description": "Test    Disk", "disk_serialno": "S1"},
            "_geometry": {"bytes_per_sector": 512, "disk_size": size},
            "_header": {"disk_format": disk.format, "disk_number": disk.number},
            "partitions": [self._partition(part, header) for part in disk.parts],
        }

    def _partition(self, part: Part, header: dict[str, Any]) -> dict[str, Any]:
        system = {
            "type": part.file_system,
            "start": part.start,
            "lcn0_offset": part.first,
            "volume_label": part.label,
        }
        if part.reserved:
            system["reserved_sectors_byte_length"] = part.reserved
        history = [
            {"file_name": f"B:\\backups\\{name}", "file_number": number}
            for number, name in enumerate(self.names[: header["file_number"] + 1])
        ]
        return {
            "_file_system": {**system, **part.json_changes},
            "_geometry": {
                "boot_sector_offset": 0,
                "start": part.start,
                "length": part.length,
                "end": part.start + part.length - 1,
            },
            "_header": {
                "block_count": part.blocks,
                "block_size": part.block_size,
                "file_history": history,
                "file_history_count": len(history),
                "partition_number": part.number,
            },
        }
