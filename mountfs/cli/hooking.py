"""The options ``--before`` and ``--after`` of a command: what runs around it, however it ends."""

from __future__ import annotations

import functools
import inspect
import os
from typing import TYPE_CHECKING, Annotated

import typer

from engine.hooks import LIMIT_S, run_hook
from engine.plan import set_name_for
from imageformat.errors import HookError, InterruptedByUserError, MountfsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mountfs.cli.render import Renderer

_OPTIONS = {
    "before": Annotated[
        str | None,
        typer.Option(
            "--before",
            metavar="CMD",
            help="Run this first; if it fails, nothing is imaged.",
            show_default=False,
        ),
    ],
    "after": Annotated[
        str | None,
        typer.Option("--after", metavar="CMD", help="Run this last, however it went.", show_default=False),
    ],
    "hook_limit": Annotated[
        float,
        typer.Option("--hook-limit", min=1, metavar="SECONDS", help="How long such a command may take."),
    ],
}
_DEFAULTS = {"before": None, "after": None, "hook_limit": LIMIT_S}
_WARNING_EXIT = 3
_OUTCOMES = {0: "ok", _WARNING_EXIT: "warning", InterruptedByUserError.exit_code: "interrupted"}
_INTERNAL_ERROR = 99


def hooked(function: Callable[..., int]) -> Callable[..., int]:
    """Give a command that takes ``out``, ``source``, ``repository`` and ``set_name`` hooks around it.

    A hook finds these in its environment, and the one after it how it went. When the one before fails, the
    command does not run, and the one after it does. When the one after fails, that is a warning.
    """
    signature = inspect.signature(function, eval_str=True)

    @functools.wraps(function)
    def run(
        *, out: Renderer, before: str | None, after: str | None, hook_limit: float, **arguments: object
    ) -> int:
        variables = _variables(arguments) if before is not None or after is not None else {}

        def hook(name: str, command: str, known: Mapping[str, str]) -> None:
            variables_now = {**variables, "MOUNTFS_HOOK": name, **known}
            run_hook(command, variables_now, lambda line: out.note(f"{name}: {line}"), hook_limit)

        code, said = _INTERNAL_ERROR, ""
        try:
            if before is not None:
                hook("before", before, {})
            code = function(out=out, **arguments)
        except MountfsError as error:
            code, said = error.exit_code, str(error)
            raise
        except KeyboardInterrupt:
            code = InterruptedByUserError.exit_code
            raise
        finally:
            if after is not None and not _ended_well(hook, after, code, said, out) and code == 0:
                code = _WARNING_EXIT
        return code

    parameters = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS[name], annotation=annotation
        )
        for name, annotation in _OPTIONS.items()
    ]
    vars(run)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), *parameters])
    return run


def _ended_well(
    hook: Callable[[str, str, Mapping[str, str]], None], after: str, code: int, said: str, out: Renderer
) -> bool:
    known = {
        "MOUNTFS_RESULT": _OUTCOMES.get(code, "failed"),
        "MOUNTFS_EXIT_CODE": str(code),
        "MOUNTFS_ERROR": said,
    }
    try:
        hook("after", after, known)
    except HookError as error:
        out.warning(f"after: {error}")
        return False
    return True


def _variables(arguments: Mapping[str, object]) -> dict[str, str]:
    source = str(arguments["source"])
    set_name = arguments["set_name"]
    return {
        "MOUNTFS_SOURCE": source,
        "MOUNTFS_REPOSITORY": str(arguments["repository"]),
        "MOUNTFS_SET": str(set_name) if set_name else set_name_for(os.path.realpath(source)),
    }
