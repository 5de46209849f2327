"""Damaged journals of an XFS that was in use: no crash, no hang, no other error, no memory without bound.

The records get right checksums after the damage, so that the items in them are what is tested.
"""

from __future__ import annotations

import os
import random
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageformat.errors import MountfsError
from mountfs.drivers._xfs_layout import read_superblock
from mountfs.drivers._xfs_log import _OPERATION, Record, _checksum
from mountfs.drivers._xfs_replay import open_log, replay
from support.churn import churn
from support.kernel import kernel_mount, loop_device
from support.requirements import require_root, require_tool, run
from support.xfsvolume import EDGES, LIMITS, Damaged, bounded, open_tree, visit

pytestmark = [pytest.mark.root]

Sound = tuple[Path, int, list[Record]]


@pytest.fixture(scope="module", params=["usual", "large records"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sound:
    """A volume with a journal to be replayed, where it begins, and its records."""
    require_root()
    require_tool("mkfs.xfs", "xfs_io")
    path = tmp_path_factory.mktemp("xfs") / "volume"
    path.touch()
    os.truncate(path, 320 << 20)
    run("mkfs.xfs", "-q", path)
    large = ("logbsize=256k",) if request.param == "large records" else ()
    with loop_device(path) as device, kernel_mount(device, "xfs", read_only=False, options=large) as top:
        churn(top, 11, 500)
        run("xfs_io", "-x", "-c", "shutdown -f", top)
    device_ = Damaged(path)
    layout = read_superblock(device_)
    start = layout.block_offset(layout.log_start, layout.log_blocks, "the journal")
    return path, start, open_log(device_, layout).needed()


def seal(device: Damaged, start: int, record: Record) -> None:
    unit = device.unit(start + record.block * 512, record.sectors * 512)
    struct.pack_into("<I", unit, 32, _checksum(bytes(unit), record, 328))


def read_all(device: Damaged) -> None:
    with bounded(), suppress(MountfsError):
        visit(open_tree(device))


def places(unit: bytearray, record: Record) -> list[tuple[int, int]]:
    """(offset, length) of the regions that are items' formats or small: what is parsed."""
    at, found = record.header_sectors * 512, []
    for _ in range(record.operations):
        if at + 12 > len(unit):
            break
        length = _OPERATION.unpack_from(unit, at)[1]
        found.append((at, 12))
        if 0 < length <= 200:
            found.append((at + 12, length))
        at += 12 + length
    return found


def test_the_journal_is_replayed_before_it_is_damaged(sound: Sound) -> None:
    path, _, records = sound
    device = Damaged(path)
    assert len(records) >= 1
    assert replay(device, read_superblock(device)) is not None
    tree = open_tree(device)
    assert len(list(tree.children(tree.root()))) > 5


@LIMITS
@given(data=st.data())
def test_items_with_hostile_values(sound: Sound, data: st.DataObject) -> None:
    path, start, records = sound
    device = Damaged(path)
    for _ in range(data.draw(st.integers(1, 4))):
        record = data.draw(st.sampled_from(records))
        unit = device.unit(start + record.block * 512, record.sectors * 512)
        at, length = data.draw(st.sampled_from(places(unit, record)))
        width = min(data.draw(st.sampled_from([1, 2, 4, 8])), length)
        at += data.draw(st.integers(0, length // width - 1)) * width
        value = data.draw(st.sampled_from(EDGES) | st.integers(0, 2**64 - 1)) % 256**width
        order = data.draw(st.sampled_from(["little", "big"]))
        if at % 512 >= 4 and at + width <= len(unit):
            unit[at : at + width] = value.to_bytes(width, order)
        seal(device, start, record)
    read_all(device)


@LIMITS
@given(seed=st.integers(0, 2**32), changes=st.integers(1, 40))
def test_any_bytes_in_the_journal(sound: Sound, seed: int, changes: int) -> None:
    path, start, records = sound
    device, rng = Damaged(path), random.Random(seed)
    for _ in range(changes):
        record = rng.choice(records)
        unit = device.unit(start + record.block * 512, record.sectors * 512)
        at = rng.randrange(len(unit))
        if at % 512 >= 4 or seed % 3 == 0:
            unit[at] = rng.randrange(256)
        if seed % 5:
            seal(device, start, record)
    read_all(device)
