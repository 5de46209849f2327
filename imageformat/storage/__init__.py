"""Where images are kept: named write-once objects.

An object does not exist until its writer commits. A storage is a plug-in file of this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from imageformat.device import BlockDevice


class ObjectInfo(NamedTuple):
    """One object as a listing shows it."""

    key: str
    """Path below the storage's root, with ``/`` between folders."""
    size: int
    fingerprint: str
    """Changes whenever the object was replaced: size, times, inode, or an entity tag."""


class ObjectWriter(Protocol):
    """Appends to an object that nobody sees before `commit`. One thread.

    After any failure, and after `commit` or `abort`, `append` and `commit` raise `DestinationError`: what
    a storage once failed to keep is lost, and trying again would publish a hole.
    """

    @property
    def position(self) -> int:
        """Bytes written so far."""
        ...

    def append(self, data: bytes) -> None:
        """Add ``data`` at the end.

        Raises:
            DestinationFullError, DestinationReadOnlyError, DestinationError
        """
        ...

    def commit(self, check: Callable[[BlockDevice], None] | None = None) -> None:
        """Make the object durable, read it back through ``check``, then publish it under its key.

        When it raises, the object is not there: what was published already when the last step failed is
        taken back. Only a storage that refuses even that leaves it, complete and proven; the error then
        says that it is there. An existing object is never replaced.

        Raises:
            DestinationFullError, DestinationReadOnlyError, DestinationError, AccessDeniedError; and
            whatever ``check`` raises.
        """
        ...

    def abort(self) -> None:
        """Forget everything written; idempotent, harmless after `commit`, never raises a `MountfsError`."""
        ...


class Storage(Protocol):
    """A place for objects. Any number of threads may call it at once.

    What fails is raised as a `MountfsError`. What begins with a dot is the storage's own and never listed.
    """

    @property
    def url(self) -> str:
        """How a person names this place."""
        ...

    def folders(self) -> Iterator[str]:
        """List the names of the folders at the top, in order.

        Raises:
            NotFoundError, AccessDeniedError, StorageError
        """
        ...

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """List the objects directly in the folder ``prefix`` (empty, or ending in ``/``), in order.

        Raises:
            NotFoundError: there is no such folder; a storage that knows no folders lists nothing.
            AccessDeniedError, StorageError
        """
        ...

    def open(self, key: str) -> BlockDevice:
        """Open an object for reading; the caller closes it.

        Any number may be open at once, whatever the system allows a process. An object that is deleted
        while it is open may stay readable or raise `StorageError`, but never gives other bytes.

        Raises:
            NotFoundError, AccessDeniedError, StorageError
        """
        ...

    def holds(self, key: str, prefix: str) -> bool:
        """Tell whether a plain file lies under ``key`` whose real place, links followed, is below ``prefix``.

        False when there is nothing. For names that come out of an image.
        """
        ...

    def real_place(self, key: str) -> tuple[Storage, str]:
        """Return the storage and the key of the object that ``key`` leads to: its own, or where a link leads.

        A link is made by the user, or for him: what an image lies beside is what lies beside its file.
        """
        ...

    def modified_ns(self, key: str) -> int:
        """Return when an object was last written: UTC, nanoseconds since 1970; 0 when that is not known."""
        ...

    def create(self, key: str) -> ObjectWriter:
        """Start a new object.

        Raises:
            DestinationFullError, DestinationReadOnlyError, DestinationError, AccessDeniedError
        """
        ...

    def delete(self, key: str) -> None:
        """Remove an object durably.

        Raises:
            NotFoundError: there is none.
            DestinationReadOnlyError, DestinationError, AccessDeniedError
        """
        ...

    def exclusive(self, prefix: str) -> AbstractContextManager[None]:
        """Be the only writer below ``prefix`` (a set) while the context lasts.

        On entry, what killed writers left unfinished there is removed, except what was to be kept for that
        case (`imageformat.storage.unfinished`).

        Raises:
            SetBusyError: another process or thread is writing there.
            DestinationError, AccessDeniedError: it cannot be locked.
        """
        ...

    def load_cache(self, prefix: str) -> bytes | None:
        """Return what `save_cache` kept for a folder; None when there is nothing."""
        ...

    def save_cache(self, prefix: str, data: bytes) -> None:
        """Keep a note that may be lost at any time. Never fails: a full or read-only place keeps none."""
        ...

    def close(self) -> None:
        """Release what is held; idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class StorageScheme:
    """The plug-in record of a kind of storage."""

    name: str
    matches: Callable[[str], bool]
    open: Callable[[str], Storage]
