"""VHDX against qemu-img, the stored images of Hyper-V, and a second writer of what qemu-img cannot make."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from imageformat.errors import (
    AccessDeniedError,
    ChainCycleError,
    CorruptImageError,
    ImageError,
    IncompleteImageError,
    MountfsError,
    ParentMismatchError,
    ParentMissingError,
    UnsupportedFeatureError,
)
from imageformat.extent import ExtentKind
from support.make_vhdx import (
    BAT_AT,
    FULLY,
    LOG_AT,
    MIB,
    NOT_PRESENT,
    PARTIALLY,
    UNDEFINED,
    UNMAPPED,
    ZERO,
    Vhdx,
    log_entry,
)
from support.requirements import require_tool, run
from support.virtualdisks import (
    content_of,
    image_content,
    open_layer,
    patchy,
    qemu_made,
    qemu_read,
    raw_file,
    sha256_of,
    stored_params,
    unpack_stored,
)

LOG = UUID(int=0x1069)


@pytest.mark.parametrize(
    "options",
    [
        "subformat=dynamic",
        "subformat=dynamic,block_size=1M",
        "subformat=dynamic,block_size=32M,block_state_zero=off",
        "subformat=fixed",
        "subformat=fixed,block_size=8M",
    ],
)
def test_made_by_qemu(options: str, tmp_path: Path) -> None:
    truth = patchy(37 * MIB + 4096)
    image = qemu_made(raw_file(tmp_path, truth), "vhdx", options, tmp_path / "disk.vhdx")
    assert image_content(image) == truth
    layer = open_layer(image)
    rng = random.Random(3)
    for _ in range(100):
        offset = rng.randrange(len(truth))
        size = rng.randrange(min(len(truth) - offset, 3 * MIB) + 1)
        assert layer.device().pread(offset, size) == truth[offset : offset + size]
    layer.close()


@pytest.mark.parametrize("case", stored_params("vhdx", slow=("xfs5-discutils-vhdx",)))
def test_stored(case: dict[str, Any], tmp_path: Path) -> None:
    layer = open_layer(unpack_stored(case, tmp_path))
    assert (layer.device().size, sha256_of(layer.device())) == (case["disk"]["size"], case["disk"]["sha256"])
    layer.close()


def qemu_repaired(image: Path) -> bytes:
    """What qemu-img reads once it replayed the log, in a copy."""
    copy = image.with_name("replayed.vhdx")
    shutil.copy(image, copy)
    run("qemu-io", "-f", "vhdx", "-c", "quit", copy)
    content = qemu_read(copy, "vhdx")
    copy.unlink()
    return content


def test_a_writer_that_died(tmp_path: Path) -> None:
    """qemu, killed at each of its flushes in turn, leaves logs to replay."""
    require_tool("qemu-img", "qemu-io", "strace")
    logs = 0
    for number in range(1, 15):
        image = tmp_path / f"{number}.vhdx"
        run("qemu-img", "create", "-f", "vhdx", "-o", "block_size=1M", image, "16M")
        kill = f"inject=fdatasync,fsync:signal=KILL:when={number}"
        writes = ["-c", "write -P 65 1M 1536k", "-c", "write -P 66 9M 64k"]
        subprocess.run(
            ["strace", "-f", "-qq", "-o", "/dev/null", "-e", kill, "qemu-io", "-f", "vhdx", *writes, image],
            capture_output=True,
            check=False,
        )
        layer = open_layer(image)
        logs += "log" in layer.info.details
        held = content_of(layer.device())
        layer.close()
        assert held == qemu_repaired(image)
    assert logs, "qemu left no log"


def wrapped(log: bytes, start: int) -> bytes:
    """Put a log into its ring of 1 MiB from ``start`` on."""
    ring = bytearray(MIB)
    for at in range(0, len(log), 4096):
        place = (start + at) % MIB
        ring[place : place + 4096] = log[at : at + 4096]
    return bytes(ring)


def logged(start: int, *, torn: bool = False, stale: bool = False) -> tuple[Vhdx, bytes]:
    """A disk whose newest state is only in the log; and what it holds then."""
    rng = random.Random(start)
    old, new = rng.randbytes(MIB), rng.randbytes(4096)
    disk = Vhdx(8 * MIB, log=LOG)
    disk.payload = {1: old, 3: old, 5: old}
    disk.states = dict.fromkeys(disk.payload, FULLY)
    end = 4 * MIB + 3 * MIB
    table = bytearray(4096)
    for block in (1, 3, 5):
        table[block * 8 : block * 8 + 8] = (disk.place(block) | FULLY).to_bytes(8, "little")
    table[5 * 8 : 5 * 8 + 8] = ZERO.to_bytes(8, "little")
    table[6 * 8 : 6 * 8 + 8] = (disk.place(5) | FULLY).to_bytes(8, "little")
    place = disk.place(3)
    entries = [
        [(place, b"\x11" * 4096), (place + 8192, b"\x22" * 4096)],
        [(place + 4096, 65536), (BAT_AT, bytes(table))],
        [(place + 8192, new), (place + 20480, new), (place, 4096)],
    ]
    log, position = b"", start
    for number, writes in enumerate(entries):
        log += log_entry(LOG, 100 + number, start, writes, end, end)
    if torn:
        broken = bytearray(log_entry(LOG, 103, start, [(place, b"\x99" * 4096)], end, end))
        broken[6000] ^= 1
        log += broken
    if stale:
        earlier = log_entry(LOG, 90, (start + len(log) + 4096) % MIB, [(place, b"\x77" * 4096)], end, end)
        log += bytes(4096) + earlier
        other = log_entry(UUID(int=99), 500, (start + len(log)) % MIB, [(place, b"\x78" * 4096)], end, end)
        log += other
    assert position == start
    disk.log_content = wrapped(log, start)
    held = bytearray(8 * MIB)
    held[MIB : 2 * MIB] = old
    held[3 * MIB : 4 * MIB] = old
    held[3 * MIB + 4096 : 3 * MIB + 4096 + 65536] = bytes(65536)
    held[3 * MIB : 3 * MIB + 4096] = bytes(4096)
    held[3 * MIB + 8192 : 3 * MIB + 12288] = new
    held[3 * MIB + 20480 : 3 * MIB + 24576] = new
    held[6 * MIB : 7 * MIB] = old
    return disk, bytes(held)


@pytest.mark.parametrize("start", [0, 81920, MIB - 4096, MIB - 12288])
@pytest.mark.parametrize("kind", ["plain", "torn", "stale"])
def test_a_made_log(start: int, kind: str, tmp_path: Path) -> None:
    require_tool("qemu-img", "qemu-io")
    disk, truth = logged(start, torn=kind == "torn", stale=kind == "stale")
    image = disk.write(tmp_path / "disk.vhdx")
    assert image_content(image) == truth
    assert qemu_repaired(image) == truth


def test_only_the_entries_from_the_tail_on_are_replayed(tmp_path: Path) -> None:
    disk = Vhdx(4 * MIB, log=LOG, payload={0: bytes(MIB)}, states={0: FULLY})
    place, end = disk.place(0), 5 * MIB
    first = log_entry(LOG, 7, 0, [(place, b"\x01" * 4096)], end, end)
    second = log_entry(LOG, 8, len(first), [(place + 4096, b"\x02" * 4096)], end, end)
    disk.log_content = first + second
    image = disk.write(tmp_path / "disk.vhdx")
    held = image_content(image)
    assert held[:4096] == bytes(4096)
    assert held[4096:8192] == b"\x02" * 4096


def test_logs_that_cannot_be_replayed(tmp_path: Path) -> None:
    disk = Vhdx(4 * MIB, log=LOG, payload={0: bytes(MIB)}, states={0: FULLY})
    assert image_content(disk.write(tmp_path / "empty.vhdx")) == bytes(4 * MIB), "died before its first entry"
    entry = log_entry(LOG, 7, 0, [(disk.place(0), b"\1" * 4096)], 0, 0)
    for at in (0, 1, 32, 40, 64, 70, 4096, 6000):
        disk.log_content = entry[:at] + bytes([entry[at] ^ 1]) + entry[at + 1 :]
        with pytest.raises(CorruptImageError, match="log"):
            open_layer(disk.write(tmp_path / "damaged.vhdx"))
    disk.log_content = log_entry(LOG, 7, 0, [(disk.place(0), b"\1" * 4096)], 9 * MIB, 9 * MIB)
    with pytest.raises(IncompleteImageError, match="cut short"):
        open_layer(disk.write(tmp_path / "short.vhdx"))
    maze = b"".join(
        log_entry(LOG, 7, 0, [], 0, 0)[:8] + (MIB).to_bytes(4, "little") + log_entry(LOG, 7, 0, [], 0, 0)[12:]
        for _ in range(256)
    )
    disk.log_content = maze
    with pytest.raises(CorruptImageError, match="log"):
        open_layer(disk.write(tmp_path / "maze.vhdx"))


def chain(folder: Path, sector: int = 512) -> tuple[Path, bytes]:
    """Three files on each other with all states of blocks; and what the last one holds."""
    rng = random.Random(9)
    size, block = 20 * MIB + sector * 3, 2 * MIB
    count = -(-size // block)
    grandparent = Vhdx(size, block, sector, data_write=UUID(int=0xA))
    grandparent.payload = {at: rng.randbytes(block) for at in range(0, count, 2)}
    grandparent.states = dict.fromkeys(grandparent.payload, FULLY)
    held = bytearray(count * block)
    for at, content in grandparent.payload.items():
        held[at * block : (at + 1) * block] = content
    grandparent.write(folder / "base.vhdx")
    for generation, name in enumerate(("middle", "top")):
        parent = ("base", "middle")[generation]
        linkage = f"{{{UUID(int=0xA + generation)}}}".upper()
        disk = Vhdx(size, block, sector, data_write=UUID(int=0xB + generation))
        disk.locator = {
            "parent_linkage": linkage,
            "relative_path": f".\\{parent}.vhdx",
            "absolute_win32_path": f"C:\\VMs\\{parent}.vhdx",
        }
        states = [NOT_PRESENT, PARTIALLY, FULLY, ZERO, PARTIALLY, NOT_PRESENT, UNMAPPED, UNDEFINED, PARTIALLY]
        for at in range(count):
            state = disk.states[at] = states[(at + generation * 4) % len(states)]
            start = at * block
            if state in (ZERO, UNMAPPED, UNDEFINED):
                held[start : start + block] = bytes(block)
            if state not in (FULLY, PARTIALLY):
                continue
            disk.payload[at] = rng.randbytes(block)
            sectors = set(range(block // sector))
            if state == PARTIALLY:
                sectors = {s for s in sectors if rng.random() < 0.5 or 100 < s < 300}
                disk.here[at] = sectors
            for number in sectors:
                inner = number * sector
                held[start + inner : start + inner + sector] = disk.payload[at][inner : inner + sector]
        disk.write(folder / f"{name}.vhdx")
    return folder / "top.vhdx", bytes(held[:size])


@pytest.mark.parametrize("sector", [512, 4096])
def test_differences(sector: int, tmp_path: Path) -> None:
    image, truth = chain(tmp_path, sector)
    assert image_content(image) == truth
    layer = open_layer(image)
    device = layer.device()
    rng = random.Random(4)
    for _ in range(200):
        offset = rng.randrange(len(truth))
        size = rng.randrange(min(len(truth) - offset, 300_000) + 1)
        assert device.pread(offset, size) == truth[offset : offset + size]
    assert layer.info.details["parent"] == "middle.vhdx"
    assert ExtentKind.UNUSED in {extent.kind for extent in device.extents(0, device.size)}
    layer.close()


def test_a_bitmap_beyond_the_first_chunk(tmp_path: Path) -> None:
    """Blocks of 256 MiB: a chunk has 16 of them; the 17th is described by the second bitmap."""
    block = 256 * MIB
    base = Vhdx(18 * block, block, data_write=UUID(int=0xA))
    base.write(tmp_path / "base.vhdx")
    disk = Vhdx(
        18 * block, block, locator={"parent_linkage": str(UUID(int=0xA)), "relative_path": "base.vhdx"}
    )
    disk.states, disk.here = {17: PARTIALLY}, {17: {0, 2, 9}}
    image = disk.write(tmp_path / "top.vhdx")
    at = 4 * MIB
    with image.open("r+b") as file:  # a payload that is mostly a hole
        file.truncate(at + block + MIB)
        bitmap = bytes([0b101, 0b10])
        file.seek(at)
        file.write(b"here" * 128 + b"gone" * 128 + b"also" * 128 + bytes(6 * 512) + b"last" * 128)
        file.seek(at + block + 2 * MIB // 16)
        file.seek(at + block + block // 512 // 8)
        file.write(bitmap)
        file.seek(BAT_AT + (17 + 1) * 8)
        file.write((at | PARTIALLY).to_bytes(8, "little"))
        file.seek(BAT_AT + (2 * 16 + 1) * 8)
        file.write((at + block | FULLY).to_bytes(8, "little"))
    layer = open_layer(image)
    found = layer.device().pread(17 * block, 11 * 512)
    layer.close()
    assert found == b"here" * 128 + bytes(512) + b"also" * 128 + bytes(6 * 512) + b"last" * 128 + bytes(512)


def test_wrong_parents(tmp_path: Path) -> None:
    image, _ = chain(tmp_path)
    Vhdx(20 * MIB + 1536, 2 * MIB, data_write=UUID(int=0xEE)).write(tmp_path / "base.vhdx")
    with pytest.raises(ParentMismatchError, match=r"base\.vhdx"):
        open_layer(image)
    (tmp_path / "base.vhdx").unlink()
    with pytest.raises(ParentMissingError, match=r"base\.vhdx"):
        open_layer(image)
    self = Vhdx(4 * MIB, locator={"parent_linkage": str(UUID(int=0x1234)), "relative_path": "self.vhdx"})
    with pytest.raises(ChainCycleError):
        open_layer(self.write(tmp_path / "self.vhdx"))
    away = Vhdx(4 * MIB, locator={"parent_linkage": str(UUID(int=1)), "relative_path": "../x.vhdx"})
    with pytest.raises((AccessDeniedError, ParentMissingError)):
        open_layer(away.write(tmp_path / "away.vhdx"))


def test_the_second_linkage_counts_too(tmp_path: Path) -> None:
    Vhdx(4 * MIB, data_write=UUID(int=0xA), payload={0: b"x" * MIB}, states={0: FULLY}).write(
        tmp_path / "base.vhdx"
    )
    locator = {
        "parent_linkage": str(UUID(int=3)),
        "parent_linkage2": f"{{{UUID(int=0xA)}}}",
        "absolute_win32_path": "D:\\elsewhere\\base.vhdx",
    }
    image = Vhdx(4 * MIB, locator=locator).write(tmp_path / "top.vhdx")
    assert image_content(image) == b"x" * MIB + bytes(3 * MIB)


def test_what_is_not_known_is_refused(tmp_path: Path) -> None:
    item = ((UUID(int=42), b"x", 4),)
    with pytest.raises(UnsupportedFeatureError, match="metadata item"):
        open_layer(Vhdx(4 * MIB, extra_items=item).write(tmp_path / "a.vhdx"))
    region = ((UUID(int=43), 9 * MIB, MIB, 1),)
    with pytest.raises(UnsupportedFeatureError, match="region"):
        open_layer(Vhdx(4 * MIB, extra_regions=region).write(tmp_path / "b.vhdx"))
    ignored = Vhdx(4 * MIB, extra_items=((UUID(int=42), b"x", 0),), extra_regions=((*region[0][:3], 0),))
    assert image_content(ignored.write(tmp_path / "c.vhdx")) == bytes(4 * MIB)


def test_the_other_copy_is_used(tmp_path: Path) -> None:
    content = b"y" * MIB
    image = Vhdx(4 * MIB, payload={2: content}, states={2: FULLY}).write(tmp_path / "disk.vhdx")
    truth = bytes(2 * MIB) + content + bytes(MIB)
    sound = image.read_bytes()
    for damaged in ((131072 + 40, 196608 + 99), (65536 + 9, 262144 + 20)):
        changed = bytearray(sound)
        for at in damaged:
            changed[at] ^= 0xFF
        image.write_bytes(changed)
        assert image_content(image) == truth
    for pair in ((65536 + 9, 131072 + 9), (196608 + 20, 262144 + 20)):
        changed = bytearray(sound)
        for at in pair:
            changed[at] ^= 0xFF
        image.write_bytes(changed)
        with pytest.raises(CorruptImageError):
            open_layer(image)


@pytest.mark.parametrize("newest", [65536, 131072])
def test_the_newer_header_counts(newest: int, tmp_path: Path) -> None:
    base = Vhdx(4 * MIB, data_write=UUID(int=0xA))
    path = base.write(tmp_path / "base.vhdx")
    base.data_write = UUID(int=0xB)
    with path.open("r+b") as file:
        file.seek(newest)
        file.write(base.header(9))
    top = Vhdx(4 * MIB, locator={"parent_linkage": str(UUID(int=0xB)), "relative_path": "base.vhdx"})
    assert image_content(top.write(tmp_path / "top.vhdx")) == bytes(4 * MIB)
    top.locator = {"parent_linkage": str(UUID(int=0xA)), "relative_path": "base.vhdx"}
    with pytest.raises(ParentMismatchError):
        open_layer(top.write(tmp_path / "top.vhdx"))


def test_one_bad_entry_is_the_error_of_its_block(tmp_path: Path) -> None:
    content = b"y" * MIB
    disk = Vhdx(4 * MIB, payload={0: content, 2: content}, states={0: FULLY, 2: FULLY})
    image = disk.write(tmp_path / "disk.vhdx")
    with image.open("r+b") as file:
        file.seek(BAT_AT)
        file.write((1 << 40 | FULLY).to_bytes(8, "little"))
        file.seek(BAT_AT + 8)
        file.write((4).to_bytes(8, "little"))
    layer = open_layer(image)
    device = layer.device()
    assert device.pread(2 * MIB, MIB) == content
    for block in (0, 1):
        with pytest.raises(CorruptImageError, match=f"block {block} "):
            device.pread(block * MIB, 1)
    layer.close()


def test_cut_short_at_any_length(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(MIB)
    disk = Vhdx(4 * MIB, payload={0: content, 3: content}, states={0: FULLY, 3: FULLY})
    whole = disk.write(tmp_path / "whole.vhdx").read_bytes()
    truth = content + bytes(2 * MIB) + content
    for size in (
        0,
        7,
        8,
        65536,
        70000,
        131072,
        196608,
        LOG_AT,
        BAT_AT,
        BAT_AT + 9,
        3 * MIB,
        4 * MIB,
        5 * MIB + 1,
    ):
        cut = tmp_path / "cut.vhdx"
        cut.write_bytes(whole[:size])
        with pytest.raises((ImageError, MountfsError)):
            assert image_content(cut) == truth
