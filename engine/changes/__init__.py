"""What did not change since an earlier point, told by somebody who need not read the disk for it.

A tracker only ever makes a backup faster: what it says is sampled on each run (`engine.changes.knowledge`),
and where its knowledge cannot be tied to the parent, everything is read. A kind of tracker is a plug-in
file of this package: ``PLUGIN = ChangeProvider(...)``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from imageformat.errors import UsageError
from imageformat.plugins import discover

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from engine.devices.source import SourceDevice

CHANGES_KEY = "changes"
"""Of what an image remembers of its source: how changes were found, and the mark for the next backup."""
Mark: TypeAlias = "Mapping[str, Any]"
"""What ties a tracker to a point: recorded in its image as JSON. From an image that may be hostile."""


class ChangesUnknownError(Exception):
    """It cannot be proven what changed; the text says why. Everything is read then."""


class ChangeTracker(Protocol):
    """Knows what of one source changed. Used by one thread."""

    name: str

    def begin(self) -> Mark | None:
        """Begin to remember what changes from now on, before the source is read; None: it cannot.

        Raises:
            SourceError, DestinationError, AccessDeniedError
        """
        ...

    def unchanged(self, mark: Mark) -> Iterable[tuple[int, int]]:
        """Yield ``(offset, end)`` of what is as it was when ``mark`` was begun; ascending, disjoint.

        Raises:
            ChangesUnknownError: also while it is iterated.
            SourceError
        """
        ...

    def settle(self, *, published: bool) -> None:
        """Let go of what is not needed any more: the old mark, or the new one of an image that never was."""
        ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """For what a tracker is asked."""

    source: SourceDevice
    place: str
    """Repository and set: tells the marks of one apart from those of another that images the same."""
    parameter: str = ""
    """What the user said of it."""
    next_bitmap: str = ""
    """The dirty bitmap that was begun with this picture of the disk."""
    marks: Callable[[], tuple[Mark | None, ...]] = tuple
    """Returns those of the images of the set, the newest last; reads the set."""


@dataclass(frozen=True, slots=True)
class ChangeProvider:
    """A kind of tracker."""

    name: str
    open: Callable[[Wanted], ChangeTracker]
    """Raises `UsageError` for a source that it cannot track."""
    suits: Callable[[Wanted], bool]
    """Whether to use it unasked."""


def open_tracker(choice: str, wanted: Callable[[str], Wanted]) -> ChangeTracker | None:
    """Open the tracker that ``choice`` names: ``scan`` (None), ``auto``, or ``NAME[=PARAMETER]``.

    Args:
        choice: What the user said.
        wanted: Makes the request from the parameter.

    Raises:
        UsageError: there is no such tracker, or not for this source.
    """
    name, _, parameter = choice.partition("=")
    plugins: tuple[ChangeProvider, ...] = discover(sys.modules[__name__]).available
    if choice == "scan":
        return None
    request = wanted(parameter)
    for plugin in plugins:
        if plugin.name == name or (choice == "auto" and plugin.suits(request)):
            return plugin.open(request)
    if choice == "auto":
        return None
    known = ", ".join(("auto", "scan", *(plugin.name for plugin in plugins)))
    raise UsageError(f"--changed {choice}: there is no such way to know what changed; use one of {known}")
