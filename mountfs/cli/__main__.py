"""The command ``mountfs``: finds the module of the command, and turns every failure into one line."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import typer

from imageformat.errors import (
    AccessDeniedError,
    InterruptedByUserError,
    MountfsError,
    NotFoundError,
    UsageError,
)
from mountfs import __version__
from mountfs.cli import interrupts
from mountfs.cli.render import OutputClosedError, renderer_for, run_to_exit_code
from mountfs.cli.render.streams import flush_output, written_to_output

COMMANDS = {
    "disks": "List the disks of this machine.",
    "backup": "Image a disk, a partition or an image file.",
    "list": "List the sets and points of a repository.",
    "info": "Show what an image is: disk, partitions, what is stored.",
    "mount": "Show a repository, a set or an image as a folder.",
    "mounts": "List what is mounted.",
    "umount": "End a mount.",
    "ls": "List a folder inside an image.",
    "tree": "Draw a folder inside an image.",
    "cat": "Write a file from an image to standard output.",
    "cp": "Copy files and folders out of an image.",
    "verify": "Prove every block; name every damaged file.",
    "restore": "Write a point to a disk, a partition or a file.",
    "clone": "Copy a disk to another; again: only what changed.",
    "convert": "Turn any readable image into another format.",
    "copy": "Copy images to a folder, an S3 server or another machine.",
    "merge": "Fold neighbouring points into the youngest of them.",
    "delete": "Take a point out of a set, wherever it stands.",
    "retention": "Delete the points that no rule keeps, or simulate it.",
    "plan": "Image disks by plan and schedule.",
    "status": "Show whether all plans keep what they promise.",
    "doctor": "Show what works on this machine, and mend the rest.",
}
"""In the order in which people need them; each summary fits on its line of the help."""
_BEGIN = """\
Begin with:
  mountfs backup /dev/sdb /backups
  mountfs list /backups
  mountfs mount /backups /mnt

'mountfs COMMAND --help' shows more, with examples."""
INTERNAL_ERROR = 99

_PRINTING = frozenset({"-h", "--help", "--version", "--show-completion", "--install-completion"})
"""Options for which typer itself writes to standard output."""

_PARSER_ERROR: Any = typer.BadParameter.__mro__[1]
"""What typer raises for any wrong command line; it has no public name of its own."""


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    code = InterruptedByUserError.exit_code
    try:
        code = run_to_exit_code(lambda: run(sys.argv[1:]))
    except KeyboardInterrupt:
        interrupts.ignore()
    interrupts.ignore()
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; never raises for anything a user can cause.

    Raises:
        OutputClosedError: nobody reads on; `run_to_exit_code` ends it quietly.
    """
    interrupts.raise_them()
    try:
        code = _dispatch(arguments)
        flush_output()
        return code
    except OutputClosedError:
        raise
    except MountfsError as error:
        return _fail(arguments, error)
    except KeyboardInterrupt:
        return _fail(arguments, InterruptedByUserError("interrupted; the same command can be run again"))
    except MemoryError:
        return _fail(arguments, MountfsError("out of memory; try --threads 1 or a smaller --cache"))
    except Exception as error:  # noqa: BLE001 (the last line of defence: a bug must not look like a crash)
        if "-v" in arguments or "--verbose" in arguments:
            traceback.print_exc()
        if (expected := _expected(error)) is not None:
            return _fail(arguments, expected)
        failure = MountfsError(f"internal error: {type(error).__name__}: {error}")
        failure.add_note("this is a bug; run it again with --verbose and report what it says")
        renderer_for(arguments).error(failure)
        return INTERNAL_ERROR


def _expected(error: Exception) -> MountfsError | None:
    """Return what a failure means that no command has foreseen, and that still is no bug."""
    if isinstance(error, PermissionError):
        return AccessDeniedError(f"{error.filename or error}: permission denied; try sudo")
    try:
        Path.cwd()
    except FileNotFoundError:
        return NotFoundError("the current folder is gone; change to another one and try again")
    return None


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        _dispatch(["--help"])
        return UsageError.exit_code  # a script that lost its arguments must notice
    if _PRINTING.intersection(arguments):
        with written_to_output():
            return _parse(arguments)
    return _parse(arguments)


def _parse(arguments: list[str]) -> int:
    try:
        code = application(arguments)(args=arguments, prog_name="mountfs", standalone_mode=False)
    except typer.Exit as exit_:
        return int(exit_.exit_code)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except _PARSER_ERROR as error:
        wrong = UsageError(error.format_message())
        wrong.add_note(f"see '{error.ctx.command_path if error.ctx else 'mountfs'} --help'")
        raise wrong from error
    if code == InterruptedByUserError.exit_code:
        raise KeyboardInterrupt  # typer has turned it into its exit code
    return int(code or 0)


def _fail(arguments: list[str], error: MountfsError) -> int:
    renderer_for(arguments).error(error)
    return error.exit_code


def application(arguments: list[str]) -> typer.Typer:
    """Return the command line with the one command that is asked for really loaded.

    The others stand there with their summaries alone: loading all of them would take longer than most
    commands run. Shell completion loads all.
    """
    app = typer.Typer(
        name="mountfs",
        help="Disk images you can walk into: every point of every image is a folder.",
        epilog=_verbatim(_BEGIN),
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_main_options)
    wanted = next((word for word in arguments if not word.startswith("-")), None)
    everything = "_MOUNTFS_COMPLETE" in os.environ
    for name, summary in COMMANDS.items():
        if everything or name == wanted:
            module = importlib.import_module(f"mountfs.cli.commands.{name}")
            examples = "".join(f"  {line}\n" for line in module.EXAMPLES.splitlines())
            app.command(name, epilog=_verbatim(f"Examples:\n{examples}"))(module.run)
        else:
            app.command(name, help=summary)(_stub)
    return app


def _verbatim(text: str) -> str:
    """Mark every paragraph as one that the help does not wrap."""
    return "\n\n".join(f"\b\n{paragraph}" for paragraph in text.strip().split("\n\n"))


def _stub() -> None:
    """Stand for a command in the list of commands."""


def _show_version(asked: bool) -> None:  # noqa: FBT001 (typer passes it so)
    if asked:
        typer.echo(f"mountfs {__version__}")
        raise typer.Exit


def _main_options(
    version: bool = typer.Option(  # noqa: FBT001 (an option that ends the program)
        False,  # noqa: FBT003
        "--version",
        help="Show the version.",
        callback=_show_version,
        is_eager=True,
    ),
) -> None:
    """Take the options that stand before the command."""


if __name__ == "__main__":
    main()
