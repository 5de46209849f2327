"""Real files of Macrium Reflect X: the publisher's demo of 120 GB, and increments whose full is missing."""

from __future__ import annotations

import hashlib
import json
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import pytsk3

from imageformat.cache import BlockCache
from imageformat.device import Slice
from imageformat.errors import CorruptImageError, ParentMissingError
from imageformat.extent import ExtentKind
from imageformat.formats import open_image
from imageformat.formats.mrimgx.blocks import BlockReader, Owner, Wanted
from imageformat.formats.mrimgx.emit import canonical_json
from imageformat.formats.mrimgx.index import open_index
from imageformat.formats.mrimgx.member import open_member
from imageformat.formats.mrimgx.structs import unpack_entry
from imageformat.layer import BlockRef, Opening
from imageformat.secrets import NO_SECRETS
from imageformat.siblings import Siblings
from imageformat.storage.local import LocalStorage
from support.macrium import known_facts, unpacked
from support.macrium_reader import parse
from support.product import mountfs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from imageformat.layer import ImageLayer

pytestmark = pytest.mark.xdist_group("macrium")
MIB = 1 << 20


@pytest.fixture(scope="session")
def facts() -> dict[str, Any]:
    return known_facts()


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, facts: dict[str, Any]) -> Iterator[Path]:
    with unpacked("macrium-demo.zip", tmp_path_factory.mktemp("macrium-demo")) as folder:
        path = folder / facts["file"]
        assert path.stat().st_size == facts["size"]
        yield path


@pytest.fixture(scope="session")
def increments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with unpacked("macrium-increments.zip", tmp_path_factory.mktemp("macrium-increments")) as folder:
        yield folder


def opened(path: Path) -> ImageLayer:
    storage = LocalStorage(path.parent)
    siblings = Siblings(storage, path.name)
    return open_image(Opening(storage.open(path.name), path.name, BlockCache(0), siblings, NO_SECRETS))


@pytest.fixture(scope="module")
def layer(demo: Path) -> Iterator[ImageLayer]:
    with closing(opened(demo)) as found:
        yield found


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_what_it_says_of_itself(layer: ImageLayer, facts: dict[str, Any]) -> None:
    info = layer.info
    assert info.details["image_id"] == facts["set"]["imageid"]
    assert info.created_ns == facts["set"]["backup_time"] * 10**9
    assert [disk.size for disk in info.disks] == [facts["disk"]["size"]]
    assert (info.number, info.type.value) == (1, "full")
    assert info.details["data_blocks"] == facts["partition"]["blocks_present"]
    assert info.details["unused_blocks"] == facts["partition"]["blocks_absent"]
    assert info.details["label"] == facts["partition"]["volume_label"]
    assert "macrium.com" not in str(info), "addresses of people stay where they are"


