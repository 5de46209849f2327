"""What can be imaged: disks and files of this machine, and what has a URL.

A kind of source with a URL is a plug-in file of this package: ``PLUGIN = SourceScheme(...)``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.devices.source import open_source
from imageformat.errors import UsageError
from imageformat.plugins import discover

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.devices.source import SourceDevice


@dataclass(frozen=True, slots=True)
class SourceScheme:
    """A kind of source that a URL names."""

    schemes: tuple[str, ...]
    """Before ``://``, in lower case."""
    open: Callable[[str], SourceDevice]
    """Opens a URL for imaging; raises what `open_any` does."""


def open_any(name: str) -> SourceDevice:
    """Open what is to be imaged, read-only; the caller closes it.

    Args:
        name: A URL of a known scheme, or a path (`engine.devices.source.open_source`).

    Raises:
        NotFoundError, AccessDeniedError, SourceReadError
        UsageError: a URL that nobody knows, or that makes no sense.
    """
    scheme, separator, _ = name.partition("://")
    if not separator or "/" in scheme:
        return open_source(name)
    plugins = discover(sys.modules[__name__]).available
    for plugin in plugins:
        if scheme.lower() in plugin.schemes:
            opened: SourceDevice = plugin.open(name)
            return opened
    known = ", ".join(f"{scheme}://" for plugin in plugins for scheme in plugin.schemes)
    raise UsageError(
        f"{name}: no kind of source has that URL; known are {known}, and paths of disks and files"
    )
