"""Ctrl-C and SIGTERM: one `KeyboardInterrupt`, after which a command has time to clean up behind itself."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

GRACE_S = 5.0
"""A second signal within this time does not cut the clean-up short; a later one does."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Interrupted(KeyboardInterrupt):
    """A class of its own: Python ends the process by the signal once a plain one passed through ``eval``."""


class _Interrupter:
    """Raises in the main thread what a signal means."""

    def __init__(self) -> None:
        self._last: float | None = None

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._last is not None and now - self._last < GRACE_S:
            return
        self._last = now
        raise _Interrupted


def raise_them() -> None:
    """Turn the signals into `KeyboardInterrupt`. One that the caller told us to ignore stays ignored."""
    interrupter = _Interrupter()
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupter)


def ignore() -> None:
    """Take no notice of them any more: the command has ended, and only the process is left to go."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
