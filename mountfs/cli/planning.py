"""What the actions of ``mountfs plan`` do; each takes all that was given on the command line."""

from __future__ import annotations

import shlex
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imageformat.errors import DestinationError, UsageError
from imageformat.storage.failures import write_error
from mountfs.cli.planrun import run_plan, show_steps
from mountfs.cli.render import Column
from mountfs.cli.standing import show_status, shown_time
from mountfs.plans.folders import find_plan, plan_files, plan_path, plans_folder, state_folder
from mountfs.plans.history import History
from mountfs.plans.installed import WAYS, default_way, files_of, install, remove, wake_command
from mountfs.plans.model import Clone
from mountfs.plans.reading import check_plan_name, parse_plan, read_plan, read_plans
from mountfs.plans.steps import steps_of
from mountfs.plans.templates import TEMPLATES
from mountfs.plans.times import as_text, due, next_runs, strength
from mountfs.plans.writing import new_plan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from imageformat.errors import MountfsError
    from mountfs.cli.render import Renderer
    from mountfs.plans.model import Plan
    from mountfs.plans.steps import Step
    from mountfs.plans.times import Due


_WIDTH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The command line."""

    out: Renderer
    name: str | None
    named: Path | None
    """Folder of the plans, when it was named."""
    template: str | None
    sources: Sequence[str]
    repository: str | None
    copies: Sequence[str]
    target: str | None
    serial: str | None
    type: str | None
    if_due: bool
    jitter: bool
    dry_run: bool
    count: int
    way: str | None
    into: Path | None

    @property
    def folder(self) -> Path:
        """Where the plans are."""
        return plans_folder(self.named)

    def plan_name(self) -> str:
        """Return the name that must have been given."""
        if self.name is None:
            raise UsageError("name the plan")
        return self.name

    def plan(self) -> Plan:
        """Return the one plan that must have been named."""
        return read_plan(find_plan(self.folder, self.plan_name()))

    def plans(self) -> tuple[list[Plan], dict[Path, MountfsError]]:
        """Return the plan that was named, or all, and which files are not valid."""
        name = self.name
        return read_plans(plan_files(self.folder) if name is None else [find_plan(self.folder, name)])

    def history(self, name: str) -> History:
        """Return where the runs of a plan are remembered."""
        return History(state_folder(self.named) / name)

    def chosen_way(self) -> str:
        """Return what is to wake plans."""
        if self.way is not None and self.way not in WAYS:
            raise UsageError(f"--as {self.way}: use {', '.join(WAYS)}")
        return self.way or default_way()


def new(given: Given) -> int:
    """Write a new plan; ask for what was not given."""
    name, out = given.plan_name(), given.out
    file = plan_path(given.folder, name)
    default = "clone-nightly" if given.target or given.serial else "grandfather-father-son"
    template = given.template or _answer(out, f"template ({', '.join(TEMPLATES)})", default)
    if template not in TEMPLATES:
        raise UsageError(f"--template {template}: use {', '.join(TEMPLATES)}")
    sources = given.sources or [_answer(out, "disk or file to image (--source)")]
    if any(entry.type == "clone" for entry in TEMPLATES[template].schedule):
        target = given.target or _answer(out, "disk that is overwritten (--target)")
        serial = given.serial or ""
        if not serial and Clone(source=sources[0], target=target).names_disk:
            serial = _answer(out, "its serial number (--target-serial)")
        text = new_plan(name, template, clone=(sources[0], target, serial))
    else:
        place = given.repository or _answer(out, "folder for the images (--repository)")
        text = new_plan(name, template, sources=sources, repository=place, copies=given.copies)
    parse_plan(text, file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError as error:
        raise DestinationError(f"{file} exists; change it, or choose another name") from error
    except OSError as error:
        raise write_error(error, file) from error
    out.result({"plan": name, "file": str(file), "template": template})
    out.line(str(file))
    out.note(f"look through it, then: mountfs plan check {name}; mountfs plan install {name}")
    return 0


def _answer(out: Renderer, question: str, default: str = "") -> str:
    answer = out.ask(f"{question}:", default)
    if not answer:
        raise UsageError(f"missing: {question}")
    return answer


def listing(given: Given) -> int:
    """List the plans, also those that are not valid."""
    plans, broken = given.plans()
    rows, told = [], []
    for file, error in broken.items():
        given.out.warning(str(error))
        told.append({"plan": file.stem, "file": str(file), "problem": str(error)})
        rows.append((file.stem, "not valid", "", ""))
    for plan in plans:
        records = given.history(plan.name).records()
        last = records[-1].outcome if records else "never"
        what = ", ".join(_sources(plan))
        where = plan.clone.target if plan.clone else plan.repository
        rows.append((plan.name, last, what, where))
        told.append({"plan": plan.name, "file": str(plan.path), "last": last, "what": what, "where": where})
    told.sort(key=lambda entry: entry["plan"])
    given.out.result({"folder": str(given.folder), "plans": told})
    if rows:
        given.out.table(
            "", (Column("plan"), Column("last run"), Column("what"), Column("where")), sorted(rows)
        )
    else:
        given.out.line(f"no plans in {given.folder}")
    return 0


def check(given: Given) -> int:
    """Show what plans would run, and when; warn about what is not there now."""
    plans, broken = given.plans()
    for plan in plans:
        _check(given, plan)
    return _refused(given, broken)


def _refused(given: Given, broken: Mapping[Path, MountfsError]) -> int:
    """Name the files that are no valid plans, and return the exit code that this gives."""
    for error in broken.values():
        given.out.error(error)
    return next((error.exit_code for error in broken.values()), 0)


def _check(given: Given, plan: Plan) -> None:
    out, doubts, coming = given.out, _doubts(plan), _coming(given, plan, 1)
    runs = {type_: steps_of(plan, type_) for type_ in types_of(plan)}
    for doubt in doubts:
        out.warning(f"{plan.name}: {doubt}")
    out.result(
        {
            "plan": plan.name,
            "file": str(plan.path),
            "runs": {
                type_: [
                    {"name": step.name, "command": step.typed, "needs": list(step.needs)} for step in steps
                ]
                for type_, steps in runs.items()
            },
            "next": [_due_result(plan, entry) for entry in coming],
            "doubts": doubts,
        }
    )
    weakest = types_of(plan)[0]
    for type_, steps in runs.items():
        known = runs[weakest] if type_ != weakest else ()
        out.line(f"{plan.name}, {type_}:" if not known else f"{plan.name}, {type_}: as {weakest}, but")
        for step in (step for step in steps if step not in known):
            for line in wrapped(step):
                out.line(f"    {line}")
    for entry in coming:
        out.line(f"{plan.name}: next run {shown_time(entry.since)}, {entry.type}")


def wrapped(step: Step) -> list[str]:
    """Return the line of a step in lines that a screen can hold, and that a shell still takes as one."""
    if step.shell:
        return step.typed.splitlines()
    parts: list[str] = []
    for word in (*step.prefix, *step.words):
        if word.startswith("--") or not parts:
            parts.append(shlex.quote(word))
        else:
            parts[-1] += f" {shlex.quote(word)}"  # an option and its value stay together
    lines = parts[:1]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + 3 > _WIDTH:
            lines[-1] += " \\"
            lines.append(f"    {part}")
        else:
            lines[-1] += f" {part}"
    return lines


def types_of(plan: Plan) -> list[str]:
    """Return the kinds of runs that a plan has, the weakest first."""
    return sorted({entry.type for entry in plan.schedule}, key=strength)


def _sources(plan: Plan) -> list[str]:
    return [plan.clone.source] if plan.clone else [source.path for source in plan.sources]


def _doubts(plan: Plan) -> list[str]:
    found = []
    for source in _sources(plan):
        if source.startswith(("/dev/sd", "/dev/nvme")):
            found.append(f"{source} can be another disk tomorrow; name it by /dev/disk/by-id/...")
        if not Path(source).exists():
            found.append(f"{source} is not there now")
    if plan.clone is None and not Path(plan.repository).is_dir():
        found.append(f"{plan.repository} is not there now; the first backup makes it")
    if plan.clone is None and not plan.retention.has_rules:
        found.append("no rule of [retention] is given: nothing is ever deleted")
    if plan.retention.merge and plan.copies:
        found.append("merging makes a chain anew: a run after it sends the whole chain to each copy again")
    endless = [copy.to for copy in plan.copies if copy.retention is None or not copy.retention.has_rules]
    return found + [
        f"{place} has no retention of its own: nothing is ever deleted there" for place in endless
    ]


def _coming(given: Given, plan: Plan, count: int) -> list[Due]:
    now, timing = int(time.time()), plan.timing
    at_once = due(
        plan.schedule,
        [record.fact for record in given.history(plan.name).records()],
        now,
        plan.zone,
        catch_up=timing.catch_up,
        retry=timing.retry,
        jitter=timing.jitter,
    )
    return next_runs(plan.schedule, now, plan.zone, count, at_once)


def _due_result(plan: Plan, entry: Due) -> dict[str, object]:
    return {"plan": plan.name, "at": as_text(entry.since, plan.zone), "time": entry.since, "run": entry.type}


def coming(given: Given) -> int:
    """Show the next runs of all plans."""
    plans, broken = given.plans()
    found = [(entry, plan) for plan in plans for entry in _coming(given, plan, given.count)]
    first = sorted(found, key=lambda pair: (pair[0].since, pair[1].name))[: given.count]
    given.out.result({"runs": [_due_result(plan, entry) for entry, plan in first]})
    if first:
        rows = [(shown_time(entry.since), plan.name, entry.type) for entry, plan in first]
        given.out.table("", (Column("time"), Column("plan"), Column("run")), rows)
    else:
        given.out.line(f"no plans in {given.folder}")
    return _refused(given, broken)


def run(given: Given) -> int:
    """Run a plan, or show what it would run."""
    plan = given.plan()
    if given.dry_run:
        show_steps(given.out, plan, given.type or types_of(plan)[0])
        return 0
    with ExitStack() as stack:
        return run_plan(
            given.out,
            stack,
            plan,
            given.history(plan.name),
            type_=given.type,
            if_due=given.if_due,
            jitter=given.jitter,
        )


def put_in(given: Given) -> int:
    """Install what wakes a plan, or show it."""
    plan, way, out = given.plan(), given.chosen_way(), given.out
    words = wake_command(plan, given.named)
    if given.dry_run:
        files = files_of(plan, way, words)
        out.result({"plan": plan.name, "as": way, "files": dict(files), "done": []})
        for name, text in files.items():
            for line in (f"# {name}", *text.splitlines()):
                out.line(line)
        return 0
    done = install(plan, way, words, given.into)
    out.result({"plan": plan.name, "as": way, "done": done})
    for line in done:
        out.line(line)
    return 0


def take_out(given: Given) -> int:
    """Remove what wakes a plan; the plan itself and its history stay."""
    name, way, out = check_plan_name(given.plan_name()), given.chosen_way(), given.out
    done = [] if given.dry_run else remove(name, way, given.into)
    out.result({"plan": name, "as": way, "done": done})
    if given.dry_run:
        out.line(f"would remove what wakes plan {name} by {way}")
    for line in done or ([] if given.dry_run else [f"{name}: nothing was installed"]):
        out.line(line)
    return 0


def status(given: Given) -> int:
    """Show how plans stand."""
    plans, broken = given.plans()
    return show_status(given.out, [(plan, given.history(plan.name)) for plan in plans], broken)
