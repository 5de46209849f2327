"""Exports of NBD servers: disks of running virtual machines (qemu), and what qemu-nbd and nbdkit serve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.devices.source import DEFAULT_SECTOR_SIZE, SourceIdentity
from engine.nbd import wire
from engine.nbd.client import NbdClient, open_client
from engine.nbd.content import described
from engine.nbd.uri import SCHEMES, parse_uri
from engine.sources import SourceScheme
from imageformat.device import check_range
from imageformat.extent import Extent, ExtentKind, coalesce

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFERRED = 64 << 10


class NbdSource:
    """A `BlockDevice` over an export. Thread-safe; owns the client."""

    def __init__(self, client: NbdClient) -> None:
        self.client = client
        self.size = client.export.size
        self.sector_size = max(client.export.min_block, DEFAULT_SECTOR_SIZE)  # the protocol tells no other
        self.block_size = _PREFERRED
        self.identity = SourceIdentity(str(client.uri), "export", self.size, label=client.uri.label)

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`.

        Raises:
            SourceReadError
        """
        check_range(self.size, offset, size)
        return self.client.read(offset, size)

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`; ZERO is what the server says reads as zeros, all else is DATA."""
        check_range(self.size, offset, size)
        return coalesce(
            Extent(piece.offset, piece.length, ExtentKind.ZERO if _is_zero(piece.flags) else ExtentKind.DATA)
            for piece in described(self.client, wire.ALLOCATION, offset, size)
        )

    def close(self) -> None:
        """See `BlockDevice.close`."""
        self.client.close()


def _is_zero(flags: int | None) -> bool:
    """A hole alone promises nothing of its content ("Metadata contexts", ``base:allocation``)."""
    return flags is not None and bool(flags & wire.STATE_ZERO)


def _open(url: str) -> NbdSource:
    return NbdSource(open_client(parse_uri(url)))


PLUGIN = SourceScheme(SCHEMES, _open)
