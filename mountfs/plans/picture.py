"""The picture of a chain: every point a box, in order of time, with a line to what it stands on. Pure.

Light and dark follow the page; the SVG needs nothing but the style that comes with it.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mountfs.plans.records import PointRecord

_STEP, _SIDE, _LEFT = 46, 30, 12
_ROWS = {"full": 0, "diff": 1, "inc": 2}
_ROW_HEIGHT, _TOP = 56, 26
MAX_POINTS = 200
"""Older ones are left out of the picture, which says so."""
STYLE = """\
.chain text{font:11px sans-serif;fill:currentColor;text-anchor:middle}
.chain .row{text-anchor:start;opacity:.6}
.chain path{fill:none;stroke:currentColor;opacity:.45}
.chain rect{stroke:currentColor;stroke-width:1;fill-opacity:.85}
.chain .full{fill:#4c8bd6}.chain .diff{fill:#8e6cc9}.chain .inc{fill:#4fa37a}
.chain .damaged,.chain .broken{fill:#d0433b}.chain .verified{stroke-width:3}
"""


def chain_picture(points: Sequence[PointRecord], title: str) -> str:
    """Return an SVG of the points of one set, the oldest first."""
    shown = points[-MAX_POINTS:]
    width = _LEFT + 60 + max(1, len(shown)) * _STEP
    height = _TOP + 3 * _ROW_HEIGHT
    frame = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img"'
    hidden = len(points) - len(shown)
    said = f"{title}: {len(points)} points" + (f", the last {len(shown)} shown" if hidden else "")
    return "\n".join(
        (
            f'<svg class="chain" xmlns="http://www.w3.org/2000/svg" {frame} aria-label="{escape(said)}">',
            f"<title>{escape(said)}</title>",
            *(
                f'<text class="row" x="{_LEFT}" y="{_TOP + row * _ROW_HEIGHT + 19}">{kind}</text>'
                for kind, row in _ROWS.items()
            ),
            *_lines(shown),
            *_boxes(shown),
            "</svg>",
        )
    )


def _place(number: int, point: PointRecord) -> tuple[int, int]:
    return _LEFT + 50 + number * _STEP, _TOP + _ROWS.get(point.kind, 2) * _ROW_HEIGHT


def _lines(points: Sequence[PointRecord]) -> Iterator[str]:
    places = {point.number: _place(at, point) for at, point in enumerate(points)}
    for at, point in enumerate(points):
        if point.parent in places:
            (left, top), (x, y) = places[point.parent], _place(at, point)
            start, end = left + _SIDE, y + _SIDE // 2
            yield f'<path d="M{start} {top + _SIDE // 2}C{start + 12} {end} {x - 12} {end} {x} {end}"/>'


def _boxes(points: Sequence[PointRecord]) -> Iterator[str]:
    for at, point in enumerate(points):
        x, y = _place(at, point)
        kind = point.kind if point.kind in _ROWS else "inc"
        state = point.state if point.state in {"verified", "damaged", "broken"} else "ok"
        label = f"point {point.number}, {point.kind}, {point.size} bytes, {point.state}"
        yield (
            f'<g><title>{escape(label)}</title><rect class="{kind} {state}" x="{x}" y="{y}" '
            f'width="{_SIDE}" height="{_SIDE}" rx="4"/>'
            f'<text x="{x + _SIDE // 2}" y="{y + 19}">{point.number}</text></g>'
        )
