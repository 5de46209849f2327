"""What a plan says, as frozen values; each key carries its form and its explanation.

`reading` fills these classes from a file and the reference in the documentation is made from them, so neither
can know a key that the other does not.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imageformat.storage.places import is_remote
from mountfs.plans.forms import (
    BUDGET,
    COMMAND,
    COMMANDS,
    DAYS,
    FLAG,
    KEPT_SPAN,
    PART,
    RULES,
    SPAN,
    TEXT,
    TIME,
    Form,
    choice,
    count,
    many,
)

if TYPE_CHECKING:
    from datetime import tzinfo
    from pathlib import Path

REQUIRED = dataclasses.MISSING
TYPES = ("clone", "inc", "diff", "full")
"""Kinds of runs, the strongest last: a full image is also what an incremental one would have been."""
PERIODS = ("hour", "day", "week", "month", "year")
Command = str | tuple[str, ...]
_DISKS = ("/dev/", "\\\\.\\", "serial=", "wwn=", "size=")


def key(
    form: Form,
    doc: str,
    default: Any = REQUIRED,  # noqa: ANN401 (as dataclasses.field)
    shown: str = "",
    of: type | None = None,
) -> Any:  # noqa: ANN401
    """Return a field that is a key of the file.

    ``shown`` is its default as the documentation has it; ``of`` the class of a table within a table.
    """
    return dataclasses.field(
        default=default, metadata={"form": form, "doc": doc, "shown": shown, "section": of}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One disk, partition or file to image: a text, or a table with these keys."""

    path: str = key(TEXT, "What is imaged. Name a disk by `/dev/disk/by-id/...`: `/dev/sdb` changes.")
    set: str = key(TEXT, "Name of its set.", "", "the last part of its path")
    exclude: tuple[str, ...] = key(many(TEXT), "Files left out of this one, beside the plan's `exclude`.", ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What is kept: options of `mountfs retention`. Without any rule nothing is ever deleted."""

    last: int = key(count(0, 100_000), "The last points.", 0)
    hourly: int = key(count(0, 100_000), "The last point of each of so many hours.", 0)
    daily: int = key(count(0, 100_000), "The last point of each of so many days.", 0)
    weekly: int = key(count(0, 100_000), "The last point of each of so many weeks.", 0)
    monthly: int = key(count(0, 100_000), "The last point of each of so many months.", 0)
    yearly: int = key(count(0, 100_000), "The last point of each of so many years.", 0)
    within: str | None = key(KEPT_SPAN, "All that is younger.", None)
    free: str | None = key(PART, "While less is free, the oldest kept ones go as well.", None)
    merge: bool = key(FLAG, "Merge what others stand on into them.", default=False)
    max_share: int | None = key(count(0, 100), "Percent of a set that may go at once.", None, "50")
    pin: tuple[str, ...] = key(many(TEXT), "Points that always stay.", ())

    @property
    def has_rules(self) -> bool:
        """Whether anything is ever deleted."""
        counts = (self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly)
        return any(counts) or self.within is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """Another place that has the images as well: a text, or a table with these keys."""

    to: str = key(TEXT, "A folder, `s3://...` or `sftp://...`.")
    media: str = key(
        TEXT, "What it lies on, in a word of yours; for `status`.", "", '`"disk"`, or of a URL its scheme'
    )
    offsite: bool | None = key(FLAG, "Whether it is in another place.", None, "true for `s3://`, else false")
    retention: Retention | None = key(  # noqa: RUF009 (it makes a field)
        RULES, "What is kept there. Without any rule nothing is ever deleted there.", None, of=Retention
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the schedule. When several fall due, the strongest runs and the others are done with it."""

    type: str = key(
        choice("full", "diff", "inc", "clone"), "What is made; from the strongest to the weakest."
    )
    every: str = key(choice(*PERIODS), "How often.")
    at: tuple[int, ...] = key(many(TIME), "At what time of day; not with `hour`.", (120,), '`"02:00"`')
    minute: int = key(count(0, 59), "At which minute; only with `hour`.", 0)
    days: tuple[str, ...] = key(many(choice(*DAYS)), "On which days; only with `week`.", ("sun",), '`"sun"`')
    day: int = key(
        count(1, 31),
        "On which day of the month, or on its last when it is shorter; only with `month` and `year`.",
        1,
    )
    month: int = key(count(1, 12), "In which month; only with `year`.", 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Under which conditions a run that is due starts."""

    jitter: int = key(SPAN, "Start up to so much later, at random.", 0)
    catch_up: bool = key(FLAG, "Run what was missed while the machine was off, once.", default=True)
    retry: int = key(
        SPAN, 'After a failed run, try again so much later; `"0h"`: only when next due.', 3600, '`"1h"`'
    )
    on_battery: bool = key(FLAG, "Run on battery as well.", default=True)
    network: bool | None = key(FLAG, "Run only with a network.", None, "true where a copy is remote")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """How images are made: options of `mountfs backup`."""

    level: int | None = key(count(1, 19), "zstd level.", None)
    block_size: int | None = key(count(4, 4096), "KiB, of a new chain.", None)
    raw: bool = key(FLAG, "Free space as well.", default=False)
    whole_blocks: bool = key(FLAG, "No differences inside blocks.", default=False)
    snapshot: str | None = key(
        TEXT, "Image a snapshot: `auto`, `none`, or a kind of it.", None, '`"auto"`: where something here can'
    )
    before: str | tuple[str, ...] | None = key(
        COMMAND, "Run before each backup: to quiet a database. If it fails, nothing is imaged.", None
    )
    after: str | tuple[str, ...] | None = key(
        COMMAND, "Run at the end of each backup, however it went.", None
    )
    changed: str | None = key(
        TEXT,
        "Ask what changed instead of reading all: `auto`, `scan` (read all), or a kind of it.",
        None,
        '`"auto"`: where something is known to tell',
    )
    rescue: bool = key(FLAG, "Go on past any number of bad sectors.", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify:
    """Proving what is stored: each new image at once, and of all of them a part in each run."""

    each: str | None = key(
        choice("file", "source", "none"),
        "Each new image at once: read back (`file`), and compared with its source as well (`source`).",
        None,
        '`"none"`',
    )
    budget: str | None = key(
        BUDGET, "So much in each run, what was proven longest ago first.", None, "no verification"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Commands of yours around a run."""

    before: tuple[Command, ...] = key(COMMANDS, "First of all; nothing else runs when one fails.", (), "none")
    after: tuple[Command, ...] = key(COMMANDS, "Last, however it went.", (), "none")
    failed: tuple[Command, ...] = key(COMMANDS, "Last, when a step failed.", (), "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a run may take from others."""

    rate: int | None = key(count(1, 1_000_000), "MiB a second that are read or sent.", None, "no limit")
    threads: int | None = key(
        count(1, 64), "Worker threads: the share of the processor.", None, "as many as pay"
    )
    nice: int | None = key(count(0, 19), "Priority for the processor; 19: only what is left over.", None)
    io: str | None = key(choice("idle", "low", "normal"), "Priority for disks.", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notify:
    """Who is told, through Apprise (`pip install mountfs[notify]`)."""

    urls: tuple[str, ...] = key(many(TEXT), "Apprise URLs. They are never shown.", ())
    url_file: str | None = key(TEXT, "A file with such URLs, one a line: it can have other rights.", None)
    on: str = key(
        choice("failure", "warning", "always"), "When: of failures; of warnings too; of each run.", "failure"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Goals:
    """What `mountfs status` holds the plan to."""

    late_after: int = key(SPAN, "So much after a run was due it is late.", 86_400, '`"1d"`')
    unproven_after: int = key(
        SPAN, "A point must have been verified not longer ago than this.", 30 * 86_400, '`"30d"`'
    )
    copies: int = key(count(1, 100), "The data exist so often, the source counted.", 3)
    media: int = key(count(1, 100), "On so many kinds of media, that of the source counted.", 2)
    offsite: int = key(count(0, 100), "So many of them in another place.", 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """The reports of past runs."""

    keep: int = key(count(1, 100_000), "So many runs are remembered.", 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clone:
    """A plan that clones a disk instead of imaging it."""

    source: str = key(TEXT, "The disk that is cloned.")
    target: str = key(TEXT, "The disk that is overwritten.")
    serial: str = key(
        TEXT,
        "Serial number of the target, or its size in bytes if it has none: no other disk is ever written.",
        "",
        "**needed** unless the target is a file",
    )
    delta: bool = key(FLAG, "Write only what differs.", default=True)
    partitions: tuple[int, ...] = key(many(count(1, 128)), "Only these.", (), "all")

    @property
    def names_disk(self) -> bool:
        """Whether the target is known to be a disk by its name alone."""
        return self.target.startswith(_DISKS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole plan, valid and complete."""

    name: str
    """That of its file, without the suffix."""
    path: Path
    zone: tzinfo | None
    """Whose clock counts; None: this machine's."""
    zone_name: str
    description: str
    template: str
    sources: tuple[Source, ...]
    repository: str
    media: str
    source_media: str
    copies: tuple[Copy, ...]
    exclude: tuple[str, ...]
    schedule: tuple[Entry, ...]
    timing: Timing
    backup: Backup
    retention: Retention
    verify: Verify
    hooks: Hooks
    limits: Limits
    notify: Notify
    goals: Goals
    reports: Reports
    clone: Clone | None

    @property
    def needs_network(self) -> bool:
        """Whether a run makes no sense without one."""
        if self.timing.network is not None:
            return self.timing.network
        return any(is_remote(copy.to) for copy in self.copies)

    def set_place(self, source: Source, place: str = "") -> str:
        """Return how a command names the set of a source, in the repository or at another place."""
        return f"{(place or self.repository).rstrip('/')}/{source.set}"


def keys_of(section: type) -> dict[str, dataclasses.Field[Any]]:
    """Return the keys of a section, in order, with their fields."""
    return {field.name: field for field in dataclasses.fields(section) if "form" in field.metadata}


TOP: dict[str, tuple[Form, str, Any, str]] = {
    "description": (TEXT, "For people.", "", ""),
    "template": (TEXT, "Schedule and retention to use where the plan has none of its own.", "", ""),
    "repository": (TEXT, "The folder where the images go.", "", ""),
    "media": (TEXT, "What the repository lies on, in a word of yours; for `status`.", "", '`"disk"`'),
    "source_media": (TEXT, "What the sources lie on, likewise.", "disk", ""),
    "exclude": (many(TEXT), "Files that are left out: paths or patterns.", (), ""),
    "zone": (TEXT, "Whose clock counts: `Europe/Berlin`.", "", "that of this machine"),
}
"""Keys that stand before any section: form, explanation, default, default as shown."""
SECTIONS: dict[str, type] = {
    "timing": Timing,
    "backup": Backup,
    "retention": Retention,
    "verify": Verify,
    "hooks": Hooks,
    "limits": Limits,
    "notify": Notify,
    "status": Goals,
    "reports": Reports,
    "clone": Clone,
}
TABLES: dict[str, tuple[type, str]] = {
    "sources": (Source, "path"),
    "copies": (Copy, "to"),
    "schedule": (Entry, ""),
}
"""Lists of tables, and the key of each that a text alone stands for."""
