"""One target for each family of parsers: a sound input to start from, and a way to feed any bytes to it.

A target lets no exception out but ours, which it takes for an answer. Used by ``tests/fuzz/atheris/run.py``
and by the test that keeps the targets from rotting.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageformat.cache import BlockCache
from imageformat.device import MemoryDevice
from imageformat.errors import LockedError, MountfsError
from imageformat.formats import image_formats
from imageformat.layer import Opening
from imageformat.partitions import read_table
from imageformat.secrets import Secrets
from imageformat.siblings import Siblings
from imageformat.storage.memory import MemoryStorage
from mountfs.containers import bitlocker, luks, lvm
from mountfs.containers._lvm_metadata import checksum
from mountfs.drivers import apfs, btrfs, erofs, ext, fat, hfsplus, iso9660, ntfs, squashfs, udf, xfs
from mountfs.tree import FileSystemInfo, NodeKind
from support import udfimages
from support.bitlocker import make_volume
from support.disks import MIB, Part, make_gpt_disk
from support.images import folder_files, makers
from support.requirements import REPOSITORY, require_tool, run, shared_data_folder

if TYPE_CHECKING:
    from imageformat.layer import ImageLayer

_ENTRIES = 200
_READ = 64 << 10
_LUKS_HEADER = 600 << 10


@dataclass(frozen=True)
class Seed:
    """A sound input: the file that is changed, its name, and what lies beside it."""

    content: bytes
    name: str = "image"
    files: dict[str, bytes] | None = None
    password: bytes = b""


@dataclass(frozen=True)
class Target:
    """``feed`` parses bytes; how much it found: 0 when they are refused at the door."""

    seed: Callable[[Path], Seed]
    feed: Callable[[Seed, bytes], int]


def read_layer(layer: ImageLayer) -> int:
    found = 0
    for number, disk in enumerate(layer.info.disks[:2]):
        pieces = layer.pieces(number, 0, min(disk.size, 4 << 20))
        refs = [piece.source for piece in islice(pieces, 64)]
        found += len(refs)
        for ref in refs[:8]:
            if hasattr(ref, "raw_length"):
                layer.load((ref,), lambda _: b"")
    return found


def feed_image(name: str, seed: Seed, content: bytes) -> int:
    storage = MemoryStorage()
    for key, stored in {**(seed.files or {}), seed.name: content}.items():
        writer = storage.create(key)
        writer.append(stored)
        writer.commit()
    record = next(record for record in image_formats() if record.name == name)
    try:
        record.probe(MemoryDevice(content))
        secrets = _secrets(seed)
        opening = Opening(
            storage.open(seed.name), seed.name, BlockCache(1 << 20), Siblings(storage, seed.name), secrets
        )
        with closing(record.open(opening)) as layer:
            return read_layer(layer)
    except MountfsError:
        return 0


def feed_file_system(plugin: Any, kind: str, seed: Seed, content: bytes) -> int:
    found = 0
    try:
        with closing(plugin.open(MemoryDevice(content), FileSystemInfo(kind))) as tree:
            pending = [tree.root()]
            while pending and found < _ENTRIES:
                for node in islice(tree.children(pending.pop()), _ENTRIES):
                    found += 1
                    if node.kind is NodeKind.DIRECTORY:
                        pending.append(node)
                    elif node.kind is NodeKind.FILE:
                        tree.read(node, 0, _READ)
                    elif node.kind is NodeKind.SYMLINK:
                        tree.readlink(node)
                    tree.xattrs(node)
                    tree.streams(node)
    except MountfsError:
        pass
    return found


def feed_container(plugin: Any, kind: str, seed: Seed, content: bytes) -> int:
    try:
        opened = plugin.open(iter([MemoryDevice(content)]), FileSystemInfo(kind), _secrets(seed))
        for volume in opened.volumes:
            if volume.device is not None:
                volume.device.pread(0, min(_READ, volume.device.size))
        return len(opened.volumes)
    except LockedError:
        return 1
    except MountfsError:
        return 0


def feed_partitions(seed: Seed, content: bytes) -> int:
    try:
        return len(read_table(MemoryDevice(content), 512).partitions)
    except MountfsError:
        return 0


def _secrets(seed: Seed) -> Secrets:
    return Secrets((seed.password,)) if seed.password else Secrets()


def made(name: str, folder: Path) -> Seed:
    image = makers()[name](folder)
    files = folder_files(folder)
    password = next(iter(image.secrets.given_passwords), b"")
    return Seed(files.pop(image.name), image.name, files, password)


def golden(folder: Path) -> Seed:
    image = min((REPOSITORY / "tests" / "golden" / "v0.2" / "set").glob("*full*.mfi"))
    return Seed(image.read_bytes(), image.name)


def golden_bad_sectors(folder: Path) -> Seed:
    image = min((REPOSITORY / "tests" / "golden" / "bad_sectors" / "set").glob("*full*.mfi"))
    return Seed(image.read_bytes(), image.name)


def stored(case: str, folder: Path, limit: int = 1 << 30) -> Seed:
    packed = shared_data_folder() / "fs-images" / "images" / f"{case}.disk.img.xz"
    return Seed(lzma.decompress(packed.read_bytes())[:limit])


def small_folder(folder: Path) -> Path:
    source = folder / "source"
    (source / "inner").mkdir(parents=True)
    (source / "hello.txt").write_text("hello " * 3000)
    (source / "inner" / "link").symlink_to("../hello.txt")
    return source


def by_tool(folder: Path, program: str, *arguments: str) -> Seed:
    """What a tool makes of a small folder; SOURCE and IMAGE stand for the paths."""
    require_tool(program)
    places = {"SOURCE": str(small_folder(folder)), "IMAGE": str(folder / "image")}
    run(program, *(places.get(argument, argument) for argument in arguments))
    return Seed((folder / "image").read_bytes())


def packed_squashfs(folder: Path) -> Seed:
    return by_tool(folder, "mksquashfs", "SOURCE", "IMAGE", "-noI", "-noX", "-noId", "-quiet")


def packed_erofs(folder: Path) -> Seed:
    return by_tool(folder, "mkfs.erofs", "--quiet", "IMAGE", "SOURCE")


def made_btrfs(folder: Path) -> Seed:
    with (folder / "image").open("wb") as file:
        file.truncate(24 * MIB)
    return by_tool(
        folder,
        "mkfs.btrfs",
        *("-q", "--mixed", "-n", "4096", "-m", "single", "-d", "single", "--rootdir", "SOURCE", "IMAGE"),
    )


def made_udf(folder: Path) -> Seed:
    root = udfimages.folder({"file": udfimages.File(b"content " * 500), "empty": udfimages.folder({})})
    return Seed(bytes(udfimages.Image("plain", root).raw))


def made_gpt(folder: Path) -> Seed:
    make_gpt_disk(folder / "disk", 4 * MIB, [Part(MIB), Part(MIB, name="second")])
    return Seed((folder / "disk").read_bytes())


_GROUP = """g {
id = "aaaaaa-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa"
seqno = 1
format = "lvm2"
status = ["RESIZEABLE", "READ", "WRITE"]
extent_size = 128
physical_volumes {
pv0 {
id = "xxxxxx-xxxx-xxxx-xxxx-xxxx-xxxx-xxxxxx"
status = ["ALLOCATABLE"]
pe_start = 128
pe_count = 15
}
}
logical_volumes {
v {
id = "bbbbbb-bbbb-bbbb-bbbb-bbbb-bbbb-bbbbbb"
status = ["READ", "WRITE", "VISIBLE"]
segment_count = 1
segment1 {
start_extent = 0
extent_count = 4
type = "striped"
stripe_count = 1
stripes = ["pv0", 0]
}
}
}
}
"""


def made_lvm(folder: Path) -> Seed:
    """A label, one metadata area and one linear volume, as `vgcreate` and `lvcreate` write them."""
    text = _GROUP.encode()
    body = struct.pack("<16sIQQ", b" LVM2 x[5A%r0N*>", 1, 4096, 8192)
    body += struct.pack("<QQII", 512, len(text), checksum(text), 0)
    body = body.ljust(508, b"\0")
    area = struct.pack("<I", checksum(body)) + body + text
    label = struct.pack("<I8s", 32, b"LVM2 001") + b"x" * 32
    label = (label + struct.pack("<Q6Q", 1 << 20, 1 << 16, 0, 0, 0, 4096, 8192) + bytes(16)).ljust(492, b"\0")
    sector = struct.pack("<8sQI", b"LABELONE", 1, checksum(label)) + label
    return Seed(((bytes(512) + sector).ljust(4096, b"\0") + area).ljust(1 << 20, b"\0"))


def image_target(name: str, maker: str | None = None) -> Target:
    return Target(partial(made, maker or name), partial(feed_image, name))


def system_target(plugin: Any, kind: str, seed: Callable[[Path], Seed]) -> Target:
    return Target(seed, partial(feed_file_system, plugin.PLUGIN, kind))


TARGETS = {
    "native": Target(golden, partial(feed_image, "mfi")),
    "native with bad sectors": Target(golden_bad_sectors, partial(feed_image, "mfi")),
    "qcow2": image_target("qcow2"),
    "qcow1": image_target("qcow1"),
    "qed": image_target("qed"),
    "parallels": image_target("parallels"),
    "vhdx": image_target("vhdx"),
    "vhd": image_target("vhd"),
    "vmdk": image_target("vmdk"),
    "vdi": image_target("vdi"),
    "ewf": image_target("ewf"),
    "dmg": image_target("dmg"),
    "mrimgx": image_target("mrimgx", "mrimgx-full"),
    "raw": image_target("raw", "raw-split"),
    "ext": system_target(ext, "ext4", partial(stored, "ext4-discutils")),
    "fat": system_target(fat, "fat12", partial(stored, "fat12-ratarmount")),
    "exfat": system_target(fat, "exfat", partial(stored, "exfat-goexfat")),
    "ntfs": system_target(ntfs, "ntfs", partial(stored, "ntfs-colinfinck")),
    "hfsplus": system_target(hfsplus, "hfs+", partial(stored, "hfsp-dfvfs")),
    "apfs": system_target(apfs, "apfs", partial(stored, "apfs-dfvfs")),
    "iso9660": system_target(iso9660, "iso9660", partial(stored, "iso-libcdio-copying-rr")),
    "udf": system_target(udf, "udf", made_udf),
    "xfs": system_target(xfs, "xfs", partial(stored, "xfs5-utillinux")),
    "btrfs": system_target(btrfs, "btrfs", made_btrfs),
    "squashfs": system_target(squashfs, "squashfs", packed_squashfs),
    "erofs": system_target(erofs, "erofs", packed_erofs),
    "luks": Target(
        partial(stored, "luks1-cryptsetup-compat", limit=_LUKS_HEADER),
        partial(feed_container, luks.PLUGIN, "luks1"),
    ),
    "bitlocker": Target(
        lambda _: Seed(make_volume().stored), partial(feed_container, bitlocker.PLUGIN, "bitlocker")
    ),
    "lvm": Target(made_lvm, partial(feed_container, lvm.PLUGIN, "lvm2")),
    "partitions": Target(made_gpt, feed_partitions),
}
EMPTY_SEEDS = frozenset({"xfs"})
"""Whose seed is sound and holds nothing."""
