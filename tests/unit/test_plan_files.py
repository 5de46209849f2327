"""Files of plans: what is right is read whole, and every mistake is named with its place."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imageformat.errors import AccessDeniedError, MountfsError, NotFoundError, PlanError
from mountfs.plans.folders import find_plan, plan_files
from mountfs.plans.model import SECTIONS, TABLES, TOP, keys_of
from mountfs.plans.positions import key_positions
from mountfs.plans.reading import MAX_SIZE, check_plan_name, parse_plan, read_plan
from mountfs.plans.reference import reference
from mountfs.plans.templates import TEMPLATES
from mountfs.plans.writing import kept_by_copy, new_plan
from support.requirements import REPOSITORY

if TYPE_CHECKING:
    from mountfs.plans.model import Plan

FILE = Path("/plans/laptop.toml")
SMALL = 'sources = ["/dev/disk/by-id/ata-X"]\nrepository = "/backups"\ntemplate = "differential"\n'
WHOLE = """\
description = "all of it"  # comment
sources = ["/data/root.img", { path = "/dev/vg/home", set = "home", exclude = "*.iso" }]
repository = "/backups"
media = "usb"
copies = ["s3://bucket/x", { to = "/mnt/nas", media = "nas", offsite = false, retention = { weekly = 4 } }]
exclude = ["/swapfile"]
zone = "Europe/Berlin"

[[schedule]]
type = "full"
every = "month"
day = 31
at = ["02:00", "14:30"]

[[schedule]]
type = "inc"
every = "hour"
minute = 5

[timing]
jitter = "10min"
on_battery = false
network = true

[backup]
level = 7
before = ["systemctl", "stop", "my db"]

[retention]
daily = 7
within = "3d"

[hooks]
before = "mount /backups"

