"""The forms that values of a plan may have: each says what it wants, and turns TOML into our values. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from imageformat.errors import UsageError
from mountfs.quantities import parse_budget, parse_part, parse_span

if TYPE_CHECKING:
    from collections.abc import Callable

_Value = TypeVar("_Value")
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
"""In the order of `datetime.date.weekday`."""
_NO_CONTROLS = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]+")


class Form(NamedTuple):
    """What a value may be. ``parse`` returns it as we keep it, or raises `ValueError` with what is wrong."""

    wants: str
    """For people: ``a size, such as 20GiB``."""
    parse: Callable[[object], object]
    example: str
    """In TOML."""


def _text(value: object) -> str:
    if not isinstance(value, str) or not _NO_CONTROLS.fullmatch(value) or len(value) > 4096:
        raise ValueError("it is no text on one line")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it is neither true nor false")  # noqa: TRY004 (one class for whoever calls)
    return value


def _quantity(parse: Callable[[str], object]) -> Callable[[object], str]:
    """Return a parser that keeps the text, which a command gets as it is."""

    def check(value: object) -> str:
        text = _text(value)
        _understood(parse, text)
        return text

    return check


def _span(value: object) -> int:
    return _understood(parse_span, _text(value))


def _understood(parse: Callable[[str], _Value], text: str) -> _Value:
    try:
        return parse(text)
    except UsageError as error:
        raise ValueError(str(error)) from error


def _time(value: object) -> int:
    match = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)", _text(value), re.ASCII)
    if match is None:
        raise ValueError(f"'{value}' is no time of day")
    return int(match[1]) * 60 + int(match[2])


def _command(value: object) -> str | tuple[str, ...]:
    if isinstance(value, list) and value:
        return tuple(_text(word) for word in value)
    return _text(value)


TEXT = Form("a text", _text, '"..."')
FLAG = Form("true or false", _flag, "true")
SPAN = Form('a span of time: "30min", "36h", "7d", "4w" or "1y"', _span, '"30min"')
KEPT_SPAN = Form(SPAN.wants, _quantity(parse_span), '"7d"')
PART = Form('a size or a share: "50G", "10%"', _quantity(lambda text: parse_part(text, 100)), '"10%"')
BUDGET = Form('a size or a span of time: "20GiB", "30min"', _quantity(parse_budget), '"20GiB"')
RULES = Form("a table with the keys of `[retention]`", lambda value: value, "{ daily = 7 }")
TIME = Form('a time of day: "02:00"', _time, '"02:00"')
COMMAND = Form('a command for the shell, or a list of words: ["sync", "-f", "/data"]', _command, '"sync"')


COMMANDS = Form(
    'a command for the shell, or a list of commands; one as words is a list in it: [["sync", "-f", "/data"]]',
    lambda value: tuple(map(_command, value if isinstance(value, list) else [value])),
    '["sync"]',
)


def count(least: int, most: int) -> Form:
    """Return the form of a whole number in these bounds, both included."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"it is no whole number from {least} to {most}")
        return value

    return Form(f"a whole number from {least} to {most}", parse, str(least))


def choice(*names: str) -> Form:
    """Return the form of one word out of some."""
    listed = ", ".join(f'"{name}"' for name in names)

    def parse(value: object) -> str:
        if value not in names:
            raise ValueError(f"it is none of {listed}")
        return str(value)

    return Form(f"one of {listed}", parse, f'"{names[0]}"')


def many(form: Form) -> Form:
    """Return the form of a list of something; one alone may stand without brackets."""

    def parse(value: object) -> tuple[object, ...]:
        items = value if isinstance(value, list) else [value]
        if len(items) > 1000:
            raise ValueError("they are too many")
        return tuple(form.parse(item) for item in items)

    return Form(f"{form.wants}; or a list of them", parse, f"[{form.example}]")
