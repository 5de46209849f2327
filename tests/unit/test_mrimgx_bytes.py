"""Macrium files with rare contents, and hostile ones: right bytes, or an error that says where."""

from __future__ import annotations

import hashlib
import json
import struct
from contextlib import closing
from typing import Any

import pytest
import zstandard

from imageformat.errors import (
    CorruptImageError,
    ImageError,
    MountfsError,
    ParentMissingError,
    UnsupportedFeatureError,
)
from imageformat.extent import ExtentKind
from support.content import noise
from support.macrium_sets import KIB, opened, read, small_disk
from support.mrimgx import Disk, MacriumSet, Part

BOMB = zstandard.ZstdCompressor().compress(bytes(1 << 28))
ENDLESS_BOMB = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 28))


def full(made: MacriumSet) -> tuple[dict[str, bytes], str, list[bytes]]:
    """The files of a set with one full image, its name and its truth."""
    point = made.full()
    return made.files, point.name, list(point.truth)


class Rewritten(MacriumSet):
    """A set whose JSON is changed before it is written."""

    change: Any = staticmethod(lambda _: None)

    def _document(self, header: dict[str, Any]) -> dict[str, Any]:
        document = super()._document(header)
        self.change(document)
        return document


def rewritten(change: Any, disk: Disk | None = None, **options: Any) -> Rewritten:
    made = Rewritten((disk or small_disk(),), **options)
    made.change = change
    return made


# Rare, and right ---------------------------------------------------------------------------------------


def test_file_and_folder_images_count_from_elsewhere() -> None:
    part = Part(
        136 * KIB,
        300 * KIB,
        0,
        16 * KIB,
        40 * KIB,
        "unknown",
        json_changes={"start": 1 << 20, "lcn0_offset": 176 * KIB},
    )
    files, name, truth = full(MacriumSet((small_disk(part),), suffix=".mrbakx"))
    assert read(files, name) == truth


def test_no_start_of_the_file_system() -> None:
    def change(document: dict[str, Any]) -> None:
        del document["disks"][0]["partitions"][0]["_file_system"]["start"]

    files, name, truth = full(rewritten(change))
    assert read(files, name) == truth


def test_no_length_of_the_partition() -> None:
    def change(document: dict[str, Any]) -> None:
        geometry = document["disks"][0]["partitions"][0]["_geometry"]
        del geometry["length"], geometry["end"]

    files, name, truth = full(rewritten(change))
    assert read(files, name) == truth


def test_missing_keys_get_their_defaults() -> None:
    def change(document: dict[str, Any]) -> None:
        for key in ("split_file", "backup_type", "backup_format", "backup_time", "netbios_name"):
            del document["_header"][key]
        del document["_encryption"], document["_compression"]
        document["unknown"] = {"key": [1, 2]}
        document["disks"][0]["_descriptor"] = {}

    files, name, truth = full(rewritten(change))
    assert read(files, name) == truth


def test_delta_is_the_default() -> None:
    files, name, _ = full(rewritten(lambda document: document["_header"].pop("delta_index")))
    with pytest.raises(ParentMissingError, match="holds changes only"):
        opened(files, name)


class Padded(MacriumSet):
    """The last block is stored whole, with something after the end of the partition."""

    def used_blocks(self, disk: Disk, part: Part) -> dict[int, bytes]:
        found = super().used_blocks(disk, part)
        return {index: block + b"\xee" * (part.block_size - len(block)) for index, block in found.items()}

    def truth(self) -> tuple[bytes, ...]:
        return tuple(bytes(disk.content) for disk in self.disks)


@pytest.mark.parametrize("compression", ["none", "medium"])
@pytest.mark.parametrize("kind", [MacriumSet, Padded])
def test_last_blocks(kind: type[MacriumSet], compression: str) -> None:
    part = Part(0, 100 * KIB + 512, 0, 16 * KIB)
    disk = Disk(bytearray(noise(1, part.length)), (part,))
    files, name, _ = full(kind((disk,), compression=compression))
    assert read(files, name) == [bytes(disk.content)]


