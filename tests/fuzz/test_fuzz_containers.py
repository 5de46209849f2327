"""Damaged containers whose checksums are right: no crash, no hang, only errors of ours.

Damage is done to what is parsed, in places and with values that hypothesis chooses, and to single bytes.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imageformat.device import MemoryDevice
from imageformat.errors import MountfsError
from imageformat.secrets import NO_SECRETS, Secrets
from mountfs.containers import _keyslots, bitlocker, luks, lvm
from mountfs.containers._lvm_metadata import checksum
from mountfs.disktree import DiskTree
from mountfs.session import drivers_of, volume_containers
from mountfs.tree import FileSystemInfo
from support.bitlocker import BLOCKS, KIB, make_volume
from support.containers import PASSWORD, encrypt_luks1, encrypt_luks2

if TYPE_CHECKING:
    from mountfs.containers import VolumeContainer

EXAMPLES = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SECRETS = Secrets((PASSWORD.encode(),), (b"key",))
TYPES = {"luks": "luks2", "lvm": "lvm2", "bitlocker": "bitlocker"}

damage = st.lists(
    st.tuples(
        st.integers(0, 1 << 16),
        st.sampled_from([1, 2, 4, 8]),
        st.one_of(
            st.sampled_from([0, 1, 0x7F, 0xFF, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1]),
            st.integers(0, (1 << 64) - 1),
        ),
    ),
    min_size=1,
    max_size=6,
)
hostile = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        [0, -1, 1, 7, 1 << 31, 1 << 70, 0.5, "", "0", "-1", "99999999999999999999", "x", "dynamic", [], {}]
    ),
    st.text(max_size=8),
)


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds on costs are tested elsewhere; here they would only make it slow."""
    monkeypatch.setattr(_keyslots, "_MAX_ITERATIONS", 2000)
    monkeypatch.setattr(_keyslots, "_MAX_MEMORY_KIB", 1 << 10)
    monkeypatch.setattr(bitlocker, "_ROUNDS", 10)


