"""VMDK against qemu-img, stored images, and a second writer of what qemu-img cannot make."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import pytest

from imageformat.errors import (
    AccessDeniedError,
    ChainCycleError,
    CorruptImageError,
    IncompleteImageError,
    NotAnImageError,
    ParentMismatchError,
    ParentMissingError,
    UnsupportedFeatureError,
)
from support.make_vmdk import GRAIN, SECTOR, cowd, descriptor, header, sparse, stream
from support.requirements import run
from support.virtualdisks import (
    content_of,
    image_content,
    open_layer,
    patchy,
    qemu_made,
    qemu_read,
    raw_file,
    sha256_of,
    stored_params,
    unpack_stored,
)

MIB = 1 << 20
SUBFORMATS = [
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "streamOptimized",
]


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_made_by_qemu(subformat: str, tmp_path: Path) -> None:
    truth = patchy(70 * MIB + 1024)
    image = qemu_made(raw_file(tmp_path, truth), "vmdk", f"subformat={subformat}", tmp_path / "disk.vmdk")
    layer = open_layer(image)
    assert layer.info.details["type"] == subformat
    assert content_of(layer.device()) == truth
    rng = random.Random(3)
    for _ in range(100):
        offset = rng.randrange(len(truth))
        size = rng.randrange(min(len(truth) - offset, 2 * MIB) + 1)
        assert layer.device().pread(offset, size) == truth[offset : offset + size]
    layer.close()


@pytest.mark.parametrize("subformat", ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"])
def test_two_parts_made_by_qemu(subformat: str, tmp_path: Path) -> None:
    """The seam of the parts lies at 2047 MiB."""
    image = tmp_path / "disk.vmdk"
    run("qemu-img", "create", "-f", "vmdk", "-o", f"subformat={subformat}", image, "2100M")
    run("qemu-io", "-f", "vmdk", "-c", "write -P 77 2046M 2M", "-c", "write -P 78 2099M 1M", image)
    layer = open_layer(image)
    device = layer.device()
    assert device.size == 2100 * MIB
    assert device.pread(2045 * MIB, 4 * MIB) == bytes(MIB) + b"M" * 2 * MIB + bytes(MIB)
    assert device.pread(2099 * MIB, MIB) == b"N" * MIB
    layer.close()


@pytest.mark.parametrize("case", stored_params("vmdk"))
def test_stored(case: dict[str, Any], tmp_path: Path) -> None:
    layer = open_layer(unpack_stored(case, tmp_path))
    assert (layer.device().size, sha256_of(layer.device())) == (case["disk"]["size"], case["disk"]["sha256"])
    layer.close()


@pytest.mark.parametrize("subformat", ["monolithicSparse", "twoGbMaxExtentSparse"])
def test_chains_made_by_qemu(subformat: str, tmp_path: Path) -> None:
    truth = patchy(20 * MIB)
    base = qemu_made(raw_file(tmp_path, truth), "vmdk", f"subformat={subformat}", tmp_path / "base.vmdk")
    top = tmp_path / "top.vmdk"
    run("qemu-img", "create", "-f", "vmdk", "-b", base.name, "-F", "vmdk", top)
    run("qemu-io", "-f", "vmdk", "-c", "write -P 9 3000k 200k", "-c", "write -P 8 19M 1M", top)
    held = image_content(top)
    assert held == qemu_read(top, "vmdk")
    assert held[3000 << 10 : 3200 << 10] == b"\t" * (200 << 10)
    run("qemu-io", "-f", "vmdk", "-c", "write -P 1 0 512", base)
    with pytest.raises(ParentMismatchError, match=r"base\.vmdk"):
        open_layer(top)
    base.unlink()
    with pytest.raises(ParentMissingError):
        open_layer(top)


def with_descriptor(size: int, build: Any, **more: Any) -> bytes:
    text = descriptor([f'RW {size // SECTOR} SPARSE "any name.vmdk"'], **more)
    result: bytes = build(text)
    return result


def test_a_stream_whose_directory_is_at_its_end(tmp_path: Path) -> None:
    truth = patchy(35 * MIB)
    image = tmp_path / "disk.vmdk"
    content = with_descriptor(len(truth), lambda text: stream(truth, text), kind="streamOptimized")
    image.write_bytes(content)
    assert image_content(image) == truth
    assert qemu_read(image, "vmdk") == truth
    image.write_bytes(content[:-2048])
    with pytest.raises(IncompleteImageError, match="end"):
        open_layer(image)
    place = 128 * SECTOR + 12 + 40
    image.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(CorruptImageError, match="grain"):
        image_content(image)


def test_a_grain_in_the_place_of_another_is_noticed(tmp_path: Path) -> None:
    truth = b"".join(bytes([at]) * GRAIN for at in range(1, 4))
    content = bytearray(with_descriptor(len(truth), lambda text: stream(truth, text)))
    first, second, third = struct.unpack_from("<3I", content, len(content) - 9 * SECTOR)
    assert 0 < first < second < third
    struct.pack_into("<3I", content, len(content) - 9 * SECTOR, second, first, third)
    image = tmp_path / "disk.vmdk"
    image.write_bytes(content)
    layer = open_layer(image)
    with pytest.raises(CorruptImageError, match="another grain"):
        layer.device().pread(0, 1)
    assert layer.device().pread(2 * GRAIN, GRAIN) == truth[2 * GRAIN :]
    layer.close()


def test_parts_that_stand_on_a_parent(tmp_path: Path) -> None:
    base = random.Random(1).randbytes(8 * GRAIN)
    (tmp_path / "base.vmdk").write_bytes(with_descriptor(len(base), lambda text: sparse(base, text)))
    lines = []
    for name in "ab":
        absent = frozenset({1, 2}) if name == "a" else frozenset({0, 3})
        (tmp_path / f"{name}.vmdk").write_bytes(sparse(name.encode() * 4 * GRAIN, b"", absent=absent))
        lines.append(f'RW {4 * 128} SPARSE "{name}.vmdk"')
    image = tmp_path / "top.vmdk"
    image.write_bytes(descriptor(lines, parent="12345678", hint="base.vmdk"))
    truth = b"".join(
        base[at * GRAIN : (at + 1) * GRAIN] if kept == "." else kept.encode() * GRAIN
        for at, kept in enumerate("a..a.bb.")
    )
    assert image_content(image) == truth


@pytest.mark.parametrize("zeroed", [False, True])
def test_a_sparse_file(zeroed: bool, tmp_path: Path) -> None:
    truth = patchy(40 * MIB + SECTOR, 5)
    image = tmp_path / "disk.vmdk"
    image.write_bytes(with_descriptor(len(truth), lambda text: sparse(truth, text, zeroed=zeroed)))
    assert image_content(image) == truth
    assert qemu_read(image, "vmdk") == truth


def test_zeroed_grains_hide_the_parent(tmp_path: Path) -> None:
    base, top = b"p" * 4 * GRAIN, b"c" * GRAIN + bytes(3 * GRAIN)
    (tmp_path / "base.vmdk").write_bytes(
        with_descriptor(len(base), lambda text: sparse(base, text), cid="0badcafe")
    )
    image = tmp_path / "top.vmdk"
    image.write_bytes(
        with_descriptor(
            len(top),
            lambda text: sparse(top, text, absent=frozenset({2}), zeroed=True),
            parent="0badcafe",
            hint="C:\\elsewhere\\base.vmdk",
        )
    )
    assert image_content(image) == b"c" * GRAIN + bytes(GRAIN) + b"p" * GRAIN + bytes(GRAIN)


def test_the_second_directory(tmp_path: Path) -> None:
    """A place outside of the file cannot be meant; two places that both could be are an error."""
    truth = b"".join(bytes([at]) * GRAIN for at in range(1, 4))
    sound = with_descriptor(len(truth), lambda text: sparse(truth, text))
    image = tmp_path / "disk.vmdk"
    redundant, place = 21 * SECTOR, 26 * SECTOR
    for at in (place, redundant, place + SECTOR, redundant + SECTOR):
        changed = bytearray(sound)
        changed[at : at + 4] = b"\xff\xff\xff\x7f"
        image.write_bytes(changed)
        assert image_content(image) == truth
    for at, step in ((place + SECTOR, 1), (redundant + SECTOR, 1)):
        changed = bytearray(sound)
        changed[at] ^= step
        image.write_bytes(changed)
        layer = open_layer(image)
        with pytest.raises(CorruptImageError, match="contradict"):
            layer.device().pread(0, 1)
        assert layer.device().pread(GRAIN, 2 * GRAIN) == truth[GRAIN:]
        layer.close()


def test_a_cow_disk_of_esx(tmp_path: Path) -> None:
    base = random.Random(1).randbytes(5000 * SECTOR)
    top = random.Random(2).randbytes(len(base))
    absent = frozenset(random.Random(3).sample(range(5000), 2500))
    line = 'RW 5000 VMFS "base-flat.vmdk"'
    (tmp_path / "base-flat.vmdk").write_bytes(base)
    (tmp_path / "base.vmdk").write_bytes(descriptor([line], cid="00000abc", kind="vmfs"))
    (tmp_path / "top-delta.vmdk").write_bytes(cowd(top, absent))
    image = tmp_path / "top.vmdk"
    line = 'RW 5000 VMFSSPARSE "top-delta.vmdk"'
    image.write_bytes(descriptor([line], parent="abc", hint="base.vmdk", kind="vmfsSparse"))
    truth = b"".join((base if at in absent else top)[at * SECTOR : (at + 1) * SECTOR] for at in range(5000))
    assert image_content(image) == truth
    assert qemu_read(image, "vmdk") == truth


def test_mixed_parts(tmp_path: Path) -> None:
    """Parts of a flat file from an offset on, zeros, and a sparse part with no descriptor."""
    flat, part = random.Random(1).randbytes(20 * SECTOR), patchy(3 * GRAIN, 7)
    (tmp_path / "f.bin").write_bytes(flat)
    (tmp_path / "s.vmdk").write_bytes(sparse(part, b""))
    image = tmp_path / "disk.vmdk"
    lines = ['RW 9 FLAT "f.bin" 7', "RW 100 ZERO", f'RW {3 * 128} SPARSE "s.vmdk"', 'RDONLY 3 FLAT "f.bin" 0']
    image.write_bytes(descriptor(lines))
    truth = flat[7 * SECTOR : 16 * SECTOR] + bytes(100 * SECTOR) + part + flat[: 3 * SECTOR]
    assert image_content(image) == truth
    with pytest.raises(NotAnImageError, match="part of a disk"):
        open_layer(tmp_path / "s.vmdk")
    (tmp_path / "f.bin").write_bytes(flat[:5000])
    with pytest.raises(IncompleteImageError, match=r"f\.bin"):
        open_layer(image)


def test_what_is_not_read_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    (tmp_path / "x").write_bytes(bytes.fromhex("bebafeca") + bytes(508))
    for line, error, words in (
        ('RW 8 SESPARSE "x"', UnsupportedFeatureError, "seSparse"),
        ('RW 8 SPARSE "x"', UnsupportedFeatureError, "seSparse"),
        ('RW 8 VMFSRDM "x"', UnsupportedFeatureError, "raw disk mapping"),
        ('RW 8 FLAT "/dev/sda"', AccessDeniedError, "dev/sda"),
        ('RW 8 FLAT "nbd://host/x"', AccessDeniedError, "nbd"),
        ('NOACCESS 8 FLAT "x"', UnsupportedFeatureError, "not to be read"),
    ):
        image.write_bytes(descriptor([line]))
        with pytest.raises(error, match=words):
            open_layer(image)
    image.write_bytes(descriptor(['RW 8 FLAT "x"'], parent="12345678", hint="disk.vmdk"))
    with pytest.raises(ChainCycleError):
        open_layer(image)
    for flags, words in ((1 << 9, "flags"), (1, "line ends")):
        block = bytearray(header(MIB, flags, 1, 0, (1, 1)))
        block[75] = 0x0D if flags == 1 else block[75]
        block[73] = 0x0D if flags == 1 else block[73]
        image.write_bytes(block + bytes(1024))
        with pytest.raises((UnsupportedFeatureError, CorruptImageError), match=words):
            open_layer(image)
