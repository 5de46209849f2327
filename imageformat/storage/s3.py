"""Images in a bucket of an S3-compatible server: ``s3://[PROFILE@]BUCKET/PREFIX``.

Keys, region and endpoint come from the environment or the AWS profile. An object is uploaded under its own
key, in parts that the server checks. While it is there but not yet proven, a note beside it hides it from
listings, and names the writer: whoever writes next removes both, if the writer was killed.
"""

from __future__ import annotations

import contextlib
import re
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from uuid import uuid4

from imageformat.errors import (
    DestinationError,
    MountfsError,
    NotFoundError,
    StorageError,
    UsageError,
)
from imageformat.storage import ObjectInfo, StorageScheme
from imageformat.storage._s3requests import Bucket, ExistsAlreadyError, Stored
from imageformat.storage.leases import Note, leased
from imageformat.storage.patience import DEFAULT_PATIENCE
from imageformat.storage.ranges import RangeDevice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from imageformat.device import BlockDevice
    from imageformat.storage.leases import Lease
    from imageformat.storage.patience import Patience

MIB = 1 << 20
_PART_SIZES = ((4000, 16 * MIB), (8000, 64 * MIB), (10_000, 512 * MIB))
"""Up to which part, and its size: 10,000 parts are the most; together they hold 1.3 TiB."""
_PARTS_AT_ONCE = 3
_THREADS = 4
_PENDING = ".pending"
_CACHE_NAME = ".catalog.json"
_OWN_MARK = ".lock"
"""Says that a folder is ours: notes are kept there."""
_LARGEST_CACHE = 256 * MIB
_URL = re.compile(r"s3://(?:(?P<profile>[^@/]+)@)?(?P<bucket>[^/@]+)(?:/(?P<prefix>.*))?")


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
            self._upload = self._bucket.begin(self._full, self._id)
        while len(self._under_way) >= (_PARTS_AT_ONCE if len(content) <= 16 * MIB else 1):
            self._under_way.popleft().result()
        number = len(self._parts) + 1
        part = self._storage.pool.submit(self._bucket.put_part, self._full, self._upload, number, content)
        self._parts.append(part)
        self._under_way.append(part)
        self._sent += len(content)

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
                    self._bucket.put(self._storage.full_key(_pending(self._key)), self._id.encode())
                self._store(etags)
                self._prove(size, check)
                self._storage.check_lease(self._key)
                if check is not None:
                    self._bucket.delete(self._storage.full_key(_pending(self._key)))
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
            self._bucket.delete(self._storage.full_key(_pending(self._key)))
        except MountfsError as failure:
            error.add_note(f"what was uploaded could not be removed: {failure}")

    def abort(self) -> None:
        """See `ObjectWriter.abort`; parts that cannot be removed are removed by the next writer."""
        self._usable = False
        self._buffer.clear()
        upload, self._upload = self._upload, ""
        if upload:
            for part in self._under_way:
                part.cancel()
            for part in self._under_way:
                with contextlib.suppress(Exception):
                    part.exception()
            with contextlib.suppress(MountfsError):
                self._bucket.abandon(self._full, upload)


