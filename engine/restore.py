"""Restoring a point to a disk, a partition or a file, byte for byte.

Only what was proven is written; one damaged block ends the restore. How it is written: `engine.writing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.writing import NOTHING, Known, Tally, WriteOptions, WriteProgress, write
from imageformat.errors import TargetTooSmallError

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.writerecord import WriteRecord
    from imageformat.device import BlockDevice, WritableDevice


def restore(
    view: BlockDevice,
    target: WritableDevice,
    *,
    threads: int = 0,
    check: bool = False,
    delta: bool = False,
    record: WriteRecord | None = None,
    known: Known = NOTHING,
    report: Callable[[WriteProgress], None] = lambda _: None,
) -> Tally:
    """Make the first ``view.size`` bytes of ``target`` equal to ``view``, and flush.

    Sectors that were unreadable at the source become zeros. With ``check``, what is written is read back and
    compared. With ``delta``, only what differs is written, and what was left out of the image, such as the
    free space of file systems, is left as it is.

    Raises:
        TargetTooSmallError: before anything is written.
        MountfsError: see `engine.writing.write`.
    """
    if target.size < view.size:
        raise TargetTooSmallError(
            f"the target has {target.size} bytes, the disk in the image {view.size}; use a larger one"
        )
    options = WriteOptions(delta=delta, leave_unused=delta, check=check, threads=threads)
    return write(view, target, options, record=record, known=known, report=report)
