"""Apple's disk images: stored ones, and a second writer's, which qemu-img and dmg2img read too."""

from __future__ import annotations

import random
import zlib
from pathlib import Path
from typing import Any

import pytest

from imageformat.errors import CorruptImageError, ImageError, IncompleteImageError, UnsupportedFeatureError
from imageformat.extent import ExtentKind
from imageformat.formats.dmg.zeros import crc32_of_zeros
from support.make_dmg import ADC, BZIP2, IGNORE, LZFSE, LZMA, RAW, SECTOR, ZERO, ZLIB, dmg
from support.requirements import require_tool, run
from support.virtualdisks import (
    content_of,
    image_content,
    open_layer,
    patchy,
    qemu_read,
    sha256_of,
    stored_params,
    unpack_stored,
)

MIB = 1 << 20


@pytest.mark.parametrize("case", stored_params("dmg"))
def test_stored(case: dict[str, Any], tmp_path: Path) -> None:
    layer = open_layer(unpack_stored(case, tmp_path))
    assert (layer.device().size, sha256_of(layer.device())) == (case["disk"]["size"], case["disk"]["sha256"])
    assert list(layer.prove()) == []
    layer.close()


def parts_of(kinds: list[int], seed: int = 1) -> list[tuple[str, list[tuple[int, bytes]]]]:
    rng = random.Random(seed)
    parts = []
    for number in range(3):
        chunks = []
        for kind in kinds:
            size = rng.choice([1, 7, 512, 600]) * SECTOR
            content = bytes(size) if kind in (ZERO, IGNORE) else patchy(size, rng.randrange(1000))
            chunks.append((kind, content))
        rng.shuffle(chunks)
        parts.append((f"part {number}", chunks))
    return parts


def truth_of(parts: list[tuple[str, list[tuple[int, bytes]]]]) -> bytes:
    return b"".join(content for _, chunks in parts for _, content in chunks)


ALL = [RAW, ZLIB, BZIP2, LZMA, ADC, ZERO, IGNORE, ZLIB, RAW]


@pytest.mark.parametrize("front", [b"", b"?" * 1000], ids=["at the start", "behind something"])
def test_all_ways_of_storing(front: bytes, tmp_path: Path) -> None:
    parts = parts_of(ALL)
    image = tmp_path / "disk.dmg"
    image.write_bytes(dmg(parts, front=front))
    truth = truth_of(parts)
    layer = open_layer(image)
    device = layer.device()
    assert content_of(device) == truth
    assert ExtentKind.UNUSED in {extent.kind for extent in device.extents(0, device.size)}
    assert list(layer.prove()) == []
    rng = random.Random(3)
    for _ in range(200):
        offset = rng.randrange(len(truth))
        size = rng.randrange(min(len(truth) - offset, MIB) + 1)
        assert device.pread(offset, size) == truth[offset : offset + size]
    layer.close()


def test_as_qemu_reads_it(tmp_path: Path) -> None:
    parts = parts_of([RAW, ZERO, ZLIB, IGNORE], 2)
    image = tmp_path / "disk.dmg"
    image.write_bytes(dmg(parts))
    assert image_content(image) == qemu_read(image, "dmg") == truth_of(parts)


@pytest.mark.parametrize("kind", [ADC, BZIP2, ZLIB])
def test_as_dmg2img_reads_it(kind: int, tmp_path: Path) -> None:
    require_tool("dmg2img")
    parts = [("disk image (Apple_HFS : 0)", [(kind, patchy(512 * SECTOR, seed)) for seed in range(4)])]
    image = tmp_path / "disk.dmg"
    image.write_bytes(dmg(parts))
    run("dmg2img", "-s", image, tmp_path / "raw")
    assert image_content(image) == (tmp_path / "raw").read_bytes() == truth_of(parts)


