"""Evidence files against ewfacquire and ewfexport, stored images, and a second writer of all the rest."""

from __future__ import annotations

import hashlib
import random
import struct
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from imageformat.cache import BlockCache
from imageformat.chain import Chain
from imageformat.errors import (
    CorruptImageError,
    ImageError,
    IncompleteImageError,
    ParentMismatchError,
    ParentMissingError,
    UnreadableBlockError,
    UnsupportedFeatureError,
)
from imageformat.extent import Extent, ExtentKind
from imageformat.formats.ewf.chunks import CHECKSUMED, COMPRESSED, ENTRY
from imageformat.formats.ewf.evidence import segment_names
from imageformat.formats.ewf.version1 import _Copy, _packed
from imageformat.view import ImageView
from support.make_ewf import section, version1, version2
from support.requirements import require_tool, run
from support.virtualdisks import (
    content_of,
    image_content,
    open_layer,
    patchy,
    raw_file,
    sha256_of,
    stored_params,
    unpack_stored,
)

MIB = 1 << 20
SIZE = 2 * MIB + 512
KINDS = [
    "ewf",
    "ftk",
    "encase1",
    "encase2",
    "encase4",
    "encase5",
    "encase6",
    "encase7",
    "linen5",
    "linen7",
    "ewfx",
]


