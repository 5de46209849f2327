"""Virtual disks through the command line: what a person does with a file of another program."""

from __future__ import annotations

from pathlib import Path

import pytest

from imageformat.errors import CorruptImageError
from support.images import makers
from support.product import mountfs
from support.requirements import shared_data_folder
from support.virtualdisks import stored_params, unpack_stored

MAKERS = ["vhdx", "vhdx-logged", "vhd-chain", "vmdk-stream", "ewf", "ewf-ex01", "dmg"]


@pytest.mark.parametrize("name", MAKERS)
def test_shown_verified_and_restored(name: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    made = makers()[name](tmp_path / "images")
    image, target = tmp_path / "images" / made.name, tmp_path / "out.img"
    told = mountfs("info", image, "--json")
    assert told.code == 0, told.err
    assert made.format.encode() in told.out
    assert mountfs("verify", image).code == 0
    assert mountfs("restore", image, target, "--verify", "--yes").code == 0
    assert target.read_bytes() == made.disks[0]


def test_damage_is_told_with_the_file_it_hit(tmp_path: Path) -> None:
    shared_data_folder()
    case = next(param.values[0] for param in stored_params("ewf") if param.id == "e01-nps-emails")
    image = unpack_stored(case, tmp_path)
    content = bytearray(image.read_bytes())
    content[200_000] ^= 0x55
    image.write_bytes(content)
    told = mountfs("verify", image, code=CorruptImageError.exit_code)
    assert "keynote_09.key" in told.out.decode() + told.err


def test_the_stored_images_are_there() -> None:
    shared_data_folder()
    found = {kind: len(stored_params(kind)) for kind in ("vhdx", "vhd", "vmdk", "ewf", "dmg")}
    assert all(found.values()), found
