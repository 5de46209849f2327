"""Putting what wakes a plan where the system looks for it, and taking exactly that away again."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from imageformat.errors import DestinationError, UsageError
from imageformat.storage.failures import write_error
from mountfs.plans.folders import is_administrator
from mountfs.plans.installing import (
    MARK,
    TASK_FOLDER,
    cron_lines,
    systemd_service,
    systemd_timer,
    unit_name,
    windows_task,
    without_cron_lines,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mountfs.plans.model import Plan

WAYS = ("systemd", "cron", "windows")
_SYSTEM_UNITS = Path("/etc/systemd/system")
_PATIENCE_S = 60


def default_way() -> str:
    """Return how plans are woken on this machine."""
    if os.name == "nt":
        return "windows"
    return "systemd" if Path("/run/systemd/system").is_dir() else "cron"


def wake_command(plan: Plan, folder: Path | None) -> list[str]:
    """Return the command that runs when the plan may be due; ``folder`` of the plans, if it was named."""
    named = [] if folder is None else ["--plans", str(folder.absolute())]
    return [sys.executable, "-m", "mountfs", "plan", "run", plan.name, "--due", *named]


def files_of(plan: Plan, way: str, command: Sequence[str], now: datetime | None = None) -> Mapping[str, str]:
    """Return what is installed, by name of file: units, a piece of a crontab, or a task."""
    match way:
        case "systemd":
            name = unit_name(plan)
            service = systemd_service(plan, command, user=not is_administrator())
            return {f"{name}.service": service, f"{name}.timer": systemd_timer(plan)}
        case "cron":
            return {f"{unit_name(plan)}.cron": "\n".join(cron_lines(plan, command)) + "\n"}
        case _:
            moment = now or datetime.now(UTC).astimezone()
            return {f"{unit_name(plan)}.xml": windows_task(plan, command, moment)}


def install(plan: Plan, way: str, command: Sequence[str], into: Path | None = None) -> list[str]:
    """Install what wakes a plan; return what was done, one line each. Again: it replaces what was there.

    ``into`` only writes the files, into that folder, and enables nothing.

    Raises:
        DestinationError: it could not be done.
    """
    files = files_of(plan, way, command)
    if into is not None:
        return [f"wrote {_write(into / name, text, way)}" for name, text in files.items()]
    match way:
        case "systemd":
            done = [f"wrote {_write(_units() / name, text, way)}" for name, text in files.items()]
            _systemctl("daemon-reload")
            _systemctl("enable", "--now", f"{unit_name(plan)}.timer")
            return [*done, f"enabled {unit_name(plan)}.timer"]
        case "cron":
            lines = next(iter(files.values()))
            before = without_cron_lines(_crontab(), plan.name)
            gap = "\n" if before and not before.endswith("\n") else ""
            _run(["crontab", "-"], before + gap + lines)
            return [f"added {len(lines.splitlines()) - 2} lines to the crontab"]
        case _:
            return [_create_task(plan, next(iter(files.values())))]


def remove(plan_name: str, way: str, into: Path | None = None) -> list[str]:
    """Take away what `install` did, and nothing else; return what was done, nothing when nothing was there.

    Raises:
        DestinationError: it could not be done.
        UsageError: a file of that name is not one of ours.
    """
    name = f"mountfs-plan-{plan_name}"
    if into is not None or way == "systemd":
        folder = into or _units()
        ours = [folder / f"{name}{suffix}" for suffix in (".timer", ".service", ".cron", ".xml")]
        found = [path for path in ours if path.exists()]
        for path in found:
            _check_ours(path)
        if found and into is None:
            _systemctl("disable", "--now", f"{name}.timer")
        for path in found:
            _delete(path)
        if found and into is None:
            _systemctl("daemon-reload")
        return [f"removed {path}" for path in found]
    if way == "cron":
        before = _crontab()
        after = without_cron_lines(before, plan_name)
        if after == before:
            return []
        _run(["crontab", "-"], after)
        return ["removed the lines from the crontab"]
    _run(["schtasks", "/Delete", "/TN", f"{TASK_FOLDER}\\{plan_name}", "/F"])
    return [f"removed the task {TASK_FOLDER}\\{plan_name}"]


def _units() -> Path:
    if is_administrator():
        return _SYSTEM_UNITS
    return Path(platformdirs.user_config_dir("systemd", appauthor=False)) / "user"


def _systemctl(*words: str) -> None:
    _run(["systemctl", *(() if is_administrator() else ("--user",)), *words])


def _crontab() -> str:
    """Return the crontab of this user; empty when there is none."""
    try:
        done = subprocess.run(
            ["crontab", "-l"], capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise DestinationError(f"the crontab cannot be read: {error}") from error
    if done.returncode and "no crontab" not in done.stderr.lower():
        raise DestinationError(f"the crontab cannot be read: {done.stderr.strip()}")
    return "" if done.returncode else done.stdout


def _create_task(plan: Plan, xml: str) -> str:
    task = f"{TASK_FOLDER}\\{plan.name}"
    file = tempfile.NamedTemporaryFile(suffix=".xml", delete=False)  # noqa: SIM115 (schtasks must open it)
    try:
        with file:
            file.write(xml.encode("utf-16"))
        _run(["schtasks", "/Create", "/TN", task, "/XML", file.name, "/F"])
    finally:
        with contextlib.suppress(OSError):
            Path(file.name).unlink()
    return f"made the task {task}"


def _run(words: Sequence[str], given: str | None = None) -> None:
    try:
        done = subprocess.run(
            words, input=given, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        failure = DestinationError(f"'{words[0]}' cannot be run: {getattr(error, 'strerror', None) or error}")
        failure.add_note("--as chooses another way, --into FOLDER only writes the files")
        raise failure from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise DestinationError(f"'{' '.join(words)}' failed: {said[-1] if said else done.returncode}")


def _write(path: Path, text: str, way: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _check_ours(path)
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(text.encode("utf-16" if way == "windows" else "utf-8"))
        part.replace(path)
    except OSError as error:
        raise write_error(error, path) from error
    return path


def _check_ours(path: Path) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise write_error(error, path) from error
    if MARK.encode() not in content and MARK.encode("utf-16-le") not in content:
        raise UsageError(f"{path} was not {MARK}; it is left as it is")


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(error, path) from error
