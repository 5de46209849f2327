"""Images in a bucket of an S3-compatible server: ``s3://[PROFILE@]BUCKET/PREFIX``.

Keys, region and endpoint come from the environment or the AWS profile. An object is uploaded under its own
key, in parts that the server checks. While it is there but not yet proven, a note beside it hides it from
listings, and names the writer: whoever writes next removes both, if the writer was killed.
"""

from __future__ import annotations

import contextlib
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from imageformat.errors import (
    DestinationError,
    MountfsError,
    NotFoundError,
    StorageError,
    UsageError,
)
from imageformat.storage import ObjectInfo, StorageScheme
from imageformat.storage._s3requests import Bucket, Stored
from imageformat.storage._s3writer import (
    PENDING,
    S3ContinuingWriter,
    S3ObjectWriter,
    parse_kept,
    pending_note,
)
from imageformat.storage.leases import LEASE_NAME, Note, leased
from imageformat.storage.patience import DEFAULT_PATIENCE
from imageformat.storage.ranges import RangeDevice
from imageformat.storage.unfinished import is_kept, is_of_copy, name_of_copy

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from imageformat.device import BlockDevice
    from imageformat.storage.leases import Lease
    from imageformat.storage.patience import Patience

_THREADS = 4
_LARGEST_NOTE = 4096
_CACHE_NAME = ".catalog.json"
_OWN_MARK = ".lock"
"""Says that a folder is ours: notes are kept there."""
_LARGEST_CACHE = 256 << 20
_URL = re.compile(r"s3://(?:(?P<profile>[^@/]+)@)?(?P<bucket>[^/@]+)(?:/(?P<prefix>.*))?")


class S3Storage:
    """See `Storage` and `ContinuingStorage`; keys are those of the bucket below one prefix."""

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
            if name and not name.startswith(".") and pending_note(name) not in names:
                fingerprint = f"{entry.size}-{entry.etag}-{entry.modified_ns}"
                yield ObjectInfo(f"{prefix}{name}", entry.size, fingerprint)

    def open(self, key: str) -> BlockDevice:
        """See `Storage.open`."""
        found = self.bucket.head(self.full_key(key))
        if found is None or self.bucket.head(self.full_key(pending_note(key))) is not None:
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

    def go_on(self, key: str, identity: str) -> S3ContinuingWriter:
        """See `ContinuingStorage.go_on`; what is smaller than a part is not kept."""
        full = self.full_key(key)
        note = self.full_key(f"{key[: key.rfind('/') + 1]}{name_of_copy(identity)}")
        kept = parse_kept(self.bucket.get(note, _LARGEST_NOTE) or b"")
        if kept is not None and (full, kept.upload) not in self.bucket.uploads(full):
            kept = None
        return S3ContinuingWriter(self, key, note, kept)

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
        found = [entry for entry in self.bucket.entries(full) if isinstance(entry, Stored)]
        for entry in found:
            if _is_pending(entry.key.removeprefix(full)):
                self._remove_unproven(entry, full)
        uploads = [
            (key, upload) for key, upload in self.bucket.uploads(full) if "/" not in key.removeprefix(full)
        ]
        kept = self._kept_uploads(found, full, {upload for _, upload in uploads})
        for key, upload in uploads:
            if upload not in kept:
                self.bucket.abandon(key, upload)

    def _kept_uploads(self, found: Sequence[Stored], folder: str, uploads: Collection[str]) -> set[str]:
        """Return the uploads that can be gone on with; the notes of others are removed."""
        leases = [entry for entry in found if entry.key.removeprefix(folder).startswith(LEASE_NAME)]
        now = max((entry.modified_ns for entry in leases), default=0)
        kept = set()
        for entry in found:
            name = entry.key.removeprefix(folder)
            if is_of_copy(name):
                told = parse_kept(self.bucket.get(entry.key, _LARGEST_NOTE) or b"")
                if told and told.upload in uploads and is_kept(name, (now - entry.modified_ns) / 1e9):
                    kept.add(told.upload)
                else:
                    self.bucket.delete(entry.key)
        return kept

    def _remove_unproven(self, note: Stored, folder: str) -> None:
        name = note.key.removeprefix(folder)[1 : -len(PENDING)]
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


def _is_pending(name: str) -> bool:
    return (
        name.startswith(".") and name.endswith(PENDING) and "/" not in name and len(name) > len(PENDING) + 1
    )


def _open_s3(url: str) -> S3Storage:
    match = _URL.fullmatch(url)
    if match is None:
        raise UsageError(f"{url}: an S3 place is s3://BUCKET/PREFIX or s3://PROFILE@BUCKET/PREFIX")
    return S3Storage(match["bucket"], match["prefix"] or "", match["profile"] or "")


PLUGIN = StorageScheme("s3", lambda url: url.startswith("s3://"), _open_s3)
