"""The one place that calls libtsk.

libtsk is not thread-safe for one file system, so every call holds the tree's lock. It reads the device
through a callback; an error there would come out as libtsk's own words, an empty list or short data, so it
is remembered and raised in their place. Whatever pytsk3 raises becomes a `VolumeError`.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytsk3

from imageformat.errors import VolumeError
from imageformat.extent import Extent, ExtentKind
from mountfs.drivers._content import RunList

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice
    from mountfs.drivers._tsk_types import TskAttribute, TskFile, TskFs, TskMeta


ATTRIBUTE_RESIDENT = 0x4
ATTRIBUTE_ENCRYPTED = 0x10
ATTRIBUTE_COMPRESSED = 0x20

_RUN_FILLER = 0x1
_RUN_SPARSE = 0x2
_RUN_ENCRYPTED = 0x4

_MAX_MESSAGE = 300


class _Image(pytsk3.Img_Info):  # type: ignore[misc]
    """A device as libtsk sees it."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._failed = (0, 0)
        self.failure: Exception | None = None
        super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL)

    def read(self, offset: int, size: int) -> bytes:
        """Read for libtsk; nothing on failure, which is kept for the caller.

        When its read-ahead fails, libtsk asks again for the part it needs. An exception raised here
        would stay pending and fail the call even when that succeeds.
        """
        try:
            data = self._device.pread(offset, max(0, min(size, self._device.size - offset)))
        except Exception as error:  # noqa: BLE001 (it passes through a C library and is raised again)
            self.failure, self._failed = error, (offset, offset + size)
            return b""
        if self._failed[0] <= offset and offset + size <= self._failed[1]:
            self.failure, self._failed = None, (0, 0)
        return data

    def get_size(self) -> int:
        """Return the size of the device."""
        return self._device.size

    def close(self) -> None:
        """The owner of the device closes it."""


class TskFileSystem:
    """One file system opened by libtsk."""

    def __init__(self, device: BlockDevice, tsk_type: int) -> None:
        self.device = device
        self._lock = threading.RLock()
        self._image = _Image(device)
        with self.calling("the file system cannot be opened"):
            self._fs: TskFs = pytsk3.FS_Info(self._image, offset=0, type=tsk_type)
            self.block_size = int(self._fs.info.block_size)
            self.root_inode = int(self._fs.info.root_inum)
            self.last_inode = int(self._fs.info.last_inum)

    @contextmanager
    def calling(self, what: str) -> Iterator[None]:
        """Hold the lock around calls of libtsk and translate their errors; ``what`` begins the message."""
        with self._lock:
            self._image.failure = None
            try:
                yield
            except (OSError, RuntimeError, SystemError, MemoryError, TypeError) as error:
                if self._image.failure is not None:
                    raise self._image.failure from error
                reason = " ".join(str(error).split())[:_MAX_MESSAGE] or type(error).__name__
                raise VolumeError(f"{what}: {reason}") from error
            if self._image.failure is not None:
                raise self._image.failure

    def open_inode(self, number: int) -> TskFile:
        """Open a file by number; call it inside `calling`."""
        if not 0 <= number <= self.last_inode:
            raise VolumeError(f"inode {number} does not exist")
        return self._fs.open_meta(inode=number)

    @staticmethod
    def meta(file: TskFile) -> TskMeta:
        """Return the metadata of a file; call it inside `calling`."""
        if file.info.meta is None:
            raise VolumeError("a file has no metadata")
        return file.info.meta

    def attributes(self, number: int) -> tuple[TskFile, list[TskAttribute]]:
        """Return a file and its attributes; call it inside `calling`.

        pytsk3 shows a file whose attributes cannot be loaded as one that has none; reading it says why.
        """
        file = self.open_inode(number)
        found = list(file)
        if not found:
            file.read_random(0, 1)
        return file, found

    def runs(self, attribute: TskAttribute, size: int) -> RunList:
        """Map the first ``size`` bytes of an attribute that lies on the volume; inside `calling`.

        Raises:
            VolumeError: the map has a gap that is not a hole, or is encrypted.
        """
        runs, position = RunList(), 0
        for run in attribute:
            if position >= size:
                break
            flags, offset, length = int(run.flags), int(run.offset) * self.block_size, int(run.len)
            length = min(length * self.block_size, size - offset)
            if flags & _RUN_ENCRYPTED:
                raise VolumeError("the content is encrypted; its key is not in the image")
            if flags & _RUN_FILLER or offset != position or length <= 0:
                break
            if not flags & _RUN_SPARSE:
                runs.add(offset, length, int(run.addr) * self.block_size)
            position += length
        if position < size:
            raise VolumeError(f"the map of a file ends at byte {position} of {size}")
        return runs


class LibraryContent:
    """Content that only libtsk can decode: compressed or resident. Reads hold the lock."""

    weight = 64

    def __init__(self, library: TskFileSystem, file: TskFile, attribute: TskAttribute) -> None:
        self._library = library
        self._file = file
        self._attribute = attribute
        self._type = attribute.info.type
        self._id = int(attribute.info.id)
        self.size = int(attribute.info.size)

    def resized(self, size: int) -> LibraryContent:
        """Set the size, where the attribute says that of the compressed bytes."""
        self.size = size
        return self

    def read(self, offset: int, size: int) -> bytes:
        """See `Content.read`."""
        with self._library.calling("a file cannot be read"):
            data = bytes(self._file.read_random(offset, size, self._type, self._id))
        if len(data) != size:
            raise VolumeError(f"a file cannot be read: {len(data)} of {size} bytes at {offset}")
        return data

    def extents(self) -> Iterator[Extent]:
        """See `Content.extents`: all of it is DATA."""
        if self.size:
            yield Extent(0, self.size, ExtentKind.DATA)

    def placements(self) -> Iterator[tuple[int, int]]:
        """See `Content.placements`: where the compressed bytes lie; resident ones lie in the metadata."""
        block_size = self._library.block_size
        with self._library.calling("the map of a file cannot be read"):
            places = [
                (int(run.addr) * block_size, int(run.len) * block_size)
                for run in self._attribute
                if not int(run.flags) & (_RUN_SPARSE | _RUN_FILLER)
            ]
        return iter(places)
