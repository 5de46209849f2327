"""What a run did, for people: as text, and as one page that needs nothing else. Pure."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from mountfs.plans.picture import STYLE, chain_picture
from mountfs.plans.times import for_people

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import tzinfo

    from mountfs.plans.records import PointRecord, RunRecord, StepRecord

_PAGE_STYLE = """\
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;
background:#fff;color:#1c1e21}
@media(prefers-color-scheme:dark){body{background:#15171a;color:#e4e6e9}}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.3rem .8rem .3rem 0;vertical-align:top}
tr{border-bottom:1px solid #8884}code{font:13px ui-monospace,monospace;word-break:break-all}
.ok{color:#2a8a4f}.warning{color:#b07a00}.failed,.interrupted{color:#d0433b}.skipped,.waiting{opacity:.6}
.scroll{overflow-x:auto}
"""


def headline(record: RunRecord) -> str:
    """Return in one line how a run went."""
    kind = {"ok": "went well", "warning": "went well, with warnings"}.get(record.outcome, record.outcome)
    failure = record.failure
    where = f" at '{failure.name}'" if failure is not None else ""
    return f"mountfs: plan {record.plan}: {record.type} run {kind}{where}"


def text_report(record: RunRecord, zone: tzinfo | None) -> str:
    """Return the report of a run as text."""
    lines = [headline(record), "", *(f"{name + ':':11}{said}" for name, said in _facts(record, zone)), ""]
    for step in record.steps:
        lines.append(f"{step.outcome:12}{_seconds(step):>10}  {step.name}")
        lines.append(f"{'':24}{step.command}")
        lines += [f"{'':24}{said}" for said in _said(step)]
    lines += [f"warning: {warning}" for warning in record.warnings]
    for name, points in points_by_set(record.points).items():
        lines.append("")
        lines.append(f"{name}: {_points(points)}, {_size(sum(point.size for point in points))}")
    return "\n".join(lines) + "\n"


def html_report(record: RunRecord, zone: tzinfo | None) -> str:
    """Return the report of a run as one page, with the picture of each chain in it."""
    title = escape(headline(record))
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{title}</title><style>{_PAGE_STYLE}{STYLE}</style></head><body>",
            f'<h1 class="{escape(record.outcome)}">{title}</h1><table>',
            *(
                f"<tr><th>{escape(name)}</th><td>{escape(said)}</td></tr>"
                for name, said in _facts(record, zone)
            ),
            "</table><h2>Steps</h2><table><tr><th>step</th><th>outcome</th><th>time</th><th>command</th></tr>",
            *map(_row, record.steps),
            "</table>",
            *(f'<p class="warning">{escape(warning)}</p>' for warning in record.warnings),
            *_pictures(record.points),
            "</body></html>\n",
        )
    )


def points_by_set(points: Sequence[PointRecord]) -> Mapping[str, list[PointRecord]]:
    """Return the points of each set, in order of their numbers."""
    found: dict[str, list[PointRecord]] = {}
    for point in sorted(points, key=lambda point: point.number):
        found.setdefault(point.set, []).append(point)
    return found


def _facts(record: RunRecord, zone: tzinfo | None) -> Iterator[tuple[str, str]]:
    yield "outcome", record.outcome
    yield "started", for_people(record.started, zone)
    if record.ended is not None:
        yield "ended", for_people(record.ended, zone)
    if record.due_since is not None:
        yield "due since", for_people(record.due_since, zone)
    yield "run", record.id


def _row(step: StepRecord) -> str:
    said = "".join(f"<br>{escape(line)}" for line in _said(step))
    outcome = escape(step.outcome)
    return (
        f'<tr><td>{escape(step.name)}</td><td class="{outcome}">{outcome}</td><td>{_seconds(step)}</td>'
        f"<td><code>{escape(step.command)}</code>{said}</td></tr>"
    )


def _said(step: StepRecord) -> Iterator[str]:
    yield from (f"warning: {warning}" for warning in step.warnings)
    if step.message:
        yield step.message


def _pictures(points: Sequence[PointRecord]) -> Iterator[str]:
    for name, own in points_by_set(points).items():
        yield f"<h2>{escape(name)}</h2><p>{_points(own)}, {_size(sum(point.size for point in own))}</p>"
        yield f'<div class="scroll">{chain_picture(own, name)}</div>'


def _points(points: Sequence[PointRecord]) -> str:
    return "1 point" if len(points) == 1 else f"{len(points)} points"


def _seconds(step: StepRecord) -> str:
    return f"{step.seconds:.1f} s" if step.code is not None else ""


def _size(size: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"
