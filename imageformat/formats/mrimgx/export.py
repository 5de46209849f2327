"""One disk as an image of Macrium Reflect X, as `mountfs convert` writes it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from imageformat.errors import UsageError
from imageformat.formats.mrimgx.writer import EXPERIMENTAL, SourceDisk, WriteOptions, write_mrimgx
from imageformat.layer import WrittenImage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imageformat.formats.mrimgx.writer import Written
    from imageformat.layer import DiskSource
    from imageformat.storage import Storage

SUFFIX = ".mrimgx"
_MOST_NAMED = 8


def write_disk(disk: DiskSource, storage: Storage, key: str, report: Callable[[int], None]) -> WrittenImage:
    """See `ImageFormat.write`. What the format has no place for is named in the notes.

    Raises:
        UsageError: the name has another suffix, which Reflect would not open, or see `write_mrimgx`.
    """
    if not key.lower().endswith(SUFFIX):
        raise UsageError(f"{key}: an image for Macrium Reflect X has a name that ends in {SUFFIX}")

    def passed(done: int, total: int) -> None:
        report(disk.device.size * done // total if total else disk.device.size)

    written = write_mrimgx(
        storage,
        key,
        [SourceDisk(disk.device, disk.sector_size)],
        WriteOptions(created_ns=disk.created_ns),
        passed,
    )
    size = sum(_size(storage, name) for name in written.keys)
    return WrittenImage(size, (EXPERIMENTAL, *_left_out(written)))


def _size(storage: Storage, key: str) -> int:
    with contextlib.closing(storage.open(key)) as device:
        return device.size


def _left_out(written: Written) -> Iterator[str]:
    places = written.left_out
    if places:
        named = ", ".join(f"{place.length} bytes at {place.offset}" for place in places[:_MOST_NAMED])
        more = f" and {len(places) - _MOST_NAMED} more places" if len(places) > _MOST_NAMED else ""
        yield (
            f"the format has no place for {named}{more} of the disk, outside of its partitions; "
            "they read as zeros"
        )
