"""VMDK: sparse, a compressed stream, in parts, and a chain of two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.content import mixture
from support.images import MadeImage
from support.make_vmdk import GRAIN, SECTOR, descriptor, sparse, stream

if TYPE_CHECKING:
    from pathlib import Path

_SIZE = 20 * GRAIN - 3 * SECTOR
_TABLES = ((0, 80), (21 * SECTOR, 31 * SECTOR))


def _disk() -> bytes:
    return mixture(8, _SIZE, unit=GRAIN // 2)


def _text(**more: str) -> bytes:
    return descriptor([f'RW {_SIZE // SECTOR} SPARSE "disk.vmdk"'], **more)


def make_sparse(folder: Path) -> MadeImage:
    """With two directories, so that one wrong entry is noticed."""
    disk = _disk()
    (folder / "disk.vmdk").write_bytes(sparse(disk, _text()))
    proven = ((21 * SECTOR, 21 * SECTOR + 4), (22 * SECTOR, 26 * SECTOR + 4), (27 * SECTOR, 31 * SECTOR))
    return MadeImage("vmdk", "disk.vmdk", (disk,), proven, _TABLES)


def make_stream(folder: Path) -> MadeImage:
    """Compressed."""
    disk = _disk()
    content = stream(disk, _text())
    (folder / "disk.vmdk").write_bytes(content)
    end = len(content)
    grains = (128 * SECTOR, end - 1024 - 3 * SECTOR - 5 * SECTOR)
    return MadeImage("vmdk", "disk.vmdk", (disk,), (grains,), ((0, 80), (end - 10 * SECTOR, end)))


def make_parts(folder: Path) -> MadeImage:
    """A descriptor, a sparse part and two flat ones."""
    disk = _disk()
    cut = 4 * GRAIN
    (folder / "a.vmdk").write_bytes(sparse(disk[:cut], b""))
    (folder / "b.bin").write_bytes(b"?" * SECTOR + disk[cut : 2 * cut])
    (folder / "c.bin").write_bytes(disk[2 * cut :])
    lines = [
        f'RW {cut // SECTOR} SPARSE "a.vmdk"',
        f'RW {cut // SECTOR} FLAT "b.bin" 1',
        f'RW {(_SIZE - 2 * cut) // SECTOR} FLAT "c.bin" 0',
    ]
    (folder / "disk.vmdk").write_bytes(descriptor(lines))
    return MadeImage("vmdk", "disk.vmdk", (disk,), cut_is_noticed=False)


def make_chain(folder: Path) -> MadeImage:
    """Every third grain is in the parent only."""
    disk, old = _disk(), mixture(9, _SIZE)
    (folder / "base.vmdk").write_bytes(sparse(old, _text(cid="000000aa")))
    absent = frozenset(range(0, 20, 3))
    kept = b"".join(
        bytes([1]) * GRAIN if not any(piece) else piece
        for piece in (disk[at : at + GRAIN] for at in range(0, _SIZE, GRAIN))
    )[:_SIZE]
    text = _text(parent="000000aa", hint="base.vmdk")
    (folder / "disk.vmdk").write_bytes(sparse(kept, text, absent=absent))
    truth = b"".join(
        (old if at in absent else kept)[at * GRAIN : min(_SIZE, (at + 1) * GRAIN)] for at in range(20)
    )
    return MadeImage("vmdk", "disk.vmdk", (truth,), structures=_TABLES)


MAKERS = {
    "vmdk": make_sparse,
    "vmdk-stream": make_stream,
    "vmdk-parts": make_parts,
    "vmdk-chain": make_chain,
}
