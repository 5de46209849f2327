"""Which other files an image may open: what an image says is hostile, what the user says is not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from imageformat.errors import AccessDeniedError, MountfsError, NotFoundError, ParentMissingError
from imageformat.selection import named_files
from imageformat.siblings import Siblings
from imageformat.storage.local import LocalStorage

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with an image, files around it, and a way out."""
    images = tmp_path / "top" / "images"
    (images / "base").mkdir(parents=True)
    (images / "vm.qcow2").write_bytes(b"tip")
    (images / "base.qcow2").write_bytes(b"base")
    (images / "base" / "deep.qcow2").write_bytes(b"deep")
    (images / "base" / "own.qcow2").write_bytes(b"own")
    (tmp_path / "top" / "images2").mkdir()
    (tmp_path / "top" / "images2" / "near").write_bytes(b"near")
    (tmp_path / "secret").write_bytes(b"secret")
    (images / "way-out").symlink_to(tmp_path / "secret")
    (images / "way-in").symlink_to("base.qcow2")
    (images / "loop").symlink_to("loop")
    os.mkfifo(images / "pipe")
    return images


def siblings(place: Path, named: tuple[str, ...] = ()) -> Siblings:
    return Siblings(LocalStorage(place.parent), "images/vm.qcow2", named_files(named))


def read(found: Siblings, name: str) -> bytes:
    opened = found.open(name)
    try:
        return opened.device.pread(0, opened.device.size)
    finally:
        opened.device.close()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("base.qcow2", b"base"),
        ("./base.qcow2", b"base"),
        (".\\base.qcow2", b"base"),
        ("base/deep.qcow2", b"deep"),
        ("base\\deep.qcow2", b"deep"),
        ("base/../base.qcow2", b"base"),
        ("../images/base.qcow2", b"base"),
        ("way-in", b"base"),
    ],
)
def test_files_at_and_below_the_own_folder_are_opened(place: Path, name: str, content: bytes) -> None:
    assert read(siblings(place), name) == content


def test_an_absolute_name_inside_the_own_folder_is_opened(place: Path) -> None:
    assert read(siblings(place), str(place / "base.qcow2")) == b"base"


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../../secret",
        "../images2/near",
        "base/../../images2/near",
        "way-out",
        "pipe",
        "base",
        ".",
        "",
        "a\0b",
        "/dev/zero",
        "C:\\Users\\x\\base.vhd",
        "nbd:localhost:10809",
        "nbd://host/x",
        "https://example.org/x.qcow2",
        'json:{"driver":"host_device","filename":"/dev/sda"}',
        "fat:/etc",
        "file:/etc/passwd",
    ],
)
def test_nothing_else_is_opened(place: Path, name: str) -> None:
    with pytest.raises(AccessDeniedError):
        siblings(place).open(name)


def test_a_missing_file_is_called_missing(place: Path) -> None:
    with pytest.raises(ParentMissingError, match="missing"):
        siblings(place).open("gone.qcow2")
    with pytest.raises(ParentMissingError):
        siblings(place).open("loop")


def test_what_the_user_named_is_opened_wherever_it_lies(place: Path, tmp_path: Path) -> None:
    secret = str(tmp_path / "secret")
    assert read(siblings(place, (secret,)), secret) == b"secret"
    assert read(siblings(place, (secret,)), "D:\\old place\\secret") == b"secret"
    with pytest.raises(AccessDeniedError, match="--backing"):
        siblings(place, (secret,)).open("/etc/passwd")
    with pytest.raises(NotFoundError):
        named_files((str(tmp_path / "nothing"),))


def test_a_sibling_reaches_no_further_than_its_image(place: Path, tmp_path: Path) -> None:
    below = siblings(place).open("base/deep.qcow2")
    below.device.close()
    assert read(below.siblings, "own.qcow2") == b"own"
    assert read(below.siblings, "../base.qcow2") == b"base"
    for name in ("../../images2/near", str(tmp_path / "secret")):
        with pytest.raises(MountfsError):
            below.siblings.open(name)


def test_the_own_folder_is_listed(place: Path) -> None:
    assert siblings(place).names() == ("base.qcow2", "vm.qcow2", "way-in", "way-out")
    assert siblings(place).modified_ns == (place / "vm.qcow2").stat().st_mtime_ns
