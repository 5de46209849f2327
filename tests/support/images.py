"""Images of any format with the truth of their disks, and a storage that watches who closes what.

A format brings its makers in ``support/imagemakers/NAME.py``: ``MAKERS``, functions by name that write an
image into an empty folder.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from imageformat.cache import BlockCache
from imageformat.device import MemoryDevice
from imageformat.errors import StorageError
from imageformat.formats import open_image
from imageformat.layer import Opening
from imageformat.secrets import NO_SECRETS, Secrets
from imageformat.siblings import Siblings
from imageformat.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice
    from imageformat.layer import ImageLayer


@dataclass(frozen=True)
class MadeImage:
    """What a maker wrote into its folder."""

    format: str
    """As `ImageInfo.format` says it."""
    name: str
    """The file to open; all other files of the folder lie beside it."""
    disks: tuple[bytes, ...]
    """What every disk must read as; made without the reader under test."""
    proven: tuple[tuple[int, int], ...] = ()
    """Ranges (start, end) of that file where no changed byte may change what is served: checksummed or not
    used. Elsewhere a change must only be harmless to us: an error of ours, or other bytes."""
    structures: tuple[tuple[int, int], ...] = ()
    """Ranges where the format keeps headers and tables, flipped most; may lie in ``proven`` too."""
    cut_is_noticed: bool = True
    """Whether a file that was cut can be told: then it never serves a wrong byte or another size."""
    secrets: Secrets = NO_SECRETS
    sector_size: int = 512


Maker = Callable[[Path], MadeImage]


def makers() -> dict[str, Maker]:
    """All makers by name."""
    found: dict[str, Maker] = {}
    package = importlib.import_module("support.imagemakers")
    for module in pkgutil.iter_modules(package.__path__):
        found |= importlib.import_module(f"support.imagemakers.{module.name}").MAKERS
    return found


class WatchedDevice(MemoryDevice):
    """A stored file that knows whether it was closed, and can fail."""

    def __init__(self, storage: WatchedStorage, content: bytes) -> None:
        super().__init__(content)
        self._storage = storage
        self.closed = False

    def pread(self, offset: int, size: int) -> bytes:
        assert not self.closed, "read after close"
        self._storage.count_read()
        return super().pread(offset, size)

    def close(self) -> None:
        self.closed = True


class WatchedStorage(MemoryStorage):
    """Objects in memory. From read number ``fail_at`` on, counted from 0 over all files, reading fails."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__()
        self.devices: list[WatchedDevice] = []
        self.fail_at: int | None = None
        self.reads = 0
        for key, content in files.items():
            self.publish(key, content)

    def open(self, key: str) -> BlockDevice:
        inner = super().open(key)
        device = WatchedDevice(self, MemoryDevice.pread(inner, 0, inner.size))  # type: ignore[arg-type]
        self.devices.append(device)
        return device

    def count_read(self) -> None:
        self.reads += 1
        if self.fail_at is not None and self.reads > self.fail_at:
            raise StorageError("the storage fails here")

    def left_open(self) -> int:
        """How many files were opened and not closed."""
        return sum(not device.closed for device in self.devices)


def folder_files(folder: Path) -> dict[str, bytes]:
    """All files below a folder by their keys."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def open_stored(storage: MemoryStorage, made: MadeImage, cache: BlockCache | None = None) -> ImageLayer:
    """Open an image as `Repository` does."""
    siblings = Siblings(storage, made.name)
    cache = BlockCache(1 << 20) if cache is None else cache
    return open_image(Opening(storage.open(made.name), made.name, cache, siblings, made.secrets))


@dataclass
class StoredImage:
    """A made image in memory, to be changed at will."""

    made: MadeImage
    files: dict[str, bytes] = field(repr=False)

    @property
    def content(self) -> bytes:
        """Of the file that is opened."""
        return self.files[self.made.name]

    def storage(self, content: bytes | None = None) -> WatchedStorage:
        """A fresh storage with all files, with another content for the one that is opened."""
        return WatchedStorage(self.files if content is None else {**self.files, self.made.name: content})

    @contextmanager
    def opened(self, cache: BlockCache | None = None) -> Iterator[ImageLayer]:
        """The image as it was made."""
        with closing(open_stored(self.storage(), self.made, cache)) as layer:
            yield layer
