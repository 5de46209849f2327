"""VHD against qemu-img, stored images, and a second writer of what qemu-img cannot make."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from imageformat.cache import BlockCache
from imageformat.chain import Chain
from imageformat.errors import (
    AccessDeniedError,
    ChainCycleError,
    CorruptImageError,
    IncompleteImageError,
    ParentMismatchError,
    ParentMissingError,
    UnsupportedFeatureError,
)
from imageformat.view import ImageView
from support.make_vhd import DIFFERENCING, DYNAMIC, FIXED, Vhd
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
BLOCK = 1 << 16


@pytest.mark.parametrize("forced", ["", ",force_size=on"])
@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
def test_made_by_qemu(kind: str, forced: str, tmp_path: Path) -> None:
    """Without force_size qemu rounds the disk up to whole cylinders."""
    truth = patchy(37 * MIB + 4096)
    image = qemu_made(raw_file(tmp_path, truth), "vpc", f"subformat={kind}{forced}", tmp_path / "disk.vhd")
    held = image_content(image)
    assert held == qemu_read(image, "vpc")
    assert held[: len(truth)] == truth
    assert (len(held) == len(truth)) == bool(forced)


@pytest.mark.parametrize("case", stored_params("vhd"))
def test_stored(case: dict[str, Any], tmp_path: Path) -> None:
    layer = open_layer(unpack_stored(case, tmp_path))
    assert (layer.device().size, sha256_of(layer.device())) == (case["disk"]["size"], case["disk"]["sha256"])
    layer.close()


SIZES = [
    # creator, geometry, whether the geometry counts
    (b"win ", (9, 4, 17), False),
    (b"vpc ", (9, 4, 17), True),
    (b"qemu", (9, 4, 17), True),
    (b"qem2", (9, 4, 17), False),
    (b"d2v ", (9, 4, 17), False),
    (b"tap\0", (9, 4, 17), False),
    (b"CTXS", (9, 4, 17), False),
    (b"vpc ", (65535, 16, 255), False),
]


@pytest.mark.parametrize(("creator", "geometry", "counts"), SIZES)
def test_size(creator: bytes, geometry: tuple[int, int, int], counts: bool, tmp_path: Path) -> None:
    disk = Vhd(BLOCK * 5, creator=creator, geometry=geometry, blocks={1: b"x" * BLOCK})
    image = disk.write(tmp_path / "disk.vhd")
    held = image_content(image)
    assert len(held) == (9 * 4 * 17 * 512 if counts else BLOCK * 5)
    assert held == qemu_read(image, "vpc")


def test_virtualbox_is_taken_at_its_word(tmp_path: Path) -> None:
    disk = Vhd(BLOCK * 5, creator=b"vbox", geometry=(9, 4, 17), blocks={4: b"x" * BLOCK})
    assert image_content(disk.write(tmp_path / "disk.vhd")) == bytes(4 * BLOCK) + b"x" * BLOCK


def test_old_footers_of_511_bytes(tmp_path: Path) -> None:
    truth = patchy(MIB)
    footer = Vhd(MIB, FIXED).footer()
    assert footer[-1:] == b"\0"
    image = tmp_path / "old.vhd"
    image.write_bytes(truth + footer[:-1])
    assert image_content(image) == truth
    dynamic = Vhd(BLOCK * 3, blocks={2: b"z" * BLOCK}).pack()
    image.write_bytes(dynamic[:-1])
    assert image_content(image) == bytes(2 * BLOCK) + b"z" * BLOCK


def test_damaged_footers(tmp_path: Path) -> None:
    truth, image = bytes(2 * BLOCK) + b"z" * BLOCK, tmp_path / "disk.vhd"
    sound = Vhd(BLOCK * 3, blocks={2: b"z" * BLOCK}).pack()
    for at in (len(sound) - 512, len(sound) - 400, 0, 50):
        changed = bytearray(sound)
        changed[at] ^= 0x55
        image.write_bytes(changed)
        assert image_content(image) == truth
    image.write_bytes(sound[:-512])
    layer = open_layer(image)
    assert content_of(layer.device()) == truth
    assert "footer" in str(layer.info.details["warning"])
    layer.close()
    changed = bytearray(sound)
    changed[50] ^= 1
    changed[-400] ^= 1
    image.write_bytes(changed)
    with pytest.raises(CorruptImageError, match="footer"):
        open_layer(image)
    image.write_bytes(truth + Vhd(len(truth), FIXED).footer()[:-200])
    with pytest.raises(IncompleteImageError):
        open_layer(image)


def test_sectors_that_were_never_written_are_zeros(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(BLOCK)
    disk = Vhd(BLOCK * 2, blocks={1: content}, here={1: {0, 1, 9, 127}})
    truth = bytes(BLOCK) + b"".join(
        content[at * 512 : at * 512 + 512] if at in {0, 1, 9, 127} else bytes(512) for at in range(128)
    )
    assert image_content(disk.write(tmp_path / "disk.vhd")) == truth


def chain(folder: Path, block_size: int = BLOCK) -> tuple[Path, bytes]:
    rng = random.Random(2)
    size = 9 * block_size - 1024
    held = bytearray(9 * block_size)
    names = ["base", "middle", "top"]
    for generation, name in enumerate(names):
        blocks = {at: rng.randbytes(block_size) for at in range(generation, 9, 2 + generation)}
        disk = Vhd(size, block_size=block_size, identity=bytes([generation + 1]) * 16, blocks=blocks)
        for at, content in blocks.items():
            sectors = set(range(block_size // 512))
            if generation:
                sectors = {sector for sector in sectors if rng.random() < 0.4 or sector > 100}
                disk.here[at] = sectors
            for sector in sectors:
                start = sector * 512
                held[at * block_size + start : at * block_size + start + 512] = content[start : start + 512]
        if generation:
            disk.kind = DIFFERENCING
            disk.parent, disk.parent_time = bytes([generation]) * 16, 500_000_000
            parent = f"{names[generation - 1]}.vhd"
            if generation == 1:
                disk.parent_name = parent
            else:
                disk.locators = (
                    (b"W2ku", f"C:\\vm\\{parent}".encode("utf-16-le")),
                    (b"W2ru", f".\\{parent}".encode("utf-16-le")),
                )
        disk.write(folder / f"{name}.vhd")
    return folder / "top.vhd", bytes(held[:size])


@pytest.mark.parametrize("block_size", [BLOCK, 2 * MIB])
def test_differences(block_size: int, tmp_path: Path) -> None:
    image, truth = chain(tmp_path, block_size)
    assert image_content(image) == truth
    layer = open_layer(image)
    assert layer.info.details["parent"] == "middle.vhd"
    assert "warning" not in layer.info.details
    rng = random.Random(4)
    for _ in range(200):
        offset = rng.randrange(len(truth))
        size = rng.randrange(min(len(truth) - offset, 300_000) + 1)
        assert layer.device().pread(offset, size) == truth[offset : offset + size]
    layer.close()


def test_the_absolute_name_finds_the_file_beside_it(tmp_path: Path) -> None:
    Vhd(BLOCK, identity=b"p" * 16, blocks={0: b"q" * BLOCK}).write(tmp_path / "p.vhd")
    disk = Vhd(BLOCK, DIFFERENCING, parent=b"p" * 16, parent_name="D:\\far\\away\\p.vhd", parent_time=3)
    layer = open_layer(disk.write(tmp_path / "c.vhd"))
    assert content_of(layer.device()) == b"q" * BLOCK
    assert "time" in str(layer.info.details["warning"])
    layer.close()


def test_two_states_of_a_disk_are_not_mixed(tmp_path: Path) -> None:
    """Nothing in a VHD changes when its blocks are written to in place; two copies may look the same."""
    cache, ids = BlockCache(MIB), set()
    for name in ("a", "b"):
        disk = Vhd(3 * BLOCK, blocks={0: b"z" * BLOCK, 1: name.encode() * BLOCK, 2: b"z" * BLOCK})
        layer = open_layer(disk.write(tmp_path / f"{name}.vhd"))
        view = ImageView(Chain(layer, lambda _, layer=layer: layer), cache)
        assert view.pread(BLOCK, BLOCK) == name.encode() * BLOCK
        ids.add(layer.info.id)
        layer.close()
    assert len(ids) == 1, "else this tests nothing"


@pytest.mark.parametrize("kind", [DYNAMIC, FIXED])
def test_states_that_differ_where_it_is_cheap_to_look_are_told_apart(kind: int, tmp_path: Path) -> None:
    ids = set()
    for name, content in (("a", b"a"), ("b", b"b")):
        disk = Vhd(3 * BLOCK, kind, blocks={0: content * BLOCK, 1 + (name == "b"): content * BLOCK})
        packed = disk.pack() if kind == DYNAMIC else content * disk.size + disk.footer()
        (tmp_path / f"{name}.vhd").write_bytes(packed)
        layer = open_layer(tmp_path / f"{name}.vhd")
        ids.add(layer.info.id)
        layer.close()
    assert len(ids) == 2


def test_wrong_parents(tmp_path: Path) -> None:
    image, _ = chain(tmp_path)
    Vhd(9 * BLOCK, identity=b"?" * 16).write(tmp_path / "base.vhd")
    with pytest.raises(ParentMismatchError, match=r"base\.vhd"):
        open_layer(image)
    (tmp_path / "base.vhd").unlink()
    with pytest.raises(ParentMissingError, match=r"base\.vhd"):
        open_layer(image)
    own = Vhd(BLOCK, DIFFERENCING, parent=b"i" * 16, parent_name="own.vhd")
    with pytest.raises(ChainCycleError):
        open_layer(own.write(tmp_path / "own.vhd"))
    with pytest.raises((AccessDeniedError, ParentMissingError)):
        open_layer(
            Vhd(BLOCK, DIFFERENCING, parent=b"x" * 16, parent_name="/etc/passwd").write(tmp_path / "e.vhd")
        )
    with pytest.raises(UnsupportedFeatureError, match="type 7"):
        open_layer(Vhd(BLOCK, 7).write(tmp_path / "t.vhd"))


def test_one_bad_entry_is_the_error_of_its_block(tmp_path: Path) -> None:
    sound = bytearray(Vhd(BLOCK * 3, blocks={0: b"a" * BLOCK, 2: b"z" * BLOCK}).pack())
    sound[1536:1540] = b"\x7f\xff\xff\xff"
    image = tmp_path / "disk.vhd"
    image.write_bytes(sound)
    layer = open_layer(image)
    assert layer.device().pread(2 * BLOCK, BLOCK) == b"z" * BLOCK
    with pytest.raises(CorruptImageError, match="block 0 "):
        layer.device().pread(5, 1)
    layer.close()
