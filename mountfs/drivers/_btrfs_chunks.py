"""From logical addresses to places on this device: the chunks of btrfs and their profiles.

Everything in btrfs is found by a logical address; a chunk says on which devices its bytes lie, how often,
and in which stripes. Only one device is here: what lies on others is missing, and is named.

Source: the btrfs documentation, "On-disk Format", items CHUNK_ITEM and the superblock's array of system
chunks; "btrfs-man5" and "mkfs.btrfs", profiles.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from imageformat.errors import VolumeError

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = struct.Struct("<QBQ")
CHUNK_ITEM = 228
_HEAD = 48
_STRIPE = 32
_RAID0, _RAID10, _RAID5, _RAID6 = 8, 64, 128, 256
_COPIES = {0: 1, 16: 2, 32: 2, 512: 3, 1024: 4}
"""Copies of each profile that has no rows of stripes: single, RAID1, DUP, RAID1C3, RAID1C4."""
_PROFILES = _RAID0 | _RAID10 | _RAID5 | _RAID6 | 16 | 32 | 512 | 1024
_MAX_STRIPES = 4096
_STRIPE_LENGTH = 65_536
"""The only one there is."""
_LIMIT = 1 << 63


class Stripe(NamedTuple):
    """A device, and where on it the chunk has its part."""

    device: int
    offset: int


class Piece(NamedTuple):
    """A range of logical addresses that lies in one piece, once or more than once."""

    logical: int
    length: int
    places: tuple[int, ...]
    """On this device; each a full copy."""
    elsewhere: tuple[int, ...]
    """Identities of the other devices that have a copy."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk, checked: ``length`` bytes from ``start`` on."""

    start: int
    length: int
    profile: int
    sub_stripes: int
    stripes: tuple[Stripe, ...]

    def holders(self, offset: int) -> tuple[tuple[Stripe, ...], int, int]:
        """Say which stripes hold the byte at ``offset`` of the chunk, where in them, and how many follow."""
        if self.profile in _COPIES:
            return self.stripes, offset, self.length - offset
        number, inside = divmod(offset, _STRIPE_LENGTH)
        row, column = divmod(number, self._columns)
        at, left = row * _STRIPE_LENGTH + inside, min(_STRIPE_LENGTH - inside, self.length - offset)
        if self.profile == _RAID10:
            first = column * self.sub_stripes
            return self.stripes[first : first + self.sub_stripes], at, left
        if self.profile == _RAID0:
            return self.stripes[column : column + 1], at, left
        if self._columns == 1:
            # The parity of a single block is that block.
            return self.stripes, at, left
        return (self.stripes[(column + row) % len(self.stripes)],), at, left

    @property
    def _columns(self) -> int:
        """Stripes of a row that hold different data."""
        if self.profile == _RAID10:
            return len(self.stripes) // self.sub_stripes
        return len(self.stripes) - {_RAID5: 1, _RAID6: 2}.get(self.profile, 0)


def parse_chunk(start: int, raw: bytes) -> Chunk:
    """Read one chunk item.

    Raises:
        VolumeError: its numbers make no sense.
    """
    if len(raw) < _HEAD:
        raise VolumeError(f"the chunk at {start} is damaged: it is too short")
    length, _, stripe_length, kind = struct.unpack_from("<4Q", raw)
    count, sub_stripes = struct.unpack_from("<HH", raw, 44)
    profile = kind & _PROFILES
    if not 0 < count <= _MAX_STRIPES or len(raw) < _HEAD + count * _STRIPE:
        raise VolumeError(f"the chunk at {start} is damaged: {count} stripes")
    stripes = tuple(
        Stripe(*struct.unpack_from("<QQ", raw, _HEAD + index * _STRIPE)) for index in range(count)
    )
    if not 0 < length < _LIMIT or start + length > _LIMIT or any(part.offset >= _LIMIT for part in stripes):
        raise VolumeError(f"the chunk at {start} is damaged: {length} bytes")
    if stripe_length != _STRIPE_LENGTH:
        raise VolumeError(f"the chunk at {start} is damaged: stripes of {stripe_length} bytes")
    least = {_RAID10: 2, _RAID5: 2, _RAID6: 3}.get(profile, _COPIES.get(profile, 1))
    striped = profile in {_RAID0, _RAID10, _RAID5, _RAID6}
    if count < least or (not striped and count != _COPIES.get(profile)):
        raise VolumeError(f"the chunk at {start} is damaged: {count} stripes in profile {profile:#x}")
    if profile == _RAID10 and (not 0 < sub_stripes <= count or count % sub_stripes):
        raise VolumeError(f"the chunk at {start} is damaged: {sub_stripes} of {count} stripes")
    return Chunk(start, length, profile, sub_stripes, stripes)


class ChunkMap:
    """The chunks that are known, by logical address. Immutable, so any number of threads may ask."""

    def __init__(self, device_id: int, chunks: list[Chunk]) -> None:
        self._device_id = device_id
        self._chunks = sorted(chunks, key=lambda chunk: chunk.start)
        self._starts = [chunk.start for chunk in self._chunks]
        for one, other in zip(self._chunks, self._chunks[1:], strict=False):
            if one.start + one.length > other.start:
                raise VolumeError(f"the chunks at {one.start} and {other.start} overlap")

    def mirrored(self) -> tuple[Chunk, ...] | None:
        """Return all chunks, by address, when each of their stripes is a full copy; None if not."""
        return tuple(self._chunks) if all(chunk.profile in _COPIES for chunk in self._chunks) else None

    def pieces(self, logical: int, length: int) -> Iterator[Piece]:
        """Say where each part of a range lies.

        Raises:
            VolumeError: no chunk has it.
        """
        end = logical + length
        while logical < end:
            index = bisect_right(self._starts, logical) - 1
            chunk = self._chunks[index] if index >= 0 else None
            if chunk is None or logical >= chunk.start + chunk.length:
                raise VolumeError(f"no chunk holds the logical address {logical}")
            holders, at, left = chunk.holders(logical - chunk.start)
            left = min(left, end - logical)
            here = tuple(stripe.offset + at for stripe in holders if stripe.device == self._device_id)
            elsewhere = tuple(stripe.device for stripe in holders if stripe.device != self._device_id)
            yield Piece(logical, left, here, elsewhere)
            logical += left


def system_chunks(raw: bytes) -> list[Chunk]:
    """Read the chunks that the superblock itself lists.

    Raises:
        VolumeError: the list is damaged.
    """
    found, at = [], 0
    while at < len(raw):
        if at + KEY.size + _HEAD > len(raw):
            raise VolumeError("the system chunks of the superblock are damaged")
        _, kind, start = KEY.unpack_from(raw, at)
        if kind != CHUNK_ITEM:
            raise VolumeError("the system chunks of the superblock are damaged: not a chunk")
        at += KEY.size
        found.append(parse_chunk(start, raw[at:]))
        at += _HEAD + len(found[-1].stripes) * _STRIPE
    return found
