"""Writing one object to an S3 server: in parts that it checks, hidden by a note until it is proven."""

from __future__ import annotations

import contextlib
import re
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

from imageformat.errors import DestinationError, MountfsError, NotFoundError
from imageformat.storage._s3requests import ExistsAlreadyError, md5_tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imageformat.device import BlockDevice
    from imageformat.storage.s3 import S3Storage

MIB = 1 << 20
_PART_SIZES = ((4000, 16 * MIB), (8000, 64 * MIB), (10_000, 512 * MIB))
"""Up to which part, and its size: 10,000 parts are the most; together they hold 1.3 TiB."""
_PARTS_AT_ONCE = 3
PENDING = ".pending"
_WRITER_ID = re.compile(r"[0-9a-f]{32}")


class S3ObjectWriter:
    """See `ObjectWriter`. Memory is bounded by the parts under way."""

    def __init__(self, storage: S3Storage, key: str) -> None:
        self._storage = storage
        self._bucket = storage.bucket
        self._key = key
        self._full = storage.full_key(key)
        self._id = uuid4().hex
        self._buffer = bytearray()
        self._sent = 0
        self._upload = ""
        self._parts: list[Future[str]] = []
        self._under_way: deque[Future[str]] = deque()
        self._usable = True

    @property
    def position(self) -> int:
        """See `ObjectWriter.position`."""
        return self._sent + len(self._buffer)

    def append(self, data: bytes) -> None:
        """See `ObjectWriter.append`."""
        with self._attempt():
            self._buffer += data
            while len(self._buffer) > (size := self._next_size()):
                self._send(bytes(self._buffer[:size]))
                del self._buffer[:size]
        self._usable = True

    @contextlib.contextmanager
    def _attempt(self) -> Iterator[None]:
        """Do something that spoils the writer unless it succeeds."""
        if not self._usable:
            raise DestinationError(
                f"{self._place}: nothing can be added after a failure or the end; start again"
            )
        self._usable = False
        yield

    @property
    def _place(self) -> str:
        return f"{self._storage.url}/{self._key}"

    def _next_size(self) -> int:
        number = len(self._parts) + 1
        size = next((size for last, size in _PART_SIZES if number <= last), 0)
        if not size:
            raise DestinationError(
                f"{self._place}: is larger than what an S3 server takes in {number - 1} parts"
            )
        return size

    def _send(self, content: bytes) -> None:
        if not self._upload:
            self._begin()
        while len(self._under_way) >= (_PARTS_AT_ONCE if len(content) <= 16 * MIB else 1):
            self._under_way.popleft().result()
        number = len(self._parts) + 1
        part = self._put(number, content)
        self._parts.append(part)
        self._under_way.append(part)
        self._sent += len(content)

    def _begin(self) -> None:
        self._upload = self._bucket.begin(self._full, self._id)

    def _put(self, number: int, content: bytes) -> Future[str]:
        return self._storage.pool.submit(self._bucket.put_part, self._full, self._upload, number, content)

    def commit(self, check: Callable[[BlockDevice], None] | None = None) -> None:
        """See `ObjectWriter.commit`."""
        with self._attempt():
            size = self.position
            if self._upload and self._buffer:
                self._send(bytes(self._buffer))
                self._buffer.clear()
            etags = [part.result() for part in self._parts]
            self._storage.check_lease(self._key)
            if self._bucket.head(self._full) is not None:
                raise self._exists()
            try:
                if check is not None:
                    self._bucket.put(self._storage.full_key(pending_note(self._key)), self._id.encode())
                self._store(etags)
                self._prove(size, check)
                self._storage.check_lease(self._key)
                if check is not None:
                    self._bucket.delete(self._storage.full_key(pending_note(self._key)))
            except BaseException as error:
                self._take_back(error)
                raise
            self._upload = ""

    def _exists(self) -> DestinationError:
        return DestinationError(f"{self._place}: exists already, and is never replaced")

    def _store(self, etags: list[str]) -> None:
        """Make the object. What answers that it is there already may be an earlier attempt of our own."""
        try:
            if self._upload:
                self._bucket.complete(self._full, self._upload, etags)
            else:
                self._bucket.put(self._full, bytes(self._buffer), writer=self._id, only_new=True)
        except (ExistsAlreadyError, NotFoundError) as error:
            found = self._bucket.head(self._full)
            if found is not None and found.writer == self._id:
                return
            if isinstance(error, NotFoundError):
                raise DestinationError(f"{self._place}: the server has lost what was uploaded") from error
            raise self._exists() from error

    def _prove(self, size: int, check: Callable[[BlockDevice], None] | None) -> None:
        found = self._bucket.head(self._full)
        if found is None:
            raise DestinationError(f"{self._place}: the server acknowledged it, but does not have it")
        if found.writer != self._id:
            raise self._exists()
        if found.size != size:
            raise DestinationError(f"{self._place}: the server kept {found.size} of {size} bytes")
        if check is not None:
            with contextlib.closing(self._storage.device(self._key, found)) as device:
                check(device)

    def _take_back(self, error: BaseException) -> None:
        """Remove what is ours. As long as it cannot be removed, the note hides it."""
        try:
            found = self._bucket.head(self._full)
            if found is not None and found.writer == self._id:
                self._bucket.delete(self._full)
            self._bucket.delete(self._storage.full_key(pending_note(self._key)))
        except MountfsError as failure:
            error.add_note(f"what was uploaded could not be removed: {failure}")

    def abort(self) -> None:
        """See `ObjectWriter.abort`; parts that cannot be removed are removed by the next writer."""
        upload = self._stop()
        if upload:
            with contextlib.suppress(MountfsError):
                self._bucket.abandon(self._full, upload)

    def _stop(self) -> str:
        """Wait for what is under way; the upload, if there is one."""
        self._usable = False
        self._buffer.clear()
        upload, self._upload = self._upload, ""
        for part in self._under_way:
            part.cancel()
        for part in self._under_way:
            with contextlib.suppress(Exception):
                part.exception()
        self._under_way.clear()
        return upload


