"""The documents tell the truth: exit codes, commands, options, examples, modules."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

from imageformat.errors import MountfsError, error_classes
from mountfs.cli.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CLI = (ROOT / "docs" / "cli.md").read_text("utf-8")


def options_of(command: str) -> set[str]:
    run = importlib.import_module(f"mountfs.cli.commands.{command}").run
    found = {"--help", "-h"}
    for parameter in inspect.signature(run).parameters.values():
        for info in getattr(parameter.annotation, "__metadata__", ()):
            names = (getattr(info, "default", ""), *(getattr(info, "param_decls", ()) or ()))
            words = [word for name in names if isinstance(name, str) for word in name.split("/")]
            found.update(word for word in words if word.startswith("-"))
    return found


def test_every_exit_code_is_documented() -> None:
    table = dict(re.findall(r"^\| (\d+) \| (.*?) \|", CLI, re.MULTILINE))
    for kind in error_classes():
        assert f"`{kind.__name__}`" in table[str(kind.exit_code)], kind


def test_classes_with_a_case_of_their_own_have_a_code_of_their_own() -> None:
    leaves = [kind for kind in error_classes() if not kind.__subclasses__()]
    codes = [kind.exit_code for kind in leaves]
    assert len(set(codes)) == len(codes)
    assert not {0, 3, 99, 141} & {kind.exit_code for kind in error_classes()}


def test_the_tree_in_the_module_is_the_tree() -> None:
    import imageformat.errors as module  # noqa: PLC0415

    drawn = dict(re.findall(r"^ +(\w+Error) +(\d+)", module.__doc__ or "", re.MULTILINE))
    for kind in error_classes():
        assert kind.__name__ in (module.__doc__ or "")
        if kind.__name__ in drawn:
            assert int(drawn[kind.__name__]) == kind.exit_code
    assert issubclass(getattr(module, next(iter(drawn))), MountfsError)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_documented(command: str) -> None:
    section = CLI.split(f"### mountfs {command}\n")[1].split("### mountfs ")[0]
    for option in options_of(command):
        assert re.search(rf"(?<!\S){re.escape(option)}\b", section), option


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_examples_name_commands_and_options_that_exist(document: Path) -> None:
    text = document.read_text("utf-8")
    for line in re.findall(r"^(?: {4})?(?:\$ |sudo )?mountfs ([^\n]*)", text, re.MULTILINE):
        words = re.split(r"#|\||  ", line)[0].split()
        assert words[0] in COMMANDS or words[0].startswith("-"), line
        if words[0] in COMMANDS:
            given = {word for word in words[1:] if word.startswith("-")}
            assert given <= options_of(words[0]), line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", document.read_text("utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_modules_of_the_architecture_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    for package in ("imageformat", "engine", "mountfs"):
        row = re.search(rf"^\| `{package}` \| (.*) \|$", text, re.MULTILINE)
        assert row is not None
        for words in re.findall(r"`([\w/]+)`", row[1]):
            path = ROOT / package / words
            if words[0].islower():
                assert path.is_dir() or path.with_suffix(".py").is_file(), words
