"""qcow2 images of every kind that qemu-img can make, byte for byte as qemu-img reads them."""

from __future__ import annotations

import hashlib
import itertools
import json
import lzma
import os
import random
import struct
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from imageformat.errors import (
    AccessDeniedError,
    ChainCycleError,
    CorruptImageError,
    IncompleteImageError,
    MountfsError,
    ParentMissingError,
    UnsupportedFeatureError,
)
from imageformat.extent import ExtentKind
from imageformat.repository import Repository
from imageformat.siblings import NamedFile
from imageformat.storage.local import LocalStorage
from support.content import mixture, noise, text
from support.judge import hold_against, opened, qemu_truth, view_of
from support.requirements import require_tool, run

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
SIZE = 5 * MIB + 3 * 512
CLUSTERS = [
    pytest.param(1 << bits, marks=() if bits in {9, 12, 16, 17, 21} else pytest.mark.nightly)
    for bits in range(9, 22)
]


@pytest.fixture(autouse=True)
def _tools() -> None:
    require_tool("qemu-img", "qemu-io")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw disk of zeros, text and noise in runs, whose last cluster is cut."""
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    content = mixture(7, SIZE, unit=24 << 10)
    path.write_bytes(content[: 2 * MIB] + bytes(MIB) + content[3 * MIB :])
    return path


def create(path: Path, size: int | str, *options: str, backing: Path | None = None, kind: str = "") -> Path:
    arguments: list[str] = []
    if backing is not None:
        arguments = ["-b", backing.name, "-F", kind or "qcow2"]
    extra = ["-o", ",".join(options)] if options else []
    run("qemu-img", "create", "-q", "-f", "qcow2", *extra, *arguments, path, *([str(size)] if size else []))
    return path


def write(path: Path, *commands: str) -> None:
    run("qemu-io", "-f", "qcow2", *itertools.chain.from_iterable(("-c", line) for line in commands), path)


def scribble(path: Path, seed: int, size: int, count: int = 40) -> None:
    """Writes, zero writes and discards anywhere, as a guest makes them."""
    source = random.Random(seed)
    commands = []
    for number in range(count):
        length = source.choice([512, 4096, 12_288, 65_536, 200 << 10])
        offset = source.randrange(0, max(512, size - length), 512)
        kind = source.choice(["write -P", "write -P", "write -z", "write -zu", "discard"])
        value = f" {number + 1}" if kind.endswith("-P") else ""
        commands.append(f"{kind}{value} {offset} {length}")
    write(path, *commands)


def judge(path: Path) -> bytes:
    truth = qemu_truth(path, "qcow2")
    with opened(path) as layer:
        assert layer.info.format == "qcow2"
        assert list(layer.prove()) == []
        hold_against(layer, truth)
    return truth


@pytest.mark.parametrize("packing", ["plain", "zlib", "zstd"])
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_converted(disk: Path, tmp_path: Path, cluster: int, packing: str) -> None:
    options = [f"cluster_size={cluster}"] + ([f"compression_type={packing}"] if packing != "plain" else [])
    packed = ["-c"] if packing != "plain" else []
    path = tmp_path / "disk.qcow2"
    run("qemu-img", "convert", "-O", "qcow2", *packed, "-o", ",".join(options), disk, path)
    assert judge(path) == disk.read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        ("compat=0.10",),
        ("compat=0.10", "cluster_size=4096"),
        ("lazy_refcounts=on",),
        ("preallocation=metadata",),
        ("preallocation=falloc",),
        ("preallocation=full",),
        ("refcount_bits=1",),
        ("extended_l2=on",),
        ("extended_l2=on", "cluster_size=16k"),
        ("extended_l2=on", "cluster_size=2M"),
        ("extended_l2=on", "preallocation=metadata"),
        ("cluster_size=512",),
    ],
    ids="-".join,
)
def test_written_by_a_guest(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = create(tmp_path / "disk.qcow2", SIZE, *options)
    judge(path)
    scribble(path, 3, SIZE)
    assert any(judge(path))


@pytest.mark.parametrize("raw", ["on", "off"])
@pytest.mark.parametrize("extended", ["on", "off"])
def test_external_data_file(tmp_path: Path, raw: str, extended: str) -> None:
    path = tmp_path / "disk.qcow2"
    data = f"data_file={tmp_path / 'disk.data'}"
    create(path, SIZE, data, f"data_file_raw={raw}", f"extended_l2={extended}")
    scribble(path, 4, SIZE)
    assert any(judge(path))
    with opened(path) as layer:
        assert layer.info.details["data_file"] == str(tmp_path / "disk.data")
    (tmp_path / "disk.data").unlink()
    with pytest.raises(ParentMissingError, match=r"disk\.data"), opened(path):
        pass


@pytest.mark.parametrize("options", [(), ("extended_l2=on",), ("cluster_size=4k",)], ids=str)
def test_chain_of_three(disk: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    base = tmp_path / "base.qcow2"
    run("qemu-img", "convert", "-c", "-O", "qcow2", disk, base)
    middle = create(tmp_path / "middle.qcow2", 0, *options, backing=base)
    scribble(middle, 5, SIZE)
    top = create(tmp_path / "top.qcow2", 0, *options, backing=middle)
    write(top, "write -z 1M 300k", "write -P 9 3M 4k", "write -z 0 64k")
    for path in (base, middle, top):
        judge(path)
    with opened(top) as layer:
        assert layer.info.details["parent"] == "middle.qcow2"


@pytest.mark.parametrize("below", [MIB - 512, SIZE, 9 * MIB])
def test_raw_backing_of_any_length(tmp_path: Path, below: int) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(noise(1, below))
    path = create(tmp_path / "top.qcow2", SIZE, backing=base, kind="raw")
    write(path, "write -P 1 900k 200k", "write -z 2M 64k")
    judge(path)


@pytest.mark.parametrize("kind", ["vdi", "raw", "qcow2"])
def test_backing_of_another_format(disk: Path, tmp_path: Path, kind: str) -> None:
    base = tmp_path / f"base.{kind}"
    run("qemu-img", "convert", "-O", kind, disk, base)
    path = create(tmp_path / "top.qcow2", 0, backing=base, kind=kind)
    write(path, "write -P 1 900k 200k")
    judge(path)


def test_resized(disk: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    run("qemu-img", "convert", "-O", "qcow2", "-o", "cluster_size=4k", disk, path)
    for size in ("9M", "70M"):
        run("qemu-img", "resize", "-q", "-f", "qcow2", path, size)
        judge(path)
    run("qemu-img", "resize", "-q", "-f", "qcow2", "--shrink", path, "1500k")
    judge(path)


def test_snapshots_are_named_and_the_active_state_is_shown(disk: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    run("qemu-img", "convert", "-O", "qcow2", disk, path)
    states = []
    for number in range(3):
        run("qemu-img", "snapshot", "-q", "-c", f"state {number} ü", path)
        write(path, f"write -P {number + 1} {number}M 100k", f"write -z {number}M 8k")
        states.append(judge(path))
    with opened(path) as layer:
        snapshots = layer.info.details["snapshots"]
        assert isinstance(snapshots, list)
        assert [entry["name"] for entry in snapshots] == [f"state {number} ü" for number in range(3)]
        assert [entry["id"] for entry in snapshots] == ["1", "2", "3"]
        json.dumps(dict(layer.info.details))
    run("qemu-img", "snapshot", "-q", "-a", "state 1 ü", path)
    assert judge(path) == states[0]


def test_a_dirty_image_is_read(tmp_path: Path) -> None:
    path = create(tmp_path / "disk.qcow2", SIZE, "lazy_refcounts=on")
    with pytest.raises(RuntimeError):
        write(path, "write -P 5 1M 300k", "flush", "abort")
    assert path.read_bytes()[79] & 1, "the crash left it dirty"
    with opened(path) as layer:
        assert layer.info.details["dirty"] is True
        found = view_of(layer).pread(0, SIZE)
    assert found == bytes(MIB) + b"\5" * (300 << 10) + bytes(SIZE - MIB - (300 << 10))


def patched(path: Path, offset: int, content: bytes) -> Path:
    changed = bytearray(path.read_bytes())
    changed[offset : offset + len(content)] = content
    path.write_bytes(changed)
    return path


def test_marked_corrupt_is_opened_and_told(tmp_path: Path) -> None:
    path = create(tmp_path / "disk.qcow2", SIZE)
    write(path, "write -P 5 1M 300k")
    truth = qemu_truth(path, "qcow2")
    patched(path, 79, b"\2")
    with opened(path) as layer:
        hold_against(layer, truth)
        assert layer.info.details["corrupt"] is True
        assert "corrupt" in next(iter(layer.prove()))


def test_unknown_features_are_named(tmp_path: Path) -> None:
    path = create(tmp_path / "disk.qcow2", SIZE)
    patched(path, 72, struct.pack(">Q", 1 << 40))
    with pytest.raises(UnsupportedFeatureError, match="bit 40"), opened(path):
        pass
    content = path.read_bytes()
    table = content.index(struct.pack(">I", 0x6803F857))
    patched(path, table + 8, b"\0\x28" + b"time travel".ljust(46, b"\0"))
    with pytest.raises(UnsupportedFeatureError, match="time travel"), opened(path):
        pass


@pytest.mark.parametrize(("method", "kind"), [(1, "AES"), (2, "LUKS"), (9, "method 9")])
def test_encrypted_inside_is_refused_by_name(tmp_path: Path, method: int, kind: str) -> None:
    path = create(tmp_path / "disk.qcow2", SIZE)
    patched(path, 32, struct.pack(">I", method))
    with pytest.raises(UnsupportedFeatureError, match=kind), opened(path):
        pass


def test_a_raw_backing_file_is_never_taken_for_an_image(tmp_path: Path) -> None:
    """The guest wrote the header of an image of its own at the start of its raw disk."""
    (tmp_path / "secret.raw").write_bytes(text(1, MIB))
    evil = create(tmp_path / "evil.qcow2", 0, backing=tmp_path / "secret.raw", kind="raw")
    base = tmp_path / "guest.raw"
    base.write_bytes(evil.read_bytes().ljust(2 * MIB, b"\0"))
    top = create(tmp_path / "top.qcow2", 0, backing=base, kind="raw")
    assert judge(top) == base.read_bytes()


def test_a_guessed_backing_file_opens_no_others(tmp_path: Path) -> None:
    (tmp_path / "secret.raw").write_bytes(text(1, MIB))
    middle = create(tmp_path / "middle.qcow2", 0, backing=tmp_path / "secret.raw", kind="raw")
    top = create(tmp_path / "top.qcow2", 0, backing=middle)
    name_at = top.read_bytes().index(struct.pack(">I", 0xE2792ACA))
    patched(top, name_at, struct.pack(">I", 0x12345678))
    with pytest.raises(AccessDeniedError, match="--backing"), opened(top):
        pass
    named = NamedFile("secret.raw", LocalStorage(tmp_path), "secret.raw")
    with opened(top, named=[named]) as layer:
        hold_against(layer, text(1, MIB))
    run("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", middle, tmp_path / "alone.qcow2")
    (tmp_path / "alone.qcow2").replace(middle)
    with opened(top) as layer:
        hold_against(layer, text(1, MIB))


def test_names_that_are_no_text_are_opened_and_shown(tmp_path: Path) -> None:
    base = tmp_path / "b\udcffse.qcow2"
    base.write_bytes(create(tmp_path / "plain.qcow2", MIB).read_bytes())
    top = tmp_path / "top.qcow2"
    top.write_bytes(overlay(base.name, MIB))
    for repeat in range(2):
        with closing(Repository(LocalStorage(tmp_path), only_set="")) as repository:
            point = next(p for p in repository.image_set("").points if p.file_name == "top.qcow2")
            assert point.problem is None, repeat
            assert point.info is not None
            assert point.info.details["parent"] == "b�se.qcow2"
            json.dumps(dict(point.info.details)).encode()


def test_a_circle_is_an_error(tmp_path: Path) -> None:
    one = create(tmp_path / "1.qcow2", MIB)
    two = create(tmp_path / "2.qcow2", 0, backing=one)
    run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "2.qcow2", one)
    for path in (one, two):
        with pytest.raises(ChainCycleError), opened(path):
            pass


def test_a_long_line_is_read(tmp_path: Path) -> None:
    path = create(tmp_path / "0.qcow2", MIB)
    write(path, "write -P 1 0 1M")
    for number in range(1, 90):
        following = tmp_path / f"{number}.qcow2"
        following.write_bytes(overlay(path.name, MIB))
        path = following
    with opened(path) as layer:
        assert view_of(layer).pread(0, MIB) == b"\1" * MIB
    for number in range(90, 110):
        (tmp_path / f"{number}.qcow2").write_bytes(overlay(f"{number - 1}.qcow2", MIB))
    with pytest.raises(ChainCycleError, match="100"), opened(tmp_path / "109.qcow2"):
        pass


def overlay(backing: str, size: int) -> bytes:
    """An empty version 2 overlay, by hand: qemu-img takes too long to make a hundred."""
    name, extension = os.fsencode(backing), struct.pack(">II", 0xE2792ACA, 5) + b"qcow2\0\0\0" + bytes(8)
    at = 72 + len(extension)
    header = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, at, len(name), 16, size, 0, 1, 65536, 131072, 1, 0, 0
    )
    return (header + extension + name).ljust(65536, b"\0") + bytes(65536)


def test_holes_of_preallocated_images_are_no_data(tmp_path: Path) -> None:
    path = create(tmp_path / "disk.qcow2", 64 * MIB, "preallocation=metadata")
    with opened(path) as layer:
        extents = list(view_of(layer).extents(0, 64 * MIB))
    data = sum(extent.length for extent in extents if extent.kind is ExtentKind.DATA)
    assert data < MIB


def test_tables_that_lie_are_errors(disk: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    run("qemu-img", "convert", "-O", "qcow2", disk, path)
    content = path.read_bytes()
    (l1,) = struct.unpack_from(">Q", content, 40)
    l2 = struct.unpack_from(">Q", content, l1)[0] & 0x00FF_FFFF_FFFF_FE00
    stored = struct.unpack_from(">Q", content, l2)[0]
    assert stored
    for offset, value, error in (
        (40, l1 + 512, CorruptImageError),
        (40, 1 << 50, IncompleteImageError),
        (l1, 1 << 63 | (l2 + 512), CorruptImageError),
        (l1, 1 << 63 | 1 << 40, IncompleteImageError),
        (l1, 1 << 62 | l2, CorruptImageError),
        (l2, stored | 2, CorruptImageError),
        (l2, stored + 512, CorruptImageError),
        (l2, 1 << 63 | 1 << 40, IncompleteImageError),
        (l2, 1 << 63, CorruptImageError),
        (l2, 1 << 62 | 1 << 45, IncompleteImageError),
        (l2, 1 << 62 | l2, CorruptImageError),
    ):
        changed = tmp_path / "changed.qcow2"
        changed.write_bytes(content)
        patched(changed, offset, struct.pack(">Q", value))
        with pytest.raises(error), opened(changed) as layer:
            view_of(layer).pread(0, 4096)


@pytest.mark.parametrize(
    ("case", "field"), [("qcow2-dfvfs-ext2", "disk"), ("ntfs-dfvfs-windows-volume", "disk")]
)
def test_stored_images_of_others(shared_data: Path, tmp_path: Path, case: str, field: str) -> None:
    known = json.loads((shared_data / "fs-images" / "expectations.json").read_text())
    entry = next(entry for entry in known["good"] if entry["id"] == case)
    (packed,) = entry["packed"].values()
    path = tmp_path / "disk.qcow2"
    path.write_bytes(lzma.decompress((shared_data / "fs-images" / packed).read_bytes()))
    found = hashlib.sha256()
    with opened(path) as layer:
        view = view_of(layer)
        assert view.size == entry[field]["size"]
        for offset in range(0, view.size, MIB):
            found.update(view.pread(offset, min(MIB, view.size - offset)))
        hold_against(layer, qemu_truth(path, "qcow2"))
    assert found.hexdigest() == entry[field]["sha256"]


def test_what_lies_in_one_place_twice_is_told(disk: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    run("qemu-img", "convert", "-O", "qcow2", disk, path)
    content = path.read_bytes()
    (l1,) = struct.unpack_from(">Q", content, 40)
    l2 = struct.unpack_from(">Q", content, l1)[0] & 0x00FF_FFFF_FFFF_FE00
    first, second = struct.unpack_from(">2Q", content, l2)
    assert first
    assert second
    for value, where in ((first, first), (1 << 63 | l2, l2), (1 << 63 | l1, l1)):
        patched(path, l2 + 8, struct.pack(">Q", value))
        with opened(path) as layer:
            problems = list(layer.prove())
        assert len(problems) == 1
        assert f"disk offset 65536 lies at {where & (1 << 56) - 512}" in problems[0]


def test_every_failure_is_one_of_ours(disk: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    run("qemu-img", "convert", "-c", "-O", "qcow2", disk, path)
    content = path.read_bytes()
    for length in (0, 3, 4, 8, 71, 72, 103, 104, 512, 65536, len(content) - 700):
        path.write_bytes(content[:length])
        try:
            with opened(path) as layer:
                view_of(layer).pread(0, SIZE)
        except MountfsError:
            continue
        pytest.fail(f"cut to {length} bytes and read as if nothing were missing")
