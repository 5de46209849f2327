"""Answers that may never come: each is waited for in a thread of its own, and only for so long."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

from imageformat.errors import MountfsError

if TYPE_CHECKING:
    from collections.abc import Callable

ANSWER_S = 5.0
"""So long a person who asks how things are waits for places elsewhere."""
Value = TypeVar("Value")


class Answer(Generic[Value]):
    """The result of a call that began when this was made.

    The thread of a call that never ends does not keep the process from ending.
    """

    def __init__(self, call: Callable[[], Value]) -> None:
        self._began = time.monotonic()
        self._values: list[Value] = []
        self._errors: list[MountfsError] = []
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], Value]) -> None:
        try:
            self._values.append(call())
        except MountfsError as error:
            self._errors.append(error)

    def within(self, seconds: float) -> Value:
        """Return the result, so many seconds after the call began at the latest.

        Raises:
            TimeoutError: it is not there.
            MountfsError: as of the call.
        """
        self._thread.join(max(0.0, self._began + seconds - time.monotonic()))
        for error in self._errors:
            raise error
        for value in self._values:
            return value
        raise TimeoutError(f"no answer within {seconds:g} seconds")
