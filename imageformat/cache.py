"""The block cache: byte-bounded, thread-safe, single-flight, shared by every point of a mount.

It holds decoded blocks and index pages under keys that name stored bytes and what they must be (image id,
offset, checksum ...), so the same frame is decoded once however many points show it, and what was proven
for one question is never the answer to another.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

from cachetools import Cache

from imageformat.errors import MountfsError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

DEFAULT_CAPACITY = 64 << 20


class _SecondChance(Cache["Hashable", bytes]):
    """Evicts what is oldest and was not asked for since it came or was last spared (the clock rule).

    Unlike least-recently-used it moves nothing on a hit, so that a hit needs no lock.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity, getsizeof=len)
        self.asked: set[Hashable] = set()
        self._line: deque[Hashable] = deque()

    def __setitem__(self, key: Hashable, value: bytes) -> None:
        is_new = key not in self
        super().__setitem__(key, value)
        if is_new:
            self.asked.discard(key)
            self._line.append(key)

    def popitem(self) -> tuple[Hashable, bytes]:
        """Evict one value."""
        if len(self.asked) > len(self._line):
            self.asked.intersection_update(self._line)
        while self._line:
            key = self._line.popleft()
            if key not in self.asked:
                return key, self.pop(key)
            self.asked.discard(key)
            self._line.append(key)
        raise KeyError("the cache is empty")


class BlockCache:
    """Keeps up to ``capacity`` bytes of values. Any number of threads may call it at once.

    With a capacity of 0 nothing is kept; what is being loaded is still loaded once for all who wait.
    """

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        self.capacity = capacity
        self._values = _SecondChance(capacity)
        self._flights: dict[Hashable, Future[bytes]] = {}
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    def get(self, key: Hashable, load: Callable[[], bytes]) -> bytes:
        """Return the value of ``key``, calling ``load`` at most once at a time for all threads."""
        value = self.peek(key)
        return self.get_many((key,), lambda _missing: (load(),))[0] if value is None else value

    def peek(self, key: Hashable) -> bytes | None:
        """Return the value of ``key`` if it is here. Takes no lock: this is the hot path."""
        try:
            value = self._values[key]
        except KeyError:
            return None
        self._values.asked.add(key)
        return value

    def get_many(
        self, keys: Sequence[Hashable], load: Callable[[Sequence[int]], Sequence[bytes]]
    ) -> list[bytes]:
        """Return the values of ``keys`` in order; a key may occur more than once.

        ``load`` gets the positions of the missing keys and returns their values. It is called once for
        them, and without the lock held. A key that another thread is loading is waited for; when that
        thread fails, this one tries itself, because the failure may be another block's.

        Raises:
            ValueError: ``load`` returned more or fewer values than it was asked for.
        """
        found: dict[int, bytes] = {}
        mine: list[int] = []
        others: list[tuple[int, Future[bytes]]] = []
        with self._lock:
            for position, key in enumerate(keys):
                value = self.peek(key)
                if value is not None:
                    found[position] = value
                elif (flight := self._flights.get(key)) is not None:
                    others.append((position, flight))
                else:
                    self._flights[key] = Future()
                    mine.append(position)
            self.hits += len(keys) - len(mine)
            self.misses += len(mine)
        if mine:
            self._load_mine(keys, mine, load, found)
        for position, flight in others:
            if flight.exception() is None:
                found[position] = flight.result()
            else:
                found[position] = self.get(keys[position], partial(_load_one, load, position))
        return [found[position] for position in range(len(keys))]

    def _load_mine(
        self,
        keys: Sequence[Hashable],
        mine: Sequence[int],
        load: Callable[[Sequence[int]], Sequence[bytes]],
        found: dict[int, bytes],
    ) -> None:
        """Load what is missing. Whatever happens, nobody is left waiting for it."""
        try:
            values = dict(zip(mine, load(mine), strict=True))
        except BaseException:
            for flight in self._land(keys, mine, {}):
                flight.set_exception(MountfsError("another reader failed"))
            raise
        found.update(values)
        for position, flight in zip(mine, self._land(keys, mine, values), strict=True):
            flight.set_result(values[position])

    def _land(
        self, keys: Sequence[Hashable], mine: Sequence[int], values: Mapping[int, bytes]
    ) -> list[Future[bytes]]:
        """Keep what was loaded, as far as it fits, and return the flights to be resolved."""
        with self._lock:
            for position, value in values.items():
                if 0 < len(value) <= self.capacity:
                    self._values[keys[position]] = value
            return [self._flights.pop(keys[position]) for position in mine]


def _load_one(load: Callable[[Sequence[int]], Sequence[bytes]], position: int) -> bytes:
    (value,) = load((position,))
    return value
