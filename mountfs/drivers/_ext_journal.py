"""The journal of ext3 and ext4 (JBD2): what a file system that was in use still has to be told.

Source: the kernel's documentation "ext4 Data Structures and Algorithms", section Journal (jbd2). Every
complete transaction counts, in order, up to the first that is incomplete or damaged; a revoke record takes
back what its own and older transactions wrote to a block. Fast commits are not replayed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import MountfsError, VolumeError
from mountfs.drivers._content import read_at
from mountfs.drivers._ext_checksum import ALL_ONES, crc32_be, crc32c
from mountfs.drivers._ext_layout import read_inode
from mountfs.drivers._ext_mapping import map_inode
from mountfs.drivers._ext_overlay import JOURNAL_MAGIC, Copy, OverlaidDevice, Proof
from mountfs.drivers._tree import ChunkReader, reading

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice
    from mountfs.drivers._content import RunList
    from mountfs.drivers._ext_layout import Superblock

_DESCRIPTOR, _COMMIT, _SUPERBLOCK_1, _SUPERBLOCK_2, _REVOKE = 1, 2, 3, 4, 5
_HEADER = 12
_TAIL = 4

_COMPAT_CHECKSUM = 0x1
_INCOMPAT_64BIT = 0x2
_INCOMPAT_CSUM_V2 = 0x8
_INCOMPAT_CSUM_V3 = 0x10
_INCOMPAT_FAST_COMMIT = 0x20
_INCOMPAT_KNOWN = 0x3F
_CRC32, _CRC32C = 1, 4
_FAST_COMMIT_BLOCKS = 256
_FAST_COMMIT_HEAD = b"\x09\x00"
_SHORTEST = 1024
"""A log would not be made shorter for the sake of fast commits."""

_ESCAPED, _SAME_UUID, _LAST = 0x1, 0x2, 0x8

_MAX_COPIES = 1 << 20
"""Blocks that one journal may replace."""
_MAX_REVOKES = 1 << 22


class Journal(NamedTuple):
    """What the superblock of a journal says, checked."""

    block_size: int
    end: int
    """First block after the log; fast commits may follow."""
    first: int
    sequence: int
    """Of the oldest transaction."""
    start: int
    """Block at which it begins; 0: there is none."""
    compat: int
    incompat: int
    seed: int

    @property
    def has_tails(self) -> bool:
        """Whether blocks of the journal itself end in a checksum."""
        return bool(self.incompat & (_INCOMPAT_CSUM_V2 | _INCOMPAT_CSUM_V3))

    @property
    def tag_size(self) -> int:
        """Size of the entry for one block in a descriptor."""
        if self.incompat & _INCOMPAT_CSUM_V3:
            return 16
        return 8 + (2 if self.incompat & _INCOMPAT_CSUM_V2 else 0) + (4 if self.is_wide else 0)

    @property
    def is_wide(self) -> bool:
        """Whether numbers of blocks have 64 bits."""
        return bool(self.incompat & _INCOMPAT_64BIT)

    @property
    def proof(self) -> Proof:
        """How copies of blocks are proven."""
        wide = self.incompat & _INCOMPAT_CSUM_V3
        return Proof(self.seed, 0 if not self.has_tails else ALL_ONES if wide else 0xFFFF)


@dataclass(frozen=True, slots=True)
class Replay:
    """The volume as it is after its journal, and what was done to it."""

    device: BlockDevice
    outcome: str
    """"the journal is replayed in memory", or that it was not, and why."""


def replay_journal(device: BlockDevice, layout: Superblock) -> Replay:
    """Replay the journal of a volume that needs it, in memory.

    Reads the log once, without the blocks that it holds. A journal that cannot be replayed gives the volume
    as it is; never raises a `MountfsError`.
    """
    try:
        with reading("it"):
            blocks = _JournalBlocks(device, layout)
            journal = parse_superblock(blocks.read(0), layout.block_size, len(blocks))
            log = _Log(blocks, journal, layout.block_count)
            log.scan()
            log.revoke()
            notes = ["the journal is replayed in memory", *log.notes()]
    except MountfsError as error:
        return Replay(device, f"the journal was not replayed: {error}")
    overlaid = OverlaidDevice(device, layout.block_size, log.copies, journal.proof) if log.copies else device
    return Replay(overlaid, ", but ".join(notes))


class _JournalBlocks:
    """The blocks of the journal's inode."""

    def __init__(self, device: BlockDevice, layout: Superblock) -> None:
        if not layout.journal_inode:
            raise VolumeError("it lies on another device")
        inode = read_inode(ChunkReader(device), layout, layout.journal_inode)
        self._device = device
        self._size = layout.block_size
        self._runs: RunList = map_inode(device, layout, inode)
        self._count = inode.size // layout.block_size

    def __len__(self) -> int:
        return self._count

    def place(self, number: int) -> int:
        """Return the byte of the volume at which a block of the journal lies."""
        runs = list(self._runs.between(number * self._size, self._size))
        if len(runs) != 1 or runs[0].length != self._size:
            raise VolumeError(f"block {number} of it lies nowhere")
        return runs[0].source

    def read(self, number: int) -> bytes:
        """Read one block of the journal."""
        return read_at(self._device, self.place(number), self._size, f"block {number} of it")


