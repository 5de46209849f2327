"""Drawing what a simulation says: lines of text, and an SVG file that needs nothing else. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mountfs.cli.render import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from engine.simulation import Day

_BAR = 40
_MAX_LINES = 120
_WIDTH, _HEIGHT, _MARGIN = 900, 220, 70


class Span(NamedTuple):
    """Some days taken together: the most that there was on any of them."""

    label: str
    points: int
    stored: int


def text_chart(days: Sequence[Day]) -> Iterator[tuple[str, int, str, str]]:
    """Yield (month, points, size, bar) for each month or, of many, each year."""
    spans = _spans(days)
    most = max((span.stored for span in spans), default=0) or 1
    for span in spans:
        yield span.label, span.points, format_size(span.stored), "#" * max(1, span.stored * _BAR // most)


def _spans(days: Sequence[Day]) -> list[Span]:
    months = _grouped(days, 7)
    return months if len(months) <= _MAX_LINES else _grouped(days, 4)


def _grouped(days: Sequence[Day], letters: int) -> list[Span]:
    found: dict[str, Span] = {}
    for day in days:
        label = day.day.isoformat()[:letters]
        known = found.get(label, Span(label, 0, 0))
        found[label] = Span(label, max(known.points, day.points), max(known.stored, day.stored))
    return list(found.values())


def svg_chart(days: Sequence[Day], title: str) -> str:
    """Return an SVG picture of points and bytes per day, one below the other."""
    height = 2 * (_HEIGHT + _MARGIN) + 40
    points = _panel([day.points for day in days], days, 50, "points", str)
    stored = _panel([day.stored for day in days], days, 50 + _HEIGHT + _MARGIN, "stored", format_size)
    frame = f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" {frame} font-family="sans-serif" font-size="12">',
            f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
            f'<text x="{_MARGIN}" y="24" font-size="14">{_escaped(title)}</text>',
            *points,
            *stored,
            "</svg>\n",
        )
    )


def _panel(
    values: Sequence[int], days: Sequence[Day], top: int, label: str, show: Callable[[int], str]
) -> Iterator[str]:
    """Yield a framed curve with its axis: zero to the largest value, the first to the last day."""
    most, last = max(values, default=0) or 1, max(1, len(values) - 1)
    width = _WIDTH - 2 * _MARGIN
    curve = " ".join(
        f"{_MARGIN + at * width / last:.1f},{top + _HEIGHT - value * _HEIGHT / most:.1f}"
        for at, value in enumerate(values)
    )
    yield (f'<rect x="{_MARGIN}" y="{top}" width="{width}" height="{_HEIGHT}" fill="none" stroke="#bbb"/>')
    yield f'<polyline fill="none" stroke="#1f77b4" stroke-width="1.5" points="{curve}"/>'
    yield f'<text x="{_MARGIN - 6}" y="{top + 10}" text-anchor="end">{show(most)}</text>'
    yield f'<text x="{_MARGIN - 6}" y="{top + _HEIGHT}" text-anchor="end">0</text>'
    yield f'<text x="{_MARGIN + 6}" y="{top + 16}" fill="#555">{label}</text>'
    if days:
        bottom = top + _HEIGHT + 16
        yield f'<text x="{_MARGIN}" y="{bottom}">{days[0].day}</text>'
        yield f'<text x="{_MARGIN + width}" y="{bottom}" text-anchor="end">{days[-1].day}</text>'


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
