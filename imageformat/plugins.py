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
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda entry: entry.name):
        if module.name.startswith("_"):
            continue  # what plug-ins share
        try:
            loaded = importlib.import_module(f"{package.__name__}.{module.name}")
        except ImportError as error:
            if error.name is not None and error.name.split(".")[0] == package.__name__.split(".")[0]:
                raise
            unavailable.append(Unavailable(module.name, f"needs {error.name or error}"))
            continue
        record = getattr(loaded, "PLUGIN", None)
        if record is not None:
            available.append(record)
    return Plugins(tuple(available), tuple(unavailable))