class ShortStride(MacriumSet):
    """Boot records without fill, as the documents have them."""

    def block(self, name: bytes, payload: bytes, **options: Any) -> bytes:
        if name == b"$EPT":
            count = struct.unpack_from("<I", payload)[0]
            payload = payload[:4] + b"".join(payload[4 + 528 * at :][:522] for at in range(count))
        return super().block(name, payload, **options)


@pytest.mark.parametrize("kind", [MacriumSet, ShortStride])
@pytest.mark.parametrize("style", ["mbr", "gpt"])
def test_boot_records(kind: type[MacriumSet], style: str) -> None:
    disk = small_disk()
    disk = Disk(disk.content, disk.parts, 0, style, (400 * KIB, 450 * KIB))
    files, name, truth = full(kind((disk,)))
    assert read(files, name) == truth
    shown = truth[0][400 * KIB : 400 * KIB + 512]
    assert shown == (bytes(disk.content[400 * KIB : 400 * KIB + 512]) if style == "mbr" else bytes(512))


class EncryptedMetadata(MacriumSet):
    """The start of the disk is encrypted, which no known program writes."""

    def block(self, name: bytes, payload: bytes, **options: Any) -> bytes:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # noqa: PLC0415

        made = super().block(name, payload, **options)
        if name != b"$TRACK0":
            return made
        stored = made[32:] + bytes(-len(made[32:]) % 16)
        cipher = Cipher(algorithms.AES(self.key[:16]), modes.ECB()).encryptor()
        stored = cipher.update(stored)
        digest = hashlib.md5(stored).digest()
        return made[:8] + struct.pack("<I", len(stored)) + digest + bytes([made[28] | 4, 0, 0, 0]) + stored


@pytest.mark.parametrize("compression", ["none", "medium"])
def test_encrypted_metadata(compression: str) -> None:
    files, name, truth = full(EncryptedMetadata((small_disk(),), aes="aes-128", compression=compression))
    assert read(files, name) == truth


