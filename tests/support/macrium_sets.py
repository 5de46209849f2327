"""Opening sets that `support.mrimgx` made, in memory."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from imageformat.cache import BlockCache
from imageformat.formats import open_image
from imageformat.layer import Opening
from imageformat.secrets import Secrets
from imageformat.siblings import Siblings
from support.content import mixture
from support.images import WatchedStorage
from support.mrimgx import Disk, MacriumSet, Part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imageformat.layer import ImageInfo, ImageLayer
    from imageformat.siblings import NamedFile

KIB = 1024
SECRETS = Secrets((b"wrong", b"geheim"))


def small_disk(*parts: Part, size: int = 512 * KIB, seed: int = 1) -> Disk:
    """A disk with a partition from 64 KiB to 320 KiB, in blocks of 16 KiB, unless told otherwise."""
    return Disk(
        bytearray(mixture(seed, size)), parts or (Part(64 * KIB, 256 * KIB, 0, 16 * KIB, label="Data"),), 2
    )


def grow(made: MacriumSet, count: int) -> MacriumSet:
    """Make a full and ``count`` increments, each of which changes two blocks."""
    made.full()
    for step in range(count):
        for disk in made.disks:
            place = (70 + 40 * step) * KIB
            disk.content[place : place + 24 * KIB] = mixture(100 + step, 24 * KIB, unit=512)
        made.incremental()
    return made


def opened(
    files: dict[str, bytes],
    name: str,
    secrets: Secrets = SECRETS,
    named: Sequence[NamedFile] = (),
) -> ImageLayer:
    """Open one file of a folder; when that fails, nothing stays open."""
    storage = WatchedStorage(files)
    siblings = Siblings(storage, name, named)
    try:
        return open_image(Opening(storage.open(name), name, BlockCache(0), siblings, secrets))
    except BaseException:
        assert not storage.left_open(), "what fails to open closes what it opened"
        raise


def read(files: dict[str, bytes], name: str, named: Sequence[NamedFile] = ()) -> list[bytes]:
    """All disks of a point."""
    with closing(opened(files, name, named=named)) as layer:
        devices = [layer.device(number) for number in range(len(layer.info.disks))]  # type: ignore[attr-defined]
        return [device.pread(0, device.size) for device in devices]


def info(files: dict[str, bytes], name: str) -> ImageInfo:
    """What a file says of itself."""
    with closing(opened(files, name)) as layer:
        return layer.info
