"""The bounds of the tests with hostile images are real: whoever breaks one fails."""

from __future__ import annotations

import pytest

from support.limits import run_limited

BEGIN = (
    "from support.limits import bound_memory, restart_clock, tell_peak\nbound_memory()\nrestart_clock({})\n"
)
END = "\ntell_peak()"


def test_who_keeps_to_them_passes() -> None:
    run_limited(BEGIN.format(30) + "bytearray(100 << 20)" + END)


@pytest.mark.parametrize(
    ("breach", "told"),
    [
        ("import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()", "Timeout"),
        ("import re; re.match('(a*)*b', 'a' * 1000)", "Timeout"),
    ],
    ids=["waits", "computes in C"],
)
def test_who_takes_too_long_fails(breach: str, told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        run_limited(BEGIN.format(0.3) + breach + END)


@pytest.mark.parametrize(
    ("breach", "told"),
    [
        ("b'x' * (600 << 20)", "MiB were held"),
        ("kept = b'x' * (3 << 30)", "MemoryError"),
        ("import ctypes; ctypes.string_at(0)", "ended with -11"),
        ("import sys; sys.exit(0)", "did not come to its end"),
    ],
    ids=["memory", "too much memory", "crash", "silent end"],
)
def test_who_does_harm_fails(breach: str, told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        run_limited(BEGIN.format(30) + breach + END)
