"""Damaged copies of sound optical and packed volumes: no crash, no hang, bounded memory, only errors of ours.

Most damage would stop at a checksum or in a decoder. So metadata is stored plain where the format can, and
the checksums of UDF are made right again; the decoders are fed with damaged streams of their own.
"""

from __future__ import annotations

import contextlib
import json
import lzma
import os
import subprocess
import sys
import zlib
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from lz4 import block as lz4_block

from imageformat.errors import MountfsError
from mountfs.drivers import _decoders as decoders
from support import udfimages
from support.content import mixture, text
from support.requirements import REPOSITORY, require_tool, run
from support.udfimages import File, folder, link

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROUNDS = 150

WORKER = r"""
import binascii, importlib, random, resource, signal, struct, sys
from pathlib import Path

from imageformat.device import MemoryDevice
from imageformat.errors import MountfsError
from mountfs.signatures import identify
from mountfs.tree import FileSystemInfo, NodeKind

module, path, first, rounds = sys.argv[1:]
driver = importlib.import_module(f"mountfs.drivers.{module}").PLUGIN
sound = Path(path).read_bytes()
used = [at for at in range(0, len(sound), 512) if any(sound[at : at + 512])]
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))


def proven(raw):
    checksum, length = raw[4], struct.unpack_from("<H", raw, 10)[0]
    crc = struct.unpack_from("<H", raw, 8)[0]
    fits = (sum(raw[:4]) + sum(raw[5:16])) & 255 == checksum and any(raw[:16])
    return fits and 16 + length <= len(raw) and binascii.crc_hqx(raw[16 : 16 + length], 0) == crc


places = range(0, len(sound) - 16, 4) if module == "udf" else ()
tags = [at for at in places if sound[at + 1] < 2 and proven(sound[at : at + 2048])]


def damaged(rng):
    content = bytearray(sound)
    for _ in range(rng.choice([1, 1, 3, 10, 50])):
        if tags and rng.random() < 0.7:
            at = rng.choice(tags) + 16 + rng.randrange(300)
        else:
            at = rng.choice(used) + rng.randrange(504)
        width = rng.choice([1, 2, 4, 8])
        top = 256**width
        value = rng.choice([0, 1, top - 1, top // 2, top // 2 - 1, rng.randrange(top), rng.randrange(300)])
        content[at : at + width] = (value % top).to_bytes(width, "little")
    for at in reversed(tags):
        length = struct.unpack_from("<H", sound, at + 10)[0]
        content[at : at + 2] = sound[at : at + 2]
        crc = binascii.crc_hqx(content[at + 16 : at + 16 + length], 0)
        struct.pack_into("<HH", content, at + 8, crc, length)
        content[at + 4] = (sum(content[at : at + 4]) + sum(content[at + 5 : at + 16])) & 255
    return bytes(content[: len(sound)])


def attempt(what):
    try:
        return what()
    except MountfsError:
        return None


def visit(tree):
    pending, budget = [tree.root()], 400
    while pending and budget:
        children = []

        def collect(parent):
            for node in tree.children(parent):
                children.append(node)

        parent = pending.pop()
        attempt(lambda: collect(parent))
        for node in children[:100]:
            budget = max(0, budget - 1)
            if node.kind is NodeKind.DIRECTORY:
                pending.append(node)
            elif node.kind is NodeKind.FILE:
                attempt(lambda: tree.read(node, 0, 65536))
                attempt(lambda: tree.read(node, max(0, node.size - 100), 65536))
                if node.size < 1 << 30:
                    attempt(lambda: (list(tree.extents(node)), list(tree.placements(node))))
            elif node.kind is NodeKind.SYMLINK:
                attempt(lambda: tree.readlink(node))
            attempt(lambda: tree.xattrs(node))
            for stream in attempt(lambda: tree.streams(node)) or ():
                attempt(lambda: tree.read(node, 0, 9000, stream.name))


opened = 0
for seed in range(int(first), int(first) + int(rounds)):
    print(seed, flush=True)
    signal.alarm(20)
    device = MemoryDevice(damaged(random.Random(seed)))
    attempt(lambda: identify(device))
    tree = attempt(lambda: driver.open(device, FileSystemInfo(module)))
    if tree is not None:
        opened += 1
        attempt(lambda: visit(tree))
print("opened", opened)
"""


def fill(top: Path) -> Path:
    top.mkdir()
    (top / "folder").mkdir()
    for number in range(30):
        (top / "folder" / f"{number}-file").write_bytes(text(number, 40 * number))
    (top / "mixture").write_bytes(mixture(1, 200_001))
    (top / "text").write_bytes(text(2, 150_000))
    (top / "link").symlink_to("folder/3-file")
    os.setxattr(top / "text", "user.name", b"value" * 20)
    return top


def made_squashfs(tmp: Path) -> Path:
    run("mksquashfs", fill(tmp / "source"), tmp / "image", "-noI", "-noX", "-noId", "-b", "16K", "-quiet")
    return tmp / "image"


def made_lzo(tmp: Path) -> Path:
    run("mksquashfs", fill(tmp / "source"), tmp / "image", "-comp", "lzo", "-noI", "-b", "8K", "-quiet")
    return tmp / "image"