class Kept(NamedTuple):
    """An upload that was left, as its note tells."""

    writer: str
    upload: str


def pack_kept(kept: Kept) -> bytes:
    """Return the content of the note of an upload."""
    return f"{kept.writer}\n{kept.upload}".encode()


def parse_kept(content: bytes) -> Kept | None:
    """Return what a note says; None when it makes no sense. Pure."""
    writer, _, upload = content.decode("utf-8", "replace").partition("\n")
    return Kept(writer, upload) if _WRITER_ID.fullmatch(writer) and upload else None


class S3ContinuingWriter(S3ObjectWriter):
    """See `ContinuingWriter`: a part is taken for what it should be if its size and its MD5 are.

    The upload is named by a note, ``note``, which is there before the first part and goes after the last.
    """

    def __init__(self, storage: S3Storage, key: str, note: str, kept: Kept | None) -> None:
        super().__init__(storage, key)
        self._note = note
        self._known: dict[int, tuple[int, str]] = {}
        self.reused = 0
        self.sent = 0
        if kept is not None:
            with contextlib.suppress(MountfsError):  # who may not list parts sends them again
                self._known = self._bucket.parts(self._full, kept.upload)
            self._bucket.put(note, pack_kept(kept))  # it is young again
            self._id, self._upload = kept

    def _begin(self) -> None:
        super()._begin()
        self._bucket.put(self._note, pack_kept(Kept(self._id, self._upload)))

    def _put(self, number: int, content: bytes) -> Future[str]:
        size, tag = self._known.get(number, (0, ""))
        if size == len(content) and tag.strip('"') == md5_tag(content).strip('"'):
            self.reused += size
            there: Future[str] = Future()
            there.set_result(tag)
            return there
        # Whoever took over may be going on with this very upload.
        self._storage.check_lease(self._key)
        self.sent += len(content)
        return super()._put(number, content)

    def commit(self, check: Callable[[BlockDevice], None] | None = None) -> None:
        """See `ObjectWriter.commit`."""
        super().commit(check)
        if not self.reused + self.sent:
            self.sent = self.position
        with contextlib.suppress(MountfsError):  # without its upload it is worth nothing
            self._bucket.delete(self._note)

    def suspend(self) -> bool:
        """See `ContinuingWriter.suspend`."""
        return bool(self._stop())

    def abort(self) -> None:
        """See `ObjectWriter.abort`; an upload that another may have taken over is his."""
        if self._upload:
            try:
                self._storage.check_lease(self._key)
            except MountfsError:
                self._stop()
            else:
                super().abort()
                with contextlib.suppress(MountfsError):
                    self._bucket.delete(self._note)
        super().abort()


def pending_note(key: str) -> str:
    """Return the key of the note that hides an object."""
    folder, _, name = key.rpartition("/")
    return f"{folder}/.{name}{PENDING}" if folder else f".{name}{PENDING}"