class S3Storage:
    """See `Storage`; keys are those of the bucket below one prefix."""

    def __init__(
        self, bucket: str, prefix: str = "", profile: str = "", *, patience: Patience = DEFAULT_PATIENCE
    ) -> None:
        self.bucket = Bucket(bucket, profile, patience)
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        who = f"{profile}@" if profile else ""
        self._url = f"s3://{who}{bucket}/{self._prefix}".rstrip("/")
        self.pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="s3")
        self._leases: dict[str, Lease] = {}
        self._ours: set[str] = set()

    @property
    def url(self) -> str:
        """See `Storage.url`."""
        return self._url

    def full_key(self, key: str) -> str:
        """Return a key as the bucket has it."""
        return f"{self._prefix}{key}"

    def folders(self) -> Iterator[str]:
        """See `Storage.folders`."""
        found = [entry for entry in self.bucket.entries(self._prefix) if isinstance(entry, str)]
        names = (entry.removeprefix(self._prefix).rstrip("/") for entry in found)
        yield from sorted(name for name in names if name and not name.startswith("."))

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Storage.objects`; what is not yet proven is none."""
        full = self.full_key(prefix)
        found = [entry for entry in self.bucket.entries(full) if isinstance(entry, Stored)]
        names = {entry.key.removeprefix(full) for entry in found}
        for entry in sorted(found, key=lambda entry: entry.key):
            name = entry.key.removeprefix(full)
            if name and not name.startswith(".") and _pending(name) not in names:
                fingerprint = f"{entry.size}-{entry.etag}-{entry.modified_ns}"
                yield ObjectInfo(f"{prefix}{name}", entry.size, fingerprint)

    def open(self, key: str) -> BlockDevice:
        """See `Storage.open`."""
        found = self.bucket.head(self.full_key(key))
        if found is None or self.bucket.head(self.full_key(_pending(key))) is not None:
            raise NotFoundError(f"{self._url}/{key}: no such object")
        return self.device(key, found)

    def device(self, key: str, found: Stored) -> BlockDevice:
        """Open an object that is known already."""
        full = self.full_key(key)
        return RangeDevice(
            f"{self._url}/{key}",
            found.size,
            lambda offset, size: self.bucket.read(full, offset, size, found),
            self.pool,
        )

    def holds(self, key: str, prefix: str) -> bool:
        """See `Storage.holds`; there are no links."""
        if not key.startswith(prefix) or ".." in key.split("/"):
            return False
        try:
            return self.bucket.head(self.full_key(key)) is not None
        except MountfsError:
            return False

    def real_place(self, key: str) -> tuple[S3Storage, str]:
        """See `Storage.real_place`; there are no links."""
        return self, key

    def modified_ns(self, key: str) -> int:
        """See `Storage.modified_ns`."""
        try:
            found = self.bucket.head(self.full_key(key))
        except MountfsError:
            return 0
        return found.modified_ns if found is not None else 0

    def create(self, key: str) -> S3ObjectWriter:
        """See `Storage.create`."""
        return S3ObjectWriter(self, key)

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        full = self.full_key(key)
        if self.bucket.head(full) is None:
            raise NotFoundError(f"{self._url}/{key}: no such object")
        self.bucket.delete(full)
        if self.bucket.head(full) is not None:
            raise DestinationError(
                f"{self._url}/{key}: the server acknowledged its removal, but still has it"
            )

    @contextlib.contextmanager
    def exclusive(self, prefix: str) -> Iterator[None]:
        """See `Storage.exclusive` and `leases`."""
        with leased(_S3Notes(self, prefix)) as lease:
            self._leases[prefix] = lease
            try:
                self._mark_as_ours(prefix)
                self._remove_unfinished(prefix)
                yield
            finally:
                del self._leases[prefix]

    def _mark_as_ours(self, prefix: str) -> None:
        if not self._is_ours(prefix):
            self.bucket.put(self.full_key(f"{prefix}{_OWN_MARK}"), b"")
            self._ours.add(prefix)

    def _is_ours(self, prefix: str) -> bool:
        if prefix not in self._ours and self.bucket.head(self.full_key(f"{prefix}{_OWN_MARK}")) is not None:
            self._ours.add(prefix)
        return prefix in self._ours

    def _remove_unfinished(self, prefix: str) -> None:
        full = self.full_key(prefix)
        for entry in list(self.bucket.entries(full)):
            if isinstance(entry, Stored) and _is_pending(entry.key.removeprefix(full)):
                self._remove_unproven(entry, full)
        for key, upload in self.bucket.uploads(full):
            if "/" not in key.removeprefix(full):
                self.bucket.abandon(key, upload)

    def _remove_unproven(self, note: Stored, folder: str) -> None:
        name = note.key.removeprefix(folder)[1 : -len(_PENDING)]
        found = self.bucket.head(f"{folder}{name}")
        if found is not None and found.writer and found.writer.encode() == self.bucket.get(note.key, 64):
            self.bucket.delete(found.key)
        self.bucket.delete(note.key)

    def check_lease(self, key: str) -> None:
        """Make sure that nobody else may write where ``key`` is; see `Lease.check`."""
        lease = self._leases.get(key[: key.rfind("/") + 1])
        if lease is not None:
            lease.check()

    def load_cache(self, prefix: str) -> bytes | None:
        """See `Storage.load_cache`."""
        try:
            return self.bucket.get(self.full_key(f"{prefix}{_CACHE_NAME}"), _LARGEST_CACHE)
        except MountfsError:
            return None

    def save_cache(self, prefix: str, data: bytes) -> None:
        """See `Storage.save_cache`; only in folders that are ours."""
        with contextlib.suppress(MountfsError):
            if self._is_ours(prefix):
                self.bucket.put(self.full_key(f"{prefix}{_CACHE_NAME}"), data)

    def close(self) -> None:
        """See `Storage.close`."""
        self.pool.shutdown(cancel_futures=True)


class _S3Notes:
    """See `Notes`."""

    def __init__(self, storage: S3Storage, prefix: str) -> None:
        self._bucket = storage.bucket
        self._folder = storage.full_key(prefix)
        self.place = f"{storage.url}/{prefix}"

    def put(self, name: str, content: bytes) -> None:
        """See `Notes.put`."""
        self._bucket.put(f"{self._folder}{name}", content)

    def listed(self, prefix: str) -> list[Note]:
        """See `Notes.listed`."""
        entries = self._bucket.entries(f"{self._folder}{prefix}")
        return [
            Note(entry.key.removeprefix(self._folder), entry.modified_ns / 1e9)
            for entry in entries
            if isinstance(entry, Stored)
        ]

    def read(self, name: str, most: int) -> bytes:
        """See `Notes.read`."""
        try:
            return self._bucket.get(f"{self._folder}{name}", most) or b""
        except (NotFoundError, StorageError):
            return b""

    def delete(self, name: str) -> None:
        """See `Notes.delete`."""
        self._bucket.delete(f"{self._folder}{name}")


def _pending(key: str) -> str:
    """Return the key of the note that hides an object."""
    folder, _, name = key.rpartition("/")
    return f"{folder}/.{name}{_PENDING}" if folder else f".{name}{_PENDING}"


def _is_pending(name: str) -> bool:
    return (
        name.startswith(".") and name.endswith(_PENDING) and "/" not in name and len(name) > len(_PENDING) + 1
    )


def _open_s3(url: str) -> S3Storage:
    match = _URL.fullmatch(url)
    if match is None:
        raise UsageError(f"{url}: an S3 place is s3://BUCKET/PREFIX or s3://PROFILE@BUCKET/PREFIX")
    return S3Storage(match["bucket"], match["prefix"] or "", match["profile"] or "")


PLUGIN = StorageScheme("s3", lambda url: url.startswith("s3://"), _open_s3)