def made_erofs(*options: str) -> Callable[[Path], Path]:
    def make(tmp: Path) -> Path:
        run("mkfs.erofs", "--quiet", *options, tmp / "image", fill(tmp / "source"))
        return tmp / "image"

    return make


def made_zisofs(tmp: Path) -> Path:
    run(
        *("xorriso", "-report_about", "FAILURE", "-xattr", "any", "-outdev", tmp / "image"),
        *("-map", fill(tmp / "source"), "/", "-find", "/", "-type", "f", "-exec", "set_filter", "--zisofs"),
        *("--", "-commit"),
    )
    return tmp / "image"


def made_joliet(tmp: Path) -> Path:
    run("genisoimage", "-quiet", "-J", "-o", tmp / "image", fill(tmp / "source"))
    return tmp / "image"


def made_udf(layout: str) -> Callable[[Path], Path]:
    def make(tmp: Path) -> Path:
        many = {f"{number} in a folder": File(text(number, 30 * number)) for number in range(30)}
        root = folder(
            {
                "folder": folder(many),
                "pieces": File(text(1, 30_000), pieces=4, chained=True),
                "streams": File(b"main", streams={"one": File(text(3, 5000))}),
                "link": link((3, ""), (5, "x")),
                "device": File(kind=6, device=(8, 1)),
            }
        )
        (tmp / "image").write_bytes(udfimages.Image(layout, root).raw)
        return tmp / "image"

    return make


MAKERS = {
    "squashfs": ("squashfs", made_squashfs),
    "squashfs-lzo": ("squashfs", made_lzo),
    "erofs": ("erofs", made_erofs("-zlz4", "-C16384", "-Eztailpacking")),
    "erofs-chunks": ("erofs", made_erofs("--chunksize=8192")),
    "iso9660-zisofs": ("iso9660", made_zisofs),
    "iso9660-joliet": ("iso9660", made_joliet),
    "udf": ("udf", made_udf("plain")),
    "udf-metadata": ("udf", made_udf("metadata")),
    "udf-virtual": ("udf", made_udf("virtual")),
}


@pytest.mark.parametrize("name", MAKERS)
def test_damaged_volumes(name: str, tmp_path: Path) -> None:
    module, make = MAKERS[name]
    if module != "udf":
        require_tool("mksquashfs", "mkfs.erofs", "xorriso", "genisoimage")
    image = make(tmp_path)
    first = os.environ.get("MOUNTFS_FUZZ_SEED", "0")
    rounds = os.environ.get("MOUNTFS_FUZZ_ROUNDS", str(ROUNDS))
    result = subprocess.run(
        [sys.executable, "-c", WORKER, module, str(image), first, rounds],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    last = (result.stdout.splitlines() or [""])[-1]
    assert (result.returncode, last.split()[0]) == (0, "opened"), json.dumps([last, result.stderr[-2000:]])
    assert int(last.split()[1]) > int(rounds) // 5, "the damage never gets past the door"


PLAIN = mixture(7, 20_000)
STREAMS = {
    "inflate": (decoders.inflate, zlib.compress(PLAIN)),
    "inflate_raw": (decoders.inflate_raw, zlib.compress(PLAIN, wbits=-15)),
    "unxz": (decoders.unxz, lzma.compress(PLAIN)),
    "unlzma": (decoders.unlzma, lzma.compress(PLAIN, lzma.FORMAT_ALONE)),
    "unzstd": (decoders.unzstd, zstandard.compress(PLAIN)),
    "unlz4": (decoders.unlz4, lz4_block.compress(PLAIN, store_size=False)),
    "unlzo": (decoders.unlzo, b"\x15some" + b"\x2a\x0c\0" * 40 + b"\x11\0\0"),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_sound_stream(name: str) -> None:
    decode, stored = STREAMS[name]
    plain = decode(stored, 30_000)
    assert plain == PLAIN or name == "unlzo"
    with pytest.raises(MountfsError):
        decode(stored, len(plain) - 1)
    with pytest.raises(MountfsError):
        decode(stored[: len(stored) // 2], 30_000)
    with pytest.raises(MountfsError):
        decode(b"", 30_000)


@pytest.mark.parametrize("name", STREAMS)
@settings(max_examples=150, deadline=None)
@given(
    cuts=st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=8)), max_size=5),
    limit=st.integers(0, 40_000),
)
def test_damaged_streams(name: str, cuts: list[tuple[int, bytes]], limit: int) -> None:
    decode, stored = STREAMS[name]
    damaged = bytearray(stored)
    for at, data in cuts:
        start = at % (len(damaged) + 1)
        damaged[start : start + len(data)] = data
    with contextlib.suppress(MountfsError):
        assert len(decode(bytes(damaged), limit)) <= limit


@settings(max_examples=300, deadline=None)
@given(stored=st.binary(max_size=200), limit=st.integers(0, 5000))
def test_any_bytes_as_lzo(stored: bytes, limit: int) -> None:
    with contextlib.suppress(MountfsError):
        assert len(decoders.unlzo(stored, limit)) <= limit
