"""One point's disk as a `BlockDevice`: resolved on the fly, decoded through the block cache."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from imageformat.device import check_range
from imageformat.errors import ExcludedError, MountfsError, NotFoundError, UnreadableBlockError
from imageformat.extent import Extent, ExtentKind, coalesce
from imageformat.layer import BlockRef, Fill
from imageformat.leftout import why_left_out

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TypeAlias

    from imageformat.cache import BlockCache
    from imageformat.chain import Chain

    Wanted: TypeAlias = tuple[int, int, BlockRef, int]

_KINDS = {
    Fill.ZERO: ExtentKind.ZERO,
    Fill.UNUSED: ExtentKind.UNUSED,
    Fill.BAD: ExtentKind.BAD,
    Fill.EXCLUDED: ExtentKind.EXCLUDED,
}
READ_AHEAD_BLOCKS = 8
"""How far a sequential reader is led: 512 KiB, four requests of the kernel."""
_KEYS_REMEMBERED = 4096


class ReadAhead:
    """A small pool that decodes the next blocks while the reader digests these. Shared by all views."""

    def __init__(self, threads: int = 2) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")

    def submit(self, view: ImageView, offset: int, size: int) -> None:
        """Bring a range into the cache; failures are left to the reader that really asks."""
        self._pool.submit(view.prefetch, offset, size)

    def close(self) -> None:
        """Stop; nothing is waited for but what runs."""
        self._pool.shutdown(cancel_futures=True)


class ImageView:
    """A disk as it was at one point. Any number of threads may call it at once.

    Every byte comes from a frame whose checksum was right, or an error is raised. UNUSED reads as zeros;
    BAD raises `UnreadableBlockError`, EXCLUDED `ExcludedError`.
    """

    def __init__(
        self, chain: Chain, cache: BlockCache, *, disk: int = 0, read_ahead: ReadAhead | None = None
    ) -> None:
        if not 0 <= disk < len(chain.info.disks):
            raise NotFoundError(f"the image has {len(chain.info.disks)} disk(s); there is no disk {disk}")
        self._chain = chain
        self._cache = cache
        self._disk = disk
        self._read_ahead = read_ahead
        info = chain.info.disks[disk]
        self.size = info.size
        self.block_size = info.block_size
        self.sector_size = info.sector_size
        self._keys: dict[int, tuple[bytes, int, int, int, int, bytes]] = {}
        self._expected = -1
        self._led_to = 0

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`."""
        block, skip = divmod(offset, self.block_size)
        if skip + size <= self.block_size and (key := self._keys.get(block)) is not None:
            known = self._cache.peek(key)
            if known is not None and 0 <= size <= len(known) - skip:
                self._expected = offset + size
                return known[skip : skip + size]
        check_range(self.size, offset, size)
        if self._read_ahead is not None:
            self._lead(self._read_ahead, offset, size)
        return self._read(offset, size)

    def _lead(self, read_ahead: ReadAhead, offset: int, size: int) -> None:
        """Start read-ahead once a second request continues the first; stop at the first jump."""
        end = offset + size
        sequential = offset == self._expected
        self._expected = end
        if not sequential:
            self._led_to = end
            return
        window = READ_AHEAD_BLOCKS * self.block_size
        start = max(self._led_to, end)
        stop = min(self.size, end + window)
        if stop - start >= window // 2:
            self._led_to = stop
            read_ahead.submit(self, start, stop - start)

    def prefetch(self, offset: int, size: int) -> None:
        """Bring a range into the cache. Never raises: whoever reads it gets the error."""
        try:
            self._read(offset, size)
        except MountfsError:
            return

    def _read(self, offset: int, size: int) -> bytes:
        parts: list[bytes] = []
        wanted: list[tuple[int, Wanted]] = []
        for start, length, source, skip in self._chain.resolve(self._disk, offset, size):
            if isinstance(source, BlockRef):
                wanted.append((len(parts), (start, length, source, skip)))
                parts.append(b"")
            elif source is Fill.BAD:
                raise UnreadableBlockError(
                    f"point {self._chain.info.number}: disk offset {start}: was unreadable at the source"
                )
            elif source is Fill.EXCLUDED:
                raise ExcludedError(
                    f"point {self._chain.info.number}: disk offset {start}: "
                    f"{why_left_out(self._chain.info, start)}"
                )
            else:
                parts.append(bytes(length))
        for (position, (_, length, _, skip)), block in zip(
            wanted, self._blocks([entry[2] for _, entry in wanted]), strict=True
        ):
            whole = skip == 0 and length == len(block)
            parts[position] = block if whole else block[skip : skip + length]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _blocks(self, refs: Sequence[BlockRef]) -> list[bytes]:
        if not refs:
            return []
        keys = [self._key(ref) for ref in refs]
        if len(self._keys) > _KEYS_REMEMBERED:
            self._keys.clear()
        self._keys.update((ref.block, key) for ref, key in zip(refs, keys, strict=True))
        return self._cache.get_many(keys, lambda missing: self._load([refs[index] for index in missing]))

    def _key(self, ref: BlockRef) -> tuple[bytes, int, int, int, int, bytes]:
        return (self._chain.layer(ref.layer).cache_key, *ref[1:])

    def _load(self, refs: Sequence[BlockRef]) -> list[bytes]:
        return self._chain.load(refs, self._reference)

    def _reference(self, ref: BlockRef) -> bytes:
        """Return the older block that a difference stands on. Never waits for another reader's flight.

        Two readers, each of which loads what the other's difference stands on, would wait for ever.
        """
        known = self._cache.peek(self._key(ref))
        return self._chain.load_plain(ref) if known is None else known

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`."""
        check_range(self.size, offset, size)
        return coalesce(
            Extent(start, length, ExtentKind.DATA if isinstance(source, BlockRef) else _KINDS[source])
            for start, length, source, _ in self._chain.resolve(self._disk, offset, size)
        )

    def close(self) -> None:
        """The owner of the chain closes it."""
