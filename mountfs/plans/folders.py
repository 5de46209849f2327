"""Where plans and what is remembered of them lie."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import platformdirs

from imageformat.errors import NotFoundError, PlanError
from imageformat.storage.failures import read_error
from mountfs.plans.reading import SUFFIX, check_plan_name

_SYSTEM_PLANS = Path("/etc/mountfs/plans")
_SYSTEM_STATE = Path("/var/lib/mountfs/plans")


def is_administrator() -> bool:
    """Whether plans of the whole machine are meant: on systems that have a root user, whether this is it."""
    return sys.platform != "win32" and os.geteuid() == 0


def plans_folder(named: Path | None = None) -> Path:
    """Return the folder of the plans: the one that was named, or that of this user; root has the system's."""
    if named is not None:
        return named.absolute()
    if is_administrator():
        return _SYSTEM_PLANS
    return Path(platformdirs.user_config_dir("mountfs", appauthor=False)) / "plans"


def state_folder(named: Path | None = None) -> Path:
    """Return the folder of what is remembered of the plans; each folder that was named has its own."""
    state = os.environ.get("MOUNTFS_STATE")
    if state:
        place = Path(state).absolute() / "plans"
    elif is_administrator() and "XDG_STATE_HOME" not in os.environ:
        place = _SYSTEM_STATE
    else:
        place = Path(platformdirs.user_state_dir("mountfs", appauthor=False)) / "plans"
    if named is None:
        return place
    mark = hashlib.sha256(os.fsencode(named.absolute())).hexdigest()[:12]
    return place / f"in-{mark}"


def plan_path(folder: Path, name: str) -> Path:
    """Return the file of a plan.

    Raises:
        PlanError: it can have no such name.
    """
    return folder / f"{check_plan_name(name)}{SUFFIX}"


def find_plan(folder: Path, name: str) -> Path:
    """Return the file of a plan that is there.

    Raises:
        NotFoundError: it is not.
        PlanError: it can have no such name.
    """
    path = plan_path(folder, name.removesuffix(SUFFIX))
    if not path.is_file():
        error = NotFoundError(f"there is no plan '{name}' in {folder}")
        names = [found.stem for found in plan_files(folder)]
        error.add_note(f"there are: {', '.join(names)}" if names else "make one: mountfs plan new NAME")
        raise error
    return path


def plan_files(folder: Path) -> list[Path]:
    """Return the files of all plans of a folder, by name; none when it is not there.

    Raises:
        MountfsError: it cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == SUFFIX and _fits(path.stem))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise read_error(error, folder) from error


def _fits(name: str) -> bool:
    try:
        return bool(check_plan_name(name))
    except PlanError:
        return False
