"""Images in memory: for tests and for experiments; gone when the process ends."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from imageformat.device import MemoryDevice
from imageformat.errors import DestinationError, NotFoundError, SetBusyError
from imageformat.storage import ObjectInfo, StorageScheme

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imageformat.device import BlockDevice


class MemoryObjectWriter:
    """See `ObjectWriter`."""

    def __init__(self, storage: MemoryStorage, key: str) -> None:
        self._storage = storage
        self._key = key
        self._content = bytearray()
        self._usable = True

    @property
    def position(self) -> int:
        """See `ObjectWriter.position`."""
        return len(self._content)

    def append(self, data: bytes) -> None:
        """See `ObjectWriter.append`."""
        self._refuse_after_failure()
        self._content += data

    def overwrite(self, offset: int, data: bytes) -> None:
        """See `RewritableWriter.overwrite`."""
        self._refuse_after_failure()
        self._content[offset : offset + len(data)] = data

    def _refuse_after_failure(self) -> None:
        if not self._usable:
            raise DestinationError(
                f"{self._key}: nothing can be added after a failure or the end; start again"
            )

    def commit(self, check: Callable[[BlockDevice], None] | None = None) -> None:
        """See `ObjectWriter.commit`."""
        self._refuse_after_failure()
        self._usable = False
        content = bytes(self._content)
        if check is not None:
            check(MemoryDevice(content))
        self._storage.publish(self._key, content)

    def abort(self) -> None:
        """See `ObjectWriter.abort`."""
        self._usable = False
        self._content.clear()


class MemoryStorage:
    """See `Storage`."""

    def __init__(self) -> None:
        self._objects: dict[str, tuple[bytes, int]] = {}
        self._locked: set[str] = set()
        self._caches: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._versions = 0

    @property
    def url(self) -> str:
        """See `Storage.url`."""
        return "memory://"

    def folders(self) -> Iterator[str]:
        """See `Storage.folders`."""
        with self._lock:
            keys = list(self._objects)
        yield from sorted({key.split("/")[0] for key in keys if "/" in key and key[0] != "."})

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Storage.objects`."""
        with self._lock:
            found = sorted(self._objects.items())
        for key, (content, version) in found:
            name = key.removeprefix(prefix)
            if key.startswith(prefix) and "/" not in name and not name.startswith("."):
                yield ObjectInfo(key, len(content), str(version))

    def open(self, key: str) -> BlockDevice:
        """See `Storage.open`."""
        with self._lock:
            if key not in self._objects:
                raise NotFoundError(f"{key}: no such object")
            return MemoryDevice(self._objects[key][0])

    def holds(self, key: str, prefix: str) -> bool:
        """See `Storage.holds`."""
        with self._lock:
            return key in self._objects and key.startswith(prefix)

    def real_place(self, key: str) -> tuple[MemoryStorage, str]:
        """See `Storage.real_place`; there are no links."""
        return self, key

    def modified_ns(self, key: str) -> int:  # noqa: ARG002 (times are not kept)
        """See `Storage.modified_ns`."""
        return 0

    def create(self, key: str) -> MemoryObjectWriter:
        """See `Storage.create`."""
        return MemoryObjectWriter(self, key)

    def publish(self, key: str, content: bytes, *, replace: bool = False) -> None:
        """Make an object visible."""
        with self._lock:
            if key in self._objects and not replace:
                raise DestinationError(f"{key}: exists already")
            self._versions += 1
            self._objects[key] = content, self._versions

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        with self._lock:
            if self._objects.pop(key, None) is None:
                raise NotFoundError(f"{key}: no such object")

    @contextlib.contextmanager
    def exclusive(self, prefix: str) -> Iterator[None]:
        """See `Storage.exclusive`."""
        with self._lock:
            if prefix in self._locked:
                raise SetBusyError(f"{prefix}: another writer is at work here")
            self._locked.add(prefix)
        try:
            yield
        finally:
            with self._lock:
                self._locked.discard(prefix)

    def load_cache(self, prefix: str) -> bytes | None:
        """See `Storage.load_cache`."""
        return self._caches.get(prefix)

    def save_cache(self, prefix: str, data: bytes) -> None:
        """See `Storage.save_cache`."""
        self._caches[prefix] = data

    def close(self) -> None:
        """Nothing is held."""


PLUGIN = StorageScheme("memory", lambda url: url == "memory://", lambda _url: MemoryStorage())
