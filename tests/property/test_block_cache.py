"""The block cache: what is asked for comes back, loaded once for all, within bounds; nobody waits forever."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageformat.cache import BlockCache
from imageformat.errors import CorruptImageError, MountfsError

if TYPE_CHECKING:
    from collections.abc import Sequence

PATIENCE = 60
"""Seconds after which a thread counts as hanging; nothing depends on how fast it is."""


def value_of(key: int) -> bytes:
    """Every key has a value of its own, some of them long, one of them empty."""
    return bytes([key % 256]) * (key * 37 % 101)


def kept(cache: BlockCache) -> int:
    return sum(len(value) for value in cache._values.values())


@given(
    st.lists(st.lists(st.integers(0, 20), max_size=8), max_size=12), st.sampled_from([0, 1, 50, 300, 10_000])
)
def test_what_is_asked_for_comes_back(questions: list[list[int]], capacity: int) -> None:
    cache = BlockCache(capacity)
    for keys in questions:
        asked: list[int] = []

        def load(missing: Sequence[int], keys: list[int] = keys, asked: list[int] = asked) -> list[bytes]:
            asked.extend(missing)
            return [value_of(keys[position]) for position in missing]

        assert cache.get_many(keys, load) == [value_of(key) for key in keys]
        assert len({keys[position] for position in asked}) == len(asked), "a key is loaded once"
        assert kept(cache) <= capacity
        assert cache._flights == {}
    assert cache.hits + cache.misses == sum(map(len, questions))


@given(st.integers(0, 1000), st.sampled_from([0, 200, 10_000]))
def test_threads_share_what_is_loaded(seed: int, capacity: int) -> None:
    cache = BlockCache(capacity)
    flying: Counter[int] = Counter()
    guard = threading.Lock()

    def work(number: int) -> None:
        chance = random.Random(seed * 100 + number)
        for _ in range(20):
            keys = [chance.randrange(6) for _ in range(chance.randrange(1, 5))]
            fails = chance.random() < 0.2

            def load(missing: Sequence[int], keys: list[int] = keys, *, fails: bool = fails) -> list[bytes]:
                loading = [keys[position] for position in missing]
                with guard:
                    flying.update(loading)
                    assert max(flying.values()) == 1, "one flight for each key"
                threading.Event().wait(0)
                with guard:
                    flying.subtract(loading)
                if fails:
                    raise CorruptImageError(f"of {number}")
                return [value_of(key) for key in loading]

            try:
                assert cache.get_many(keys, load) == [value_of(key) for key in keys]
            except CorruptImageError as error:
                if not fails or str(error) != f"of {number}":
                    pytest.fail("another thread's failure is not mine")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4), timeout=PATIENCE))
    assert cache._flights == {}
    assert kept(cache) <= capacity


class Waiter:
    """A second reader that waits for the first one's flight."""

    def __init__(self, cache: BlockCache, keys: Sequence[int]) -> None:
        self.loads = 0
        self._cache = cache
        self._keys = keys
        self._pool = ThreadPoolExecutor(1)

    def start(self) -> None:
        before = self._cache.hits
        self._answer = self._pool.submit(self._cache.get_many, self._keys, self._load)
        while self._cache.hits == before:  # it has joined the flight once that is counted
            threading.Event().wait(0.001)

    def _load(self, missing: Sequence[int]) -> list[bytes]:
        self.loads += 1
        return [value_of(self._keys[position]) for position in missing]

    def answer(self) -> list[bytes]:
        found = self._answer.result(PATIENCE)
        self._pool.shutdown()
        return found


@pytest.mark.parametrize("capacity", [0, 10_000])
def test_a_waiting_thread_gets_what_another_loads(capacity: int) -> None:
    cache = BlockCache(capacity)
    waiter = Waiter(cache, [7])

    def load() -> bytes:
        waiter.start()
        return value_of(7)

    assert cache.get(7, load) == value_of(7)
    assert waiter.answer() == [value_of(7)]
    assert waiter.loads == 0


@pytest.mark.parametrize("failure", [CorruptImageError("mine"), KeyError("a bug"), KeyboardInterrupt()])
def test_a_waiting_thread_tries_itself_when_another_fails(failure: BaseException) -> None:
    cache = BlockCache()
    waiter = Waiter(cache, [7])

    def load() -> bytes:
        waiter.start()
        raise failure

    with pytest.raises(type(failure)) as caught:
        cache.get(7, load)
    assert caught.value is failure
    assert waiter.answer() == [value_of(7)]
    assert waiter.loads == 1
    assert cache.get(7, lambda: pytest.fail("what the waiter loaded is kept")) == value_of(7)


@pytest.mark.parametrize("wrong", [0, 1, 3], ids="{} of 2".format)
def test_a_wrong_number_of_values_leaves_nobody_waiting(wrong: int) -> None:
    cache = BlockCache()
    waiter = Waiter(cache, [2, 1])

    def load(_missing: Sequence[int]) -> list[bytes]:
        waiter.start()
        return [b"x"] * wrong

    with pytest.raises(ValueError, match="argument"):
        cache.get_many([1, 2], load)
    assert waiter.answer() == [value_of(2), value_of(1)]
    assert cache._flights == {}


def test_a_key_twice_in_one_question_is_loaded_once() -> None:
    cache = BlockCache(0)
    asked: list[Sequence[int]] = []

    def load(missing: Sequence[int]) -> list[bytes]:
        asked.append(tuple(missing))
        return [b"a", b"b"]

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(cache.get_many, ["a", "b", "a", "a"], load).result(PATIENCE)
    assert found == [b"a", b"b", b"a", b"a"]
    assert asked == [(0, 1)]


def test_a_failure_is_not_remembered() -> None:
    cache = BlockCache()

    def fail() -> bytes:
        raise MountfsError("once")

    with pytest.raises(MountfsError, match="once"):
        cache.get(1, fail)
    assert cache.get(1, lambda: b"good") == b"good"


def test_what_is_larger_than_the_cache_passes_through() -> None:
    cache = BlockCache(10)
    assert cache.get(1, lambda: bytes(10)) == bytes(10)
    assert cache.get(2, lambda: bytes(11)) == bytes(11)
    assert kept(cache) == 10
    assert cache.get(3, lambda: b"") == b""
    assert cache.get(4, lambda: bytes(5)) == bytes(5)
    assert kept(cache) == 5, "the oldest made room"