@pytest.mark.parametrize("count", [0, 1, 65536, 65537, 100_003, 3 << 20])
@pytest.mark.parametrize("start", [0, 1, 0xDEADBEEF, 0xFFFFFFFF])
def test_checksums_of_many_zeros(start: int, count: int) -> None:
    assert crc32_of_zeros(start, count) == zlib.crc32(bytes(count), start)
    assert isinstance(crc32_of_zeros(start, 1 << 50), int)


def test_wrong_checksums_are_told(tmp_path: Path) -> None:
    parts = parts_of([RAW, ZLIB])
    image = tmp_path / "disk.dmg"
    image.write_bytes(dmg(parts, spoil=5))
    layer = open_layer(image)
    problems = list(layer.prove())
    assert len(problems) == 3
    assert all("CRC-32" in problem for problem in problems)
    layer.close()
    content = random.Random(1).randbytes(20 * SECTOR)
    sound = bytearray(dmg([("plain", [(RAW, content)])]))
    sound[100] ^= 1
    image.write_bytes(sound)
    layer = open_layer(image)
    assert len(list(layer.prove())) == 2, "of the partition, and of the file"
    layer.close()


def test_damaged_chunks(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(64 * SECTOR)
    image = tmp_path / "disk.dmg"
    for kind in (ZLIB, BZIP2, LZMA):
        sound = bytearray(dmg([("a", [(kind, content), (RAW, content)])]))
        sound[3000] ^= 1
        image.write_bytes(sound)
        layer = open_layer(image)
        with pytest.raises(CorruptImageError, match="sector 0"):
            layer.device().pread(0, 1)
        assert layer.device().pread(len(content), len(content)) == content
        layer.close()


def test_what_is_not_read_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "disk.dmg"
    parts = parts_of([LZFSE])
    for content, error, words in (
        (dmg(parts), UnsupportedFeatureError, "LZFSE"),
        (dmg(parts_of([RAW]), segments=3), UnsupportedFeatureError, "3 parts"),
        (b"encrcdsa" + bytes(2000), UnsupportedFeatureError, "encrypted"),
        (bytes(2000) + b"cdsaencr", UnsupportedFeatureError, "encrypted"),
        (bytes(2000), IncompleteImageError, "plain disk"),
    ):
        image.write_bytes(content)
        with pytest.raises(error, match=words):
            open_layer(image)


def test_lists_that_would_trap_a_parser(tmp_path: Path) -> None:
    image = tmp_path / "disk.dmg"
    sound = dmg([("a", [(RAW, bytes(SECTOR))])])
    trailer = sound[-512:]
    start = int.from_bytes(trailer[216:224], "big")
    entity = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><plist>&b;</plist>'
    deep = b'<?xml version="1.0"?><plist>' + b"<array>" * 200_000 + b"</array>" * 200_000 + b"</plist>"
    for listed in (entity, deep, b"", b"<plist><dict>", b"<plist><array/></plist>", b"bplist00" + bytes(60)):
        changed = trailer[:224] + len(listed).to_bytes(8, "big") + trailer[232:]
        image.write_bytes(sound[:start] + listed + changed)
        with pytest.raises(ImageError):
            open_layer(image)


def test_a_hole_between_chunks_is_no_zeros(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(8 * SECTOR)
    sound = dmg([("a", [(RAW, content), (RAW, content)])])
    entry = bytes(8) + (8).to_bytes(8, "big")
    assert entry not in sound, "the list is text"
    image = tmp_path / "disk.dmg"
    trailer = bytearray(sound[-512:])
    trailer[492:500] = (40).to_bytes(8, "big")
    image.write_bytes(sound[:-512] + trailer)
    layer = open_layer(image)
    device = layer.device()
    assert device.size == 40 * SECTOR
    assert device.pread(0, 16 * SECTOR) == content * 2
    with pytest.raises(CorruptImageError, match="no chunk"):
        device.pread(16 * SECTOR, 1)
    layer.close()
