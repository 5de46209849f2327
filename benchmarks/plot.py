"""A plot as plain SVG: each figure as a dot with its spread, beside the line of its target."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_LABELS = 520
_WIDTH = 940
_ROW = 22
_TOP = 50
_LOW, _HIGH = 0.1, 10.0
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10)


def targets(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw how far each figure is from its target, to the right is better."""
    height = _TOP + _ROW * len(rows) + 30
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
            f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">'
        ),
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="22" font-size="15" fill="#222222">{escape(title)}</text>',
    ]
    bottom = _TOP + _ROW * len(rows)
    for tick in _TICKS:
        stroke = 'stroke="#222222" stroke-width="1.5"' if tick == 1 else 'stroke="#dddddd"'
        parts.append(f'<line x1="{_x(tick)}" y1="{_TOP - 8}" x2="{_x(tick)}" y2="{bottom}" {stroke}/>')
        label = "target" if tick == 1 else f"{tick:g}x"
        parts.append(
            f'<text x="{_x(tick)}" y="{bottom + 16}" text-anchor="middle" fill="#555555">{label}</text>'
        )
    parts += [part for number, row in enumerate(rows) for part in _row(_TOP + _ROW * number + 8, row)]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _row(y: int, row: Mapping[str, Any]) -> list[str]:
    low, middle, high = sorted(_past_target(row, row[name]) for name in ("min", "median", "max"))
    colour = "#1b7837" if row["met"] else "#b2182b"
    name = row["title"] + (f" / {' / '.join(row['theirs'])}" if row["theirs"] else "")
    label = f'x="{_LABELS - 12}" y="{y + 4}" text-anchor="end" fill="#222222"'
    return [
        f"<text {label}>{escape(_short(name))}</text>",
        f'<line x1="{_x(low)}" y1="{y}" x2="{_x(high)}" y2="{y}" stroke="{colour}" stroke-width="2"/>',
        f'<circle cx="{_x(middle)}" cy="{y}" r="4.5" fill="{colour}"/>',
    ]


def _past_target(row: Mapping[str, Any], value: float) -> float:
    """1 on the target, more when better."""
    if row["at_most"]:
        return row["goal"] / value if value > 0 else _HIGH
    return value / row["goal"]


def _x(value: float) -> float:
    inside = min(_HIGH, max(_LOW, value))
    share = math.log(inside / _LOW) / math.log(_HIGH / _LOW)
    return round(_LABELS + share * (_WIDTH - _LABELS - 40), 1)


def _short(text: str) -> str:
    return text if len(text) <= 78 else text[:77] + "…"