def parse_superblock(raw: bytes, block_size: int, count: int) -> Journal:
    """Check the superblock of a journal of ``count`` blocks.

    Raises:
        VolumeError: it is damaged, or uses a feature that is not known here.
    """
    magic, kind, _, size, length, first, sequence, start = struct.unpack_from(">4sIIIIIII", raw, 0)
    if magic != JOURNAL_MAGIC or kind not in {_SUPERBLOCK_1, _SUPERBLOCK_2}:
        raise VolumeError("it has no superblock")
    compat, incompat = struct.unpack_from(">II", raw, 0x24) if kind == _SUPERBLOCK_2 else (0, 0)
    if incompat & ~_INCOMPAT_KNOWN:
        raise VolumeError(f"it uses features that are not supported: {incompat & ~_INCOMPAT_KNOWN:#x}")
    seed = 0
    if incompat & (_INCOMPAT_CSUM_V2 | _INCOMPAT_CSUM_V3):
        both = incompat & _INCOMPAT_CSUM_V2 and incompat & _INCOMPAT_CSUM_V3
        if raw[0x50] != _CRC32C or both:
            raise VolumeError("its superblock names checksums that contradict each other")
        (stored,) = struct.unpack_from(">I", raw, 0xFC)
        if crc32c(ALL_ONES, raw[:0xFC] + bytes(4) + raw[0x100:0x400]) != stored:
            raise VolumeError("the checksum of its superblock is wrong")
        seed = crc32c(ALL_ONES, raw[0x30:0x40])
    end = length
    if incompat & _INCOMPAT_FAST_COMMIT:
        fast = struct.unpack_from(">I", raw, 0x54)[0] or _FAST_COMMIT_BLOCKS
        end -= fast if length - fast >= _SHORTEST else 0
    if (
        size != block_size
        or not length <= count
        or not 0 < first < end
        or (start and not first <= start < end)
    ):
        raise VolumeError("its superblock is damaged: its places make no sense")
    return Journal(size, end, first, sequence, start, compat, incompat, seed)


class _Pending(NamedTuple):
    """A block that a transaction writes."""

    block: int
    at: int
    """Number of its copy in the journal."""
    escaped: bool
    checksum: int


