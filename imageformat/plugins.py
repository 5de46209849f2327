"""The one plug-in loop behind every registry.

A plug-in is a module with ``PLUGIN = record``; one whose name begins with ``_`` is what plug-ins share.
Adding one adds a file and edits none.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A plug-in that cannot work here, and why; `mountfs doctor` lists it."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plugins:
    """What one package offers: usable records in order of module name, and what is missing."""

    available: tuple[Any, ...]
    unavailable: tuple[Unavailable, ...]


@cache
def discover(package: ModuleType) -> Plugins:
    """Import every module of ``package`` and collect their ``PLUGIN`` records.

    A module whose optional library is missing is reported, not raised; any other error is a bug and
    is raised.
    """
    available: list[Any] = []
    unavailable: list[Unavailable] = []
    for name in _names(package):
        record = _load(package, name)
        if isinstance(record, Unavailable):
            unavailable.append(record)
        elif record is not None:
            available.append(record)
    return Plugins(tuple(available), tuple(unavailable))


def nearest(package: ModuleType, word: str, fits: Callable[[Any], bool]) -> Any | None:  # noqa: ANN401
    """Return the first record that fits, loading no more modules than that takes; None when none does.

    Modules whose names are like ``word`` come first, as ``ext`` for "ext4": a name decides how soon a module
    is looked at, never whether.
    """
    for name in sorted(_names(package), key=lambda name: (not _alike(name, word), name)):
        record = _load(package, name)
        if record is not None and not isinstance(record, Unavailable) and fits(record):
            return record
    return None


def _alike(name: str, word: str) -> bool:
    return name[:3] == word[:3] or word.endswith(name)


@cache
def _names(package: ModuleType) -> tuple[str, ...]:
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return tuple(name for name in names if not name.startswith("_"))


@cache
def _load(package: ModuleType, name: str) -> Any:  # noqa: ANN401
    """Import one module and return its record, why it cannot be had, or None when it is no plug-in."""
    try:
        loaded = importlib.import_module(f"{package.__name__}.{name}")
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] == package.__name__.split(".")[0]:
            raise
        return Unavailable(name, f"needs {error.name or error}")
    return getattr(loaded, "PLUGIN", None)
