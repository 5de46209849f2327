"""What a copy is asked to do and what it tells: options, events, the result."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from imageformat.errors import MountfsError


class Overwrite(enum.Enum):
    """What to do when the name is taken. Existing folders are always merged."""

    REFUSE = "refuse"
    """Record a failure; the attributes of existing folders stay as they are."""
    REPLACE = "replace"
    """Replace files and links in one step; existing folders get the attributes of the copied ones."""


@dataclass(frozen=True, slots=True)
class CopyOptions:
    """How to copy."""

    overwrite: Overwrite = Overwrite.REFUSE
    keep_owner: bool = True
    """Set user and group by number; a tree knows no names of users."""
    keep_special_bits: bool = False
    """Keep set-user-id, set-group-id, sticky and file capabilities: they give rights to whoever made the
    image."""
    special_files: bool = False
    """Make FIFOs, sockets and device nodes instead of skipping them."""
    sync: bool = False
    """Make every file durable before it gets its name."""
    max_listed: int = 1000
    """Losses and failures that the result lists; all are counted and reported."""


class LossKind(enum.Enum):
    """What was not kept of something that was copied."""

    OWNER = "owner"
    MODE = "permissions"
    SPECIAL_BITS = "special bits"
    TIMES = "times"
    ATTRIBUTE = "extended attribute"
    STREAM = "named stream"
    HARD_LINK = "hard link"
    SPECIAL_FILE = "special file"
    FOLDER = "attributes of an existing folder"


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that the copy lacks."""

    path: bytes
    """In the tree."""
    what: LossKind
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that was not copied."""

    path: bytes
    """In the tree."""
    error: MountfsError


@dataclass(frozen=True, slots=True)
class CopyProgress:
    """How far the copy is."""

    path: bytes
    """What is being copied."""
    bytes_done: int
    """Content written so far, without holes."""
    files_done: int


CopyEvent: TypeAlias = CopyProgress | Loss | Failure


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What a finished copy did. A caller exits non-zero when ``failure_count`` is not 0."""

    files: int
    """Regular files, hard links among them."""
    folders: int
    links: int
    """Symbolic links."""
    special: int
    """FIFOs, sockets, device nodes that were made."""
    bytes: int
    """Content written, without holes."""
    failures: tuple[Failure, ...]
    failure_count: int
    losses: tuple[Loss, ...]
    loss_counts: Mapping[LossKind, int] = field(default_factory=dict)


class Ledger:
    """Counts what happens and passes it on."""

    def __init__(self, report: Callable[[CopyEvent], None], max_listed: int) -> None:
        self._report = report
        self._max_listed = max_listed
        self._failures: list[Failure] = []
        self._failure_count = 0
        self._losses: list[Loss] = []
        self._loss_counts: Counter[LossKind] = Counter()
        self._bytes = 0
        self.files = 0
        self.folders = 0
        self.links = 0
        self.special = 0

    def fail(self, path: bytes, error: MountfsError) -> None:
        """Record that something was not copied."""
        failure = Failure(path, error)
        self._failure_count += 1
        if len(self._failures) < self._max_listed:
            self._failures.append(failure)
        self._report(failure)

    def lose(self, path: bytes, what: LossKind, detail: str = "") -> None:
        """Record that something of a copied thing is lost."""
        loss = Loss(path, what, detail)
        self._loss_counts[what] += 1
        if len(self._losses) < self._max_listed:
            self._losses.append(loss)
        self._report(loss)

    def advance(self, path: bytes, count: int) -> None:
        """Count bytes written, and tell."""
        self._bytes += count
        self._report(CopyProgress(path, self._bytes, self.files))

    def result(self) -> CopyResult:
        """Return all of it."""
        return CopyResult(
            files=self.files,
            folders=self.folders,
            links=self.links,
            special=self.special,
            bytes=self._bytes,
            failures=tuple(self._failures),
            failure_count=self._failure_count,
            losses=tuple(self._losses),
            loss_counts=dict(self._loss_counts),
        )
