"""QED, qcow of version 1, and expanding disks of Parallels, byte for byte as qemu-img reads them."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import pytest

from imageformat.errors import (
    AccessDeniedError,
    CorruptImageError,
    IncompleteImageError,
    UnsupportedFeatureError,
)
from support.content import mixture, noise
from support.imagemakers.old import NAMES, make_packed
from support.judge import hold_against, opened, qemu_truth, view_of
from support.requirements import require_tool, run

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
SIZE = 9 * MIB + 512


@pytest.fixture(autouse=True)
def _tools() -> None:
    require_tool("qemu-img", "qemu-io")


OPTIONS = {
    "qed": ["", "cluster_size=4096,table_size=2", "cluster_size=1M,table_size=2"],
    "qcow1": [""],
    "parallels": ["", "cluster_size=64k"],
}


@pytest.mark.parametrize(("name", "options"), [(name, each) for name in OPTIONS for each in OPTIONS[name]])
def test_converted(tmp_path: Path, name: str, options: str) -> None:
    disk = mixture(1, 3 * MIB, unit=24 << 10) + bytes(3 * MIB) + noise(2, SIZE - 6 * MIB)
    raw, path = tmp_path / "disk.raw", tmp_path / f"disk.{name}"
    raw.write_bytes(disk)
    extra = ["-o", options] if options else []
    run("qemu-img", "convert", "-O", NAMES[name], *extra, raw, path)
    truth = qemu_truth(path, NAMES[name])
    assert truth[:SIZE] == disk
    with opened(path) as layer:
        assert layer.info.format == name
        assert list(layer.prove()) == []
        hold_against(layer, truth)


def test_compressed(tmp_path: Path) -> None:
    made = make_packed(tmp_path)
    assert qemu_truth(tmp_path / made.name, "qcow") == made.disks[0]
    with opened(tmp_path / made.name) as layer:
        hold_against(layer, made.disks[0])


def scribble(path: Path, name: str, count: int = 30) -> None:
    """Writes anywhere; few for qcow on a backing file, whose clusters of 512 bytes QEMU writes one by one."""
    source = random.Random(name)
    kinds = ["write -P", "write -P", "write -z"] if name == "qed" else ["write -P"]
    commands = []
    for number in range(count):
        length = source.choice([512, 4096, 65_536, 200 << 10])
        kind = source.choice(kinds)
        value = f" {number + 1}" if kind.endswith("-P") else ""
        commands += ["-c", f"{kind}{value} {source.randrange(0, SIZE - length, 512)} {length}"]
    run("qemu-io", "-f", NAMES[name], *commands, path)


@pytest.mark.parametrize("name", NAMES)
def test_written_by_a_guest(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"disk.{name}"
    run("qemu-img", "create", "-q", "-f", NAMES[name], path, str(SIZE))
    scribble(path, name)
    truth = qemu_truth(path, NAMES[name])
    assert any(truth)
    with opened(path) as layer:
        hold_against(layer, truth)


@pytest.mark.parametrize("name", ["qed", "qcow1"])
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_on_a_backing_file(tmp_path: Path, name: str, kind: str) -> None:
    disk = noise(3, 5 * MIB)
    raw, base, path = tmp_path / "disk.raw", tmp_path / f"base.{kind}", tmp_path / f"top.{name}"
    raw.write_bytes(disk)
    run("qemu-img", "convert", "-f", "raw", "-O", kind, raw, tmp_path / "base")
    (tmp_path / "base").rename(base)
    run("qemu-img", "create", "-q", "-f", NAMES[name], "-b", base.name, "-F", kind, path, str(SIZE))
    scribble(path, name, 4)
    with opened(path) as layer:
        assert layer.info.details["parent"] == base.name
        hold_against(layer, qemu_truth(path, NAMES[name]))


def test_a_guessed_backing_file_opens_no_others(tmp_path: Path) -> None:
    (tmp_path / "secret.raw").write_bytes(noise(1, MIB))
    middle = tmp_path / "middle.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "secret.raw", "-F", "raw", middle)
    run("qemu-img", "create", "-q", "-f", "qcow", "-b", middle.name, "-F", "qcow2", tmp_path / "top.qcow")
    with pytest.raises(AccessDeniedError, match="--backing"), opened(tmp_path / "top.qcow"):
        pass


@pytest.mark.parametrize(
    ("name", "offset", "value", "error"),
    [
        ("qed", 4, struct.pack("<I", 1000), CorruptImageError),
        ("qed", 4, struct.pack("<I", 1 << 31), CorruptImageError),
        ("qed", 8, struct.pack("<I", 0), CorruptImageError),
        ("qed", 8, struct.pack("<I", 32), CorruptImageError),
        ("qed", 16, struct.pack("<Q", 8), UnsupportedFeatureError),
        ("qed", 40, struct.pack("<Q", 0), CorruptImageError),
        ("qed", 40, struct.pack("<Q", 1 << 40), IncompleteImageError),
        ("qed", 48, struct.pack("<Q", (1 << 64) - 1), CorruptImageError),
        ("qed", 65536, struct.pack("<Q", 1 << 40), IncompleteImageError),
        ("qed", 65536, struct.pack("<Q", 77), CorruptImageError),
        ("qcow1", 24, struct.pack(">Q", 1 << 63), CorruptImageError),
        ("qcow1", 24, struct.pack(">Q", 1 << 55), CorruptImageError),
        ("qcow1", 32, b"\x20", CorruptImageError),
        ("qcow1", 36, struct.pack(">I", 1), UnsupportedFeatureError),
        ("qcow1", 40, struct.pack(">Q", 1 << 62), IncompleteImageError),
        ("qcow1", 48, struct.pack(">Q", 1 << 62), IncompleteImageError),
        ("parallels", 16, struct.pack("<I", 3), UnsupportedFeatureError),
        ("parallels", 28, struct.pack("<I", 0), CorruptImageError),
        ("parallels", 32, struct.pack("<I", 0xFFFF_FFFF), IncompleteImageError),
        ("parallels", 36, struct.pack("<Q", 1 << 40), CorruptImageError),
        ("parallels", 52, struct.pack("<I", 1), CorruptImageError),
        ("parallels", 64, struct.pack("<I", 0xFFFF_FFFF), IncompleteImageError),
    ],
)
def test_numbers_that_lie_are_errors(
    tmp_path: Path, name: str, offset: int, value: bytes, error: type[Exception]
) -> None:
    path = tmp_path / f"disk.{name}"
    run("qemu-img", "create", "-q", "-f", NAMES[name], path, str(SIZE))
    run("qemu-io", "-f", NAMES[name], "-c", "write -P 1 0 64k", path)
    content = bytearray(path.read_bytes())
    content[offset : offset + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(error), opened(path) as layer:
        view_of(layer).pread(0, 4096)
