"""Journals of ext4 that were damaged: only errors of ours, and always an answer."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imageformat.device import MemoryDevice
from imageformat.errors import MountfsError
from mountfs.drivers import ext
from mountfs.signatures import identify
from support.content import noise
from support.requirements import require_tool, run

MAGIC = b"\xc0\x3b\x39\x98"
WORDS = (0, 1, 2, 3, 5, 8, 11, 15, 16, 1023, 1024, 4096, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[int]]:
    """A volume with a journal that debugfs wrote, and where the blocks of the journal with a header lie."""
    require_tool("mkfs.ext4", "debugfs")
    folder = tmp_path_factory.mktemp("journal")
    image, blocks, script, source = (folder / name for name in ("image", "blocks", "script", "source"))
    image.write_bytes(bytes(8 << 20))
    source.mkdir()
    (source / "file").write_bytes(noise(1, 20 * 1024))
    blocks.write_bytes(MAGIC + noise(2, 6 * 1024 - 4))
    run("mkfs.ext4", "-q", "-F", "-b", "1024", "-O", "^metadata_csum", "-d", source, image)
    places = run("debugfs", "-R", "blocks /file", image).split()
    script.write_text(
        f"jo\njw -b {','.join(places[:6])} {blocks}\njw -r {places[2]}\n"
        f"jw -b {','.join(places[4:10])} {blocks}\njc\n"
    )
    run("debugfs", "-w", "-f", script, image)
    raw = image.read_bytes()
    numbers = [int(block) for block in run("debugfs", "-R", "blocks <8>", image).split()]
    return raw, [number * 1024 for number in numbers if raw[number * 1024 :].startswith(MAGIC)]


def look(raw: bytes) -> list[bytes]:
    """Open it as the product does, and read all that it holds."""
    device = MemoryDevice(raw)
    info = identify(device)
    assert info is not None
    assert ext.PLUGIN.note is not None
    assert "journal" in ext.PLUGIN.note(device, info)
    found = []
    tree = ext.PLUGIN.open(device, info)
    for node in tree.children(tree.root()):
        if node.size and node.name == b"file":
            found.append(tree.read(node, 0, node.size))
    return found


def test_the_volume_has_what_is_damaged_here(volume: tuple[bytes, list[int]]) -> None:
    raw, headers = volume
    kinds = [struct.unpack_from(">I", raw, at + 4)[0] for at in headers]
    assert sorted(set(kinds)) == [1, 2, 4, 5]
    (content,) = look(raw)
    assert content[:4] == MAGIC
    assert content[2048:3072] == noise(1, 20 * 1024)[2048:3072]


CHANGES = st.tuples(
    st.integers(0, 100), st.integers(0, 31), st.one_of(st.sampled_from(WORDS), st.integers(0, 2**32 - 1))
)


@settings(max_examples=250)
@given(changes=st.lists(CHANGES, min_size=1, max_size=6))
def test_damaged_words(volume: tuple[bytes, list[int]], changes: list[tuple[int, int, int]]) -> None:
    """Words at the start of the journal's own blocks, where all of its numbers are."""
    raw, headers = bytearray(volume[0]), volume[1]
    for block, word, value in changes:
        struct.pack_into(">I", raw, headers[block % len(headers)] + 4 * word, value)
    with contextlib.suppress(MountfsError):
        look(bytes(raw))


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 400))
def test_damaged_bytes(volume: tuple[bytes, list[int]], seed: int, count: int) -> None:
    raw, headers = bytearray(volume[0]), volume[1]
    values = noise(seed, 4 * count)
    for index in range(0, len(values), 4):
        block, high, low, value = values[index : index + 4]
        raw[headers[block % len(headers)] + (high % 4) * 256 + low] = value
    with contextlib.suppress(MountfsError):
        look(bytes(raw))
