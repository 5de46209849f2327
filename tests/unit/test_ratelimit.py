"""A limited source gives the same bytes, later."""

from __future__ import annotations

from engine.devices.ratelimit import RateLimited
from golden.chains import MemorySource

RATE = 1024


class Time:
    """A clock that only sleeping moves."""

    now = 100.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def test_reading_takes_the_time_that_it_may_take() -> None:
    content = bytes(range(256)) * 40
    time = Time()
    limited = RateLimited(MemorySource(content), RATE, clock=time.clock, sleep=time.sleep)
    assert b"".join(limited.pread(at, 1024) for at in range(0, len(content), 1024)) == content
    assert time.now == 100 + (len(content) - 1024) / RATE, "the last read need not be waited for"
    assert [tuple(extent)[:2] for extent in limited.extents(0, 1024)] == [(0, 1024)]


def test_time_without_reading_is_not_saved_up() -> None:
    time = Time()
    limited = RateLimited(MemorySource(bytes(10_240)), RATE, clock=time.clock, sleep=time.sleep)
    time.now += 3600
    started = time.now
    for at in range(0, 10_240, 1024):
        limited.pread(at, 1024)
    assert time.now - started == 9
