"""Damaged copies of a sound btrfs, with right checksums over wrong values: only errors of ours, and an end.

Damage without right checksums never gets past the first check, so most examples mend them. What compressors
are given comes from anywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imageformat.device import MemoryDevice
from imageformat.errors import MountfsError, VolumeError
from mountfs.drivers import _lzo, btrfs
from mountfs.drivers._btrfs_codecs import MAX_EXTENT, decode
from mountfs.signatures import identify
from mountfs.tree import FileSystemInfo, NodeKind
from support.content import make_tree, noise, text
from support.disks import MIB
from support.requirements import require_tool, run

if TYPE_CHECKING:
    from mountfs.tree import FileTree

ROUNDS = int(os.environ.get("MOUNTFS_FUZZ_ROUNDS", "150"))
NODE = 4096
SUPERBLOCK = 65_536
Edit = tuple[int, int, int, int]
"""Which node, where in it, how many bytes, and the value."""

VALUES = st.one_of(
    st.integers(0, 300),
    st.sampled_from([2**64 - 1, 2**63, 2**63 - 1, 2**32 - 1, 2**31, 2**16 - 1, 4096, 65_536]),
    st.integers(0, 2**64 - 1),
)
PLACES = st.one_of(st.integers(32, 100), st.integers(101, 500), st.integers(32, NODE - 8))
EDITS = st.lists(
    st.tuples(st.integers(0, 10_000), PLACES, st.sampled_from([1, 2, 4, 8]), VALUES), min_size=1, max_size=4
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[int]]:
    """A small file system, and where its nodes and its superblock are."""
    require_tool("mkfs.btrfs")
    folder: Path = tmp_path_factory.mktemp("sound")
    (folder / "source").mkdir()
    make_tree(folder / "source")
    os.setxattr(folder / "source" / "hello.txt", "user.comment", b"value")
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(24 * MIB)
    command = ("mkfs.btrfs", "-q", "--mixed", "-n", str(NODE), "--csum", "sha256", "-m", "single")
    run(*command, "-d", "single", "--rootdir", folder / "source", image)
    content = image.read_bytes()
    identity = content[SUPERBLOCK + 32 : SUPERBLOCK + 48]
    nodes = [at for at in range(0, len(content), NODE) if content[at + 32 : at + 48] == identity]
    assert len(nodes) > 15
    visit(open_bytes(content))
    return content, nodes


def open_bytes(content: bytes) -> FileTree:
    return btrfs.PLUGIN.open(MemoryDevice(content), FileSystemInfo("btrfs"))


def visit(tree: FileTree) -> int:
    """Look at everything, up to a bound; how many errors there were."""
    pending, budget, errors = [tree.root()], 2000, 0
    while pending and budget:
        try:
            for node in tree.children(pending.pop()):
                budget = max(0, budget - 1)
                try:
                    if node.kind is NodeKind.DIRECTORY:
                        pending.append(node)
                    elif node.kind is NodeKind.FILE:
                        assert len(tree.read(node, 0, 65_536)) == min(node.size, 65_536)
                        list(zip(range(1000), tree.extents(node), strict=False))
                        list(zip(range(1000), tree.placements(node), strict=False))
                    elif node.kind is NodeKind.SYMLINK:
                        tree.readlink(node)
                    tree.xattrs(node)
                except MountfsError:
                    errors += 1
        except MountfsError:
            errors += 1
    return errors


def edited(content: bytes, nodes: list[int], edits: list[Edit], *, mended: bool) -> bytes:
    raw = bytearray(content)
    for number, place, width, value in edits:
        start = nodes[number % len(nodes)]
        raw[start + place : start + place + width] = (value % 256**width).to_bytes(width, "little")
        if mended:
            raw[start : start + 32] = hashlib.sha256(raw[start + 32 : start + NODE]).digest()
    return bytes(raw)


@settings(max_examples=ROUNDS)
@given(edits=EDITS, mended=st.sampled_from([True, True, True, False]))
def test_wrong_values_are_errors_of_ours(
    sound: tuple[bytes, list[int]], edits: list[Edit], mended: bool
) -> None:
    content, nodes = sound
    damaged = edited(content, nodes, edits, mended=mended)
    identify(MemoryDevice(damaged))
    with contextlib.suppress(MountfsError):
        visit(open_bytes(damaged))


@settings(max_examples=ROUNDS // 3)
@given(st.lists(st.tuples(st.integers(0, 24 * MIB - 8), st.binary(min_size=1, max_size=8)), max_size=200))
def test_wrong_bytes_are_errors_of_ours(
    sound: tuple[bytes, list[int]], wrong: list[tuple[int, bytes]]
) -> None:
    raw = bytearray(sound[0])
    for at, data in wrong:
        raw[at : at + len(data)] = data
    with contextlib.suppress(MountfsError):
        visit(open_bytes(bytes(raw)))


def test_every_node_of_a_sound_tree_matters(sound: tuple[bytes, list[int]]) -> None:
    """The mending mends: an edit that changes nothing gets through."""
    content, nodes = sound
    generation = int.from_bytes(content[nodes[3] + 80 : nodes[3] + 88], "little")
    assert edited(content, nodes, [(3, 80, 8, generation)], mended=True) == content
    assert visit(open_bytes(content)) == 0


@pytest.mark.parametrize(
    ("place", "width", "complaint"),
    [(48, 8, "another node"), (80, 8, "generation"), (100, 1, "level"), (32, 8, "another node")],
)
def test_a_node_of_another_time_or_place_is_refused(
    sound: tuple[bytes, list[int]], place: int, width: int, complaint: str
) -> None:
    """With a right checksum, as a lost write leaves it; nodes that hold no names do not matter."""
    content, nodes = sound
    refused, complaints = 0, []
    for number, at in enumerate(nodes):
        if at in {SUPERBLOCK, 64 * MIB}:
            continue
        old = int.from_bytes(content[at + place : at + place + width], "little")
        wrong = edited(content, nodes, [(number, place, width, old + 1)], mended=True)
        try:
            errors = visit(open_bytes(wrong))
        except VolumeError as error:
            complaints.append(str(error))
        else:
            refused += errors > 0
    assert refused + len(complaints) >= 4
    assert complaint == "level" or all(complaint in told for told in complaints)


def lzo(*literals: bytes) -> bytes:
    """One segment of literal runs, as it lies in an extent."""
    runs = b"".join(_run(data) for data in literals) + b"\x11\0\0"
    return struct.pack("<II", 8 + len(runs), len(runs)) + runs


def _run(data: bytes) -> bytes:
    count = len(data) - 3 - 15
    return b"\0" + bytes(count // 255) + bytes([count % 255]) + data if count > 0 else b""


PACKED = {1: zlib.compress(text(1, 5000)), 2: lzo(noise(1, 1000)), 3: zstandard.compress(text(1, 5000))}


def test_the_packed_samples_are_sound() -> None:
    assert decode(1, PACKED[1], 5000, 4096) == decode(3, PACKED[3], 5000, 4096) == text(1, 5000)
    assert decode(2, PACKED[2], 1000, 4096) == noise(1, 1000)


@settings(max_examples=ROUNDS * 2)
@given(st.sampled_from(sorted(PACKED)), st.integers(0, MAX_EXTENT), st.randoms(use_true_random=False))
def test_damaged_compression_is_an_error_or_the_right_size(
    kind: int, size: int, chance: random.Random
) -> None:
    raw = bytearray(PACKED[kind])
    for _ in range(chance.randrange(1, 6)):
        raw[chance.randrange(len(raw))] = chance.randrange(256)
    del raw[chance.choice([len(raw), chance.randrange(len(raw))]) :]
    with contextlib.suppress(VolumeError):
        assert len(decode(kind, bytes(raw), size, 4096)) == size


@settings(max_examples=ROUNDS * 2)
@given(st.binary(max_size=200), st.integers(0, 4096))
@example(b"\x11\0\0", 0)
@example(b"", 10)
def test_any_bytes_as_lzo(data: bytes, limit: int) -> None:
    with contextlib.suppress(VolumeError):
        assert len(_lzo.decompress(data, limit)) <= limit


def test_bombs_are_bounded() -> None:
    """What decodes to gigabytes is cut at the size that was asked for."""
    for kind, packed in ((1, zlib.compress(bytes(80_000_000))), (3, _blocks_of_zeros())):
        assert decode(kind, packed, MAX_EXTENT, 4096) == bytes(MAX_EXTENT)
    with pytest.raises(VolumeError, match="outside of it"):
        _lzo.decompress(b"\x12a" + b"\x20" + bytes(100) + b"\x01\0\0" + b"\x11\0\0", 4096)


def _blocks_of_zeros() -> bytes:
    """A zstd frame of unstated size (RFC 8878): 10,000 blocks that repeat a byte 128 KiB times."""
    block = (1 << 1 | 131_072 << 3).to_bytes(3, "little") + b"\0"
    return struct.pack("<IBB", 0xFD2F_B528, 0, 7 << 3) + block * 10_000
