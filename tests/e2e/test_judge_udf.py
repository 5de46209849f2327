"""UDF of every kind: filled by genisoimage and udfclient, read by 7-Zip, and made here where no tool does."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from pathlib import Path

import pytest

from imageformat.device import MemoryDevice
from imageformat.errors import VolumeError
from mountfs.drivers import udf
from mountfs.signatures import identify
from mountfs.tree import FileSystemInfo, NodeKind, walk
from support import udfimages
from support.content import make_tree, mixture, noise, text
from support.entries import differences, read_entries
from support.requirements import require_tool, run
from support.trees import check_by_blkid, open_image, tree_entries
from support.udfimages import File, folder, link

SET = "0123456789abcdefSet"
UNKEPT = ("atime_ns", "ctime_ns", "links", "uid", "gid")

MEDIA = {
    "hd-1.02": ("--media-type=hd", "--udfrev=1.02", "--blocksize=512"),
    "hd-2.01": ("--media-type=hd", "--udfrev=2.01", "--blocksize=512"),
    "hd-2.01-short": ("--media-type=hd", "--udfrev=2.01", "--blocksize=1024", "--ad=short"),
    "cdrw-1.50-sparable": ("--media-type=cdrw", "--udfrev=1.50"),
    "dvdrw-2.01-sparable": ("--media-type=dvdrw", "--udfrev=2.01"),
}
EMPTY = {
    **MEDIA,
    "hd-1.50-long": ("--media-type=hd", "--udfrev=1.50", "--blocksize=2048", "--ad=long"),
    "hd-4096": ("--media-type=hd", "--blocksize=4096"),
    "hd-32k": ("--media-type=hd", "--blocksize=32768"),
    "dvdram": ("--media-type=dvdram",),
    "cdr-1.50-virtual": ("--media-type=cdr", "--udfrev=1.50"),
    "dvdr-2.01-virtual": ("--media-type=dvdr", "--udfrev=2.01"),
    "bdr-2.50-virtual": ("--media-type=bdr", "--udfrev=2.50"),
    "bdr-2.60-virtual": ("--media-type=bdr", "--udfrev=2.60"),
}


def mkudffs(image: Path, *options: str) -> Path:
    """Make an empty volume; of write-once media an image of what was written of it."""
    image.write_bytes(b"")
    os.truncate(image, 48 << 20)
    named = ("--utf8", "--label=Label ü 中", f"--fullvsid={SET}")
    said = dict(
        line.split("=", 1) for line in run("mkudffs", *named, *options, image).splitlines() if "=" in line
    )
    if "vatblock" in said:
        os.truncate(image, (int(said["vatblock"]) + 1) * int(said["blocksize"]))
    return image


def fill(image: Path, source: Path, block_size: str) -> None:
    """Have udfclient write a folder into a volume."""
    commands = f'cd "{SET}:Label:Label:LinuxUDF"\nlcd {source}\n'
    commands += (
        "".join(f"put {name}\n" for name in sorted(path.name for path in source.iterdir())) + "sync\nquit\n"
    )
    run("udfclient", "-W", "-b", block_size, image, stdin=commands.encode())


def simple_names(top: Path) -> None:
    """Files whose names the command line of udfclient can take."""
    for name, data in {
        "empty": b"",
        "small": b"hello\n",
        "noise": noise(1, 300_000),
        "mixture": mixture(2, 1_000_001),
        "deep/er/and/deeper/still.bin": noise(3, 70_001),
        # More names than these in one directory, udfclient itself loses.
        **{f"many/file-{number:03}": text(number, 100 + 400 * number) for number in range(9)},
    }.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(data)
    (top / "small").chmod(0o640)
    (top / "many").chmod(0o701)


@pytest.mark.parametrize("media", MEDIA)
def test_what_udfclient_wrote(media: str, tmp_path: Path) -> None:
    require_tool("mkudffs", "udfclient", "7zz")
    source, image = tmp_path / "source", tmp_path / "image"
    source.mkdir()
    simple_names(source)
    mkudffs(image, *("--label=Label", *MEDIA[media]))
    sizes = [option.partition("=")[2] for option in MEDIA[media] if option.startswith("--blocksize")]
    fill(image, source, (*sizes, "2048")[0])
    found = tree_entries(open_image(udf, image))
    found.pop(b"Non-Allocatable Space", None)
    # udfclient sets the modes and the times of folders and files when it writes them.
    ignored = (*UNKEPT, "mtime_ns", "mode")
    assert differences(read_entries(source), found, ignoring=ignored) == []
    if media in {"hd-1.02", "hd-2.01"}:  # 7-Zip knows neither sparable partitions nor blocks of 1 KiB
        check_by_seven_zip(image, tmp_path / "extracted", found)


def test_a_packet_that_wore_out_is_read_where_it_lies_now(tmp_path: Path) -> None:
    require_tool("mkudffs", "udfclient")
    source, image = tmp_path / "source", tmp_path / "image"
    source.mkdir()
    (source / "noise").write_bytes(noise(1, 300_000))
    fill(mkudffs(image, "--label=Label", "--media-type=cdrw"), source, "2048")
    raw = bytearray(image.read_bytes())
    packet = 32 * 2048
    partition = 2048 * struct.unpack_from("<I", raw, raw.find(b"+NSR0", 96 * 2048) - 25 + 188)[0]
    worn = (raw.find(noise(1, 300_000)[:2048]) - partition) // packet * packet
    tables = [at for at in range(0, len(raw), 2048) if raw[at + 17 : at + 35] == b"*UDF Sparing Table"]
    assert len(tables) >= 2
    spare = 2048 * struct.unpack_from("<I", raw, tables[0] + 60)[0]
    raw[spare : spare + packet] = raw[partition + worn : partition + worn + packet]
    raw[partition + worn : partition + worn + packet] = b"\xee" * packet
    for at in tables:
        struct.pack_into("<I", raw, at + 56, worn // 2048)
        length = struct.unpack_from("<H", raw, at + 10)[0]
        block = udfimages.tagged(0, at // 2048, bytes(raw[at + 16 : at + 16 + length]))
        raw[at : at + len(block)] = block
    tree = udf.PLUGIN.open(MemoryDevice(bytes(raw)), FileSystemInfo("udf"))
    assert tree.read(walk(tree, b"noise"), 0, 300_000) == noise(1, 300_000)


def check_by_seven_zip(image: Path, target: Path, found: dict) -> None:
    run("7zz", "x", "-y", "-bd", "-snld", f"-o{target}", image)
    top = target
    judged = {
        path: (entry["size"], entry["sha256"])
        for path, entry in read_entries(top).items()
        if entry["kind"] == "file"
    }
    ours = {
        path: (entry["size"], entry["sha256"]) for path, entry in found.items() if entry["kind"] == "file"
    }
    assert judged == ours


@pytest.mark.parametrize("media", EMPTY)
def test_empty_volumes_and_their_names(media: str, tmp_path: Path) -> None:
    image = mkudffs(tmp_path / "image", *EMPTY[media])
    info = identify(MemoryDevice(image.read_bytes()))
    assert info is not None
    assert (info.type, info.label, info.uuid) == ("udf", "Label ü 中", SET[:16])
    if media != "hd-32k":  # blkid knows no such blocks, Linux does
        check_by_blkid(image, "udf")
    tree = open_image(udf, image)
    assert tree.root().mode == 0o755
    assert {node.name for node in tree.children(tree.root())} <= {b"Non-Allocatable Space"}


def test_strategy_4096_is_refused_with_a_sentence(tmp_path: Path) -> None:
    image = mkudffs(tmp_path / "image", "--media-type=hd", "--strategy=4096")
    with pytest.raises(VolumeError, match="strategy 4096"):
        open_image(udf, image)


def test_what_genisoimage_wrote(tmp_path: Path) -> None:
    source, image = tmp_path / "source", tmp_path / "image"
    source.mkdir()
    make_tree(source, symlinks=False)
    (source / "Straße 中文").write_bytes(b"wide")
    (source / "large").write_bytes(noise(1, 3_000_000))
    run("genisoimage", "-quiet", "-input-charset", "utf-8", "-r", "-J", "-udf", "-o", image, source)
    info = identify(MemoryDevice(image.read_bytes()))
    assert info is not None
    assert info.note == "also holds ISO 9660"
    found = tree_entries(open_image(udf, image))
    assert {path: entry.get("sha256") for path, entry in read_entries(source).items()} == {
        path: entry.get("sha256") for path, entry in found.items()
    }
    check_by_seven_zip(image, tmp_path / "extracted", found)
    assert found[b"hello.txt"]["mtime_ns"] == int((source / "hello.txt").stat().st_mtime) * 10**9


def contents() -> File:
    """What 7-Zip reads as well."""
    many = {f"file number {number}": File(text(number, 50 + number)) for number in range(60)}
    twin = File(noise(9, 5000))
    return folder(
        {
            "plain": File(b"inside its entry\n", permissions=0b110_00100_00000, uid=0xFFFF_FFFF),
            "pieces": File(noise(1, 30_000), pieces=5),
            "Ünïcode 中 😀": File(noise(3, 3000)),
            "folder": folder({"deeper": folder(many), "twin": twin}),
            "other twin": twin,
            "empty": File(),
        }
    )


def specials() -> dict[str, File]:
    """What 7-Zip does not read."""
    return {
        "chained": File(noise(2, 40_000), pieces=7, chained=True),
        "hole": File(noise(5, 6000), pieces=2, hole=True),
        "streams": File(b"main", streams={"one": File(b"first"), "two ü": File(noise(6, 9000))}),
        "link": link((3, ""), (4, ""), (5, "ü"), (5, "中")),
        "absolute": link((2, ""), (5, "usr"), (5, "bin")),
        "fifo": File(kind=9),
        "socket": File(kind=10),
        "block": File(kind=6, device=(8, 17)),
        "character": File(kind=7, device=(300, 70_000)),
        "special bits": File(b"#!", flags=0b111 << 6),
    }


def planned(root: File, prefix: str = "") -> dict[bytes, File]:
    found = {}
    for name, file in root.children.items():
        found[(prefix + name).encode()] = file
        found |= planned(file, f"{prefix}{name}/")
    return found


@pytest.mark.parametrize("layout", ["plain", "metadata", "virtual"])
def test_a_volume_made_here(layout: str, tmp_path: Path) -> None:
    image, root = tmp_path / "image", contents()
    # 7-Zip reads only the first extent of a metadata file.
    image.write_bytes(udfimages.Image(layout, root, metadata_first=180).raw)
    found = tree_entries(open_image(udf, image))
    plan = planned(root)
    assert found.keys() == plan.keys()
    for path, file in plan.items():
        if file.kind == 5:
            assert found[path]["sha256"] == hashlib.sha256(file.content).hexdigest(), path
    assert found[b"plain"]["mode"] == 0o640
    assert (found[b"plain"]["uid"], found[b"plain"]["gid"]) == (0, 2000)
    assert found[b"pieces"]["mtime_ns"] == udfimages.STAMP_NS
    tree = open_image(udf, image)
    assert walk(tree, b"other twin").inode == walk(tree, b"folder/twin").inode
    if layout != "virtual":
        require_tool("7zz")
        check_by_seven_zip(image, tmp_path / "extracted", found)


def test_a_metadata_file_in_pieces(tmp_path: Path) -> None:
    found = []
    for number, first in enumerate((180, 9)):
        path = tmp_path / f"{number}"
        path.write_bytes(udfimages.Image("metadata", contents(), metadata_first=first).raw)
        found.append(tree_entries(open_image(udf, path)))
    assert found[0] == found[1]


@pytest.mark.parametrize("layout", ["plain", "metadata", "virtual"])
def test_what_only_unix_and_windows_keep(layout: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(udfimages.Image(layout, folder(specials())).raw)
    tree = open_image(udf, image)
    found = tree_entries(tree)
    assert found[b"chained"]["sha256"] == hashlib.sha256(noise(2, 40_000)).hexdigest()
    assert found[b"link"]["target"] == ".././ü/中".encode()
    assert found[b"absolute"]["target"] == b"/usr/bin"
    assert [found[name]["kind"] for name in (b"fifo", b"socket", b"block", b"character")] == [
        "fifo",
        "socket",
        "block device",
        "character device",
    ]
    assert (found[b"block"]["device"], found[b"character"]["device"]) == ((8, 17), (300, 70_000))
    assert found[b"special bits"]["mode"] & 0o7000 == 0o7000
    node = walk(tree, b"streams")
    assert [(stream.name, stream.size) for stream in tree.streams(node)] == [
        (b"one", 5),
        ("two ü".encode(), 9000),
    ]
    assert tree.read(node, 0, 9999, "two ü".encode()) == noise(6, 9000)
    hole = walk(tree, b"hole")
    whole, first = noise(5, 6000), 4096
    assert tree.read(hole, 0, 99_999) == whole[:first] + bytes(2048) + whole[first:]
    assert [extent.kind.value for extent in tree.extents(hole)] == ["data", "zero", "data"]


def test_the_copy_of_what_is_damaged_is_used() -> None:
    for places in ((32, 33), (udfimages.PARTITION,), (256,)):
        image = udfimages.Image("metadata", contents()).raw
        for block in places:
            image[block * 2048 + 40] ^= 0x10
        tree = udf.PLUGIN.open(MemoryDevice(bytes(image)), FileSystemInfo("udf"))
        assert tree.child(tree.root(), b"plain") is not None


def test_both_copies_damaged_is_an_error() -> None:
    image = udfimages.Image("metadata", contents()).raw
    for block in (33, 49):
        image[block * 2048 + 40] ^= 0x10
    with pytest.raises(VolumeError, match="checksum"):
        udf.PLUGIN.open(MemoryDevice(bytes(image)), FileSystemInfo("udf"))


def test_a_wrong_bit_in_an_entry_is_found() -> None:
    made = udfimages.Image("plain", contents())
    place = made.physical(2) + udfimages.PARTITION
    for bit in range(0, 8 * 200, 37):
        image = bytearray(made.raw)
        image[place * 2048 + bit // 8] ^= 1 << bit % 8
        tree = udf.PLUGIN.open(MemoryDevice(bytes(image)), FileSystemInfo("udf"))
        with pytest.raises(VolumeError):
            list(tree.children(tree.root()))


def test_a_circle_of_allocations_ends() -> None:
    made = udfimages.Image("plain", folder({"x": File(noise(1, 9000), pieces=2, chained=True)}))
    raw = bytes(made.raw)
    for block in range(udfimages.PARTITION + 200, udfimages.BLOCKS):
        at = block * 2048
        if raw[at : at + 2] == b"\x02\x01":
            here = block - udfimages.PARTITION
            round_trip = b"".join(udfimages.long_ad(2048, here, 0, 3) for _ in range(1))
            body = bytes(4) + len(round_trip).to_bytes(4, "little") + round_trip
            made.put(here, udfimages.tagged(258, here, body))
    tree = udf.PLUGIN.open(MemoryDevice(bytes(made.raw)), FileSystemInfo("udf"))
    with pytest.raises(VolumeError, match="circle"):
        tree.read(walk(tree, b"x"), 0, 1)


def test_the_plan_has_every_kind() -> None:
    kinds = {file.kind for file in specials().values()} | {file.kind for file in planned(contents()).values()}
    assert kinds == {4, 5, 6, 7, 9, 10, 12}
    assert len(NodeKind) == 7
    assert shutil.which("true")
