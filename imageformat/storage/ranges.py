"""An object behind a network as a device: few requests, each as large as pays.

A round trip costs as much as some hundred kilobytes. Small reads (index pages, headers) are served from
windows that are fetched whole and kept; large ones are fetched in pieces at once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from imageformat.device import check_range
from imageformat.errors import StorageError
from imageformat.extent import Extent, ExtentKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor

WINDOW = 32 << 10
KEPT_WINDOWS = 32
"""1 MiB for each open object."""
PIECE = 2 << 20


class RangeDevice:
    """Reads ranges with ``fetch(offset, size)``, which returns all of it or raises. Thread-safe.

    ``pool`` fetches the pieces of large reads at once. ``release`` is called when it is closed.
    """

    block_size = 4096

    def __init__(
        self,
        name: str,
        size: int,
        fetch: Callable[[int, int], bytes],
        pool: Executor,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self._name = name
        self.size = size
        self._fetch = fetch
        self._pool = pool
        self._release = release
        self._windows: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False

    def pread(self, offset: int, size: int) -> bytes:
        """See `BlockDevice.pread`."""
        check_range(self.size, offset, size)
        if self._closed:
            raise StorageError(f"{self._name}: is closed")
        if not size:
            return b""
        if size <= WINDOW:
            return self._from_windows(offset, size)
        if size <= 2 * PIECE:
            return self._fetch(offset, size)
        pieces = [(at, min(PIECE, offset + size - at)) for at in range(offset, offset + size, PIECE)]
        return b"".join(self._pool.map(lambda piece: self._fetch(*piece), pieces))

    def _from_windows(self, offset: int, size: int) -> bytes:
        """Serve a small read, which lies in one window or in two neighbours."""
        first, last = offset // WINDOW, (offset + size - 1) // WINDOW
        with self._lock:
            known = {number: self._windows.get(number) for number in range(first, last + 1)}
            for number, content in known.items():
                if content is not None:
                    self._windows.move_to_end(number)
        missing = [number for number, content in known.items() if content is None]
        if missing:
            start = missing[0] * WINDOW
            fetched = self._fetch(start, min((missing[-1] + 1) * WINDOW, self.size) - start)
            for position, number in enumerate(missing):
                known[number] = fetched[position * WINDOW : (position + 1) * WINDOW]
            self._keep({number: known[number] or b"" for number in missing})
        skip = offset - first * WINDOW
        return b"".join(known[number] or b"" for number in range(first, last + 1))[skip : skip + size]

    def _keep(self, windows: dict[int, bytes]) -> None:
        with self._lock:
            self._windows.update(windows)
            while len(self._windows) > KEPT_WINDOWS:
                self._windows.popitem(last=False)

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        """See `BlockDevice.extents`; all of it is DATA."""
        check_range(self.size, offset, size)
        if size:
            yield Extent(offset, size, ExtentKind.DATA)

    def close(self) -> None:
        """See `BlockDevice.close`."""
        if not self._closed:
            self._closed = True
            self._windows.clear()
            self._release()