class _Log:
    """One walk over a log. What it finds is in `copies`."""

    def __init__(self, blocks: _JournalBlocks, journal: Journal, block_count: int) -> None:
        self._blocks = blocks
        self._journal = journal
        self._block_count = block_count
        self._at = journal.start
        self._left = journal.end - journal.first
        self._pending: list[_Pending] = []
        self._revokes: list[tuple[int, int]] = []
        self._sum = ALL_ONES
        self._transactions = 0
        self._broken = False
        self._last_commit = 0
        self._problem = ""
        self.copies: dict[int, Copy] = {}

    def notes(self) -> Iterator[str]:
        """Say what was left out."""
        if self._problem:
            yield self._problem
        if self._has_fast_commits():
            yield "its fast commits were not"

    def scan(self) -> None:
        """Collect the copies of all complete transactions."""
        revokes: list[int] = []
        while self._journal.start and self._left > 0:
            raw = self._blocks.read(self._next())
            magic, kind, sequence = struct.unpack_from(">4sII", raw, 0)
            if magic != JOURNAL_MAGIC or sequence != self._sequence:
                return
            if kind == _DESCRIPTOR:
                self._descriptor(raw)
            elif kind == _REVOKE:
                self._broken |= not self._tail_fits(raw)
                revokes.append(self._before(self._at))
            elif kind == _COMMIT and self._commit_fits(raw):
                self._commit(revokes)
                revokes = []
            else:
                return

    @property
    def _sequence(self) -> int:
        return self._journal.sequence + self._transactions & ALL_ONES

    def _next(self) -> int:
        """Take the next block of the log, which is a ring."""
        taken, self._at = self._at, self._at + 1
        if self._at >= self._journal.end:
            self._at = self._journal.first
        self._left -= 1
        return taken

    def _before(self, at: int) -> int:
        return (self._journal.end if at == self._journal.first else at) - 1

    def _descriptor(self, raw: bytes) -> None:
        self._broken |= not self._tail_fits(raw)
        summed = bool(self._journal.compat & _COMPAT_CHECKSUM)
        if summed:
            self._sum = crc32_be(self._sum, raw)
        for block, flags, checksum in _tags(raw, self._journal):
            at = self._next()
            if self._left < 0:
                return
            if summed:
                self._sum = crc32_be(self._sum, self._blocks.read(at))
            self._pending.append(_Pending(block, at, bool(flags & _ESCAPED), checksum))
            if len(self._pending) > _MAX_COPIES:
                raise VolumeError(f"a transaction of it has more than {_MAX_COPIES} blocks")

    def _tail_fits(self, raw: bytes) -> bool:
        if not self._journal.has_tails:
            return True
        (stored,) = struct.unpack_from(">I", raw, len(raw) - _TAIL)
        return crc32c(self._journal.seed, raw[:-_TAIL] + bytes(_TAIL)) == int(stored)

    def _commit_fits(self, raw: bytes) -> bool:
        """Tell whether a transaction is proven; remember it as damaged when it is not an old one."""
        kind, size, _, stored = struct.unpack_from(">BBHI", raw, _HEADER)
        (seconds,) = struct.unpack_from(">Q", raw, 0x30)
        fits = not self._broken
        if self._journal.has_tails:
            fits = fits and crc32c(self._journal.seed, raw[:0x10] + bytes(4) + raw[0x14:]) == stored
        elif self._journal.compat & _COMPAT_CHECKSUM:
            fits = (kind, size, stored) in {(_CRC32, 4, self._sum), (0, 0, 0)}
        if not fits and seconds >= self._last_commit:
            self._problem = f"only up to transaction {self._sequence}, which is damaged"
        self._last_commit = seconds
        return fits

    def _commit(self, revokes: list[int]) -> None:
        for block, at, escaped, checksum in self._pending:
            if block >= self._block_count:
                raise VolumeError(f"it holds block {block}, which is outside the volume")
            self.copies[block] = Copy(self._blocks.place(at), self._transactions, escaped, checksum)
        if len(self.copies) > _MAX_COPIES:
            raise VolumeError(f"it holds more than {_MAX_COPIES} blocks")
        self._revokes += [(at, self._transactions) for at in revokes]
        self._pending, self._sum = [], ALL_ONES
        self._transactions += 1

    def revoke(self) -> None:
        """Drop what was taken back; then number the transactions of the rest as the journal does."""
        budget = _MAX_REVOKES
        for at, transaction in self._revokes:
            for block in _revoked(self._blocks.read(at), self._journal):
                budget -= 1
                held = self.copies.get(block)
                if held is not None and held.transaction <= transaction:
                    del self.copies[block]
            if budget < 0:
                raise VolumeError(f"it has more than {_MAX_REVOKES} revoke records")
        first = self._journal.sequence
        self.copies = {
            block: copy._replace(transaction=first + copy.transaction & ALL_ONES)
            for block, copy in self.copies.items()
        }

    def _has_fast_commits(self) -> bool:
        """Whether the area of fast commits, one block after the log, follows the last transaction."""
        first = self._journal.end + 1
        if not self._journal.incompat & _INCOMPAT_FAST_COMMIT or first >= len(self._blocks):
            return False
        head = self._blocks.read(first)[:12]
        return head[:2] == _FAST_COMMIT_HEAD and head[8:] == struct.pack("<I", self._sequence)


def _tags(raw: bytes, journal: Journal) -> Iterator[tuple[int, int, int]]:
    """Yield block, flags and checksum of each tag of a descriptor."""
    at, size = _HEADER, journal.tag_size
    end = len(raw) - (_TAIL if journal.has_tails else 0)
    while at + size <= end:
        block, checksum, flags = struct.unpack_from(">IHH", raw, at)
        if journal.is_wide:
            block |= struct.unpack_from(">I", raw, at + 8)[0] << 32
        if journal.incompat & _INCOMPAT_CSUM_V3:
            (checksum,) = struct.unpack_from(">I", raw, at + 12)
        yield block, flags, checksum
        if flags & _LAST:
            return
        at += size if flags & _SAME_UUID else size + 16


def _revoked(raw: bytes, journal: Journal) -> Iterator[int]:
    (used,) = struct.unpack_from(">I", raw, _HEADER)
    if used > len(raw) - (_TAIL if journal.has_tails else 0):
        raise VolumeError("a revoke record of it is damaged")
    layout = ">Q" if journal.is_wide else ">I"
    size = struct.calcsize(layout)
    count = max(0, used - _HEADER - 4) // size
    return (block for (block,) in struct.iter_unpack(layout, raw[_HEADER + 4 : _HEADER + 4 + count * size]))