def test_all_blocks(layer: ImageLayer, facts: dict[str, Any]) -> None:
    partition = facts["partition"]
    device = layer.device()  # type: ignore[attr-defined]
    start, block = partition["start"], partition["block_size"]
    volume = Slice(device, start, partition["length"])
    assert sha256(device.pread(0, facts["disk"]["track0_length"])) == facts["disk"]["track0_sha256"]
    content, runs, zeros = hashlib.sha256(), [], 0
    for extent in volume.extents(0, volume.size):
        if extent.kind is not ExtentKind.DATA:
            assert extent.kind is ExtentKind.UNUSED
            continue
        runs.append([extent.offset // block, extent.length // block])
        for offset in range(extent.offset, extent.end, MIB):
            data = volume.pread(offset, min(MIB, extent.end - offset))
            content.update(data)
            zeros += sum(data[at : at + block] == bytes(block) for at in range(0, len(data), block))
    assert runs == partition["first_runs"]
    assert content.hexdigest() == partition["sha256_of_present_blocks_in_order"]
    assert zeros == partition["present_but_all_zero_blocks"]
    assert sha256(volume.pread(0, 512)) == partition["first_sector_sha256"]
    assert volume.pread(volume.size - 512, 512) == bytes(512)


def test_checksums_of_the_index(demo: Path, facts: dict[str, Any]) -> None:
    storage = LocalStorage(demo.parent)
    member = open_member(storage.open(demo.name), demo.name)
    with closing(member.device):
        (lists,) = member.lists(None)
        index = open_index(member, lists.indexes[0], 1 << 32, BlockCache(MIB))
        assert index.table is not None
        table = index.table
        present = [
            entry
            for page in range(table.pages)
            if table.occupied[page]
            for at in range(0, len(table.page(page)), 30)
            if (entry := unpack_entry(table.page(page), at)).length
        ]
        assert table.count == facts["partition"]["blocks"]
    assert len(present) == facts["partition"]["blocks_present"]
    assert (
        sha256(b"".join(entry.md5 for entry in present))
        == facts["partition"]["sha256_of_present_md5s_in_order"]
    )
    assert sum(entry.length for entry in present) == facts["partition"]["stored_bytes"]


def test_the_json_as_reflect_writes_it_is_what_we_write(demo: Path, facts: dict[str, Any]) -> None:
    file = parse(demo.read_bytes())
    assert sha256(file.json_bytes) == facts["container"]["json_sha256"]
    assert canonical_json(file.json) == file.json_bytes


class AsImage(pytsk3.Img_Info):
    """A device for libtsk."""

    def __init__(self, device: Slice) -> None:
        self._device = device
        super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL)

    def read(self, offset: int, size: int) -> bytes:
        return self._device.pread(offset, max(0, min(size, self._device.size - offset)))

    def get_size(self) -> int:
        return self._device.size


def test_every_file(layer: ImageLayer, facts: dict[str, Any]) -> None:
    volume = Slice(layer.device(), facts["partition"]["start"], facts["partition"]["length"])  # type: ignore[attr-defined]
    system = pytsk3.FS_Info(AsImage(volume))
    for fact in facts["files"]:
        file = system.open(fact["path"])
        assert file.info.meta.addr == fact["mft_record"]
        assert file.info.meta.size == fact["size"], fact["path"]
        content = hashlib.sha256()
        for offset in range(0, fact["size"], MIB):
            content.update(file.read_random(offset, min(MIB, fact["size"] - offset)))
        assert content.hexdigest() == fact["sha256"], fact["path"]


def test_from_the_shell(demo: Path, facts: dict[str, Any]) -> None:
    listed = mountfs("ls", f"{demo}:/", measured=True)
    assert listed.code == 0, listed.err
    assert "2-ntfs-Demo" in listed.out.decode()
    assert listed.peak < 250 * MIB, "the index of 59 MB stays in its file"
    inside = mountfs("ls", f"{demo}:2/", measured=True)
    assert "readme.txt" in inside.out.decode()
    assert inside.peak < 250 * MIB
    shown = mountfs("cat", f"{demo}:2/readme.txt")
    assert shown.out.decode() == facts["readme_txt"]


def test_verify_reads_every_block(demo: Path, facts: dict[str, Any]) -> None:
    done = mountfs("verify", "--json", str(demo), measured=True)
    assert done.code == 0, done.err
    assert done.peak < 250 * MIB
    lines = [json.loads(line) for line in done.out.splitlines()]
    blocks = max(line.get("blocks", 0) for line in lines)
    assert blocks == facts["partition"]["blocks_present"] + 1, (
        "all that are stored, and the start of the disk"
    )


def test_damage_is_found_where_it_is(demo: Path, tmp_path: Path) -> None:
    """One byte in a block, one in the index: the others stay readable, or nothing is served."""
    damaged = tmp_path / demo.name
    subprocess.run(["cp", "--reflink=auto", demo, damaged], check=True)
    with damaged.open("r+b") as file:
        file.seek(600_000)
        byte = file.read(1)
        file.seek(600_000)
        file.write(bytes([byte[0] ^ 1]))
    with closing(opened(damaged)) as layer:
        refs = [
            piece.source
            for piece in layer.pieces(0, 0, layer.info.disks[0].size)
            if isinstance(piece.source, BlockRef)
        ]
        wrong = []
        for ref in refs:
            try:
                layer.load((ref,), lambda _: b"")
            except CorruptImageError as error:
                wrong.append(str(error))
        assert len(wrong) == 1
        assert damaged.name in wrong[0]
    with damaged.open("r+b") as file:
        file.seek(30_000_000)
        file.write(b"\1")
    with pytest.raises(CorruptImageError, match="index is damaged"):
        opened(damaged)
    damaged.unlink()


def test_increments_alone_are_refused(increments: Path, facts: dict[str, Any]) -> None:
    for fact in facts["real_increments"]["members"]:
        path = increments / fact["file"]
        assert sha256(path.read_bytes()) == fact["sha256"]
        with pytest.raises(ParentMissingError, match="needs file number 0") as refused:
            opened(path)
        assert path.name in str(refused.value)


def test_blocks_of_increments(increments: Path, facts: dict[str, Any]) -> None:
    """Their own blocks can be read and proven, though no disk can be made of them."""
    for fact in facts["real_increments"]["members"]:
        path = increments / fact["file"]
        storage = LocalStorage(increments)
        member = open_member(storage.open(path.name), path.name)
        with closing(member.device):
            header = member.document.header
            assert header.image_id.hex().upper() == fact["imageid"]
            assert (header.file_number, header.increment_number) == (fact["file_number"],) * 2
            assert header.delta_index is fact["delta_index"]
            assert header.index_file_position == fact["index_file_position"]
            assert not member.document.compressed
            (disk,) = member.document.disks
            (lists,) = member.lists(None)
            assert disk.size == fact["json_disk_size"]
            assert sha256(lists.track0) == fact["track0_sha256"]
            owners = {header.file_number: Owner(member, None)}
            for part, stored, known in zip(disk.partitions, lists.indexes, fact["partitions"], strict=True):
                assert (part.number, part.start, part.length) == (
                    known["number"],
                    known["start"],
                    known["length"],
                )
                assert (part.block_count, part.file_system) == (known["block_count"], known["file_system"])
                delta = open_index(member, stored, part.block_count, BlockCache(MIB)).delta
                assert delta is not None
                found = list(delta.between(0, 1 << 32))
                assert len(found) == known["delta_entries"]
                assert [found[0][0], found[-1][0]] == known["first_and_last_block_index"] if found else True
                reader = BlockReader(owners, disk.number, part.number, path.name)
                wanted = [
                    Wanted(unpack_entry(entry), block, part.block_size, part.block_size)
                    for block, entry in found
                ]
                blocks = b"".join(reader.load(wanted))
                assert sha256(blocks) == known["sha256_of_delta_blocks_in_order"]


def test_side_files_are_no_images(increments: Path) -> None:
    for path in increments.glob("*.metadata"):
        refused = mountfs("info", str(path), code=11)
        assert "side file" in refused.err
