"""What pytsk3's objects offer, as far as it is used here; the library itself has no types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class TskMeta(Protocol):
    """A ``TSK_FS_META``."""

    addr: int
    type: int
    flags: int
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    link: bytes | None
    atime: int
    atime_nano: int
    mtime: int
    mtime_nano: int
    ctime: int
    ctime_nano: int
    crtime: int
    crtime_nano: int


class TskName(Protocol):
    """A ``TSK_FS_NAME``."""

    name: bytes
    flags: int
    meta_addr: int


class TskFileInfo(Protocol):
    """A ``TSK_FS_FILE``."""

    name: TskName
    meta: TskMeta | None


class TskRun(Protocol):
    """A ``TSK_FS_ATTR_RUN``, in blocks."""

    offset: int
    len: int
    addr: int
    flags: int


class TskAttributeInfo(Protocol):
    """A ``TSK_FS_ATTR``."""

    type: int
    id: int
    name: bytes | None
    size: int
    flags: int


class TskAttribute(Protocol):
    """A ``pytsk3.Attribute``."""

    info: TskAttributeInfo

    def __iter__(self) -> Iterator[TskRun]:
        """Yield the runs."""
        ...


class TskFile(Protocol):
    """A ``pytsk3.File``."""

    info: TskFileInfo

    def __iter__(self) -> Iterator[TskAttribute]:
        """Yield the attributes."""
        ...

    def as_directory(self) -> Iterable[TskFile]:
        """Open as a directory."""
        ...

    def read_random(self, offset: int, size: int, type: int = ..., id: int = ...) -> bytes:  # noqa: A002
        """Read from an attribute."""
        ...


class TskInfo(Protocol):
    """A ``TSK_FS_INFO``."""

    block_size: int
    root_inum: int
    last_inum: int


class TskFs(Protocol):
    """A ``pytsk3.FS_Info``."""

    info: TskInfo

    def open_meta(self, inode: int) -> TskFile:
        """Open a file by number."""
        ...
