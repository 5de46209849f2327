"""Volume groups that lvm2 made, read by us: where volumes lie, what is missing, what makes no sense."""

from __future__ import annotations

import contextlib
import lzma
import os
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageformat.device import MemoryDevice
from imageformat.errors import MountfsError, VolumeError
from imageformat.secrets import NO_SECRETS
from mountfs.containers._lvm_metadata import checksum, read_group
from mountfs.containers._lvm_text import parse
from mountfs.containers.lvm import open_lvm
from mountfs.disktree import DiskTree
from mountfs.session import drivers_of, volume_containers
from mountfs.tree import walk
from support.containers import MIB, Group, volume_group, write_pieces
from support.content import noise
from support.disks import Part, make_gpt_disk
from support.kernel import loop_device

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mountfs.containers import InnerVolume, OpenedContainer

SIZE = 24 * MIB


def opened(*contents: bytes) -> OpenedContainer:
    return open_lvm(iter([MemoryDevice(content) for content in contents]), None, NO_SECRETS)  # type: ignore[arg-type]


def volume(container: OpenedContainer, name: str) -> InnerVolume:
    return next(found for found in container.volumes if found.name == name)


def read(found: InnerVolume) -> bytes:
    assert found.device is not None, found.reason
    return found.device.pread(0, found.size)