def look(plugin: VolumeContainer, kind: str, content: bytes, secrets: Secrets) -> None:
    """Open it, and read what is in it, as a container and as a tree."""
    try:
        opened = plugin.open(iter([MemoryDevice(content)]), FileSystemInfo(kind), secrets)
    except MountfsError:
        return
    for volume in opened.volumes:
        assert volume.size >= 0
        if volume.device is None:
            assert volume.reason
            continue
        for offset, size in ((0, 4096), (volume.size // 2, 5), (volume.size - 1, 1)):
            if 0 <= offset <= volume.size - size:
                try:
                    assert len(volume.device.pread(offset, size)) == size
                except MountfsError:
                    continue
                for place in volume.places(offset, size):
                    assert place.member == 0
                    assert 0 <= place.offset <= len(content) - place.length


def patch(content: bytearray, start: int, span: int, changes: list[tuple[int, int, int]]) -> None:
    for at, width, value in changes:
        where = start + at % max(1, span - width)
        content[where : where + width] = (value % 256**width).to_bytes(width, "little")


@pytest.fixture(scope="module")
def luks2(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("luks2") / "disk"
    path.write_bytes(bytes(1 << 20))
    encrypt_luks2(path)
    return path.read_bytes()[: 18 << 20]


@pytest.fixture(scope="module")
def luks1(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("luks1")
    (folder / "plain").write_bytes(bytes(1 << 20))
    encrypt_luks1(folder / "plain", folder / "disk")
    return (folder / "disk").read_bytes()


def spots(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all values of a JSON text."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(spot for key, inner in inside for spot in spots(inner, (*path, key)))]


@settings(EXAMPLES, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 1000), hostile), min_size=1, max_size=3), st.booleans())
def test_luks2_metadata(luks2: bytes, changes: list[tuple[int, Any]], given_secrets: bool) -> None:
    metadata = json.loads(luks2[4096:0x4000].split(b"\0", 1)[0])
    for number, value in changes:
        ways = [way for way in spots(metadata) if way]
        way = ways[number % len(ways)]
        holder = metadata
        for key in way[:-1]:
            holder = holder[key]
        holder[way[-1]] = value
    content = bytearray(luks2)
    for start in (0, 0x4000):
        content[start + 4096 : start + 0x4000] = json.dumps(metadata).encode().ljust(0x3000, b"\0")
        content[start + 448 : start + 512] = bytes(64)
        content[start + 448 : start + 480] = hashlib.sha256(content[start : start + 0x4000]).digest()
    look(luks.PLUGIN, "luks2", bytes(content), SECRETS if given_secrets else NO_SECRETS)


@settings(EXAMPLES, max_examples=60)
@given(damage)
def test_luks1_headers(luks1: bytes, changes: list[tuple[int, int, int]]) -> None:
    content = bytearray(luks1)
    patch(content, 0, 592, changes)
    look(luks.PLUGIN, "luks1", bytes(content), SECRETS)


@EXAMPLES
@given(damage, st.booleans())
def test_bitlocker_metadata(changes: list[tuple[int, int, int]], vista: bool) -> None:
    content = bytearray(make_cached(vista=vista))
    for at in BLOCKS:
        patch(content, at, 900, changes)
        size = struct.unpack_from("<H", content, at + 8)[0] * (1 if vista else 16)
        if size < 8 * KIB:
            struct.pack_into("<I", content, at + size + 4, zlib.crc32(content[at : at + size]))
    look(bitlocker.PLUGIN, "bitlocker", bytes(content), SECRETS)


CACHE: dict[bool, bytes] = {}


def make_cached(*, vista: bool) -> bytes:
    if vista not in CACHE:
        CACHE[vista] = make_volume("aes-cbc-256" if vista else "aes-xts-128", vista=vista).stored
    return CACHE[vista]


TEXT = """vg { id = "u" seqno = 3 extent_size = 128 status = ["READ"]
physical_volumes { pv0 { id = "%s" device = "/dev/sda" pe_start = 128 pe_count = 9 } }
logical_volumes {
 one { id = "l" status = ["VISIBLE"] segment_count = 2
  segment1 { start_extent = 0 extent_count = 3 type = "striped" stripe_count = 1 stripes = ["pv0", 0] }
  segment2 { start_extent = 3 extent_count = 2 type = "striped" stripe_count = 2 stripe_size = 8
   stripes = ["pv0", 3, "pv0", 5] } }
 two { id = "m" status = ["VISIBLE"] segment_count = 1
  segment1 { start_extent = 0 extent_count = 1 type = "snapshot" origin = "one" cow_store = "one" } }
} }""" % ("x" * 32)
WORDS = st.sampled_from(
    [
        "0",
        "1",
        "-1",
        "3",
        "281474976710655",
        "999999999999999999999",
        '"pv0"',
        '"x"',
        "[",
        "]",
        "{",
        "}",
        "=",
        "",
        "#",
        '"',
    ]
)


@EXAMPLES
@given(st.lists(st.tuples(st.integers(0, 500), WORDS), max_size=4), damage)
def test_lvm_metadata(words: list[tuple[int, str]], changes: list[tuple[int, int, int]]) -> None:
    tokens = TEXT.replace("[", "[ ").replace("]", " ]").split(" ")
    for number, word in words:
        tokens[number % len(tokens)] = word
    text = bytearray(" ".join(tokens).encode())
    if not words:
        patch(text, 0, len(text), changes)
    body = struct.pack("<16sIQQ", b" LVM2 x[5A%r0N*>", 1, 4096, 8192)
    body += struct.pack("<QQII", 512, len(text), checksum(bytes(text)), 0)
    body = body.ljust(508, b"\0")
    area = struct.pack("<I", checksum(body)) + body + bytes(text)
    label = struct.pack("<I8s", 32, b"LVM2 001") + b"x" * 32
    label = (label + struct.pack("<Q6Q", 1 << 20, 1 << 16, 0, 0, 0, 4096, 8192) + bytes(16)).ljust(492, b"\0")
    sector = struct.pack("<8sQI", b"LABELONE", 1, checksum(label)) + label
    content = (bytes(512) + sector).ljust(4096, b"\0") + area
    look(lvm.PLUGIN, "lvm2", content.ljust(1 << 20, b"\0"), NO_SECRETS)


@settings(EXAMPLES, max_examples=40)
@given(damage, st.sampled_from(["bitlocker", "luks1"]))
def test_trees_of_damaged_volumes(luks1: bytes, changes: list[tuple[int, int, int]], kind: str) -> None:
    content = bytearray(luks1 if kind == "luks1" else make_cached(vista=False))
    patch(content, 0, 1024, changes)
    tree = DiskTree(MemoryDevice(bytes(content)), drivers_of, containers=volume_containers, secrets=SECRETS)
    for volume, _ in tree.all_volumes():
        assert volume.name
    pending = [tree.root()]
    while pending:
        for node in tree.children(pending.pop()):
            if node.size:
                list(tree.placements(node))
            elif node.name.startswith((b"0", b"1")):
                pending.append(node)
    tree.close()