class Unordered(MacriumSet):
    """Changes in any order, and some twice: the last counts."""

    def _index(self, reserved: Any, entries: Any, delta: bool, part: Part) -> bytes:
        made = super()._index(reserved, entries, delta, part)
        if not delta:
            return made
        head, body = made[:4], made[8:]
        found = [body[at : at + 34] for at in range(0, len(body), 34)]
        self.random.shuffle(found)
        older = [bytes(30) + entry[30:] for entry in found[: len(found) // 2]]
        return head + struct.pack("<I", len(found) + len(older)) + b"".join(older + found)


def test_changes_in_any_order() -> None:
    disk = small_disk()
    made = Unordered((disk,))
    made.full()
    disk.content[70 * KIB : 250 * KIB] = noise(7, 180 * KIB)
    point = made.incremental()
    assert read(made.files, point.name) == list(point.truth)


class Frames(MacriumSet):
    """Frames that do not state their size, and something after each."""

    def pack(self, plain: bytes) -> bytes:
        return zstandard.ZstdCompressor(write_content_size=False).compress(plain) + b"after"


def test_frames_without_a_size() -> None:
    files, name, truth = full(Frames((small_disk(),)))
    assert read(files, name) == truth


def test_what_is_not_stored_is_unused() -> None:
    part = Part(64 * KIB, 256 * KIB, 0, 16 * KIB)
    disk = Disk(bytearray(512 * KIB), (part,))
    disk.content[128 * KIB] = 1
    files, name, _ = full(MacriumSet((disk,)))
    with closing(opened(files, name)) as layer:
        found = [tuple(extent) for extent in layer.device().extents(0, 512 * KIB)]  # type: ignore[attr-defined]
    assert found == [
        (0, 32256, ExtentKind.DATA),
        (32256, 64 * KIB - 32256, ExtentKind.ZERO),
        (64 * KIB, 64 * KIB, ExtentKind.UNUSED),
        (128 * KIB, 16 * KIB, ExtentKind.DATA),
        (144 * KIB, 176 * KIB, ExtentKind.UNUSED),
        (320 * KIB, 192 * KIB, ExtentKind.ZERO),
    ]


def test_an_image_of_an_image_is_one_too() -> None:
    """Blocks are read in runs: one range for neighbours, however many."""
    part = Part(0, 2048 * KIB, 0, 16 * KIB)
    disk = Disk(bytearray(noise(3, 2048 * KIB)), (part,))
    made = MacriumSet((disk,), compression="none")
    made.random.random = lambda: 1.0  # type: ignore[method-assign] # no gaps
    files, name, truth = full(made)
    with closing(opened(files, name)) as layer:
        device = layer.device()  # type: ignore[attr-defined]
        storage = layer._image.disks[0].device._paints[0]._reader._owners[0].member.device._storage
        before = storage.reads
        assert device.pread(0, 2048 * KIB) == truth[0]
        assert storage.reads - before <= 2


# Hostile or damaged ------------------------------------------------------------------------------------

PARTITION = ("disks", 0, "partitions", 0)
CASES: dict[str, tuple[tuple[Any, ...], Any]] = {
    "negative start": ((*PARTITION, "_geometry", "start"), -1),
    "start beyond all": ((*PARTITION, "_geometry", "start"), 1 << 62),
    "length beyond all": ((*PARTITION, "_geometry", "length"), 1 << 61),
    "huge number": ((*PARTITION, "_geometry", "length"), 1 << 90),
    "fraction": ((*PARTITION, "_geometry", "length"), 1.5),
    "text for a number": ((*PARTITION, "_geometry", "length"), "1"),
    "flag for a number": ((*PARTITION, "_geometry", "start"), True),
    "null": ((*PARTITION, "_geometry", "start"), None),
    "blocks of nothing": ((*PARTITION, "_header", "block_size"), 0),
    "blocks of all": ((*PARTITION, "_header", "block_size"), 1 << 40),
    "blocks of 1": ((*PARTITION, "_header", "block_size"), 1),
    "before the partition": ((*PARTITION, "_file_system", "lcn0_offset"), 512),
    "reserved without segments": ((*PARTITION, "_file_system", "reserved_sectors_byte_length"), 4096),
    "reserved beyond the end": ((*PARTITION, "_file_system", "reserved_sectors_byte_length"), 1 << 40),
    "list for an object": ((*PARTITION, "_header"), []),
    "object for a list": (("disks",), {}),
    "no disks": (("disks",), []),
    "list of numbers": (("disks",), [1]),
    "short image id": (("_header", "imageid"), "12"),
    "number for an id": (("_header", "imageid"), 12),
    "file number": (("_header", "file_number"), 1 << 16),
    "merged": (("_header", "merged_files"), [1, "2"]),
    "lists beyond the end": (("_header", "index_file_position"), 1 << 40),
    "lists in the middle": (("_header", "index_file_position"), 100),
    "unknown compression": (("_compression", "compression_level"), "brilliant"),
    "unknown method": (("_compression", "compression_method"), "lzma"),
    "unknown cipher": (("_encryption", "aes_type"), "aes-512"),
    "cipher without a name": (("_encryption", "enable"), True),
    "cipher without a check": (("_encryption", "aes_type"), "aes-128"),
    "delta flag as text": (("_header", "delta_index"), "false"),
}


@pytest.mark.parametrize("name", CASES)
def test_hostile_json(name: str) -> None:
    path, value = CASES[name]

    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    files, file, _ = full(rewritten(change))
    with pytest.raises(ImageError) as refused:
        read(files, file)
    assert file in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b'{"a": NaN}', b"[" * 100_000, b"\xff\xfe", b'{"_header": 1e999}', b"{}"],
)
def test_what_is_no_json(text: bytes) -> None:
    class Odd(MacriumSet):
        def block(self, name: bytes, payload: bytes, **options: Any) -> bytes:
            return super().block(name, text if name == b"$JSON" else payload, **options)

    files, name, _ = full(Odd((small_disk(),)))
    with pytest.raises(CorruptImageError, match=name):
        opened(files, name)


class Indexed(MacriumSet):
    """A set whose index is changed before it is written, its checksum made right."""

    change: Any = staticmethod(lambda index: index)

    def _index(self, reserved: Any, entries: Any, delta: bool, part: Part) -> bytes:
        return bytes(self.change(bytearray(super()._index(reserved, entries, delta, part))))


