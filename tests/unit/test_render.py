"""The renderer: what reaches a terminal, a pipe and a program."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from imageformat.errors import CorruptImageError, DestinationError, DestinationFullError, NotFoundError
from mountfs.cli.render import (
    Column,
    OutputClosedError,
    Renderer,
    format_duration,
    format_size,
    format_time,
    make_renderer,
    to_json,
)
from mountfs.cli.render.human import display_width

ROOT = Path(__file__).parents[2]
EVIL = [
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\u202egpj.exe",
    "\u2066x\u2069",
    "a\nb",
    "a\rb",
    "\x08",
    "\x7f",
    "\udcff",
    "\ud800",
    "\u2028",
    "[red]x",
    "[/]",
    ":smile:",
    "\u200b",
    "日本",
    "e\u0301",
]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def human(**options: Any) -> tuple[Renderer, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    return make_renderer(output=out, messages=err, answers=io.StringIO("y\n"), **options), out, err


def program(**options: Any) -> tuple[Renderer, io.StringIO]:
    out = io.StringIO()
    return make_renderer(json=True, output=out, messages=io.StringIO(), **options), out


def telling(**options: Any) -> tuple[Renderer, io.StringIO]:
    """A renderer for programs, and what it tells beside the results, of which it has none."""
    err = io.StringIO()
    return make_renderer(json=True, output=io.StringIO(), messages=err, **options), err


def objects(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


# ---------------------------------------------------------------- units


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 << 20, "1.5 GiB"),
        (120 << 20, "120 MiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        ((1 << 30) - 1, "1.0 GiB"),
        (102_300, "99.9 KiB"),
        (102_399, "100 KiB"),
        (1 << 60, "1.0 EiB"),
        (1 << 90, "1024 YiB"),
        (-1536, "-1.5 KiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 1 << 80))
def test_sizes_are_near_the_truth(size: int) -> None:
    number, unit = format_size(size).split()
    power = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"].index(unit)
    assert abs(float(number) * 1024**power - size) <= 0.06 * size
    assert len(number) <= 4


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (59.7, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (3599.6, "1 h 00 min"),
        (273600, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("when", [0, 1_714_562_521_123_456_789, -1, 10**9])
def test_times_agree_with_date(when: int) -> None:
    for zone in ("Europe/Berlin", "America/St_Johns", "UTC"):
        environ = os.environ | {"TZ": zone, "PYTHONPATH": str(ROOT)}
        code = f"from mountfs.cli.render import format_time; print(format_time({when}))"
        ours = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
        )
        command = ["date", "-d", f"@{when // 10**9}", "+%Y-%m-%d %H:%M:%S %:z"]
        theirs = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
        assert ours.stdout == theirs.stdout


def test_times_no_calendar_has() -> None:
    assert format_time(1 << 100) == f"{1 << 100} ns"
    assert format_time(-(1 << 100)) == f"{-(1 << 100)} ns"


# ---------------------------------------------------------------- people, no terminal


def test_a_plain_table_is_aligned() -> None:
    renderer, out, err = human()
    rows = [("a", 1, None), (b"long\xff", 1234, "x"), ("日本", 7, "end")]
    renderer.table("Files", ["name", Column("size", right=True), "note"], rows)
    assert out.getvalue().splitlines() == [
        "Files",
        "NAME      SIZE  NOTE",
        "a            1",
        "long\\xff  1234  x",
        "日本         7  end",
    ]
    assert err.getvalue() == ""


def test_a_table_without_rows_and_one_with_very_many() -> None:
    renderer, out, _ = human()
    renderer.table("", ["a", "b"], [])
    assert out.getvalue() == "A  B\n"
    renderer, out, _ = human()
    renderer.table("", ["n"], ((number,) for number in range(5000)))
    assert out.getvalue().split() == ["N", *map(str, range(5000))]


@pytest.mark.parametrize("evil", EVIL)
def test_nothing_harmful_gets_out(evil: str) -> None:
    renderer, out, err = human(verbose=True)
    renderer.table(evil, ["a"], [(evil,), (evil.encode("utf-8", "surrogatepass"),)])
    renderer.line(evil)
    renderer.note(evil)
    renderer.detail(evil)
    renderer.warning(evil)
    failure = NotFoundError(evil)
    failure.add_note(evil)
    failure.__cause__ = OSError(evil)
    renderer.error(failure)
    with renderer.progress(evil, 10) as progress:
        progress.update(10, evil)
    for text in (out.getvalue(), err.getvalue()):
        assert all(char.isprintable() for char in text.replace("\n", ""))
    assert len(out.getvalue().splitlines()) == 5
    assert len(err.getvalue().splitlines()) == 7


def test_messages_go_to_standard_error_and_obey_the_options() -> None:
    for options, expected in {
        (): ["n", "mountfs: warning: w", "mountfs: error: e", "mountfs: hint: h"],
        ("quiet",): ["mountfs: warning: w", "mountfs: error: e", "mountfs: hint: h"],
        ("verbose",): [
            "n",
            "d",
            "mountfs: warning: w",
            "mountfs: error: e",
            "mountfs: hint: h",
            "mountfs: caused by: OSError: c",
        ],
    }.items():
        renderer, out, err = human(**dict.fromkeys(options, True))
        renderer.note("n")
        renderer.detail("d")
        renderer.warning("w")
        failure = CorruptImageError("e")
        failure.add_note("h")
        failure.__cause__ = OSError("c")
        renderer.error(failure)
        renderer.result({"a": 1})
        assert err.getvalue().splitlines() == expected
        assert out.getvalue() == ""


def test_plain_progress_is_one_line_at_the_end() -> None:
    clock = Clock()
    renderer, out, err = human(clock=clock)
    with renderer.progress("copy", 3 << 20) as progress:
        progress.advance(1 << 20)
        clock.now += 2
        progress.update(3 << 20, "name")
    assert err.getvalue() == "copy: 3.0 MiB in 2.0 s (1.5 MiB/s)\n"
    with contextlib.suppress(DestinationError), renderer.progress("copy", 3) as progress:
        progress.advance(1)
        raise DestinationError("no")
    assert err.getvalue().count("\n") == 1
    quiet, _, err = human(quiet=True)
    with quiet.progress("copy", 3) as progress:
        progress.advance(3)
    assert (out.getvalue(), err.getvalue()) == ("", "")


def test_nobody_agrees_without_a_terminal() -> None:
    assert not human()[0].confirm("sure?")
    assert not program()[0].confirm("sure?")


def test_many_threads_never_mix_lines() -> None:
    renderer, out, _ = human()
    threads = [
        threading.Thread(target=lambda word=word: [renderer.line(word * 50) for _ in range(200)])
        for word in "abcd"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = out.getvalue().splitlines()
    assert len(lines) == 800
    assert all(len(set(line)) == 1 and len(line) == 50 for line in lines)


# ---------------------------------------------------------------- programs


def test_a_result_is_one_object() -> None:
    renderer, out = program()
    renderer.table("t", ["a"], [(1,)])
    renderer.line("for people")
    renderer.result({"entries": [{"name": "ü\x1b\n"}], "raw": b"\xff"})
    assert objects(out) == [{"type": "result", "entries": [{"name": "ü\x1b\n"}], "raw": "/w=="}]
    with pytest.raises(ValueError, match="type"):
        renderer.result({"type": "mine"})


def test_errors_and_messages_are_objects() -> None:
    renderer, out = telling(verbose=True)
    failure = CorruptImageError("block 7 of a.mfi is damaged")
    failure.add_note("try repair")
    renderer.error(failure)
    renderer.warning("w")
    renderer.note("n")
    renderer.detail("d")
    assert objects(out) == [
        {
            "type": "error",
            "error": "CorruptImageError",
            "message": "block 7 of a.mfi is damaged",
            "exit_code": 13,
            "errno": "EIO",
            "hints": ["try repair"],
        },
        {"type": "warning", "message": "w"},
        {"type": "note", "message": "n"},
        {"type": "detail", "message": "d"},
    ]


def test_results_alone_are_on_standard_output() -> None:
    out, err = io.StringIO(), io.StringIO()
    renderer = make_renderer(json=True, output=out, messages=err, verbose=True)
    for tell in (renderer.note, renderer.detail, renderer.warning):
        tell("beside")
    with renderer.progress("p", 1) as progress:
        progress.update(1)
    renderer.result({"found": 1})
    renderer.error(CorruptImageError("bad"))
    assert objects(out) == [{"type": "result", "found": 1}]
    assert [line["type"] for line in objects(err)] == ["note", "detail", "warning", "progress", "error"]


def test_progress_is_told_twice_a_second_and_at_the_end() -> None:
    clock = Clock()
    renderer, out = telling(clock=clock)
    with renderer.progress("backup", 10_000) as progress:
        for _ in range(100):
            clock.now += 0.125
            progress.advance(100)
    told = objects(out)
    assert len(told) == 26
    first = told[0]
    left = pytest.approx((10_000 - first["done"]) / 800, abs=0.2)
    figures = {"done": 400, "total": 10_000, "bytes_per_second": 800, "seconds_left": left}
    assert first == {"type": "progress", "label": "backup"} | figures
    assert (told[-1]["done"], told[-1]["seconds_left"]) == (10_000, 0)


def test_speed_follows_the_last_seconds() -> None:
    clock = Clock()
    renderer, out = telling(clock=clock)
    with renderer.progress("x") as progress:
        for second in range(100):
            clock.now += 1
            progress.advance(1_000_000 if second < 50 else 10)
    last = objects(out)[-1]
    assert last["bytes_per_second"] == 10
    assert (last["total"], last["seconds_left"]) == (None, None)


def test_progress_ends_with_a_line_when_it_fails_and_says_nothing_when_quiet() -> None:
    for quiet, count in ((False, 1), (True, 0)):
        renderer, out = telling(quiet=quiet)
        with contextlib.suppress(DestinationError), renderer.progress("x", 10) as progress:
            progress.update(5, b"na\xffme")
            raise DestinationError("full")
        assert len(objects(out)) == count
        assert all(told["done"] == 5 and told["text"] == "na\\xffme" for told in objects(out))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet=st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_json_is_ascii_on_one_line_and_says_the_same(value: object) -> None:
    text = to_json(value)
    assert text.isascii()
    assert text.isprintable()

    def repaired(thing: object) -> object:
        if isinstance(thing, str):
            return re.sub("[\ud800-\udfff]", "\ufffd", thing)
        if isinstance(thing, list):
            return [repaired(inner) for inner in thing]
        if isinstance(thing, dict):
            return {repaired(key): repaired(inner) for key, inner in thing.items()}
        return thing

    assert json.loads(text) == repaired(value)


# ---------------------------------------------------------------- streams that fail


class Failing(io.StringIO):
    def __init__(self, code: int) -> None:
        super().__init__()
        self._code = code

    def write(self, text: str) -> int:  # noqa: ARG002
        raise OSError(self._code, os.strerror(self._code))


@pytest.mark.parametrize("json_mode", [False, True])
def test_output_that_cannot_be_written(json_mode: bool) -> None:
    for code, expected in {
        errno.EPIPE: OutputClosedError,
        errno.ENOSPC: DestinationFullError,
        errno.EIO: DestinationError,
    }.items():
        renderer = make_renderer(json=json_mode, output=Failing(code), messages=io.StringIO())
        with pytest.raises(expected):
            (renderer.result({}) if json_mode else renderer.line("x"))


def test_messages_that_cannot_be_written_are_dropped() -> None:
    renderer = make_renderer(output=io.StringIO(), messages=Failing(errno.EIO))
    renderer.error(NotFoundError("x"))
    closed = io.StringIO()
    closed.close()
    make_renderer(output=io.StringIO(), messages=closed).warning("x")


def run(code: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    program_text = "import sys, os\nfrom mountfs.cli.render import *\n" + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", f"exec({program_text!a})"],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | (environ or {}),
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("json_mode", [False, True])
def test_a_reader_that_goes_away_ends_it_quietly(json_mode: bool) -> None:
    say = "renderer.result({'n': n})" if json_mode else "renderer.line(str(n))"
    code = f"""
        def main():
            renderer = make_renderer(json={json_mode})
            for n in range(100000):
                {say}
            return 0
        sys.exit(run_to_exit_code(main))
    """
    text = "import sys\nfrom mountfs.cli.render import *\n" + textwrap.dedent(code)
    script = f"{sys.executable} -c '{text.replace(chr(39), chr(34))}' | head -n 2; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False
    )
    assert done.returncode == 141
    assert done.stderr == b""
    assert len(done.stdout.splitlines()) == 2


SMALL_OUTPUT = "make_renderer().line('x')"
OUTPUT_AFTERWARDS = """try:
                make_renderer(json=True).result({})
            finally:
                make_renderer().line('more')"""


@pytest.mark.parametrize("say", [SMALL_OUTPUT, OUTPUT_AFTERWARDS])
def test_what_is_left_for_a_closed_pipe_is_dropped_quietly(say: str) -> None:
    code = f"""
        def main():
            {say}
            return 0
        sys.exit(run_to_exit_code(main))
    """
    text = "import sys\nfrom mountfs.cli.render import *\n" + textwrap.dedent(code)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-c", text],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=pipe,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    "environ", [{"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii"}]
)
def test_no_encoding_is_too_small(environ: dict[str, str]) -> None:
    done = run(
        """
        for json in (False, True):
            renderer = make_renderer(json=json)
            renderer.line("größe 日本 \\udcff")
            renderer.table("ü", ["ä"], [("日本",)])
            renderer.result({"name": "日本\\udcff"})
            renderer.warning("ü")
        """,
        environ=environ,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert b"gr\\xf6\\xdfe \\u65e5\\u672c" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == {"type": "result", "name": "日本\ufffd"}
    assert done.stderr.isascii()
    assert json.loads(done.stderr.splitlines()[-1]) == {"type": "warning", "message": "ü"}


def test_drawing_is_not_loaded_for_a_pipe() -> None:
    done = run("""
        renderer = make_renderer()
        renderer.table("t", ["a"], [(1,)])
        with renderer.progress("p", 10) as progress:
            progress.advance(10)
        print("rich" in sys.modules)
    """)
    assert done.stdout.splitlines()[-1] == b"False"


# ---------------------------------------------------------------- a terminal


DRAWING_VARIABLES = {"NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES"}


def on_terminal(
    code: str, *, environ: dict[str, str] | None = None, typed: bytes = b"", columns: int = 100
) -> str:
    """Run code whose three streams are one terminal; return all that reached it."""
    text = (
        "import sys\nfrom mountfs.cli.render import *\nEVIL = " + ascii(EVIL) + "\n" + textwrap.dedent(code)
    )
    variables = {name: value for name, value in os.environ.items() if name not in DRAWING_VARIABLES}
    variables |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"} | (environ or {})
    handle, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    child = subprocess.Popen(
        [sys.executable, "-c", text],
        env=variables,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    if typed:
        os.write(handle, typed)
    seen = bytearray()
    # the end of a terminal is an error, not an empty read
    with contextlib.suppress(OSError):
        while piece := os.read(handle, 65536):
            seen += piece
    os.close(handle)
    shown = seen.decode("utf-8")
    assert child.wait() == 0, shown
    return shown


OWN_SEQUENCE = re.compile(r"\x1b\[(?:[0-9;]*m|\?25[hl]|[012]?K|[0-9]*A)|\r|\n")
"""Styles, cursor shown and hidden, line erased, line up: what rich itself needs."""

EVERYTHING = """
    for json in (False, True):
        renderer = make_renderer(json=json, verbose=True)
        for evil in EVIL:
            raw = evil.encode("utf-8", "surrogatepass")
            renderer.table(evil, ["a", Column("b", right=True)], [(evil, 1), (raw, 2)])
            renderer.line(evil)
            renderer.warning(evil)
            renderer.result({"name": evil})
        with renderer.progress(EVIL[0], 100) as progress:
            for evil in EVIL:
                progress.update(50, evil)
                renderer.warning(evil)
                renderer.line(evil)
                renderer.table(evil, ["a"], [(evil,)])
            progress.update(100)
