"""VHD: fixed, dynamic, and a chain of two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.content import mixture
from support.images import MadeImage
from support.make_vhd import DIFFERENCING, FIXED, Vhd

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK = 1 << 16
_DISK_BLOCKS = 20


def make_fixed(folder: Path) -> MadeImage:
    """The disk, and a footer."""
    disk = mixture(1, _BLOCK * 5)
    (folder / "disk.vhd").write_bytes(disk + Vhd(len(disk), FIXED).footer())
    end = len(disk) + 512
    return MadeImage("vhd", "disk.vhd", (disk,), ((len(disk), end),), ((len(disk), end),))


def make_dynamic(folder: Path) -> MadeImage:
    """Some of the blocks."""
    blocks = {at: mixture(at, _BLOCK) for at in range(0, _DISK_BLOCKS, 3)}
    path = Vhd(_BLOCK * _DISK_BLOCKS - 512, blocks=blocks).write(folder / "disk.vhd")
    truth = b"".join(blocks.get(at, bytes(_BLOCK)) for at in range(_DISK_BLOCKS))[:-512]
    end = path.stat().st_size
    return MadeImage(
        "vhd", "disk.vhd", (truth,), ((0, 1536), (end - 512, end)), ((1536, 1536 + 4 * _DISK_BLOCKS),)
    )


def make_chain(folder: Path) -> MadeImage:
    """Each second sector of each second block is in the parent."""
    old, new = mixture(5, _BLOCK), mixture(6, _BLOCK)
    parent = Vhd(_BLOCK * 4, identity=b"p" * 16, blocks=dict.fromkeys(range(4), old))
    parent.write(folder / "base.vhd")
    disk = Vhd(_BLOCK * 4, DIFFERENCING, parent=b"p" * 16, parent_name="base.vhd")
    disk.blocks = dict.fromkeys((1, 3), new)
    disk.here = {at: set(range(0, 128, 2)) for at in (1, 3)}
    path = disk.write(folder / "disk.vhd")
    mixed = b"".join((old if at & 512 else new)[at : at + 512] for at in range(0, _BLOCK, 512))
    end = path.stat().st_size
    return MadeImage("vhd", "disk.vhd", ((old + mixed) * 2,), ((0, 1536), (end - 512, end)), ((1536, 1552),))


MAKERS = {"vhd": make_dynamic, "vhd-fixed": make_fixed, "vhd-chain": make_chain}
