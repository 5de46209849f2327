"""Servers that tests start when they need them: they end with the run, before it looks for what is left."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_running = ExitStack()


def at_end(end: Callable[[], None]) -> None:
    """Call ``end`` when the tests of this process are over."""
    _running.callback(end)


def end_all() -> None:
    """End all of them, the youngest first."""
    _running.close()
