"""Schedules and retention that are known to work together, ready to use. Pure."""

from __future__ import annotations

from typing import NamedTuple

from mountfs.plans.model import Entry, Retention


class Template(NamedTuple):
    """A way to keep images, or a clone, up to date."""

    summary: str
    schedule: tuple[Entry, ...]
    retention: Retention


TEMPLATES = {
    "grandfather-father-son": Template(
        "A full image each month, a differential one each week, an incremental one each day.",
        (
            Entry(type="full", every="month", day=1),
            Entry(type="diff", every="week", days=("sun",)),
            Entry(type="inc", every="day"),
        ),
        Retention(daily=14, weekly=8, monthly=12),
    ),
    "differential": Template(
        "A full image each month, a differential one each day: any point needs two files.",
        (Entry(type="full", every="month", day=1), Entry(type="diff", every="day")),
        Retention(daily=30, monthly=12),
    ),
    "incremental-forever": Template(
        "One full image, then increments each day; the oldest are merged into it.",
        (Entry(type="inc", every="day"),),
        Retention(daily=30, weekly=8, monthly=6, merge=True),
    ),
    "clone-nightly": Template(
        "A disk that can be booted at once, brought up to date each night.",
        (Entry(type="clone", every="day"),),
        Retention(),
    ),
}
