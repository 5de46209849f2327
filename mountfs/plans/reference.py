"""The reference of all keys of a plan, in Markdown, made from the model that reads them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mountfs.plans.model import REQUIRED, SECTIONS, TABLES, TOP, keys_of
from mountfs.plans.templates import TEMPLATES
from mountfs.plans.writing import default_text

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD = ("| key | value | default | meaning |", "|---|---|---|---|")
_TABLE_DOCS = {
    "sources": "`sources`: a list of texts and tables",
    "copies": "`copies`: a list of texts and tables",
    "schedule": "`[[schedule]]`",
}


def reference() -> str:
    """Return all sections with their keys, forms, defaults and meanings."""
    lines = ["### Before any section", "", *_HEAD]
    for name, (form, doc, default, shown) in TOP.items():
        said = shown or (f'`"{default}"`' if default else "")
        lines.append(_row(name, form.wants, said, doc))
    for name, (section, _) in TABLES.items():
        lines += ["", f"### {_TABLE_DOCS[name]}", "", _summary(section), "", *_HEAD, *_rows(section)]
    for name, section in SECTIONS.items():
        lines += ["", f"### `[{name}]`", "", _summary(section), "", *_HEAD, *_rows(section)]
    lines += ["", "### Templates", "", "| template | what it makes | schedule |", "|---|---|---|"]
    for name, template in TEMPLATES.items():
        plan = ", ".join(f"{entry.type} each {entry.every}" for entry in template.schedule)
        lines.append(f"| `{name}` | {template.summary} | {plan} |")
    return "\n".join(lines) + "\n"


def _summary(section: type) -> str:
    return (section.__doc__ or "").split("\n", 1)[0]


def _rows(section: type) -> Iterator[str]:
    for name, field in keys_of(section).items():
        yield _row(name, field.metadata["form"].wants, _default(field), field.metadata["doc"])


def _default(field: Any) -> str:  # noqa: ANN401 (a field of any dataclass)
    if field.default is REQUIRED:
        return "**needed**"
    shown = str(field.metadata["shown"])
    literal = default_text(field)
    return shown or (f"`{literal}`" if literal else "")


def _row(*cells: str) -> str:
    return f"| `{cells[0]}` | {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells[1:])} |"