"""


@pytest.mark.parametrize("environ", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_control_byte_of_a_name_reaches_a_terminal(environ: dict[str, str]) -> None:
    shown = on_terminal(EVERYTHING, environ=environ)
    rest = OWN_SEQUENCE.sub("", shown)
    assert [char for char in rest if not char.isprintable()] == []
    styles = re.findall(r"\x1b\[([0-9;]*)m", shown)
    colours = [style for style in styles if re.search(r"(?:^|;)(?:3[0-8]|4[0-8]|9\d|10\d)(?:;|$)", style)]
    assert bool(colours) == (not environ)
    assert ("\x1b" in shown) == (environ != {"TERM": "dumb"})
    for verbatim in ("[red]x", "[/]", ":smile:", "\\x1b[2J", "日本"):
        assert verbatim in rest
    told = [json.loads(line) for line in shown.splitlines() if line.startswith('{"type":"result"')]
    assert [one["name"] for one in told] == [re.sub("[\ud800-\udfff]", "\ufffd", evil) for evil in EVIL]


def test_a_drawn_table_loses_nothing_on_a_narrow_terminal() -> None:
    name = "abcdefghij" * 12
    shown = on_terminal(f"make_renderer().table('t', ['name'], [('{name}',)])", columns=40)
    assert name in re.sub(r"\s", "", OWN_SEQUENCE.sub("", shown))


def test_a_row_is_never_folded() -> None:
    shown = on_terminal("make_renderer().table('', ['a', 'b'], [('x' * 30 + ' y', 'last')])", columns=20)
    assert "x" * 30 + " y last" in OWN_SEQUENCE.sub("", shown)


def test_a_bar_on_a_narrow_terminal_keeps_the_time_left() -> None:
    shown = on_terminal(
        """
        now = [0.0]
        renderer = make_renderer(clock=lambda: now[0])
        with renderer.progress("restore to /a/path/that/is/rather/long/and/longer.img", 4 << 30) as progress:
            now[0] = 2.0
            progress.update(1 << 30, "restore")
            renderer.note("above")
        """,
        columns=80,
    )
    assert "1.0 GiB of 4.0 GiB  512 MiB/s  6.0 s left" in OWN_SEQUENCE.sub("", shown)


def test_a_bar_shows_figures() -> None:
    shown = on_terminal("""
        now = [0.0]
        renderer = make_renderer(clock=lambda: now[0])
        with renderer.progress("copy", 4 << 20) as progress:
            now[0] = 2.0
            progress.update(1 << 20, "file")
            renderer.note("above")
            now[0] = 8.0
            progress.update(4 << 20)
    """)
    rest = OWN_SEQUENCE.sub("", shown)
    assert "1.0 MiB of 4.0 MiB  512 KiB/s  6.0 s left" in rest
    assert "4.0 MiB of 4.0 MiB  512 KiB/s  in 8.0 s" in rest
    assert "above" in rest


@pytest.mark.parametrize(
    ("typed", "agreed"), [("y", True), ("YES", True), ("n", False), ("", False), ("yesss", False)]
)
def test_a_person_is_asked(typed: str, agreed: bool) -> None:
    shown = on_terminal("print(make_renderer().confirm('really\\x1b[2J?'))", typed=typed.encode() + b"\n")
    assert "really\\x1b[2J? [y/N]" in shown
    assert str(agreed) in shown


def test_the_end_of_input_is_a_no() -> None:
    assert "False" in on_terminal("print(make_renderer().confirm('really?'))", typed=b"\x04")


def test_widths_agree_with_the_terminal_library() -> None:
    for text in ("abc", "日本", "e\u0301", "größe", "한글", "😀"):
        assert display_width(text) == cell_len(text)
