"""The one renderer: every word that a command says goes through here, and is harmless when it comes out.

People get text, drawn with rich on a terminal and plain elsewhere; programs get one JSON object a line. To
both, standard output gives what was asked for, and standard error tells the rest.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from mountfs.cli.render.human import HumanRenderer
from mountfs.cli.render.json_lines import JsonRenderer, to_json
from mountfs.cli.render.model import Cell, Column, Renderer, Text
from mountfs.cli.render.progress import Progress
from mountfs.cli.render.streams import BROKEN_PIPE_EXIT, Messages, Output, OutputClosedError, run_to_exit_code
from mountfs.cli.render.units import counted, format_duration, format_size, format_time

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TextIO

__all__ = [
    "BROKEN_PIPE_EXIT",
    "JSON_FLAG",
    "Cell",
    "Column",
    "OutputClosedError",
    "Progress",
    "Renderer",
    "Text",
    "counted",
    "format_duration",
    "format_size",
    "format_time",
    "make_renderer",
    "renderer_for",
    "run_to_exit_code",
    "to_json",
]


JSON_FLAG = "--json"


def make_renderer(
    *,
    json: bool = False,
    quiet: bool = False,
    verbose: bool = False,
    output: TextIO | None = None,
    messages: TextIO | None = None,
    answers: TextIO | None = None,
    environ: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Renderer:
    """Return the renderer for the options of the command line.

    Args:
        json: for programs.
        quiet: no notes, no progress.
        verbose: details, and the causes of errors.
        output: where results go; standard output.
        messages: where everything else goes; standard error.
        answers: where a person answers; standard input.
        environ: the environment; TERM=dumb turns drawing off, NO_COLOR colours.
        clock: seconds, for speeds.
    """
    out = Output(output or sys.stdout)
    told = Messages(messages or sys.stderr)
    if json:
        return JsonRenderer(out, told, quiet=quiet, verbose=verbose, clock=clock)
    variables = os.environ if environ is None else environ
    return HumanRenderer(
        out,
        told,
        answers or sys.stdin,
        quiet=quiet,
        verbose=verbose,
        drawn=variables.get("TERM", "dumb") != "dumb",
        clock=clock,
    )


def renderer_for(arguments: list[str]) -> Renderer:
    """Return the renderer for errors of a command line that could not be parsed."""
    flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return make_renderer(json=JSON_FLAG in flags, verbose="-v" in flags or "--verbose" in flags)
