"""Objects that were not finished, and can be gone on with: what a killed backup had stored by then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from imageformat.storage import ObjectWriter

if TYPE_CHECKING:
    from collections.abc import Sequence


@runtime_checkable
class RewritableWriter(ObjectWriter, Protocol):
    """A writer that can go back."""

    def overwrite(self, offset: int, data: bytes) -> None:
        """Replace bytes before `position`.

        Raises:
            DestinationFullError, DestinationReadOnlyError, DestinationError
        """
        ...


@runtime_checkable
class ResumableWriter(RewritableWriter, Protocol):
    """A writer whose object stays when it is not finished: after `suspend`, and when the process dies.

    Nobody sees it before `commit`, which publishes as that of every other writer does. What a dead process
    had not flushed may be missing or be anything: whoever goes on proves what is there.
    """

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes before `position`, from the medium where the system can be asked to.

        Raises:
            DestinationError: they cannot be read.
        """
        ...

    def cut(self, position: int) -> None:
        """Forget everything from ``position`` on.

        Raises:
            DestinationError
        """
        ...

    def suspend(self) -> bool:
        """Stop here and keep what is there; tell whether it was kept. Idempotent; harmless after `commit`.

        It is not kept when the system has said that it lost some of it. When the place is full, a part of
        it is given back, so that others can work there. Never raises a `MountfsError`.
        """
        ...


@runtime_checkable
class ResumableStorage(Protocol):
    """A storage that keeps unfinished objects. To be used while `Storage.exclusive` is held."""

    def create_resumable(self, key: str) -> ResumableWriter:
        """Start a new object; see `Storage.create`."""
        ...

    def unfinished(self, prefix: str) -> Sequence[str]:
        """Return the keys under which unfinished objects of a folder were to be published, in order.

        Raises:
            NotFoundError, AccessDeniedError, StorageError
        """
        ...

    def resume(self, key: str, new_key: str) -> ResumableWriter:
        """Go on with an unfinished object, to be published as ``new_key``; `position` is its end.

        Raises:
            DestinationError, AccessDeniedError
        """
        ...

    def discard(self, key: str) -> None:
        """Remove an unfinished object.

        Raises:
            DestinationReadOnlyError, DestinationError, AccessDeniedError
        """
        ...