def at(position: int, packed: bytes) -> Any:
    def change(index: bytearray) -> bytearray:
        index[position : position + len(packed)] = packed
        return index

    return change


INDEXES = {
    "count too big": at(4, struct.pack("<I", 1 << 30)),
    "count negative": at(4, struct.pack("<i", -1)),
    "too many reserved": at(0, struct.pack("<I", 1 << 20)),
    "one byte more": lambda index: index + b"\0",
    "cut": lambda index: index[:-1],
    "stride of changes": lambda index: index + bytes(4 * 16),
    "only a count": lambda index: index[:4],
    "nothing": lambda _: b"",
    "position negative": at(8, struct.pack("<q", -(1 << 40))),
    "position beyond the end": at(8, struct.pack("<q", 1 << 40)),
    "position in the lists": at(8, struct.pack("<q", 250 * KIB)),
    "length of all": at(8 + 24, struct.pack("<I", 0xFFFFFFFF)),
    "length too short": at(8 + 24, struct.pack("<I", 9)),
    "another file": at(8 + 28, struct.pack("<H", 77)),
    "another checksum": at(8 + 8, bytes(16)),
}


@pytest.mark.parametrize("compression", ["none", "medium"])
@pytest.mark.parametrize("name", INDEXES)
def test_hostile_index(name: str, compression: str) -> None:
    made = Indexed((small_disk(),), compression=compression, store_zeros=True)
    made.change = INDEXES[name]
    files, file, _ = full(made)
    with pytest.raises(MountfsError) as refused:
        read(files, file)
    assert file in str(refused.value)


def test_changes_beyond_the_end_are_refused() -> None:
    disk = small_disk()
    made = Indexed((disk,))
    made.full()
    disk.content[70 * KIB] ^= 1
    made.change = at(4 + 4 + 30, struct.pack("<I", 0xFFFFFFFF))
    point = made.incremental()
    with pytest.raises(CorruptImageError, match="changes block 4294967295 of 16"):
        opened(made.files, point.name)


class Bombs(MacriumSet):
    """Metadata that decompresses to far more than it may."""

    def pack(self, plain: bytes) -> bytes:
        return super().pack(plain) if plain.startswith(b"{") else BOMB


def test_bombs() -> None:
    files, name, _ = full(Bombs((small_disk(),)))
    with pytest.raises(CorruptImageError, match="states 268435456 bytes"):
        opened(files, name)


class BlockBombs(MacriumSet):
    packed = b""

    def encode(self, *_: object) -> bytes:
        return self.packed


@pytest.mark.parametrize("packed", [BOMB, ENDLESS_BOMB, b"", b"no frame"])
def test_bombs_for_blocks(packed: bytes) -> None:
    made = BlockBombs((small_disk(),))
    made.packed = packed
    files, name, _ = full(made)
    with closing(opened(files, name)) as layer:
        device = layer.device()  # type: ignore[attr-defined]
        if packed:
            with pytest.raises(CorruptImageError, match="block 0 of partition 0"):
                device.pread(64 * KIB, 1)


def test_a_list_without_end() -> None:
    class Endless(MacriumSet):
        def block(self, name: bytes, payload: bytes, **options: Any) -> bytes:
            return super().block(name, payload, **options) * (100 if name == b"$BITMAP" else 1)

    files, name, _ = full(Endless((small_disk(),)))
    with pytest.raises(CorruptImageError, match="has no end"):
        opened(files, name)


def test_a_root_list_behind_the_end() -> None:
    files, name, _ = full(MacriumSet((small_disk(),)))
    for root in (len(files[name]), 1 << 63, (1 << 64) - 1, len(files[name]) - 20):
        changed = files[name][:-20] + struct.pack("<Q", root) + b"MACRIUM_FILE"
        with pytest.raises(CorruptImageError, match="leads out of the file"):
            opened({name: changed}, name)


