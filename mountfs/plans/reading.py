"""From the text of a plan to a `Plan`, or to an error with file, line and column."""

from __future__ import annotations

import difflib
import re
import tomllib
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from imageformat.errors import MountfsError, PlanError
from imageformat.storage.failures import read_error
from imageformat.storage.places import is_remote
from mountfs.plans.model import (
    REQUIRED,
    SECTIONS,
    TABLES,
    TOP,
    Clone,
    Copy,
    Entry,
    Plan,
    Retention,
    Source,
    keys_of,
)
from mountfs.plans.positions import Position, key_positions
from mountfs.plans.templates import TEMPLATES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import tzinfo
    from pathlib import Path

    from mountfs.plans.forms import Form
    from mountfs.plans.positions import Path as KeyPath

SUFFIX = ".toml"
MAX_SIZE = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
_SET = re.compile(r"[^/\\:@\x00-\x20.\x7f-][^/\\:@\x00-\x1f\x7f]{0,99}")
_ONLY_WITH = {"minute": ("hour",), "days": ("week",), "day": ("month", "year"), "month": ("year",)}


def check_plan_name(name: str) -> str:
    """Return a name that a plan can have.

    Raises:
        PlanError: it can not.
    """
    if not _NAME.fullmatch(name):
        raise PlanError(f"'{name}' cannot name a plan: use letters, digits, '-', '_', '.', up to 64")
    return name