[limits]
rate = 50
nice = 19
io = "idle"
"""


def parsed(text: str) -> Plan:
    return parse_plan(text, FILE)


def test_a_whole_plan_is_read_as_it_is_written() -> None:
    plan = parsed(WHOLE)
    assert [(source.path, source.set, source.exclude) for source in plan.sources] == [
        ("/data/root.img", "root", ()),
        ("/dev/vg/home", "home", ("*.iso",)),
    ]
    assert [(copy.media, copy.offsite) for copy in plan.copies] == [("s3", True), ("nas", False)]
    assert [copy.retention and copy.retention.weekly for copy in plan.copies] == [None, 4]
    assert (plan.schedule[0].day, plan.schedule[0].at) == (31, (120, 870))
    assert (plan.timing.jitter, plan.timing.catch_up, plan.timing.retry) == (600, True, 3600)
    assert (plan.backup.before, plan.hooks.before) == (("systemctl", "stop", "my db"), ("mount /backups",))
    assert plan.needs_network
    assert not parsed(SMALL).needs_network


def test_a_template_gives_what_the_plan_does_not_say() -> None:
    plan = parsed(SMALL)
    assert plan.schedule == TEMPLATES["differential"].schedule
    assert plan.retention == TEMPLATES["differential"].retention
    assert parsed(SMALL + "[retention]\nlast = 3\n").retention.last == 3
    own = parsed(SMALL + '[[schedule]]\ntype = "inc"\nevery = "day"\n')
    assert [entry.type for entry in own.schedule] == ["inc"]


# what is wrong, where it is said to be, and what must be said of it
MISTAKES = [
    ('sorces = ["x"]\n', "1:1", "unknown key 'sorces'; do you mean 'sources'?"),
    (SMALL + "[retention]\nlast = 3\ndayly = 7\n", "6:1", "do you mean 'daily'?"),
    (SMALL + "[retension]\n", "4:2", "do you mean 'retention'?"),
    (SMALL + '[[schedule]]\ntype = "inc"\nevry = "day"\n', "6:1", "do you mean 'every'?"),
    (SMALL + '[[schedule]]\ntype = "inc"\nevery = "day"\n[[schedule]]\ntype = "inc"\n', "7:3", "lacks"),
    (SMALL + "copies = [{ media = 'x' }]\n", "4:11", "lacks 'to'"),
    (SMALL + "copies = ['/a', { to = '/b', ofsite = true }]\n", "4:30", "do you mean 'offsite'?"),
    (SMALL + "limits.nice = 40\n", "4:1", "a whole number from 0 to 19"),
    (SMALL + '"limits" . "nice" = true\n', "4:1", "a whole number"),
    (SMALL + "[timing]\njitter = '10 minutes'\n", "5:1", "'10 minutes' is no span of time"),
    (SMALL + "[timing]\n  catch_up = 'yes'\n", "5:3", "true or false"),
    (SMALL + "[retention]\nwithin = '5 minutes'\n", "5:1", "no span of time"),
    (SMALL + "[verify]\nbudget = 'all'\n", "5:1", "'all' is no budget"),
    (SMALL + '[notify]\nurls = ["a\\u0007"]\n', "5:1", "no text on one line"),
    (SMALL + "[notify]\non = 'never'\n", "5:1", 'one of "failure", "warning", "always"'),
    (SMALL + "zone = 'Europe/Berlinn'\n", "4:1", "no time zone known here"),
    (SMALL + "zone = '../../etc/passwd'\n", "4:1", "no time zone known here"),
    (SMALL.replace("differential", "diferential"), "3:1", "do you mean 'differential'?"),
    (SMALL + "sources = []\n", "4:12", "Cannot overwrite a value"),
    (SMALL.replace("/backups", "s3://b/c"), "2:1", "one of 'copies'"),
    ("repository = '/b'\n", "1:1", "'sources' is missing"),
    ("sources = '/dev/x'\n", "1:1", "'repository' is missing"),
    ("sources = '/dev/x'\nrepository = '/b'\n", "1:1", "no [[schedule]]"),
    (SMALL + "schedule = { type = 'inc', every = 'day' }\n", "4:1", "two brackets"),
    (SMALL + "timing = 3\n", "4:1", "must be a table"),
    (SMALL + '[[schedule]]\ntype = "clone"\nevery = "day"\n', "5:1", "not 'clone'"),
    (SMALL + '[[schedule]]\ntype = "inc"\nevery = "day"\nday = 3\n', "7:1", "'day' means nothing"),
    (SMALL + '[[schedule]]\ntype = "inc"\nevery = "hour"\nat = "02:00"\n', "7:1", "use 'minute'"),
    (SMALL + '[[schedule]]\ntype = "inc"\nevery = "day"\nat = "24:00"\n', "7:1", "'24:00' is no time of day"),
    (SMALL + '[[schedule]]\ntype = "inc"\nevery = "day"\nat = []\n', "7:1", "'at' names none"),
    (SMALL.replace('["/dev', '["/a/x.img", "/b/x.raw", "/dev'), "1:24", "two sources have the set 'x'"),
    (SMALL.replace("ata-X", "@"), "1:12", "cannot name a set"),
    (SMALL + "[clone]\nsource = '/a'\ntarget = '/b'\nserial = 's'\n", "1:1", "belongs to a plan that images"),
    ("[clone]\nsource = '/a'\ntarget = '/dev/b'\n", "1:2", "lacks 'serial'"),
    ("[clone]\nsource = '/a'\ntarget = 'serial=x'\n", "1:2", "lacks 'serial': that of serial=x"),
    (SMALL + "copies = [{ to = '/c', retention = { dayly = 7 } }]\n", "4:38", "do you mean 'daily'?"),
    (SMALL + "[[copies]]\nto = '/c'\nretention.daily = '7'\n", "6:1", "a whole number from 0 to"),
    (SMALL + "[[copies]]\nto = '/c'\nretention = 7\n", "6:1", "must be a table"),
    (SMALL + "[[copies]]\nto = '/c'\n[copies.retention]\npin = '1'\n", "6:2", "no rule of it keeps anything"),
    (SMALL + "[[copies]]\nto = 'sftp://h/c'\n[copies.retention]\nlast = 1\nfree = '1%'\n", "8:1", "is free"),
    (
        SMALL + "copies = [{ to = '/c', retention = { last = 1, merge = true } }]\n",
        "4:48",
        "copy all of them",
    ),
    (SMALL + "copies = ['/c', { to = '/c/' }]\n", "4:17", "is there already"),
    (SMALL + "copies = '/backups'\n", "4:1", "is there already"),
    ("x = [\n", "2:1", "Invalid value"),
    (SMALL + "description = " + "[" * 9000 + "]" * 9000, "", ""),
]


@pytest.mark.parametrize(("text", "place", "said"), MISTAKES, ids=range(len(MISTAKES)))
def test_every_mistake_is_named_with_its_place(text: str, place: str, said: str) -> None:
    with pytest.raises(PlanError) as caught:
        parsed(text)
    assert said in str(caught.value)
    if place and not re.search("Invalid value|Cannot overwrite", said):
        assert str(caught.value).startswith(f"{FILE}:{place}: "), str(caught.value)
    else:
        assert str(caught.value).startswith(f"{FILE}")


@pytest.mark.parametrize("section", SECTIONS)
def test_no_key_of_any_section_takes_what_is_not_its_form(section: str) -> None:
    for name in keys_of(SECTIONS[section]):
        for value in ("{ a = 1 }", "1979-05-27", "-1", "[[1]]", '""'):
            with pytest.raises(PlanError, match=r"laptop\.toml:\d+:\d+: "):
                parsed(SMALL + f"[{section}]\n{name} = {value}\n")


def test_names_files_and_folders_that_are_wrong(tmp_path: Path) -> None:
    for name in ("a b", "../x", "", "a" * 65, ".hidden"):
        with pytest.raises(PlanError, match="cannot name a plan"):
            check_plan_name(name)
    (tmp_path / "bytes.toml").write_bytes(b"# \n\xff")
    with pytest.raises(PlanError, match=r"bytes\.toml:2: this is no UTF-8"):
        read_plan(tmp_path / "bytes.toml")
    (tmp_path / "long.toml").write_text("#" * (MAX_SIZE + 1))
    with pytest.raises(PlanError, match="no plan is longer"):
        read_plan(tmp_path / "long.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(MountfsError):
        read_plan(tmp_path / "folder.toml")
    with pytest.raises(NotFoundError) as caught:
        find_plan(tmp_path, "lap")
    assert "there are: bytes" in caught.value.__notes__[0]
    assert plan_files(tmp_path / "nothing") == []
    assert not issubclass(AccessDeniedError, PlanError)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_new_plan_is_valid_also_with_all_that_it_has_in_comments(template: str) -> None:
    clone = ("/dev/a", "/dev/b", 'S"1') if template.startswith("clone") else None
    sources = ("/dev/disk/by-id/ata-X",)
    text = new_plan("laptop", template, sources=sources, repository='/a "b"', copies=("/c",), clone=clone)
    plan = parsed(text)
    assert plan.schedule == TEMPLATES[template].schedule
    assert plan.retention == TEMPLATES[template].retention
    assert [copy.retention for copy in plan.copies] == ([] if clone else [kept_by_copy(plan.retention)])
    assert plan.repository == ("" if clone else '/a "b"')
    whole = re.sub(r"^# (\[|\w+ = )", r"\1", text, flags=re.MULTILINE)
    assert whole != text
    assert parsed(whole).goals == plan.goals
    for section in SECTIONS:
        assert f"[{section}]" in text or section in {"clone", "backup", "retention", "verify"}


keys = st.text("abz_-09", min_size=1, max_size=4) | st.text('a. "\\\n=[#ü', min_size=1, max_size=4)
scalars = st.integers(-9, 9) | st.booleans() | st.text("a \"\n\\]}#,'", max_size=6)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
tables_of_values = st.dictionaries(keys, values, max_size=3)


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        if "'''" not in value and "\n" in value and not value.endswith("'"):
            return f"'''\n{value}'''"
        return quoted(value)
    if isinstance(value, list):
        return "[ # ]\n" + "".join(f"{toml(item)},\n" for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} = {toml(item)}" for key, item in value.items()) + "}"
    return str(value)


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def paths(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in [(*path, key), *paths(inner, (*path, key))]]


@given(top=tables_of_values, tables=st.lists(tables_of_values, max_size=4))
@settings(max_examples=60)
def test_every_key_of_any_file_has_its_place(top: dict[str, Any], tables: list[dict[str, Any]]) -> None:
    lines = [f"{quoted(key)} = {toml(value)}" for key, value in top.items()]
    for table in tables:
        lines.append('  [[ t . "u v" ]] # [x]')
        lines += [f"{quoted(key)} = {toml(value)}" for key, value in table.items()]
    text = "\n".join(lines) + "\n"
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError:  # the top has a key "t" already
        return
    found = key_positions(text)
    assert set(paths(content)) == set(found)
    for path, place in found.items():
        rest = "\n".join(text.split("\n")[place.line - 1 :])[place.column - 1 :]
        if isinstance(path[-1], str) and path[:1] != ("t",):
            assert rest.startswith(quoted(path[-1])), path


def test_the_reference_in_the_documentation_is_that_of_the_model() -> None:
    document = (REPOSITORY / "docs" / "plans.md").read_text("utf-8")
    told = document.split("<!-- reference: begin -->\n")[1].split("<!-- reference: end -->")[0]
    assert told.strip() == reference().strip(), "put in what mountfs.plans.reference.reference() returns"
    names = [name for section in SECTIONS.values() for name in keys_of(section)]
    for name in [*names, *SECTIONS, *TABLES, *TOP]:
        assert f"`{name}`" in told or f"[{name}]" in told, name


def test_the_examples_in_the_documentation_are_valid() -> None:
    document = (REPOSITORY / "docs" / "plans.md").read_text("utf-8")
    examples = re.findall(r"```toml\n(.*?)```", document, re.DOTALL)
    assert len(examples) >= 2
    for example in examples:
        parsed(example)
