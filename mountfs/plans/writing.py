"""A new plan as a file that explains itself: what is set, and every other key with its default. Pure."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from mountfs.plans.forms import SPAN, TIME
from mountfs.plans.model import REQUIRED, SECTIONS, Entry, Retention, keys_of
from mountfs.plans.templates import TEMPLATES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_COPIES = (
    '# copies = [{ to = "s3://bucket/folder", media = "cloud", offsite = true, '
    "retention = { daily = 30, monthly = 12 } }]"
)
_ANEW = 90
_SPANS = ((86_400, "d"), (3600, "h"), (60, "min"))


def new_plan(
    name: str,
    template: str,
    *,
    sources: Sequence[str] = (),
    repository: str = "",
    copies: Sequence[str] = (),
    clone: tuple[str, str, str] | None = None,
) -> str:
    """Return the text of a plan by a template; ``clone``: source, target and serial number of the target.

    Copies get the retention of the template, each its own; see `kept_by_copy`.
    """
    known = TEMPLATES[template]
    lines = [f"# Plan {name}. {known.summary}", f"# Check it: mountfs plan check {name}", ""]
    if clone is None:
        lines += [f"sources = {_toml(list(sources))}", f"repository = {_toml(repository)}"]
        if not copies:
            lines += [_COPIES]
        lines += ['# exclude = ["/swapfile"]', '# zone = "Europe/Berlin"']
    for copy in copies if clone is None else ():
        lines += ["", "[[copies]]", f"to = {_toml(copy)}"]
        if known.retention.has_rules:
            lines += ["", "[copies.retention]", *_set_keys(kept_by_copy(known.retention))]
    for entry in known.schedule:
        lines += ["", "[[schedule]]", *_entry(entry)]
    done = {"clone": clone is not None, "retention": known.retention.has_rules and clone is None}
    if clone is not None:
        lines += ["", "[clone]"]
        lines += [
            f"{key} = {_toml(value)}"
            for key, value in zip(("source", "target", "serial"), clone, strict=True)
            if value
        ]
    if done["retention"]:
        lines += ["", "[retention]", *_set_keys(known.retention)]
    unfit = {"clone", "backup", "retention", "verify"} if clone is not None else {"clone"}
    for section, kind in SECTIONS.items():
        if section not in unfit and not done.get(section):
            lines += ["", *_commented(section, kind)]
    return "\n".join(lines) + "\n"


def kept_by_copy(retention: Retention) -> Retention:
    """Return the rules for a copy of a repository with rules.

    A copy does not merge: the next run would bring back what went. Where the repository does, the whole chain
    comes anew, and that is most of the points that may go at once.
    """
    return dataclasses.replace(retention, merge=False, max_share=_ANEW if retention.merge else None)


def default_text(field: Any) -> str:  # noqa: ANN401 (a field of any dataclass)
    """Return the default of a key in TOML; empty when it has none, or none that can be written."""
    value = field.default
    if value is REQUIRED or value is None or value in {"", ()}:
        return ""
    form = field.metadata["form"]
    if form is SPAN:
        return f'"{_span(value)}"'
    if form.wants.startswith(TIME.wants):
        return f'"{_clock(value[0])}"'
    return _toml(value[0] if isinstance(value, tuple) and len(value) == 1 else value)


def _span(seconds: int) -> str:
    return next(
        (f"{seconds // scale}{unit}" for scale, unit in _SPANS if seconds and seconds % scale == 0), "0h"
    )


def _entry(entry: Entry) -> Iterator[str]:
    yield f"type = {_toml(entry.type)}"
    yield f"every = {_toml(entry.every)}"
    match entry.every:
        case "week":
            yield f"days = {_toml(list(entry.days))}"
        case "month" | "year":
            yield f"day = {entry.day}"
    times = [_clock(minutes) for minutes in entry.at]
    yield f"at = {_toml(times[0] if len(times) == 1 else times)}"


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


def _set_keys(retention: Retention) -> Iterator[str]:
    for name, field in keys_of(Retention).items():
        value = getattr(retention, name)
        if value != field.default:
            yield f"{name} = {_toml(value)}  # {field.metadata['doc']}"


def _commented(section: str, kind: type) -> Iterator[str]:
    summary = (kind.__doc__ or "").split("\n", 1)[0]
    yield f"# [{section}]  # {summary}"
    for name, field in keys_of(kind).items():
        shown = default_text(field) or field.metadata["form"].example
        yield f"# {name} = {shown}  # {field.metadata['doc']}"


def _toml(value: object) -> str:
    """Return a value in TOML, whose texts on one line are those of JSON as far as we use them."""
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, tuple) else json.dumps(list(value))
