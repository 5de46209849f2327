"""``mountfs status``: whether all plans keep what they promise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mountfs.cli.command import command, path
from mountfs.cli.render import Renderer
from mountfs.cli.standing import show_status
from mountfs.plans.folders import find_plan, plan_files, plans_folder, state_folder
from mountfs.plans.history import History
from mountfs.plans.reading import read_plans

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="Of plans; all by default.", show_default=False),
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

EXAMPLES = """\
mountfs status
mountfs status laptop --json
"""


@command
def run(out: Renderer, names: Names = None, plans: Plans = None) -> int:
    """Show of each plan: last success, next run, points, what share of them is proven, copies.

    3-2-1 is what there is: copies, kinds of media, off-site ones; the source is one of them. Ends with 0
    when all is well, else with the code of the gravest trouble: 80 a plan is not valid, 85 the last run
    failed, 86 late, 87 points unreadable or damaged, 88 points not verified in time, 89 too few copies,
    media or places.
    """
    folder = plans_folder(plans)
    files = [find_plan(folder, name) for name in names] if names else plan_files(folder)
    valid, broken = read_plans(files)
    return show_status(out, [(plan, History(state_folder(plans) / plan.name)) for plan in valid], broken)
