"""What follows a backup: the report, proofs, and the alarm when changes were missed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from engine.proving import record_whole
from engine.sourcecheck import compare_with_source
from engine.verify import verify, worst_exit_code
from imageformat.errors import ChangesMissedError, MountfsError
from imageformat.selection import select_point
from imageformat.view import ImageView
from mountfs.cli.render import Renderer, counted, format_duration, format_size
from mountfs.cli.reports import backup_result, show_damages

if TYPE_CHECKING:
    from engine.backup import BackupResult
    from engine.devices.ratelimit import RateLimited
    from engine.devices.source import SourceDevice
    from imageformat.repository import Repository


def show(out: Renderer, repository: Repository, result: BackupResult, size: int) -> None:
    """Print what was made."""
    info = result.info
    out.result(backup_result(result, repository.storage.url))
    changed = "" if info.parent_id is None else f"{counted(result.changed_blocks, 'block')} changed, "
    out.line(
        f"{result.set_name}: point {info.number} ({info.type.value}): {format_size(size)} disk, "
        f"{changed}{format_size(info.stored_size)} stored in {format_duration(result.seconds)}"
    )
    out.line(f"{repository.storage.url}/{result.key}")


def show_changes(out: Renderer, result: BackupResult, *, asked: bool) -> None:
    """Say what was not read, or why everything was although something was to tell what changed."""
    known = result.changes
    if known.inherited.blocks:
        size = format_size(known.inherited.blocks * result.info.disks[0].block_size)
        out.line(
            f"{size} not read: unchanged, says {known.tracker}; {counted(known.sampled, 'block')} tested"
        )
    elif known.reason and not known.missed and (asked or not known.expected):
        out.warning(f"everything was read: {known.tracker}: {known.reason}")


def check_missed(result: BackupResult) -> None:
    """Raise the alarm when what tracks changes missed one.

    Raises:
        ChangesMissedError
    """
    known = result.changes
    if known.missed:
        raise ChangesMissedError(
            f"{known.tracker} misses changes: {known.reason}. Everything was read, and point "
            f"{result.info.number} of {result.set_name} is complete; images before it that relied on "
            f"{known.tracker} may lack changes. Begin a new one, or use --changed scan"
        )


def compare(
    out: Renderer, repository: Repository, result: BackupResult, source: SourceDevice | RateLimited
) -> None:
    """Compare a new point with the source, which stands as it was.

    Raises:
        MountfsError: see `compare_with_source`.
    """
    point = select_point(repository.image_set(result.set_name), str(result.info.number))
    view = ImageView(repository.chain(point), repository.cache)
    with out.progress("compare with the source", source.size) as progress:
        compared = compare_with_source(view, source, report=progress.update)
    out.line(f"{result.set_name}: point {result.info.number}: {format_size(compared)} equal to the source")


def prove(out: Renderer, repository: Repository, result: BackupResult) -> None:
    """Read the new image back, verify every block, and remember that.

    Raises:
        MountfsError: it is damaged already.
    """
    started_ns = time.time_ns()
    point = select_point(repository.image_set(result.set_name), str(result.info.number))
    with out.progress("verify", point.size) as progress:
        reports = list(
            verify(repository, (point,), report=lambda state: progress.update(state.done, point.file_name))
        )
    record_whole(repository, reports, started_ns)
    if worst_exit_code(reports):
        show_damages(out, reports, {})
        raise MountfsError(f"{result.key}: the new image does not verify; the destination is failing")
    out.line(f"{result.set_name}: point {result.info.number}: every block verified")
