"""VDI images as qemu-img reads them; differencing ones, which it does not know, by what they are made of."""

from __future__ import annotations

import struct
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from imageformat.errors import (
    CorruptImageError,
    IncompleteImageError,
    ParentMismatchError,
    ParentMissingError,
    UnsupportedFeatureError,
)
from imageformat.repository import Repository
from imageformat.siblings import NamedFile
from imageformat.storage.local import LocalStorage
from support.content import mixture, noise
from support.imagemakers.vdi import converted, make_differencing
from support.judge import hold_against, opened, qemu_truth, view_of
from support.requirements import require_tool, run

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
SIZE = 5 * MIB + 512


@pytest.fixture(autouse=True)
def _tools() -> None:
    require_tool("qemu-img", "qemu-io")


@pytest.mark.parametrize("options", [(), ("-o", "static=on")], ids=["dynamic", "static"])
def test_as_qemu_reads_it(tmp_path: Path, options: tuple[str, ...]) -> None:
    disk = mixture(1, 2 * MIB) + bytes(MIB) + noise(2, SIZE - 3 * MIB)
    path = converted(tmp_path, "disk.vdi", disk, *options)
    assert qemu_truth(path, "vdi") == disk
    with opened(path) as layer:
        assert layer.info.format == "vdi"
        assert list(layer.prove()) == []
        hold_against(layer, disk)


def test_written_by_a_guest(tmp_path: Path) -> None:
    path = tmp_path / "disk.vdi"
    run("qemu-img", "create", "-q", "-f", "vdi", path, str(SIZE))
    for command in ("write -P 7 4M 4k", "write -P 8 1000k 100k", f"write -P 9 {SIZE - 512} 512"):
        run("qemu-io", "-f", "vdi", "-c", command, path)
    with opened(path) as layer:
        hold_against(layer, qemu_truth(path, "vdi"))


def family(folder: Path) -> tuple[Path, Path, Path, bytes]:
    """A grandparent, a parent and a child, and the disk of the child."""
    disks = [mixture(number, SIZE) for number in range(3)]
    paths = [converted(folder, f"{number}.vdi", disk) for number, disk in enumerate(disks)]
    make_differencing(paths[1], paths[0], [0, 3, 5])
    make_differencing(paths[2], paths[1], [0, 1, 5])
    owner = [0, 1, 2, 2, 2, 0]
    truth = b"".join(disks[who][at * MIB : (at + 1) * MIB] for at, who in enumerate(owner))
    return paths[0], paths[1], paths[2], truth


def test_parents_are_found_by_their_ids(tmp_path: Path) -> None:
    oldest, middle, child, truth = family(tmp_path)
    for path, name in ((oldest, "zzz.vdi"), (middle, "{4711}.vdi")):
        path.rename(tmp_path / name)
    (tmp_path / "aaa.vdi").write_bytes(b"no VDI at all")
    converted(tmp_path, "other.vdi", bytes(SIZE))
    with opened(child) as layer:
        hold_against(layer, truth)
        assert layer.info.details["parent"] == "{4711}.vdi"
    with closing(Repository(LocalStorage(tmp_path), only_set="")) as repository:
        points = repository.image_set("").points
        assert {point.file_name for point in points if point.problem is None} == {
            "zzz.vdi",
            "{4711}.vdi",
            "2.vdi",
            "other.vdi",
        }


def test_a_named_parent_may_lie_elsewhere(tmp_path: Path) -> None:
    oldest, middle, child, truth = family(tmp_path)
    (tmp_path / "there").mkdir()
    for path in (oldest, middle):
        path.rename(tmp_path / "there" / path.name)
    with pytest.raises(ParentMissingError, match="--backing"), opened(child):
        pass
    storage = LocalStorage(tmp_path / "there")
    named = [NamedFile(str(tmp_path / "there" / name), storage, name) for name in ("0.vdi", "1.vdi")]
    with opened(child, named=named) as layer:
        hold_against(layer, truth)


def test_a_changed_parent_is_an_error(tmp_path: Path) -> None:
    _, middle, child, _ = family(tmp_path)
    content = bytearray(middle.read_bytes())
    content[408] ^= 1
    middle.write_bytes(content)
    with pytest.raises(ParentMismatchError, match=r"1\.vdi"), opened(child):
        pass


def test_a_circle_is_no_parent(tmp_path: Path) -> None:
    oldest, _, child, _ = family(tmp_path)
    make_differencing(oldest, child, [])
    with pytest.raises(ParentMissingError), opened(child):
        pass


def test_headers_that_lie_are_errors(tmp_path: Path) -> None:
    path = converted(tmp_path, "disk.vdi", mixture(1, SIZE))
    content = path.read_bytes()
    for offset, kind, value, error in (
        (68, "<I", 0x20001, UnsupportedFeatureError),
        (76, "<I", 3, UnsupportedFeatureError),
        (76, "<I", 9, UnsupportedFeatureError),
        (76, "<I", 4, CorruptImageError),
        (340, "<I", 100, CorruptImageError),
        (340, "<I", 0xFFFF_FFFF, IncompleteImageError),
        (368, "<Q", 1 << 63, CorruptImageError),
        (368, "<Q", 1 << 40, CorruptImageError),
        (376, "<I", 0, CorruptImageError),
        (376, "<I", 513, CorruptImageError),
        (384, "<I", 0xFFFF_FFFF, IncompleteImageError),
        (512, "<I", 0xFFFF_FFF0, IncompleteImageError),
    ):
        changed = bytearray(content)
        struct.pack_into(kind, changed, offset, value)
        path.write_bytes(changed)
        with pytest.raises(error), opened(path) as layer:
            view_of(layer).pread(0, 4096)


def test_blocks_that_share_a_place_are_told(tmp_path: Path) -> None:
    path = converted(tmp_path, "disk.vdi", mixture(1, SIZE))
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, 512 + 4, 0)
    struct.pack_into("<I", content, 512 + 8, 77)
    path.write_bytes(content)
    with opened(path) as layer:
        problems = list(layer.prove())
    assert len(problems) == 2
    assert "block 1 lies where another block lies" in problems[0]
    assert "number 77" in problems[1]
