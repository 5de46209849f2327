"""Writing one object in a local folder: the durability protocol.

Written under ``.NAME.part``, fsynced, read back after dropping the page cache, renamed without
replacing, folder fsynced: only then does `commit` return. An fsync error means the file is lost.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from imageformat import system
from imageformat.direct import ALIGNMENT, DirectFile
from imageformat.errors import DestinationError, DestinationFullError
from imageformat.storage.descriptors import LocalFile
from imageformat.storage.failures import write_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from imageformat.device import BlockDevice
    from imageformat.storage.descriptors import DescriptorPool

_BUFFER = 1 << 20
_SYNC_EVERY = 512 << 20
_PUSH_EVERY = 16 << 20
"""Written back to the medium at a time, while the next is being made."""
_BALLAST = 32 << 20
"""Given back when the place is full, so that lists, locks and journals find room."""


class LocalObjectWriter:
    """See `ObjectWriter`. After any failure it only aborts: what an fsync lost does not come back."""

    def __init__(
        self, final: Path, pool: DescriptorPool, part: Path | None = None, *, new: bool = True
    ) -> None:
        self._final = final
        self._part = part or final.with_name(f".{final.name}.part")
        self._pool = pool
        self._buffer = bytearray()
        self._flushed = 0
        self._synced = 0
        self._pushed = 0
        self._lost = False
        try:
            create = os.O_CREAT | os.O_EXCL if new else system.NO_FOLLOW
            self._fd = os.open(self._part, os.O_RDWR | create | system.PRIVATE, 0o666)
        except FileExistsError as error:
            raise DestinationError(f"{self._part}: another writer's unfinished file stands there") from error
        except OSError as error:
            raise write_error(error, final.parent) from error
        self._direct = DirectFile(self._fd, writable=True)
        self._open = True
        self._usable = True

    @property
    def position(self) -> int:
        """See `ObjectWriter.position`."""
        return self._flushed + len(self._buffer)

    def append(self, data: bytes) -> None:
        """See `ObjectWriter.append`."""
        self._refuse_after_failure()
        self._buffer += data
        if len(self._buffer) >= _BUFFER:
            with self._attempt():
                self._flush()

    def _refuse_after_failure(self) -> None:
        if not self._usable:
            raise DestinationError(
                f"{self._final}: nothing can be added after a failure or the end; start again"
            )

    @contextlib.contextmanager
    def _attempt(self) -> Iterator[None]:
        """Do something that spoils the writer unless it succeeds."""
        self._refuse_after_failure()
        self._usable = False
        try:
            yield
        except OSError as error:
            raise write_error(error, self._final.parent) from error
        self._usable = True

    def _flush(self, *, all_of_it: bool = False) -> None:
        """Write the buffer; past the page cache as long as only a tail must then stay in it."""
        view = memoryview(self._buffer)
        done = self._direct.pwrite(self._flushed, view)
        try:
            while done < len(view) and (all_of_it or not done or len(view) - done >= ALIGNMENT):
                with view[done:] as rest:  # released also where an error keeps it: the buffer shrinks below
                    done += system.pwrite(self._fd, rest, self._flushed + done)
                self._push(self._flushed + done)
        finally:
            view.release()
            self._flushed += done
            del self._buffer[:done]
        if self._flushed - self._synced >= _SYNC_EVERY:
            self._sync(system.sync_data)
            self._synced = self._flushed

    def _sync(self, sync: Callable[[int], None]) -> None:
        try:
            sync(self._fd)
        except OSError:
            self._lost = True
            raise

    def _push(self, end: int) -> None:
        """Start writing back what the page cache holds."""
        if end - self._pushed >= _PUSH_EVERY:
            system.drop_cache(self._fd, self._pushed, end - self._pushed)
            self._pushed = end

    def commit(self, check: Callable[[BlockDevice], None] | None = None) -> None:
        """See `ObjectWriter.commit`."""
        with self._attempt():
            self._flush(all_of_it=True)
            self._sync(os.fsync)
            system.drop_cache(self._fd, 0, 0)
            if check is not None:
                with contextlib.closing(LocalFile(self._part, self._pool)) as device:
                    check(device)
            self._identity = os.fstat(self._fd)
            if not system.CAN_RENAME_OPEN_FILES:
                self._release()
            self._publish()
        self._close()

    def _publish(self) -> None:
        try:
            system.rename_new(self._part, self._final)
            system.sync_folder(self._final.parent)
        except FileExistsError as error:
            raise DestinationError(f"{self._final}: exists already, and is never replaced") from error
        except BaseException as error:
            if not self._taken_back():
                raise DestinationError(
                    f"{self._final}: may not outlast a power cut ({error}), nor be taken back; delete it"
                ) from error
            raise

    def _taken_back(self) -> bool:
        """Hide what was published but is not certain to last; False when it stays visible.

        It is ours only if it is the very file that we wrote: an interrupt may come at any point.
        """
        try:
            if not os.path.samestat(self._identity, self._final.lstat()):
                return True
            self._final.rename(self._part)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        with contextlib.suppress(OSError):
            system.sync_folder(self._final.parent)
        return True

    def abort(self) -> None:
        """See `ObjectWriter.abort`; what cannot be removed is hidden, and the next writer removes it."""
        if self._open:
            self._close()
            with contextlib.suppress(OSError):
                self._part.unlink(missing_ok=True)

    def _close(self) -> None:
        self._open = self._usable = False
        self._release()

    def _release(self) -> None:
        self._direct.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):  # everything that counts was fsynced, or is given up
                os.close(fd)


class LocalResumableWriter(LocalObjectWriter):
    """See `ResumableWriter`."""

    def __init__(self, final: Path, pool: DescriptorPool, part: Path, *, new: bool) -> None:
        super().__init__(final, pool, part, new=new)
        self._full = False
        if not new:
            try:
                system.drop_cache(self._fd, 0, 0)
                self._continue_at(os.fstat(self._fd).st_size)
            except OSError as error:
                self._close()
                raise write_error(error, final.parent) from error

    def _continue_at(self, position: int) -> None:
        """Go on behind a position: what lies behind the last aligned place before it is written once more."""
        start = position - position % ALIGNMENT
        self._buffer[:] = self._read_file(start, position - start)
        self._flushed = self._synced = self._pushed = start

    def _read_file(self, offset: int, size: int) -> bytes:
        data = system.pread(self._fd, size, offset)
        while len(data) < size:
            more = system.pread(self._fd, size - len(data), offset + len(data))
            if not more:
                raise OSError(errno.EIO, "the unfinished file is shorter than it was")
            data += more
        return data

    def read(self, offset: int, size: int) -> bytes:
        """See `ResumableWriter.read`."""
        with self._attempt():
            stored = max(0, min(size, self._flushed - offset))
            rest = max(0, offset - self._flushed)
            return self._read_file(offset, stored) + bytes(self._buffer[rest : rest + size - stored])

    def cut(self, position: int) -> None:
        """See `ResumableWriter.cut`."""
        with self._attempt():
            self._flush(all_of_it=True)
            os.ftruncate(self._fd, position)
            self._continue_at(position)

    def overwrite(self, offset: int, data: bytes) -> None:
        """See `ResumableWriter.overwrite`."""
        with self._attempt():
            stored = max(0, min(len(data), self._flushed - offset))
            done = 0
            while done < stored:
                done += system.pwrite(self._fd, data[done:stored], offset + done)
            at = offset + stored - self._flushed
            if stored < len(data):
                self._buffer[at : at + len(data) - stored] = data[stored:]

    @contextlib.contextmanager
    def _attempt(self) -> Iterator[None]:
        try:
            with super()._attempt():
                yield
        except DestinationFullError:
            self._full = True
            raise

    def suspend(self) -> bool:
        """See `ResumableWriter.suspend`."""
        if not self._open:
            return False
        if self._lost:
            self.abort()
            return False
        with contextlib.suppress(OSError):
            if self._full:
                os.ftruncate(self._fd, self._flushed - min(_BALLAST, self._flushed // 2))
            else:
                self._flush(all_of_it=True)
        self._close()
        return True


class LocalContinuingWriter(LocalResumableWriter):
    """See `ContinuingWriter`: what is there is read back, and cut where it is not what is appended."""

    def __init__(self, final: Path, pool: DescriptorPool, part: Path) -> None:
        super().__init__(final, pool, part, new=not part.exists())
        self._found = super().position
        self.reused = 0
        self.sent = 0

    @property
    def position(self) -> int:
        """See `ObjectWriter.position`."""
        return self.reused + self.sent

    def append(self, data: bytes) -> None:
        """See `ObjectWriter.append`."""
        self._refuse_after_failure()
        known = self._known(data)
        self.reused += known
        if known < len(data):
            super().append(data[known:])
            self.sent += len(data) - known

    def _known(self, data: bytes) -> int:
        """Return how many bytes of what comes next are there; what is there instead of them is cut off."""
        size = min(len(data), self._found - self.position)
        if size > 0:
            try:
                if self.read(self.position, size) == data[:size]:
                    return size
            except DestinationError:
                self._usable = True  # what cannot be read is brought again
            self._cut_here()
        return 0

    def _cut_here(self) -> None:
        self.cut(self.position)
        self._found = self.position

    def commit(self, check: Callable[[BlockDevice], None] | None = None) -> None:
        """See `ObjectWriter.commit`."""
        if self.position < self._found:
            self._cut_here()
        super().commit(check)