def read_plan(path: Path) -> Plan:
    """Read and check a plan.

    Raises:
        PlanError: it makes no sense; the message has file, line and column.
        MountfsError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise read_error(error, path) from error
    if len(content) > MAX_SIZE:
        raise PlanError(f"{path}: no plan is longer than {MAX_SIZE >> 20} MiB")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise PlanError(f"{path}:{line}: this is no UTF-8") from error
    return parse_plan(text, path)


def read_plans(files: Iterable[Path]) -> tuple[list[Plan], dict[Path, MountfsError]]:
    """Read plans; of files that are none, or that cannot be read, say why."""
    plans, broken = [], {}
    for file in files:
        try:
            plans.append(read_plan(file))
        except MountfsError as error:
            broken[file] = error
    return plans, broken


def parse_plan(text: str, path: Path) -> Plan:
    """Return the plan that a text is; ``path`` gives it its name.

    Raises:
        PlanError: it makes no sense.
    """
    check_plan_name(path.stem)
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        where = f":{place[1]}:{place[2]}" if place else ""
        said = str(error)[: place.start()].strip() if place else str(error)
        raise PlanError(f"{path}{where}: {said}") from error
    except RecursionError as error:
        raise PlanError(f"{path}: it is nested too deep") from error
    return _Reader(text, path).plan(content)


class _Top(NamedTuple):
    values: dict[str, Any]
    sections: dict[str, Any]
    tables: dict[str, tuple[Any, ...]]


class _Reader:
    def __init__(self, text: str, path: Path) -> None:
        self._text = text
        self._path = path
        self._positions: Mapping[KeyPath, Position] | None = None

    def plan(self, content: Mapping[str, object]) -> Plan:
        top = self._top(content)
        values, sections, tables = top
        template = values["template"]
        if template and template not in TEMPLATES:
            self._wrong(("template",), f"no template is called '{template}'", TEMPLATES, template)
        known = TEMPLATES.get(template)
        schedule = tables["schedule"] or (known.schedule if known else ())
        retention = known.retention if known and "retention" not in content else sections["retention"]
        plan = Plan(
            name=self._path.stem,
            path=self._path,
            zone=self._zone(values["zone"]),
            zone_name=values["zone"],
            description=values["description"],
            template=template,
            sources=tables["sources"],
            repository=values["repository"],
            media=values["media"] or _medium(values["repository"]),
            source_media=values["source_media"],
            copies=tables["copies"],
            exclude=values["exclude"],
            schedule=tuple(schedule),
            timing=sections["timing"],
            backup=sections["backup"],
            retention=retention,
            verify=sections["verify"],
            hooks=sections["hooks"],
            limits=sections["limits"],
            notify=sections["notify"],
            goals=sections["status"],
            reports=sections["reports"],
            clone=sections["clone"] if "clone" in content else None,
        )
        self._check(plan, content)
        return plan

    def _top(self, content: Mapping[str, object]) -> _Top:
        self._only_known((), content, [*TOP, *TABLES, *SECTIONS])
        values = {
            name: self._value((name,), content[name], form) if name in content else default
            for name, (form, _, default, _) in TOP.items()
        }
        sections = {
            name: self._table((name,), content.get(name, {}), section)
            for name, section in SECTIONS.items()
            if name != "clone" or "clone" in content
        }
        tables = {name: self._tables(name, content.get(name, []), *of) for name, of in TABLES.items()}
        return _Top(values, sections, tables)

    def _tables(self, name: str, value: object, section: type, alone: str) -> tuple[Any, ...]:
        items = value if isinstance(value, list) else [value]
        if isinstance(value, dict) and name == "schedule":
            self._wrong((name,), "each line of the schedule begins with [[schedule]], in two brackets")
        return tuple(
            self._table((name, number), {alone: item} if alone and isinstance(item, str) else item, section)
            for number, item in enumerate(items)
        )

    def _table(self, path: KeyPath, value: object, section: type) -> Any:  # noqa: ANN401 (of that class)
        if not isinstance(value, dict):
            self._wrong(path, f"{_shown(path)} must be a table of keys")
        fields = keys_of(section)
        self._only_known(path, value, fields)
        found = {}
        for name, field in fields.items():
            inner = field.metadata["section"]
            if name in value and inner is not None:
                found[name] = self._table((*path, name), value[name], inner)
            elif name in value:
                found[name] = self._value((*path, name), value[name], field.metadata["form"])
            elif field.default is REQUIRED:
                self._wrong(path, f"{_shown(path)} lacks '{name}'")
        return self._completed(path, section(**found))

    def _completed(self, path: KeyPath, made: object) -> object:
        """Give what was left out the value that depends on others."""
        match made:
            case Source(path=source, set=name, exclude=exclude):
                chosen = name or _set_name(source)
                if not _SET.fullmatch(chosen) or chosen != chosen.strip():
                    self._wrong((*path, "set"), f"'{chosen}' cannot name a set; give it one: set = \"root\"")
                return Source(path=source, set=chosen, exclude=exclude)
            case Copy(to=to, media=media, offsite=offsite, retention=retention):
                if retention is not None:
                    self._check_copy_retention(path, to, retention)
                remote = to.startswith("s3://") if offsite is None else offsite
                return Copy(to=to, media=media or _medium(to), offsite=remote, retention=retention)
            case Clone(target=target, serial="") if made.names_disk:
                self._wrong(path, f"{_shown(path)} lacks 'serial': that of {target}")
        return made

    def _check_copy_retention(self, path: KeyPath, to: str, retention: Retention) -> None:
        """Refuse rules that could never do anything, or that nobody can follow at that place."""
        if retention != Retention() and not retention.has_rules:
            self._wrong((*path, "retention"), "no rule of it keeps anything; give one, such as daily = 7")
        if retention.merge:
            said = (
                "'merge' makes points anew, and each run would copy all of them again; merge in [retention]"
            )
            self._wrong((*path, "retention", "merge"), said)
        if retention.free is not None and is_remote(to):
            said = f"'free' means nothing at {to}: nobody tells what is free"
            self._wrong((*path, "retention", "free"), said)

    def _value(self, path: KeyPath, value: object, form: Form) -> object:
        try:
            return form.parse(value)
        except ValueError as error:
            self._wrong(path, f"'{path[-1]}' must be {form.wants}; {error}")

    def _only_known(self, path: KeyPath, value: Mapping[str, object], known: Iterable[str]) -> None:
        names = list(known)
        for name in value:
            if name not in names:
                place = f" in {_shown(path)}" if path else ""
                self._wrong((*path, name), f"unknown key '{name}'{place}", names, name)

    def _zone(self, name: str) -> tzinfo | None:
        if not name:
            return None
        try:
            return ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            self._wrong(("zone",), f"'{name}' is no time zone known here; use a name such as Europe/Berlin")

    def _check(self, plan: Plan, content: Mapping[str, object]) -> None:
        """Refuse what is right key by key and makes no sense together."""
        if plan.clone is None:
            for name, there in (("sources", plan.sources), ("repository", plan.repository)):
                if not there:
                    self._wrong((), f"'{name}' is missing; a plan that clones has a section [clone]")
            if is_remote(plan.repository):
                self._wrong(("repository",), "images are made in a folder; a remote place is one of 'copies'")
        else:
            self._check_clone(content)
        if not plan.schedule:
            self._wrong((), "there is no [[schedule]], and no template that has one")
        for number, entry in enumerate(plan.schedule):
            self._check_entry(("schedule", number), entry, content, cloning=plan.clone is not None)
        self._check_places(plan)

    def _check_places(self, plan: Plan) -> None:
        names = [source.set for source in plan.sources]
        for number, name in enumerate(names):
            if name in names[:number]:
                self._wrong(("sources", number), f"two sources have the set '{name}'; give one another name")

        places = [copy.to.rstrip("/") for copy in plan.copies]
        for number, place in enumerate(places):
            if place in (*places[:number], plan.repository.rstrip("/")):
                self._wrong(("copies", number), f"{place} is there already; each copy is another place")

    def _check_clone(self, content: Mapping[str, object]) -> None:
        for name in ("sources", "repository", "copies", "exclude", "backup", "retention", "verify"):
            if name in content:
                self._wrong((name,), f"'{name}' belongs to a plan that images, and this one clones")

    def _check_entry(
        self, path: KeyPath, entry: Entry, content: Mapping[str, object], *, cloning: bool
    ) -> None:
        if (entry.type == "clone") != cloning:
            what = "clone" if cloning else "full, diff or inc"
            self._wrong((*path, "type"), f"this plan makes '{what}', not '{entry.type}'")
        given = content.get("schedule", [])
        keys = given[int(path[1])] if isinstance(given, list) and given else {}
        for name, periods in _ONLY_WITH.items():
            if name in keys and entry.every not in periods:
                self._wrong((*path, name), f"'{name}' means nothing with every = \"{entry.every}\"")
        if entry.every == "hour" and "at" in keys:
            self._wrong((*path, "at"), "'at' means nothing with every = \"hour\"; use 'minute'")
        for name in ("at", "days"):
            if not getattr(entry, name):
                self._wrong((*path, name), f"'{name}' names none")

    def _wrong(self, path: KeyPath, what: str, known: Iterable[str] = (), name: str = "") -> NoReturn:
        """Say what is wrong at a key, and which key may be meant; where it is not there, at what holds it."""
        if self._positions is None:
            self._positions = key_positions(self._text)
        place = next(
            (self._positions[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self._positions),
            Position(1, 1),
        )
        near = difflib.get_close_matches(name, list(known), 1, 0.6) if name else []
        hint = f"; do you mean '{near[0]}'?" if near else ""
        error = PlanError(f"{self._path}:{place.line}:{place.column}: {what}{hint}")
        if known and not near:
            error.add_note(f"known here: {', '.join(known)}")
        raise error


def _shown(path: KeyPath) -> str:
    number = f" {int(path[1]) + 1}" if len(path) > 1 else ""
    inner = "".join(f", '{name}'" for name in path[2:])
    return f"[{path[0]}]{number}{inner}"


def _set_name(source: str) -> str:
    """Return the last part of a path, without the suffix of an image and what no name can have."""
    last = source.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    stem = re.sub(r"\.(img|raw|dd|bin|disk)$", "", last, flags=re.IGNORECASE)
    return re.sub(r"[^\w.+-]+", "-", stem).strip("-.")


def _medium(place: str) -> str:
    return place.partition("://")[0] if "://" in place else "disk"
