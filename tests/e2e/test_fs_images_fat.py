"""FAT volumes written by mtools, against the files that were copied in."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from typing import TYPE_CHECKING, NoReturn

import pytest

from imageformat.device import MemoryDevice
from imageformat.errors import VolumeError
from mountfs.drivers import fat
from mountfs.tree import FileSystemInfo, NodeKind

if TYPE_CHECKING:
    from pathlib import Path

    from mountfs.tree import FileTree, Node

SIZES = {"12": 2 << 20, "16": 32 << 20, "32": 66 << 20}


def missing(what: object) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"missing: {what}")
    pytest.skip(f"missing: {what}")


def mtools(command: str, image: Path, *arguments: str | Path, zone: str = "UTC") -> None:
    environment = {**os.environ, "TZ": zone, "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C.UTF-8"}
    subprocess.run([command, "-i", image, *arguments], check=True, env=environment, capture_output=True)


def make_source(top: Path) -> None:
    rng = random.Random(13)
    (top / "folder with a long name" / "deep").mkdir(parents=True)
    (top / "empty").touch()
    (top / "UPPER.TXT").write_bytes(b"upper")
    (top / "lower.txt").write_bytes(b"lower")
    (top / "Mixed.Case").write_bytes(b"mixed")
    (top / "ünïcödé файл.text").write_bytes(b"unicode")
    (top / ("n" * 251 + ".txt")).write_bytes(b"long")
    (top / "folder with a long name" / "random").write_bytes(rng.randbytes(300_001))
    deep = top / "folder with a long name" / "deep"
    for number in range(300):
        (deep / f"a name of many entries {number}").write_bytes(b"%d" % number)
    for path in top.rglob("*"):
        os.utime(path, ns=(10**18, 1_234_567_890 * 10**9))


@pytest.fixture(params=SIZES)
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    for tool in ("mkfs.vfat", "mcopy"):
        if shutil.which(tool) is None:
            missing(tool)
    image, source = tmp_path / "image", tmp_path / "source"
    source.mkdir()
    make_source(source)
    sectors = str(SIZES[request.param] // 1024)
    subprocess.run(
        ["mkfs.vfat", "-C", "-F", request.param, "-s", "1", "-n", "A LABEL", image, sectors],
        check=True,
        capture_output=True,
    )
    mtools("mcopy", image, "-s", "-m", *sorted(source.iterdir()), "::")
    return image, source


def open_tree(image: Path) -> FileTree:
    return fat.PLUGIN.open(MemoryDevice(image.read_bytes()), FileSystemInfo("fat32"))


def all_nodes(tree: FileTree) -> dict[str, Node]:
    found, pending = {}, [("", tree.root())]
    while pending:
        path, parent = pending.pop()
        for node in tree.children(parent):
            below = f"{path}/{node.name.decode()}".removeprefix("/")
            found[below] = node
            if node.kind is NodeKind.DIRECTORY:
                pending.append((below, node))
    return found


def test_everything_that_was_copied_in_is_there(volume: tuple[Path, Path]) -> None:
    image, source = volume
    tree = open_tree(image)
    nodes = all_nodes(tree)
    assert nodes.keys() == {str(path.relative_to(source)) for path in source.rglob("*")}
    for name, node in nodes.items():
        path = source / name
        assert (node.kind is NodeKind.DIRECTORY) == path.is_dir()
        if path.is_file():
            assert node.mtime_ns == 1_234_567_890 * 10**9
            same = tree.read(node, 0, node.size) == path.read_bytes()
            assert same, name
    assert len({node.inode for node in nodes.values()}) == len(nodes)


def test_deleted_files_are_gone_and_fragments_are_followed(volume: tuple[Path, Path], tmp_path: Path) -> None:
    image, source = volume
    for number in range(0, 300, 2):
        mtools("mdel", image, f"::folder with a long name/deep/a name of many entries {number}")
    large = tmp_path / "large"
    large.write_bytes(random.Random(17).randbytes(700_000))
    mtools("mcopy", image, large, "::")
    tree = open_tree(image)
    nodes = all_nodes(tree)
    assert len(nodes) == len(list(source.rglob("*"))) - 150 + 1
    same = tree.read(nodes["large"], 0, 10**6) == large.read_bytes()
    assert same


def test_a_chain_that_meets_itself_is_an_error(volume: tuple[Path, Path]) -> None:
    image, _ = volume
    content = bytearray(image.read_bytes())
    node = all_nodes(open_tree(image))["folder with a long name/random"]
    cluster = node.key.cluster  # type: ignore[attr-defined]
    table, bits = fat_table(content)
    loop = cluster + 100
    if bits == 12:
        at = table + loop * 3 // 2
        pair = int.from_bytes(content[at : at + 2], "little")
        pair = pair & 0xF | cluster << 4 if loop & 1 else pair & 0xF000 | cluster
        content[at : at + 2] = pair.to_bytes(2, "little")
    else:
        width = bits // 8
        content[table + loop * width : table + (loop + 1) * width] = cluster.to_bytes(width, "little")
    tree = fat.PLUGIN.open(MemoryDevice(bytes(content)), FileSystemInfo("fat32"))
    with pytest.raises(VolumeError, match="meets itself"):
        tree.read(all_nodes(tree)["folder with a long name/random"], 0, 10)


def fat_table(content: bytearray) -> tuple[int, int]:
    """Return where the first allocation table starts and the width of its entries."""
    start = int.from_bytes(content[14:16], "little") * 512
    bits = {b"FAT12": 12, b"FAT16": 16}.get(bytes(content[54:59]), 32)
    return start, bits