def blank(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.write_bytes(b"")
        os.truncate(path, SIZE)
    return paths


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """`spread` has pieces on both of the physical volumes, `narrow` is on the first alone."""
    paths = blank(tmp_path_factory.mktemp("lvm"), "a", "b")
    with volume_group(*paths) as made:
        made.create("narrow", 3, made.devices[0])
        made.create("spread", 4, made.devices[1])
        made.call("lvextend", "-l", "9", "vg0/spread", made.devices[0])
        made.create("striped", 8, "-i", "2", "-I", "64k")
        made.create("other", 2, made.devices[1])
        pieces = {name: made.pieces(name) for name in ("narrow", "spread", "other")}
    assert len({piece.device for piece in pieces["spread"]}) == 2
    for seed, (name, found) in enumerate(pieces.items()):
        write_pieces(paths, found, content_of(name, sum(piece.size for piece in found), seed))
    return paths[0].read_bytes(), paths[1].read_bytes()


def content_of(name: str, size: int, seed: int) -> bytes:
    return name.encode() + noise(seed, size - len(name))


def test_linear_volumes_lie_where_lvs_says(group: tuple[bytes, bytes]) -> None:
    for given_order in (group, group[::-1]):
        container = opened(*given_order)
        assert [found.name for found in container.volumes] == ["narrow", "spread", "striped", "other"]
        assert container.members == (0, 1)
        for seed, (name, extents) in enumerate({"narrow": 3, "spread": 9, "other": 2}.items()):
            assert read(volume(container, name)) == content_of(name, extents * MIB, seed)


def test_stripes_go_round(group: tuple[bytes, bytes]) -> None:
    """As the kernel's documentation of dm-stripe has it: chunk n lies on stripe n modulo their number."""
    found = volume(opened(*group), "striped")
    places = list(found.places(0, found.size))
    assert len(places) == 8 * MIB // 65536
    starts = {place.member: place.offset for place in reversed(places)}
    for chunk, place in enumerate(places):
        assert place == (chunk % 2, starts[chunk % 2] + chunk // 2 * 65536, 65536)
    (place,) = found.places(3 * 65536 + 5, 7)
    assert place == (1, starts[1] + 65536 + 5, 7)
    content = read(found)
    device = found.device
    assert device is not None
    for offset, size in [(0, 1), (65535, 2), (100_000, 300_000), (found.size - 1, 1), (5, 0)]:
        assert device.pread(offset, size) == content[offset : offset + size]


def test_a_missing_physical_volume_is_named(group: tuple[bytes, bytes]) -> None:
    container = opened(group[0], bytes(SIZE))
    assert read(volume(container, "narrow")).startswith(b"narrow")
    for name in ("spread", "striped", "other"):
        found = volume(container, name)
        assert found.device is None
        assert "pv1" in found.reason
        assert "/dev/loop" in found.reason
        assert list(found.places(0, 1)) == []
    assert container.members == (0,)


def test_others_are_asked_for_only_as_long_as_some_are_missing(group: tuple[bytes, bytes]) -> None:
    asked = []

    def devices() -> object:
        for content in (*group, b"", b""):
            asked.append(len(content))
            yield MemoryDevice(content)

    open_lvm(devices(), None, NO_SECRETS)  # type: ignore[arg-type]
    assert asked == [SIZE, SIZE]


def on_a_disk(folder: Path, *volumes: bytes) -> DiskTree:
    parts = []
    for number, content in enumerate(volumes):
        (folder / f"part{number}").write_bytes(content)
        parts.append(Part(SIZE, content=folder / f"part{number}"))
    make_gpt_disk(folder / "disk", (len(volumes) * 24 + 2) * MIB, parts)
    device = MemoryDevice((folder / "disk").read_bytes())
    return DiskTree(device, drivers_of, containers=volume_containers)


def test_a_group_over_two_partitions_is_shown_once(tmp_path: Path, group: tuple[bytes, bytes]) -> None:
    tree = on_a_disk(tmp_path, *group)
    shown = [node.name for node in tree.children(walk(tree, b"1"))]
    assert shown == [b"1-narrow", b"2-spread", b"3-striped", b"4-other"]
    assert [node.name for node in tree.children(walk(tree, b"2"))] == [b"partition.img", b"README"]
    note = walk(tree, b"2/README")
    assert b"is shown in 1-lvm2-vg0" in tree.read(note, 0, note.size)
    assert [volume.name for volume in tree.volumes()] == [b"1-lvm2-vg0", b"2-lvm2-vg0"]
    assert tree.failures() == ()
    image = walk(tree, b"1/2/partition.img")
    assert tree.read(image, 0, 6) == b"spread"


def test_a_group_without_volumes_is_shown_raw(tmp_path: Path) -> None:
    (path,) = blank(tmp_path, "pv")
    with volume_group(path):
        pass
    tree = on_a_disk(tmp_path, path.read_bytes())
    note = walk(tree, b"1/README")
    assert b"vg0 has no logical volumes" in tree.read(note, 0, note.size)


SNAPSHOT = """
 snap {
  id = "aaaaaa-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa"
  status = ["READ", "WRITE", "VISIBLE"]
  segment_count = 1
  segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1 stripes = ["pv0", 20] }
 }
 snapshot0 {
  id = "bbbbbb-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa"
  status = ["READ", "WRITE"]
  segment_count = 1
  segment1 {
   start_extent = 0 extent_count = 3
   type = "snapshot" chunk_size = 8 origin = "narrow" cow_store = "snap"
  }
 }
"""


def rewritten(folder: Path, group: tuple[bytes, bytes], change: Callable[[str], str]) -> bytes:
    """The first physical volume, with metadata that vgcfgrestore took from a changed text."""
    paths = [folder / "a", folder / "b"]
    for path, content in zip(paths, group, strict=True):
        path.write_bytes(content)
    with loop_device(paths[0]) as first, loop_device(paths[1]) as second:
        tools = Group((first, second))
        backup = folder / "text"
        tools.call("vgcfgbackup", "-f", str(backup), "vg0")
        backup.write_text(change(backup.read_text()))
        tools.call("vgcfgrestore", "-f", str(backup), "--force", "vg0")
    return paths[0].read_bytes()


def test_a_snapshot_says_what_it_is(tmp_path: Path, group: tuple[bytes, bytes]) -> None:
    def change(text: str) -> str:
        return text.replace("logical_volumes {", "logical_volumes {" + SNAPSHOT, 1)

    container = opened(rewritten(tmp_path, group, change), group[1])
    assert "snapshot of narrow" in volume(container, "snap").reason
    assert volume(container, "snap").device is None
    assert read(volume(container, "narrow")).startswith(b"narrow")
    assert "snapshot0" not in [found.name for found in container.volumes]


@pytest.mark.parametrize(
    "kind", ["thin", "thin-pool", "cache", "raid5_ls", "raid1", "mirror", "vdo", "error"]
)
def test_other_kinds_say_what_they_are(kind: str, group: tuple[bytes, bytes]) -> None:
    uuid = group[0][group[0].index(b"LABELONE") + 32 :][:32].decode()
    text = text_of(one(f'start_extent = 0 extent_count = 1 type = "{kind}"')).replace('"x"', f'"{uuid}"')
    sector, ring = area(text.encode(), at=512, size=4096, uuid=uuid.encode())
    content = (bytes(512) + sector + bytes(3072) + ring).ljust(4 * MIB, b"\0")
    (found,) = opened(content).volumes
    assert found.device is None
    assert kind in found.reason


def test_the_header_that_blkid_is_tested_with(shared_data: Path) -> None:
    packed = shared_data / "fs-images" / "images" / "lvm2-utillinux.disk.img.xz"
    with pytest.raises(VolumeError):
        opened(lzma.decompress(packed.read_bytes()))


def text_of(volumes: str, *, extent: str = "2048") -> str:
    carrier = 'pv0 { id = "x" device = "/dev/sda" pe_start = 2048 }'
    return (
        f'vg {{ id = "u" seqno = 1 extent_size = {extent} '
        f"physical_volumes {{ {carrier} }} logical_volumes {{ {volumes} }} }}"
    )


def one(segment: str, *, count: int = 1) -> str:
    return f'lv {{ id = "l" status = ["VISIBLE"] segment_count = {count} segment1 {{ {segment} }} }}'


STRIPES = 'type = "striped" stripes = ["pv0", 0]'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "vg {",
        "vg { a = [1, }",
        'vg { a = "',
        "vg " * 100,
        "a { " * 100 + "}" * 100,
        text_of("", extent="0"),
        text_of("", extent='"x"'),
        text_of("", extent="-5"),
        text_of("", extent="99999999999999999999"),
        text_of(one(f"start_extent = 1 extent_count = 1 {STRIPES}")),
        text_of(one(f"start_extent = 0 extent_count = 0 {STRIPES}")),
        text_of(one(f"start_extent = 0 extent_count = 281474976710655 {STRIPES}")),
        text_of(one(f"start_extent = 0 extent_count = 1 {STRIPES}", count=1 << 40)),
        text_of("lv = 5"),
    ],
)
def test_texts_that_make_no_sense(text: str) -> None:
    with pytest.raises(VolumeError):
        read_group(text)


