"""Files that Windows compressed as a whole, with chunks that wimlib made: the algorithms are those of WIM."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import struct
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imageformat.device import MemoryDevice
from imageformat.errors import VolumeError
from mountfs.drivers import ntfs
from mountfs.drivers._content import BytesContent
from mountfs.drivers._lzx import lzx_decode
from mountfs.drivers._ntfs_compact import CompactContent
from mountfs.drivers._xpress import xpress_decode
from mountfs.tree import FileSystemInfo, walk
from support.content import noise
from support.disks import MIB, make_ntfs
from support.kernel import kernel_mount, loop_device
from support.requirements import require_tool, run

if TYPE_CHECKING:
    from mountfs.tree import FileTree

WORDS = (b"alpha ", b"beta ", b"gamma\n", b"\0\0\0\0", b"z", b"\xe8\x10\x00\x00\x00")
ALGORITHMS = {"xpress 4K": (0, 4096), "lzx": (1, 32_768), "xpress 8K": (2, 8192), "xpress 16K": (3, 16_384)}


def words(seed: int, size: int) -> bytes:
    return b"".join(WORDS[byte % 6] for byte in noise(seed, size // 2))[:size]


def uneven(seed: int, size: int) -> bytes:
    raw = noise(seed, 2 * size)
    return bytes(min(one, other) // 4 for one, other in zip(raw[::2], raw[1::2], strict=True))


SAMPLES = {
    "words": words(1, 100_001),
    "uneven": uneven(2, 70_000),
    "zeros": bytes(100_000),
    "with noise": words(3, 40_000) + noise(4, 40_000) + words(5, 3),
    "program": Path(sys.executable).resolve().read_bytes()[:200_000],
    "short": b"ab" * 400,
}


@cache
def compressed(plain: bytes, algorithm: int, chunk: int) -> bytes:
    """The chunks and their table, taken out of a WIM archive."""
    require_tool("wimlib-imagex")
    folder = Path(os.environ["TMPDIR"]) / f"wim-{hashlib.sha1(plain).hexdigest()}-{algorithm}"
    (folder / "in").mkdir(parents=True, exist_ok=True)
    (folder / "in" / "file").write_bytes(plain)
    options = [f"--compress={'lzx' if algorithm == 1 else 'xpress'}", f"--chunk-size={chunk}", "--no-acls"]
    archive = folder / "out.wim"
    archive.unlink(missing_ok=True)
    run("wimlib-imagex", "capture", folder / "in", archive, *options)
    raw = archive.read_bytes()
    size, table = struct.unpack_from("<QQ", raw, 0x30)
    digest = hashlib.sha1(plain).digest()
    for at in range(table, table + (size & (1 << 56) - 1), 50):
        length, offset = struct.unpack_from("<QQ", raw, at)
        if raw[at + 30 : at + 50] == digest:
            assert length >> 56 & 4, "wimlib did not compress it"
            return raw[offset : offset + (length & (1 << 56) - 1)]
    raise AssertionError("the archive does not hold the file")


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_wimlib_compressed(name: str, sample: str) -> None:
    plain = SAMPLES[sample]
    content = CompactContent(
        BytesContent(compressed(plain, *ALGORITHMS[name])), len(plain), ALGORITHMS[name][0]
    )
    same = content.read(0, len(plain)) == plain
    assert same
    for start, size in ((0, 1), (799, 1), (len(plain) - 1, 1), (300, 0), (len(plain) // 3, len(plain) // 2)):
        same = content.read(start, size) == plain[start : start + size]
        assert same, (start, size)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_stream_that_ends_too_early_is_an_error(name: str) -> None:
    plain = SAMPLES["words"]
    stream = compressed(plain, *ALGORITHMS[name])
    for end in (0, 5, 100, len(stream) // 2, len(stream) - 9):
        with pytest.raises(VolumeError):
            CompactContent(BytesContent(stream[:end]), len(plain), ALGORITHMS[name][0]).read(0, len(plain))


CHUNK = words(6, 3000)


@settings(max_examples=150)
@given(changes=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_chunks(changes: list[tuple[int, int]]) -> None:
    for name, decode in (("xpress 4K", xpress_decode), ("lzx", lzx_decode)):
        stream = bytearray(compressed(CHUNK, *ALGORITHMS[name]))
        for at, value in changes:
            stream[at % len(stream)] = value
        with contextlib.suppress(VolumeError):
            assert len(decode(bytes(stream), len(CHUNK))) == len(CHUNK)


@given(st.binary(max_size=400), st.integers(1, 4096))
def test_anything_as_a_chunk(stream: bytes, size: int) -> None:
    for decode in (xpress_decode, lzx_decode):
        with contextlib.suppress(VolumeError):
            assert len(decode(stream, size)) == size


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> FileTree:
    """An NTFS on which ntfs-3g put the streams and the reparse points."""
    require_tool("ntfs-3g", "mkfs.ntfs")
    path = make_ntfs(tmp_path_factory.mktemp("compact") / "image", 32 * MIB, "Data")
    with (
        loop_device(path) as device,
        kernel_mount(device, "ntfs-3g", read_only=False, options=("streams_interface=windows",)) as top,
    ):
        for name, (algorithm, chunk) in ALGORITHMS.items():
            for sample, plain in SAMPLES.items():
                file = top / f"{name} {sample}"
                file.touch()
                os.truncate(file, len(plain))
                Path(f"{file}:WofCompressedData").write_bytes(compressed(plain, algorithm, chunk))
                Path(f"{file}:other").write_bytes(b"other")
                data = struct.pack("<IIII", 1, 2, 1, algorithm)
                os.setxattr(file, "system.ntfs_reparse_data", struct.pack("<IHH", 0x8000_0017, 16, 0) + data)
    with path.open("rb") as stream:
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    return ntfs.PLUGIN.open(MemoryDevice(content), FileSystemInfo("ntfs"))  # type: ignore[arg-type]


@pytest.mark.root
@pytest.mark.fuse
@pytest.mark.parametrize("name", ALGORITHMS)
def test_compressed_files_on_a_volume(tree: FileTree, name: str) -> None:
    for sample, plain in SAMPLES.items():
        node = walk(tree, f"{name} {sample}".encode())
        assert node.size == len(plain)
        same = tree.read(node, 0, node.size) == plain
        assert same, sample
        assert [stream.name for stream in tree.streams(node)] == [b"other"]
        assert tree.read(node, 0, 10, b"other") == b"other"
