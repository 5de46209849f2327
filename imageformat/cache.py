"""The block cache: byte-bounded, thread-safe, single-flight, shared by every point of a mount.

It holds decoded blocks and index pages under keys that name stored bytes and what they must be (image id,
offset, checksum ...), so the same frame is decoded once however many points show it, and what was proven
for one question is never the answer to another.
"""

from __future__ import annotations

import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from cachetools import Cache

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


class _Flight:
    """A value that one thread is loading. That others wait is rare, so what they wait on is made late."""

    __slots__ = ("_done", "_landed", "value")

    def __init__(self) -> None:
        self.value: bytes | None = None
        """None: not there yet, or loading it failed."""
        self._landed = False
        self._done: threading.Event | None = None

    def board(self) -> None:
        """Announce that `wait` will be called; with the cache's lock held."""
        if self._done is None:
            self._done = threading.Event()
            if self._landed:
                self._done.set()

    def land(self, value: bytes | None) -> None:
        """Let those who wait go on; with the cache's lock held."""
        self.value = value
        self._landed = True
        if self._done is not None:
            self._done.set()

    def wait(self) -> bytes | None:
        """Return the value, or None when loading it failed."""
        if self._done is not None:
            self._done.wait()
        return self.value


class BlockCache:
    """Keeps up to ``capacity`` bytes of values. Any number of threads may call it at once.

    With a capacity of 0 nothing is kept; what is being loaded is still loaded once for all who wait.
    """

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        self.capacity = capacity
        self._values = _SecondChance(capacity)
        self._flights: dict[Hashable, _Flight] = {}
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
        others: list[tuple[int, _Flight]] = []
        with self._lock:
            for position, key in enumerate(keys):
                value = self.peek(key)
                if value is not None:
                    found[position] = value
                elif (flight := self._flights.get(key)) is not None:
                    flight.board()
                    others.append((position, flight))
                else:
                    self._flights[key] = _Flight()
                    mine.append(position)
            self.hits += len(keys) - len(mine)
            self.misses += len(mine)
        if mine:
            self._load_mine(keys, mine, load, found)
        for position, flight in others:
            value = flight.wait()
            if value is None:
                value = self.get(keys[position], partial(_load_one, load, position))
            found[position] = value
        return [found[position] for position in range(len(keys))]

    def _load_mine(
        self,
        keys: Sequence[Hashable],
        mine: Sequence[int],
        load: Callable[[Sequence[int]], Sequence[bytes]],
        found: dict[int, bytes],
    ) -> None:
        """Load what is missing. Whatever happens, nobody is left waiting for it."""
        values: dict[int, bytes] = {}
        try:
            values = dict(zip(mine, load(mine), strict=True))
        finally:
            self._land(keys, mine, values)
        found.update(values)

    def _land(self, keys: Sequence[Hashable], mine: Sequence[int], values: Mapping[int, bytes]) -> None:
        """Keep what was loaded, as far as it fits, and end the flights."""
        with self._lock:
            for position in mine:
                value = values.get(position)
                if value is not None and 0 < len(value) <= self.capacity:
                    self._values[keys[position]] = value
                self._flights.pop(keys[position]).land(value)


def _load_one(load: Callable[[Sequence[int]], Sequence[bytes]], position: int) -> bytes:
    (value,) = load((position,))
    return value