def acquired(folder: Path, content: bytes, kind: str, *options: str) -> Path:
    require_tool("ewfacquire")
    raw = raw_file(folder, content, "source.raw")
    target = folder / "image"
    run("ewfacquire", "-u", "-q", "-f", kind, "-d", "sha1", "-C", "case 7", "-t", target, *options, raw)
    raw.unlink()
    return next(folder.glob("image.[eEs]01"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", ["none", "best"])
def test_made_by_ewfacquire(kind: str, level: str, tmp_path: Path) -> None:
    truth = patchy(SIZE)
    image = acquired(tmp_path, truth, kind, "-c", level)
    layer = open_layer(image)
    assert content_of(layer.device()) == truth
    assert layer.info.details["case"] == "case 7"
    assert layer.info.details["md5"] == hashlib.md5(truth).hexdigest()
    assert list(layer.prove()) == []
    layer.close()


@pytest.mark.parametrize("sectors", [16, 512, 4096])
def test_sizes_of_chunks(sectors: int, tmp_path: Path) -> None:
    truth = patchy(3 * MIB + 1024)
    image = acquired(tmp_path, truth, "encase6", "-c", "empty-block", "-b", str(sectors))
    layer = open_layer(image)
    device = layer.device()
    assert content_of(device) == truth
    rng = random.Random(3)
    for _ in range(60):
        offset = rng.randrange(len(truth))
        size = rng.randrange(min(len(truth) - offset, MIB) + 1)
        assert device.pread(offset, size) == truth[offset : offset + size]
    layer.close()


def test_segments(tmp_path: Path) -> None:
    truth = random.Random(1).randbytes(5 * MIB)
    image = acquired(tmp_path, truth, "encase6", "-c", "fast", "-S", str(MIB))
    assert (tmp_path / "image.E05").exists()
    layer = open_layer(image)
    assert content_of(layer.device()) == truth
    assert layer.info.stored_size == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert list(layer.prove()) == []
    layer.close()
    with pytest.raises(ParentMismatchError, match="segment 3"):
        open_layer((tmp_path / "image.E03").rename(tmp_path / "other.E01"))
    with pytest.raises(ParentMissingError, match=r"image\.E03"):
        open_layer(image)


@pytest.mark.nightly
def test_more_segments_than_two_digits_can_count(tmp_path: Path) -> None:
    truth = random.Random(1).randbytes(104 * MIB)
    image = acquired(tmp_path, truth, "encase6", "-S", str(MIB))
    assert (tmp_path / "image.EAC").exists()
    assert image_content(image) == truth


def test_names_of_segments() -> None:
    names = list(islice(segment_names("dir/Disk.E01"), 15_000 - 30))
    assert names[0] == "Disk.E02"
    assert names[97:100] == ["Disk.E99", "Disk.EAA", "Disk.EAB"]
    assert names[98 + 675 : 98 + 677] == ["Disk.EZZ", "Disk.FAA"]
    assert names[-1] == "Disk.ZZZ"
    assert next(islice(segment_names("d.e01"), 98, None)) == "d.eaa"
    assert next(islice(segment_names("d.Ex01"), 98, None)) == "d.ExAA"
    assert next(islice(segment_names("d.Ex01"), 98 + 676, None)) == "d.EyAA"
    with pytest.raises(IncompleteImageError):
        list(segment_names("d.E01"))
    with pytest.raises(IncompleteImageError):
        next(segment_names("d.raw"))


@pytest.mark.parametrize("case", stored_params("ewf"))
def test_stored(case: dict[str, Any], tmp_path: Path) -> None:
    layer = open_layer(unpack_stored(case, tmp_path))
    assert (layer.device().size, sha256_of(layer.device())) == (case["disk"]["size"], case["disk"]["sha256"])
    assert list(layer.prove()) == []
    layer.close()


def written(folder: Path, segments: list[bytes], suffix: str = "E") -> Path:
    for number, content in enumerate(segments, 1):
        (folder / f"image.{suffix}{number:02}").write_bytes(content)
    return folder / f"image.{suffix}01"


def exported(image: Path) -> bytes:
    """What ewfexport reads."""
    require_tool("ewfexport")
    target = image.with_name("exported")
    run("ewfexport", "-u", "-q", "-f", "raw", "-t", target, image)
    content = Path(f"{target}.raw").read_bytes()
    Path(f"{target}.raw").unlink()
    return content


@pytest.mark.parametrize("options", [{}, {"compress": False}, {"per_table": 7, "base": 13}, {"segments": 3}])
def test_a_second_writer(options: dict[str, Any], tmp_path: Path) -> None:
    truth = patchy(SIZE, 4)
    image = written(tmp_path, version1(truth, **options))
    layer = open_layer(image)
    assert content_of(layer.device()) == truth
    assert layer.info.created_ns == 1_577_934_245 * 10**9
    assert list(layer.prove()) == []
    layer.close()
    assert exported(image) == truth


@pytest.mark.parametrize("method", [0, 1, 2])
@pytest.mark.parametrize("segments", [1, 3])
def test_ex01(method: int, segments: int, tmp_path: Path) -> None:
    truth = patchy(SIZE, 4)
    image = written(tmp_path, version2(truth, method=method, segments=segments), "Ex")
    layer = open_layer(image)
    assert content_of(layer.device()) == truth
    assert layer.info.created_ns == 1_577_934_245 * 10**9
    assert layer.info.details["serial"] == "serial"
    assert list(layer.prove()) == []
    layer.close()


@pytest.mark.parametrize("make", [version1, version2])
def test_unreadable_sectors(make: Any, tmp_path: Path) -> None:
    truth = bytearray(random.Random(5).randbytes(512 * 1000))
    errors = ((10, 3), (100, 64), (999, 1))
    for first, count in errors:
        truth[first * 512 : (first + count) * 512] = bytes(count * 512)
    segments = make(bytes(truth), errors=errors)
    image = written(tmp_path, segments, "E" if make is version1 else "Ex")
    layer = open_layer(image)
    device = layer.device()
    bad = [extent for extent in device.extents(0, device.size) if extent.kind is ExtentKind.BAD]
    assert bad == [Extent(first * 512, count * 512, ExtentKind.BAD) for first, count in errors]
    view = ImageView(Chain(layer, lambda _: layer), BlockCache(MIB))
    for sector in range(1000):
        is_bad = any(first <= sector < first + count for first, count in errors)
        for source in (device, view):
            if is_bad:
                with pytest.raises(UnreadableBlockError):
                    source.pread(sector * 512, 512)
            else:
                assert source.pread(sector * 512, 512) == truth[sector * 512 : sector * 512 + 512]
    assert list(layer.prove()) == [], "the hash is of the zeros that were written instead"
    layer.close()
    if make is version1:
        require_tool("ewfinfo")
        assert "total number: 3" in run("ewfinfo", image)


def test_wrong_hashes_are_told(tmp_path: Path) -> None:
    truth = patchy(SIZE, 4)
    for options, words in (({"md5": b"m" * 16}, "MD5"), ({"sha1": b"s" * 20}, "SHA-1")):
        layer = open_layer(written(tmp_path, version1(truth, **options)))
        (problem,) = layer.prove()
        assert words in problem
        layer.close()
    truth = random.Random(8).randbytes(SIZE)
    broken = bytearray(version1(truth, compress=False)[0])
    place = broken.index(truth[64 * 512 * 3 : 64 * 512 * 3 + 512])
    broken[place] ^= 1
    layer = open_layer(written(tmp_path, [bytes(broken)]))
    (problem,) = layer.prove()
    assert "chunk 3 " in problem
    with pytest.raises(CorruptImageError, match="chunk 3 "):
        layer.device().pread(64 * 512 * 3, 1)
    assert layer.device().pread(0, 64 * 512 * 3) == truth[: 64 * 512 * 3]
    layer.close()


def test_the_copy_of_a_damaged_table(tmp_path: Path) -> None:
    truth = patchy(SIZE, 4)
    sound = version1(truth)[0]
    tables = [sound.index(name.ljust(16, b"\0")) for name in (b"table", b"table2")]
    for at in (0, 8, 20, 24, 60):
        changed = bytearray(sound)
        changed[tables[0] + 76 + at] ^= 0x10
        image = written(tmp_path, [bytes(changed)])
        assert image_content(image) == truth
        changed[tables[1] + 76 + at] ^= 0x10
        with pytest.raises(CorruptImageError, match="table"):
            image_content(written(tmp_path, [bytes(changed)]))


def test_tables_of_more_than_2_gib() -> None:
    """As EnCase 6.7 writes them: no longer a flag, the highest bit is part of the place."""
    places = [0x7FFF_0000, 0x7FFF_F000, 0x8000_0100, 0x8000_9000]
    content = struct.pack("<4I", places[0] | 1 << 31, *places[1:])
    packed = _packed(content, _Copy(0, 4, 1000, has_checksum=True), places[-1] + 1000 + 77)
    found = list(ENTRY.iter_unpack(packed))
    lengths = [0xF000, 0x1100, 0x8F00, 77]
    assert [entry[0] for entry in found] == [place + 1000 for place in places]
    assert [entry[1] for entry in found] == lengths
    assert [entry[2] for entry in found] == [COMPRESSED, CHECKSUMED, CHECKSUMED, CHECKSUMED]


def test_segments_of_another_image(tmp_path: Path) -> None:
    one = version1(patchy(SIZE, 4), segments=2)
    other = [content.replace(bytes(range(16)), b"?" * 16) for content in version2(patchy(SIZE), segments=2)]
    with pytest.raises(ParentMismatchError):
        open_layer(written(tmp_path, [one[0], one[0]]))
    foreign = version1(patchy(SIZE, 4), segments=2, guid=b"?" * 16)
    with pytest.raises(ParentMismatchError, match="another image"):
        open_layer(written(tmp_path, [one[0], foreign[1]]))
    with pytest.raises(ParentMismatchError, match="another image"):
        open_layer(written(tmp_path, [version2(patchy(SIZE), segments=2)[0], other[1]], "Ex"))


def test_what_is_not_read_is_refused(tmp_path: Path) -> None:
    truth = patchy(SIZE, 4)
    image = tmp_path / "image.E01"
    image.write_bytes(b"L" + version1(truth)[0][1:])
    with pytest.raises(UnsupportedFeatureError, match="logical"):
        open_layer(image)
    image.write_bytes(b"ADCRYPT\0" + bytes(2000))
    with pytest.raises(UnsupportedFeatureError, match="AD encryption"):
        open_layer(image)
    with pytest.raises(UnsupportedFeatureError, match="encrypted"):
        open_layer(written(tmp_path, version2(truth, flags=2), "Ex"))
    (tmp_path / "smart").mkdir()
    smart = acquired(tmp_path / "smart", truth, "smart")
    with pytest.raises(UnsupportedFeatureError, match="SMART"):
        open_layer(smart)


def test_an_acquisition_that_never_ended(tmp_path: Path) -> None:
    sound = version1(patchy(SIZE, 4))[0]
    for length in (0, 5, 13, 50, 300, len(sound) // 2, len(sound) - 1):
        with pytest.raises(ImageError):
            open_layer(written(tmp_path, [sound[:length]]))
    first, second = version1(patchy(SIZE, 4), segments=2)
    second = second[: second.index(b"sectors")]
    second += section(b"done", len(second), b"", last=True)
    image = written(tmp_path, [first, second])
    with pytest.raises(IncompleteImageError, match="chunks"):
        open_layer(image)
