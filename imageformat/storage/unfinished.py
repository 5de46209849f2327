"""Objects that were not finished, and can be gone on with: what a killed backup or copy had stored."""

from __future__ import annotations

import re
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


KEPT_S = 7 * 24 * 3600
"""How long what was left of a copy waits for the next one: seconds since it was last written, or begun."""
_NAME_OF_COPY = re.compile(r"\.[0-9a-f]{32}\.copy\.part")


def name_of_copy(identity: str) -> str:
    """Return the hidden name of what is left of a copy. ``identity``: 32 hexadecimal digits."""
    return f".{identity}.copy.part"


def is_of_copy(name: str) -> bool:
    """Tell whether `name_of_copy` gave a name. Pure."""
    return _NAME_OF_COPY.fullmatch(name) is not None


def is_kept(name: str, age_s: float) -> bool:
    """Tell whether a file is what was left of a copy that may still be gone on with. Pure."""
    return age_s <= KEPT_S and is_of_copy(name)


@runtime_checkable
class ContinuingWriter(ObjectWriter, Protocol):
    """A writer of content that an earlier one may have brought a part of.

    The content is appended from its first byte on. What is there already and proves equal to it is not sent
    again; what differs is replaced. What is left at the end of the process, and after `suspend`, stays.
    """

    @property
    def reused(self) -> int:
        """Bytes of what was appended that were there, were proven equal, and so were not sent."""
        ...

    @property
    def sent(self) -> int:
        """Bytes of what was appended that were handed to the storage."""
        ...

    def suspend(self) -> bool:
        """Stop here and keep what is there; tell whether it was kept. Idempotent; harmless after `commit`.

        When the place is full, some of it may be given back. Never raises a `MountfsError`.
        """
        ...


@runtime_checkable
class ContinuingStorage(Protocol):
    """A storage that keeps what was brought of an object. To be used while `Storage.exclusive` is held."""

    def go_on(self, key: str, identity: str) -> ContinuingWriter:
        """Start an object, or go on with it.

        ``identity`` (32 hexadecimal digits) tells its content: what was brought under another is not even
        looked at. What is not gone on with for `KEPT_S` is removed by `Storage.exclusive`.

        Raises:
            DestinationFullError, DestinationReadOnlyError, DestinationError, AccessDeniedError
        """
        ...
