"""Stored blocks to plain ones: read in runs, decrypted, decompressed, and always held against their MD5."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import CorruptImageError, MountfsError, ParentMissingError
from imageformat.formats.mrimgx.member import inflate
from imageformat.formats.mrimgx.structs import md5

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from imageformat.formats.mrimgx.crypto import Cryptor
    from imageformat.formats.mrimgx.member import Member
    from imageformat.formats.mrimgx.structs import Entry

_RUN = 4 << 20
"""Neighbours in a file are read together, up to this much."""


class Owner(NamedTuple):
    """A file that holds blocks, and what decrypts them."""

    member: Member
    cryptor: Cryptor | None


class Wanted(NamedTuple):
    """One block to be read."""

    entry: Entry
    number: int
    """Its place in the partition, or in the reserved area: the vector of its encryption."""
    size: int
    """Plain length it should have."""
    least: int
    """Plain length it must have: the last block of a partition may be stored short."""


class BlockReader:
    """Reads the blocks of one partition. Any number of threads may call it at once."""

    def __init__(self, owners: Mapping[int, Owner], disk: int, partition: int, name: str) -> None:
        self._owners = owners
        self._disk = disk
        self._partition = partition
        self._name = name

    def load(self, wanted: Sequence[Wanted]) -> list[bytes]:
        """Return the plain bytes of blocks, in order.

        Raises:
            CorruptImageError: one is damaged, or does not lie where it can; the message names the file.
            ParentMissingError: no file is known to hold it.
        """
        blocks: list[bytes] = []
        for run in _neighbours(wanted):
            first = run[0].entry
            owner = self._owner(first.file_number)
            size = sum(block.entry.length for block in run)
            member = owner.member
            if first.position < 0 or first.position + size > member.root:
                raise CorruptImageError(
                    f"{member.name}: block {run[0].number} of partition {self._partition} is said to lie at "
                    f"{first.position}, outside of the file"
                )
            data = member.device.pread(first.position, size)
            at = 0
            for block in run:
                blocks.append(self._plain(owner, block, data[at : at + block.entry.length]))
                at += block.entry.length
        return blocks

    def _owner(self, number: int) -> Owner:
        owner = self._owners.get(number)
        if owner is None:
            raise ParentMissingError(f"{self._name}: needs file number {number} of its set, which is missing")
        return owner

    def _plain(self, owner: Owner, block: Wanted, stored: bytes) -> bytes:
        try:
            if not stored or len(stored) > block.size + (block.size >> 7) + 1024:
                raise CorruptImageError(f"has a stored length of {len(stored)} bytes")
            if owner.cryptor is not None:
                stored = owner.cryptor.decrypt_block(stored, self._disk, self._partition, block.number)
            plain = inflate(stored, block.size) if owner.member.document.compressed else stored
            if not block.least <= len(plain) <= block.size:
                raise CorruptImageError(f"has {len(plain)} bytes instead of {block.size}")
            if md5(plain) != block.entry.md5:
                raise CorruptImageError("is damaged (MD5 differs)")
        except MountfsError as error:
            raise CorruptImageError(
                f"{owner.member.name}: offset {block.entry.position}: block {block.number} of partition "
                f"{self._partition} {error}"
            ) from error
        return plain


def _neighbours(wanted: Sequence[Wanted]) -> Iterator[Sequence[Wanted]]:
    """Cut what is wanted into runs that lie one after another in one file."""
    start, size = 0, 0
    for at, block in enumerate(wanted):
        if at > start:
            before = wanted[at - 1].entry
            follows = (block.entry.file_number, block.entry.position) == (
                before.file_number,
                before.position + before.length,
            )
            if not follows or size + block.entry.length > _RUN:
                yield wanted[start:at]
                start, size = at, 0
        size += block.entry.length
    if start < len(wanted):
        yield wanted[start:]
