"""``mountfs plan``: plans that run by themselves; what they would do, when, and what wakes them."""

from __future__ import annotations

import enum
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from mountfs.cli import planning
from mountfs.cli.command import command, path
from mountfs.cli.planning import Given
from mountfs.cli.render import Renderer
from mountfs.plans.installed import WAYS
from mountfs.plans.templates import TEMPLATES


class Action(enum.Enum):
    """What is done with a plan."""

    NEW = "new"
    CHECK = "check"
    RUN = "run"
    NEXT = "next"
    INSTALL = "install"
    REMOVE = "remove"
    STATUS = "status"
    LIST = "list"


What = Annotated[
    Action,
    typer.Argument(
        metavar="new|check|run|next|install|remove|status|list", help="What to do.", show_default=False
    ),
]
Name = Annotated[
    str | None,
    typer.Argument(metavar="[NAME]", help="Of the plan; for most, all by default.", show_default=False),
]
Plans = Annotated[
    Path | None,
    typer.Option(
        "--plans",
        parser=path,
        metavar="FOLDER",
        help="Where the plans are; root: /etc/mountfs/plans.",
        show_default=False,
    ),
]
TemplateName = Annotated[
    str | None, typer.Option("--template", metavar="NAME", help=f"new: {', '.join(TEMPLATES)}.")
]
Sources = Annotated[
    list[str] | None,
    typer.Option(
        "--source", metavar="DISK", help="new: what is imaged or cloned. Repeatable.", show_default=False
    ),
]
Repo = Annotated[str | None, typer.Option("--repository", metavar="REPO", help="new: where images go.")]
Copies = Annotated[
    list[str] | None,
    typer.Option(
        "--copy", metavar="PLACE", help="new: another place for them. Repeatable.", show_default=False
    ),
]
Target = Annotated[
    str | None, typer.Option("--target", metavar="DISK", help="new: the disk a clone overwrites.")
]
Serial = Annotated[
    str | None, typer.Option("--target-serial", metavar="SERIAL", help="new: that disk's serial number.")
]
Type = Annotated[str | None, typer.Option("--type", metavar="TYPE", help="run: full, diff, inc; or clone.")]
IfDue = Annotated[bool, typer.Option("--due", help="run: only what is due, if anything is.")]
Jitter = Annotated[bool, typer.Option("--jitter", help="run --due: wait at random first, as the plan says.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", "-n", help="run, install, remove: show it, and do nothing.")
]
Count = Annotated[int, typer.Option("--count", min=1, max=1000, metavar="N", help="next: so many.")]
Way = Annotated[
    str | None,
    typer.Option("--as", metavar="WAY", help=f"install, remove: {', '.join(WAYS)}; default: what is here."),
]
Into = Annotated[
    Path | None,
    typer.Option(
        "--into", parser=path, metavar="FOLDER", help="install, remove: files there; enable nothing."
    ),
]

EXAMPLES = """\
mountfs plan new laptop --source /dev/sda --repository /backups
mountfs plan check laptop            every command that it would run
mountfs plan run laptop --dry-run
mountfs plan next --count 20
sudo mountfs plan install laptop     systemd timer, or crontab
"""


@command
def run(
    out: Renderer,
    action: What,
    name: Name = None,
    plans: Plans = None,
    template: TemplateName = None,
    source: Sources = None,
    repository: Repo = None,
    copy: Copies = None,
    target: Target = None,
    target_serial: Serial = None,
    type_: Type = None,
    if_due: IfDue = False,
    jitter: Jitter = False,
    dry_run: DryRun = False,
    count: Count = 10,
    way: Way = None,
    into: Into = None,
) -> int:
    """Image disks by plan: what, when, and what is kept, in one file for each plan.

    A run does nothing that could not be typed: 'check' shows the commands. Of several kinds that fall due
    at once the strongest is made. What a machine misses while it is off is caught up.
    """
    given = Given(
        out=out,
        name=name,
        named=plans,
        template=template,
        sources=source or [],
        repository=repository,
        copies=copy or [],
        target=target,
        serial=target_serial,
        type=type_,
        if_due=if_due,
        jitter=jitter,
        dry_run=dry_run,
        count=count,
        way=way,
        into=into,
    )
    return _ACTIONS[action](given)


_ACTIONS: dict[Action, Callable[[Given], int]] = {
    Action.NEW: planning.new,
    Action.CHECK: planning.check,
    Action.RUN: planning.run,
    Action.NEXT: planning.coming,
    Action.INSTALL: planning.put_in,
    Action.REMOVE: planning.take_out,
    Action.STATUS: planning.status,
    Action.LIST: planning.listing,
}
