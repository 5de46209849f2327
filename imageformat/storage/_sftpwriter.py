"""Writing one object over SFTP: a hidden part, synced, read back, renamed without replacing."""

from __future__ import annotations

import contextlib
import posixpath
from collections import deque
from typing import TYPE_CHECKING
from uuid import uuid4

from asyncssh import FXF_CREAT, FXF_WRITE

from imageformat.errors import DestinationError, DestinationFullError, MountfsError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from imageformat.device import BlockDevice
    from imageformat.storage.sftp import SftpStorage

_BUFFER = 4 << 20
_WRITES_AT_ONCE = 2
_BALLAST = 32 << 20
"""Given back when the place is full, so that notes find room."""


class SftpObjectWriter:
    """See `ObjectWriter`. Memory is bounded by the writes under way."""

    def __init__(self, storage: SftpStorage, key: str, part: str = "") -> None:
        self._storage = storage
        self._key = key
        self._final = storage.path(key)
        folder, name = posixpath.split(self._final)
        self._part = posixpath.join(folder, part or f".{name}.{uuid4().hex[:8]}.part")
        self._buffer = bytearray()
        self._sent = 0
        self._under_way: deque[Future[None]] = deque()
        self._usable = self._there = True
        storage.make_folder(folder)
        storage.write(self._part, 0, b"", FXF_WRITE | FXF_CREAT)

    @property
    def position(self) -> int:
        """See `ObjectWriter.position`."""
        return self._sent + len(self._buffer)

    def append(self, data: bytes) -> None:
        """See `ObjectWriter.append`."""
        self._use()
        self._buffer += data
        if len(self._buffer) >= _BUFFER:
            self._send()
        self._usable = True

    def _use(self) -> None:
        """Spoil the writer until what begins here has succeeded."""
        if not self._usable:
            raise DestinationError(
                f"{self._place}: nothing can be added after a failure or the end; start again"
            )
        self._usable = False

    @property
    def _place(self) -> str:
        return f"{self._storage.url}/{self._key}"

    def _send(self) -> None:
        while len(self._under_way) >= _WRITES_AT_ONCE:
            self._under_way.popleft().result()
        content = bytes(self._buffer)
        self._under_way.append(
            self._storage.pool.submit(self._storage.write, self._part, self._sent, content, FXF_WRITE)
        )
        self._sent += len(content)
        self._buffer.clear()

    def commit(self, check: Callable[[BlockDevice], None] | None = None) -> None:
        """See `ObjectWriter.commit`."""
        self._use()
        if self._buffer:
            self._send()
        while self._under_way:
            self._under_way.popleft().result()
        self._storage.sync(self._part)
        found = self._storage.look(self._part)
        if found is None or found.size != self._sent:
            raise DestinationError(f"{self._place}: the server did not keep all that it took")
        if check is not None:
            with contextlib.closing(self._storage.device(self._part, found, self._place)) as device:
                check(device)
        self._storage.check_lease(self._key)
        self._publish()

    def _publish(self) -> None:
        if self._storage.look(self._final) is not None:
            raise self._exists()
        try:
            self._storage.rename(self._part, self._final)
        except MountfsError as error:
            # The answer to a rename that succeeded may have been lost with the connection.
            if self._storage.look(self._final) is None:
                raise
            if self._storage.look(self._part) is not None:
                raise self._exists() from error
        self._there = False
        found = self._storage.look(self._final)
        if found is None or found.size != self._sent:
            raise DestinationError(f"{self._place}: is not what was published; look at the server")

    def _exists(self) -> DestinationError:
        return DestinationError(f"{self._place}: exists already, and is never replaced")

    def abort(self) -> None:
        """See `ObjectWriter.abort`; what cannot be removed is hidden, and the next writer removes it."""
        self._usable = False
        self._buffer.clear()
        while self._under_way:
            with contextlib.suppress(Exception):
                self._under_way.popleft().exception()
        if self._there:
            self._there = False
            with contextlib.suppress(MountfsError):
                self._storage.remove(self._part)


class SftpContinuingWriter(SftpObjectWriter):
    """See `ContinuingWriter`: what is there is read back, and cut where it is not what is appended."""

    def __init__(self, storage: SftpStorage, key: str, part: str) -> None:
        super().__init__(storage, key, part)
        self.reused = 0
        self._full = False
        found = storage.look(self._part)
        self._found = found.size if found is not None else 0
        self._old = storage.device(self._part, found, self._place) if found is not None else None

    @property
    def sent(self) -> int:
        """See `ContinuingWriter.sent`."""
        return self._sent - self.reused

    @contextlib.contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except DestinationFullError:
            self._full = True
            raise

    def _send(self) -> None:
        known = self._known(self._buffer)
        self._sent += known
        self.reused += known
        del self._buffer[:known]
        if self._buffer:
            # Whoever took over may be going on with this very part.
            self._storage.check_lease(self._key)
            with self._noticing():
                super()._send()

    def _known(self, content: bytearray) -> int:
        """Return how many bytes of what comes next are there; what is there instead of them is cut off."""
        size = min(len(content), self._found - self._sent)
        if size > 0 and self._old is not None:
            try:
                if self._old.pread(self._sent, size) == content[:size]:
                    return size
            except StorageError:
                pass  # what cannot be read is brought again; a connection that is lost ends it below
            self._cut_here()
        return 0

    def _cut_here(self) -> None:
        self._storage.check_lease(self._key)
        self._storage.truncate(self._part, self._sent)
        self._found = self._sent

    def commit(self, check: Callable[[BlockDevice], None] | None = None) -> None:
        """See `ObjectWriter.commit`."""
        self._use()
        if self._buffer:
            self._send()
        if self._found > self._sent:
            self._cut_here()
        self._close_old()
        self._usable = True
        with self._noticing():
            super().commit(check)

    def _close_old(self) -> None:
        old, self._old = self._old, None
        if old is not None:
            old.close()

    def suspend(self) -> bool:
        """See `ContinuingWriter.suspend`."""
        self._usable = False
        self._buffer.clear()
        while self._under_way:
            with contextlib.suppress(Exception):
                self._full |= isinstance(self._under_way.popleft().exception(), DestinationFullError)
        self._close_old()
        kept = self._there and max(self._sent, self._found) > 0
        if not kept:
            self.abort()
        elif self._full:
            with contextlib.suppress(MountfsError):
                self._storage.check_lease(self._key)
                self._storage.truncate(self._part, max(self._sent - _BALLAST, self._sent // 2))
        self._there = False
        return kept

    def abort(self) -> None:
        """See `ObjectWriter.abort`; a part that another may have taken over is his."""
        self._close_old()
        if self._there:
            try:
                self._storage.check_lease(self._key)
            except MountfsError:
                self._there = False
        super().abort()