def test_missing_blocks_of_metadata() -> None:
    for lost in (b"$TRACK0", b"$INDEX"):

        class Lacking(MacriumSet):
            def block(self, name: bytes, payload: bytes, lost: bytes = lost, **options: Any) -> bytes:
                return super().block(b"$OTHER" if name == lost else name, payload, **options)

        files, name, _ = full(Lacking((small_disk(),)))
        with pytest.raises(CorruptImageError, match=lost.decode().replace("$", r"\$")):
            opened(files, name)


def test_an_encrypted_index_is_named() -> None:
    class Packed(MacriumSet):
        def block(self, name: bytes, payload: bytes, **options: Any) -> bytes:
            return super().block(name, payload, **{**options, "plain": False})

    files, name, _ = full(Packed((small_disk(),)))
    with pytest.raises(UnsupportedFeatureError, match=r"\$INDEX"):
        opened(files, name)


def test_every_checksum_counts() -> None:
    """A flipped bit in each stored payload; the auxiliary data is nobody's, but damage is damage."""
    files, name, _ = full(MacriumSet((small_disk(),), compression="none"))
    for mark in (b"$TRACK0 ", b"$CBT    ", b"$INDEX  ", b"$JSON   ", b"$AUXDATA"):
        content = bytearray(files[name])
        content[content.rfind(mark) + 40] ^= 1
        with pytest.raises(CorruptImageError, match="MD5 differs"):
            opened({name: bytes(content)}, name)


def test_json_is_read_whatever_its_form() -> None:
    class Dense(MacriumSet):
        def block(self, name: bytes, payload: bytes, **options: Any) -> bytes:
            if name == b"$JSON":
                payload = json.dumps(json.loads(payload)).encode()
            return super().block(name, payload, **options)

    files, name, truth = full(Dense((small_disk(),)))
    assert read(files, name) == truth


def test_a_disk_that_is_said_to_be_endless() -> None:
    """Nothing is gone through for every gigabyte that a number in a file claims."""

    def change(document: dict[str, Any]) -> None:
        document["disks"][0]["_geometry"]["disk_size"] = 1 << 60
        document["disks"][0]["partitions"][0]["_geometry"]["length"] = 1 << 59

    made = rewritten(change)
    made.full()
    made.disks[0].content[70 * KIB] ^= 1
    made._index = lambda *_: struct.pack("<II30sI", 0, 1, bytes(24) + b"\1" + bytes(5), (1 << 32) - 1)  # type: ignore[method-assign]
    point = made.incremental()
    with closing(opened(made.files, point.name)) as layer:
        device = layer.device()  # type: ignore[attr-defined]
        assert device.size == 1 << 60
        found = list(device.extents(0, device.size))
        assert found[-3].offset == 64 * KIB + ((1 << 32) - 1) * 16 * KIB
        assert found[-1].end == 1 << 60
        assert device.pread((1 << 60) - 1, 1) == b"\0"


def test_an_index_that_changes_while_it_is_open() -> None:
    files, name, _ = full(MacriumSet((small_disk(),), compression="none"))
    with closing(opened(files, name)) as layer:
        device = layer.device()  # type: ignore[attr-defined]
        stored = next(paint for paint in device._paints if hasattr(paint, "_index"))._index._base._device
        changed = bytearray(stored._content)
        changed[changed.rfind(b"$INDEX  ") + 32 + 4 + 4 + 1] ^= 1
        stored._content = bytes(changed)
        with pytest.raises(CorruptImageError, match="changed while it was open"):
            device.pread(64 * KIB, 1)


class Short(MacriumSet):
    """A block in the middle is stored short."""

    def used_blocks(self, disk: Disk, part: Part) -> dict[int, bytes]:
        found = super().used_blocks(disk, part)
        found[3] = found[3][:-512]
        return found


@pytest.mark.parametrize("compression", ["none", "medium"])
def test_a_short_block_in_the_middle(compression: str) -> None:
    files, name, truth = full(Short((small_disk(),), compression=compression))
    with closing(opened(files, name)) as layer:
        device = layer.device()  # type: ignore[attr-defined]
        place = (64 + 3 * 16) * KIB
        assert device.pread(place - KIB, KIB) == truth[0][place - KIB : place]
        with pytest.raises(CorruptImageError, match="block 3 of partition 0 has 15872 bytes"):
            device.pread(place, 1)
