"""Copying one file from a storage to another, proven; going on with what an earlier run brought of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from imageformat.errors import VerificationError
from imageformat.storage.unfinished import ContinuingStorage, ContinuingWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine.copying import CopyItem
    from engine.devices.ratelimit import RateLimit
    from imageformat.device import BlockDevice
    from imageformat.storage import ObjectWriter, Storage

CHUNK = 8 << 20
"""Read and written at a time."""
_EDGE = 64 << 10
"""Read back of each end of a file that is not verified."""


def copy_file(
    source: Storage,
    target: Storage,
    item: CopyItem,
    *,
    verify: bool,
    limit: RateLimit | None = None,
    report: Callable[[CopyItem, int], None] = lambda _item, _count: None,
    continued: Callable[[CopyItem, int], None] = lambda _item, _count: None,
) -> None:
    """Copy one file and prove it: read back whole, or (without ``verify``) its size and both ends.

    When it ends early, what was brought stays for the next run, unless it does not prove. ``limit`` counts
    what is sent. ``continued`` is told once what an earlier run had brought, when that is proven.

    Raises:
        VerificationError, StorageError, DestinationError, AccessDeniedError, NotFoundError
    """
    copy = _FileCopy(item, source.open(item.key), limit, report, continued)
    try:
        writer = _writer(source, target, item)
        try:
            copy.bring(writer)
            writer.commit(copy.prove_all if verify else copy.prove_ends)
        except VerificationError:
            raise
        except BaseException:
            if isinstance(writer, ContinuingWriter):
                writer.suspend()
            raise
        finally:
            writer.abort()
    finally:
        copy.device.close()


def _writer(source: Storage, target: Storage, item: CopyItem) -> ObjectWriter:
    if not isinstance(target, ContinuingStorage):
        return target.create(item.key)
    return target.go_on(item.key, content_identity(item, source.modified_ns(item.key)))


def content_identity(item: CopyItem, modified_ns: int) -> str:
    """Return what tells the content of a file of the source from any other: 32 hexadecimal digits. Pure.

    An image of ours is told by its id, its root and its size; any other file by when it was last written.
    """
    info = item.point.info if item.point is not None and not item.point.is_foreign else None
    facts = (info.id.hex, info.root.hex()) if info is not None else ("", str(modified_ns))
    return xxhash.xxh3_128("\0".join((*facts, str(item.size), item.key)).encode()).hexdigest()


@dataclass(slots=True)
class _FileCopy:
    item: CopyItem
    device: BlockDevice
    limit: RateLimit | None
    report: Callable[[CopyItem, int], None]
    continued: Callable[[CopyItem, int], None]
    digest: bytes = b""
    paid: int = 0
    told: bool = False

    def bring(self, writer: ObjectWriter) -> None:
        """Append all of the file."""
        digest = xxhash.xxh3_128()
        for chunk in _chunks(self.device):
            writer.append(chunk)
            digest.update(chunk)
            self.report(self.item, len(chunk))
            self._account(writer, at_end=False)
        self.digest = digest.digest()
        self._account(writer, at_end=True)

    def _account(self, writer: ObjectWriter, *, at_end: bool) -> None:
        """Pay for what was sent, and tell what was there: when the first byte is sent, or at the end."""
        reused = writer.reused if isinstance(writer, ContinuingWriter) else 0
        sent = writer.position - reused
        if isinstance(writer, ContinuingWriter) and not at_end:
            sent = writer.sent  # what it still holds may be there
        if reused and not self.told and (sent or at_end):
            self.told = True
            self.continued(self.item, reused)
        if self.limit is not None and sent > self.paid:
            self.limit.pay(sent - self.paid)
            self.paid = sent

    def prove_all(self, written: BlockDevice) -> None:
        """Read everything back."""
        self._same_size(written)
        again = xxhash.xxh3_128()
        for chunk in _chunks(written):
            again.update(chunk)
            self.report(self.item, len(chunk))
        if again.digest() != self.digest:
            raise self._different()

    def prove_ends(self, written: BlockDevice) -> None:
        """Read both ends back."""
        self._same_size(written)
        edge = min(_EDGE, self.device.size)
        for offset in (0, self.device.size - edge):
            if written.pread(offset, edge) != self.device.pread(offset, edge):
                raise self._different()

    def _same_size(self, written: BlockDevice) -> None:
        if written.size != self.device.size:
            raise self._different()

    def _different(self) -> VerificationError:
        return VerificationError(
            f"{self.item.key}: does not read back as it was written; it was not published"
        )


def _chunks(device: BlockDevice) -> Iterator[bytes]:
    for offset in range(0, device.size, CHUNK):
        yield device.pread(offset, min(CHUNK, device.size - offset))
