"""What restore and clone share on the command line: the record of a target, its progress, its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from engine.devices.partfile import part_path
from engine.devices.stamp import name_of_target, stamp_of
from engine.devices.target import open_target
from engine.writerecord import Earlier, RecordFacts, WriteRecord, record_path
from engine.writing import NOTHING, Known
from imageformat.errors import MountfsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.devices.guards import TargetFacts
    from engine.devices.target import Target
    from engine.writing import Tally, WriteProgress
    from mountfs.cli.render import Renderer


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be written to which target."""

    verb: str
    source: str
    """Names the content, so that a run that was killed is continued only with the same."""
    size: int
    sector_size: int
    delta: bool
    keeps_record: bool
    """Whether the next run is to profit from this one's record."""
    watched: tuple[int, ...] = ()
    """See `Known.watched`."""


def records_folder() -> Path:
    """Where the records of targets lie."""
    return Path(platformdirs.user_state_dir("mountfs", appauthor=False)) / "targets"


def write_target(
    out: Renderer,
    facts: TargetFacts,
    job: Job,
    writer: Callable[[Target, WriteRecord | None, Known, Callable[[WriteProgress], None]], Tally],
) -> Tally:
    """Open the target, have it written, and make it durable and visible.

    A run of the same content to the same target that was killed is continued. What was left of it is
    compared, never trusted.

    Raises:
        MountfsError: see `open_target` and `engine.writing.write`; a device then has a mark at its start.
    """
    name = name_of_target(facts)
    about = RecordFacts(job.source, name, job.size)
    place = record_path(records_folder(), name)
    earlier = Earlier(place)
    left = part_path(facts.path).exists() if not facts.is_device else True
    resumes = earlier.interrupted and earlier.facts == about and left
    in_place = resumes or (job.delta and (facts.kind == "file" or left))
    known = _known(earlier, facts, job, resumes=resumes)
    if resumes:
        out.note(f"{facts.path} was being written when it was interrupted; what is there is compared")
    target = open_target(facts.path, job.size, sector_size=job.sector_size, expected=facts, in_place=in_place)
    record, done = None, False
    try:
        record = _begun(out, WriteRecord(place, about))
        with out.progress(f"{job.verb} to {target.path}", job.size) as progress:
            tally = writer(target, record, known, lambda state: progress.update(state.done))
        target.commit()
        done = True
    finally:
        target.abort()
        if record is not None:
            _end(record, facts, job, done=done, keeps_part=in_place)
    if tally.stale:
        out.warning(f"{facts.path} is not as the last run left it; everything was compared")
    return tally


def _known(earlier: Earlier, facts: TargetFacts, job: Job, *, resumes: bool) -> Known:
    if resumes:
        return Known(earlier.units)
    if not job.delta or not earlier.stamp or earlier.stamp != stamp_of(facts.path):
        return NOTHING
    return Known(earlier.units, vouched=True, watched=job.watched)


def _begun(out: Renderer, record: WriteRecord) -> WriteRecord | None:
    try:
        record.begin()
    except MountfsError as error:
        out.warning(f"{error}; if it is interrupted, it cannot be continued")
        return None
    return record


def _end(record: WriteRecord, facts: TargetFacts, job: Job, *, done: bool, keeps_part: bool) -> None:
    """Finish the record; without one there is nothing to go on with, nor without what it is about."""
    if done and job.keeps_record:
        record.finish(stamp_of(facts.path))
    elif done or not (facts.is_device or keeps_part):
        record.remove()
    record.close()


def tally_facts(tally: Tally) -> dict[str, object]:
    """Return what a run did, for programs: bytes and seconds."""
    return {
        "size": tally.size,
        "read": tally.read,
        "compared": tally.compared,
        "written": tally.written,
        "zeroed": tally.zeroed,
        "skipped": tally.skipped,
        "unreadable_bytes": tally.bad_bytes,
        "verified": tally.verified,
        "seconds": round(tally.seconds, 3),
    }
