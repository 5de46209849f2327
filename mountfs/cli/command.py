"""What every command has in common: its options, its renderer, its way to fail."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imageformat.repository import Access
from imageformat.selection import named_files
from mountfs.cli.passwords import read_secrets
from mountfs.cli.render import JSON_FLAG, make_renderer

if TYPE_CHECKING:
    from collections.abc import Callable


def path(text: str) -> Path:
    """Take a path as it is: for ``parser=`` of an argument.

    By itself typer would look at what is there. That hangs on a mount whose server does, and calls it a
    wrong argument when access is denied.
    """
    return Path(text)


_COMMON = {
    "json": Annotated[bool, typer.Option(JSON_FLAG, help="For programs: JSON, one object a line.")],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="No notes, no progress.")],
    "verbose": Annotated[bool, typer.Option("--verbose", "-v", help="Say more; show causes of errors.")],
}

Image = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE",
        help="An image file, a set, or REPO/SET@POINT; POINT is a number, an id, a time or 'latest'.",
        show_default=False,
    ),
]
At = Annotated[
    str | None,
    typer.Option("--at", metavar="TIME", help="The newest point up to a day or time: 2026-11-20T12:00."),
]
PointName = Annotated[
    str | None, typer.Option("--point", "-p", metavar="POINT", help="Number, id, time, or 'latest'.")
]
Threads = Annotated[
    int,
    typer.Option("--threads", min=0, max=64, help="Worker threads; 0: as many as pay.", show_default=False),
]
PasswordFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--password-file",
        metavar="FILE",
        help="It has the password of something encrypted; '-': ask, or standard input. Repeatable.",
        show_default=False,
    ),
]
KeyFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--key-file",
        metavar="FILE",
        help="A key file of LUKS, or BitLocker's .BEK. Repeatable.",
        show_default=False,
    ),
]
Backing = Annotated[
    list[str] | None,
    typer.Option(
        "--backing",
        metavar="FILE",
        help="A file outside of its folder that the image may open: a backing file. Repeatable.",
        show_default=False,
    ),
]
DiskNumber = Annotated[
    int | None,
    typer.Option(
        "--disk",
        min=0,
        metavar="N",
        help="Which disk of an image with several: 0, 1, ...",
        show_default=False,
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before overwriting (for scripts).")]
_ACCESS = {"password_file": PasswordFiles, "key_file": KeyFiles, "backing": Backing}
_GIVEN = frozenset({"out", "json", "access"})
"""What `command` makes from options of its own."""


def command(function: Callable[..., int | None]) -> Callable[..., int]:
    """Give a command the common options; it gets the renderer made from them as ``out``.

    The function returns its exit code, None for 0. One that writes bytes of its own takes ``json`` too. One
    that opens images takes ``access``, and has the options that it is made from.
    """
    signature = inspect.signature(function, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name not in _GIVEN]
    wants_json = "json" in signature.parameters
    wants_access = "access" in signature.parameters
    if wants_access:
        own += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in _ACCESS.items()
        ]
    common = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in _COMMON.items()
    ]

    @functools.wraps(function)
    def run(
        *,
        json: bool,
        quiet: bool,
        verbose: bool,
        password_file: list[str] | None = None,
        key_file: list[str] | None = None,
        backing: list[str] | None = None,
        **arguments: object,
    ) -> int:
        if wants_json:
            arguments["json"] = json
        if wants_access:
            secrets = read_secrets(password_file or (), key_file or ())
            arguments["access"] = Access(secrets, named_files(backing or ()))
        return function(out=make_renderer(json=json, quiet=quiet, verbose=verbose), **arguments) or 0

    parameters = [*own, *common]
    vars(run)["__signature__"] = signature.replace(parameters=parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