def test_comments_and_strings() -> None:
    text = 'a = 1 # one\n#\n# # ##\nb { c = "x\\"y\\\\z" d = [ "e", 5, ] }\n# end'
    assert parse(text) == {"a": 1, "b": {"c": 'x"y\\z', "d": ["e", 5]}}
    with pytest.raises(VolumeError):
        parse("#" * 100_000 + "\n\x01")


@given(st.text(st.sampled_from('{}[]=#,"\\ \n\x01a1-'), max_size=200))
def test_any_text(text: str) -> None:
    with contextlib.suppress(VolumeError):
        parse(text)


def test_damaged_labels_and_areas(group: tuple[bytes, bytes]) -> None:
    first, second = group
    label = first.index(b"LABELONE")
    for at in (label + 20, label + 60):
        damaged = bytearray(first)
        damaged[at] ^= 1
        with pytest.raises(VolumeError, match="label"):
            opened(bytes(damaged), second)
    damaged = bytearray(first)
    damaged[4096 + 8] ^= 1
    assert read(volume(opened(bytes(damaged), second), "narrow")).startswith(b"narrow")
    with pytest.raises(VolumeError, match="no metadata"):
        opened(bytes(damaged))


def area(
    text: bytes, *, at: int, size: int, offset: int = 4096, uuid: bytes = b"x" * 32
) -> tuple[bytes, bytes]:
    """An area whose text wraps around its end, with checksums that are right."""
    ring = bytearray(size)
    room = size - at
    ring[at : at + min(room, len(text))] = text[:room]
    ring[512 : 512 + max(0, len(text) - room)] = text[room:]
    body = struct.pack("<16sIQQ", b" LVM2 x[5A%r0N*>", 1, offset, size)
    body += struct.pack("<QQII", at, len(text), checksum(text), 0)
    body = body.ljust(508, b"\0")
    ring[:512] = struct.pack("<I", checksum(body)) + body
    contents = uuid + struct.pack("<Q6Q", 0, 1 << 20, 0, 0, 0, offset, size) + bytes(16)
    label = struct.pack("<I8s", 32, b"LVM2 001") + contents
    label = label.ljust(492, b"\0")
    sector = struct.pack("<8sQI", b"LABELONE", 1, checksum(label)) + label
    return sector, bytes(ring)


@pytest.mark.parametrize("at", [512, 1000, 4096 - 10])
def test_the_ring_of_an_area(at: int) -> None:
    text = (
        text_of(one(f"start_extent = 0 extent_count = 1 {STRIPES}")).replace('"x"', f'"{"x" * 32}"').encode()
    )
    sector, ring = area(text, at=at, size=4096)
    content = bytes(512) + sector + bytes(3072) + ring
    found = opened(content.ljust(4 * MIB, b"\0"))
    assert [entry.name for entry in found.volumes] == ["lv"]
    for hostile in ({"at": 511, "size": 4096}, {"at": 5000, "size": 4096}):
        sector, ring = area(text, **hostile)
        with pytest.raises(MountfsError):
            opened((bytes(512) + sector + bytes(3072) + ring).ljust(4 * MIB, b"\0"))
