"""What commands say of sectors that were unreadable at the source."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mountfs.cli.render import counted, format_size
from mountfs.cli.reports import MAX_SHOWN

if TYPE_CHECKING:
    from engine.backup import BackupResult
    from engine.writing import Tally
    from mountfs.cli.render import Renderer
    from mountfs.unreadable import Unreadable

BAD_SECTORS_EXIT = 4
"""Done, but some sectors of the source could not be read."""


def unreadable_result(found: Unreadable) -> dict[str, object]:
    """Return the facts of what is unreadable in a point."""
    return {
        "unreadable_bytes": found.size,
        "unreadable": [
            {"offset": offset, "length": length, "files": list(found.files.get((offset, length), ()))}
            for offset, length in found.ranges
        ],
    }


def show_unreadable(out: Renderer, found: Unreadable, of: str) -> None:
    """Print which sectors of a point were unreadable, and the files that they belong to."""
    if not found.count:
        return
    out.line(
        f"BAD      {of}: {format_size(found.size)} in {counted(found.count, 'place')} could not be read from "
        "the source; reading them is an error"
    )
    for offset, length in found.ranges[:MAX_SHOWN]:
        out.line(f"         disk offset {offset}, {format_size(length)}")
        for name in found.files.get((offset, length), ()):
            out.line(f"           belongs to {name}")
    if found.count > MAX_SHOWN:
        out.line(f"         and {found.count - MAX_SHOWN} more places")


def warn_of_bad_backup(out: Renderer, result: BackupResult) -> int:
    """Warn when sectors could not be read; return the exit code that this gives, 0 without any."""
    if not result.bad_bytes:
        return 0
    out.warning(
        f"{format_size(result.bad_bytes)} of the source in {counted(len(result.bad), 'place')} could not be "
        f"read, the first at byte {result.bad[0].offset}: the medium is failing. They are marked as bad in "
        f"point {result.info.number}; 'mountfs info' lists the files they belong to"
    )
    return BAD_SECTORS_EXIT


def warn_of_bad_restore(out: Renderer, tally: Tally) -> int:
    """Warn when zeros were written for want of anything better; return the exit code, 0 without any."""
    if not tally.bad_bytes:
        return 0
    out.warning(
        f"{format_size(tally.bad_bytes)} could not be read when the image was made: zeros were written "
        "there; 'mountfs info' lists the places and the files they belong to"
    )
    return BAD_SECTORS_EXIT
