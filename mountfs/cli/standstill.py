"""A snapshot for a backup, and what a person is told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.snapshots.journal import journal_folder
from engine.snapshots.taking import PictureSource, clean, facts_of, take

if TYPE_CHECKING:
    from engine.devices.source import SourceDevice
    from engine.snapshots.provider import SourceFacts
    from engine.snapshots.taking import Refusal
    from mountfs.cli.render import Renderer


def stand_still(out: Renderer, source: SourceDevice, choice: str) -> SourceDevice:
    """Return a snapshot of a source that can change, if there is one, else the source, with a warning.

    What processes that died have left of snapshots is removed first. Closing what is returned removes the
    snapshot and closes the source; the source stays the caller's when this raises.

    Raises:
        SnapshotError, UsageError: see `engine.snapshots.taking.take`.
    """
    clean_up(out)
    facts = facts_of(source)
    taken, refusals = take(source, facts, choice, journal_folder(), out.warning)
    if isinstance(taken, PictureSource):
        out.note(f"{facts.path}: imaged as it is now, by a snapshot ({taken.provider})")
    elif facts.moves:
        out.warning(_moving(facts, refusals))
    return taken


def clean_up(out: Renderer) -> None:
    """Remove what processes that died have left of snapshots, and say so."""
    for what, problem in clean(journal_folder()):
        if problem is None:
            out.note(f"left over of a process that died, and removed: snapshot by {what}")
        else:
            out.warning(f"left over of a process that died: snapshot by {what}: {problem}")


def _moving(facts: SourceFacts, refusals: tuple[Refusal, ...]) -> str:
    places = ", ".join(mount.mount_point for mount in facts.written)
    why = f"is mounted at {places}" if places else "is open for writing in another program"
    tried = "; ".join(f"{refusal.name}: {refusal.reason}" for refusal in refusals)
    help_ = "unmount it" if places else "end that program"
    if places:
        help_ += ", or, if reading it takes seconds only, let writers wait for it with --snapshot freeze"
    return (
        f"{facts.path} {why}: what is written meanwhile may be half in the image, and what is "
        f"restored may be damaged; {help_}{f' (no snapshot by {tried})' if tried else ''}"
    )
