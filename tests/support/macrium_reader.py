"""A second reader of full Macrium files, as short as the description of the format allows.

It shares nothing with the product: what the product writes is read with it, byte by byte. Whole files in
memory, one file or the parts of one split image, no chains.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from dataclasses import dataclass
from typing import Any

import zstandard
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


@dataclass(frozen=True)
class Block:
    """A metadata block."""

    name: str
    flags: int
    payload: bytes
    start: int
    end: int


@dataclass(frozen=True)
class File:
    """One file, taken apart."""

    content: bytes
    json_bytes: bytes
    json: dict[str, Any]
    root: list[Block]
    lists: list[list[Block]]


def walk(content: bytes, position: int) -> list[Block]:
    """The blocks of one list; every checksum is right, and nothing is reserved for later."""
    blocks = []
    while True:
        name, length, digest, flags, rest = struct.unpack_from("<8sI16sB3s", content, position)
        assert rest == bytes(3)
        assert flags & ~7 == 0
        stored = content[position + 32 : position + 32 + length]
        assert len(stored) == length
        assert digest == (hashlib.md5(stored).digest() if length else bytes(16)), name
        payload = zstandard.ZstdDecompressor().decompress(stored) if length and flags & 2 else stored
        end = position + 32 + length
        blocks.append(Block(name.decode().rstrip(), flags, payload, position, end))
        position = end
        if flags & 1:
            return blocks


def parse(content: bytes) -> File:
    """Take a file apart, and see that all of its bytes are accounted for."""
    assert content[-12:] == b"MACRIUM_FILE"
    (root,) = struct.unpack("<Q", content[-20:-12])
    root_blocks = walk(content, root)
    assert root_blocks[-1].end == len(content) - 20
    text = next(block for block in root_blocks if block.name == "$JSON").payload
    document = json.loads(text)
    position = document["_header"]["index_file_position"]
    lists = []
    if not document["_header"]["split_file"]:
        for disk in document["disks"]:
            for _ in range(1 + len(disk["partitions"])):
                lists.append(walk(content, position))
                position = lists[-1][-1].end
    assert position == root
    return File(content, text, document, root_blocks, lists)


def entries(index: bytes) -> tuple[list[tuple[int, bytes, int, int]], list[tuple[int, bytes, int, int]]]:
    """The reserved and the block entries of a complete index."""
    (reserved,) = struct.unpack_from("<I", index, 0)
    (count,) = struct.unpack_from("<I", index, 4 + 30 * reserved)
    assert len(index) == 8 + 30 * (reserved + count)
    found = [struct.unpack_from("<q16sIH", index, 4 + 30 * at) for at in range(reserved)]
    start = 8 + 30 * reserved
    return found, [struct.unpack_from("<q16sIH", index, start + 30 * at) for at in range(count)]


class Keys:
    """Decrypts blocks with a password, after checking it as the files say."""

    def __init__(self, document: dict[str, Any], password: bytes) -> None:
        encryption = document["_encryption"]
        self.image_id = bytes.fromhex(document["_header"]["imageid"])
        salt = hashlib.sha256(self.image_id).digest()
        self.key = hashlib.pbkdf2_hmac("sha256", password, salt, encryption["key_iterations"], 32)
        assert hmac.new(self.key, b"", hashlib.sha256).hexdigest() == encryption["hmac"]
        self.length = {"aes-128": 16, "aes-192": 24, "aes-256": 32}[encryption["aes_type"]]

    def plain(self, stored: bytes, disk: int, part: int, index: int) -> bytes:
        assert len(stored) % 16 == 0
        nonce = self.image_id + struct.pack("<HHI", disk, part, index)
        vector = (
            Cipher(algorithms.AES(hashlib.sha256(self.key).digest()), modes.ECB()).encryptor().update(nonce)
        )
        cipher = Cipher(algorithms.AES(self.key[: self.length]), modes.CBC(vector)).decryptor()
        return cipher.update(stored)


def restore(contents: list[bytes], password: bytes = b"") -> list[bytearray]:
    """Rebuild the disks of one image from its files, the last of which has the lists."""
    files = [parse(content) for content in contents]
    owners = {file.json["_header"]["file_number"]: file for file in files}
    last = files[-1]
    keys = Keys(last.json, password) if password else None
    is_packed = last.json["_compression"]["compression_level"] != "none"

    def load(entry: tuple[int, bytes, int, int], disk: int, part: int, index: int) -> bytes:
        position, digest, length, number = entry
        stored = owners[number].content[position : position + length]
        assert position + length <= owners[number].json["_header"]["index_file_position"]
        plain = keys.plain(stored, disk, part, index) if keys else stored
        if is_packed:
            assert zstandard.frame_content_size(plain) > 0
            plain = zstandard.ZstdDecompressor().decompress(plain)
        assert hashlib.md5(plain).digest() == digest
        return plain

    disks, lists = [], iter(last.lists)
    for disk in last.json["disks"]:
        size, number = disk["_geometry"]["disk_size"], disk["_header"]["disk_number"]
        result = bytearray(size)
        outer = {block.name: block.payload for block in next(lists)}
        track0 = outer["$TRACK0"][:size]
        result[: len(track0)] = track0
        ept = outer.get("$EPT", b"\0\0\0\0")
        assert len(ept) == 4 + 528 * struct.unpack_from("<I", ept)[0]
        for at in range(4, len(ept), 528):
            (offset,) = struct.unpack_from("<Q", ept, at + 512)
            result[offset : offset + 512] = ept[at : at + 512]
        for partition in disk["partitions"]:
            blocks = next(lists)
            assert [block.name for block in blocks] == ["$BITMAP", "$INDEX"]
            reserved, index = entries(blocks[-1].payload)
            part = partition["_header"]["partition_number"]
            geometry, system = partition["_geometry"], partition["_file_system"]
            start = geometry["start"]
            area = b"".join(load(entry, number, part, at) for at, entry in enumerate(reserved))
            area = area[: system.get("reserved_sectors_byte_length", 0)]
            result[start : start + len(area)] = area
            first = start + system["lcn0_offset"] - system["start"]
            block_size = partition["_header"]["block_size"]
            assert len(index) == partition["_header"]["block_count"]
            assert len(index) == -(-(start + geometry["length"] - first) // block_size)
            for at, entry in enumerate(index):
                if entry[2]:
                    plain = load(entry, number, part, at)
                    place = first + at * block_size
                    result[place : place + len(plain)] = plain
                else:
                    assert entry == (0, bytes(16), 0, 0)
        assert len(result) == size
        disks.append(result)
    return disks
