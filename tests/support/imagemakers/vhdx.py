"""VHDX: a dynamic disk, one with a log to replay, and a chain of two."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from support.content import mixture
from support.images import MadeImage
from support.make_vhdx import FULLY, MIB, PARTIALLY, Vhdx, log_entry

if TYPE_CHECKING:
    from pathlib import Path

_PROVEN = ((64 << 10, 68 << 10), (128 << 10, 132 << 10), (192 << 10, 320 << 10))
_TABLES = ((2 * MIB, 2 * MIB + 40), (3 * MIB, 3 * MIB + 300), (3 * MIB + (64 << 10), 3 * MIB + (65 << 10)))


def make_dynamic(folder: Path) -> MadeImage:
    """Two blocks of four, and the end of the disk inside the last."""
    payload = {0: mixture(1, MIB), 3: mixture(2, MIB)}
    disk = Vhdx(4 * MIB - 512 * 5, payload=payload, states=dict.fromkeys(payload, FULLY))
    disk.write(folder / "disk.vhdx")
    truth = payload[0] + bytes(2 * MIB) + payload[3][: -512 * 5]
    return MadeImage("vhdx", "disk.vhdx", (truth,), _PROVEN, _TABLES)


def make_logged(folder: Path) -> MadeImage:
    """The first sectors of a block are only in the log."""
    new, old, log = mixture(3, 8192), mixture(4, MIB), UUID(int=9)
    disk = Vhdx(2 * MIB, payload={1: old}, states={1: FULLY}, log=log)
    writes: list[tuple[int, bytes | int]] = [(disk.place(1), new[:4096]), (disk.place(1) + 4096, new[4096:])]
    disk.log_content = log_entry(log, 5, 0, writes, 5 * MIB, 5 * MIB)
    disk.write(folder / "disk.vhdx")
    proven = (*_PROVEN[1:], (MIB, MIB + len(disk.log_content)))
    return MadeImage("vhdx", "disk.vhdx", (bytes(MIB) + new + old[8192:],), proven, _TABLES)


def make_chain(folder: Path) -> MadeImage:
    """A differencing disk of which each second sector is in the parent."""
    old, new = mixture(5, MIB), mixture(6, MIB)
    Vhdx(2 * MIB, payload={1: old}, states={1: FULLY}, data_write=UUID(int=3)).write(folder / "base.vhdx")
    locator = {"parent_linkage": f"{{{UUID(int=3)}}}", "relative_path": ".\\base.vhdx"}
    disk = Vhdx(2 * MIB, payload={1: new}, states={1: PARTIALLY}, locator=locator)
    disk.here = {1: set(range(0, MIB // 512, 2))}
    disk.write(folder / "disk.vhdx")
    mixed = b"".join((old if at & 512 else new)[at : at + 512] for at in range(0, MIB, 512))
    return MadeImage("vhdx", "disk.vhdx", (bytes(MIB) + mixed,), _PROVEN, _TABLES)


MAKERS = {"vhdx": make_dynamic, "vhdx-logged": make_logged, "vhdx-chain": make_chain}
