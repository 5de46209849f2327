"""Bounded, ordered parallel work: one reader, N workers, one consumer in order."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from concurrent.futures import Future

Job = TypeVar("Job")
Result = TypeVar("Result")


def default_threads() -> int:
    """Workers that pay: the cores, up to eight; the libraries release the interpreter lock."""
    return max(1, min(8, os.cpu_count() or 1))


def ordered_map(
    work: Callable[[Job], Result], jobs: Iterable[Job], *, threads: int, in_flight: int | None = None
) -> Generator[Result]:
    """Yield ``work(job)`` in the order of ``jobs``, with at most ``in_flight`` jobs started ahead.

    ``jobs`` is consumed in the caller's thread, so that it may be the one reader. The first error ends
    the iteration; what was started is waited for, never left running.
    """
    limit = in_flight or 4 * threads + 4
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="worker") as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(work, job))
                if len(waiting) >= limit:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
