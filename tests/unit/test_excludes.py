"""The patterns of ``--exclude``, against a table, and against a second matcher written for this test."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageformat.errors import UsageError
from mountfs.excludes import Matcher, parse_pattern

YES = [
    ("*.iso", "2-ext4/a/b/disk.iso"),
    ("*.iso", "2-ext4/disk.iso"),
    ("*.iso", "2-ext4/folder.iso/inside"),
    ("Temp/**", "3-ntfs-Windows/Users/x/Temp/one"),
    ("Temp/**", "3-ntfs-Windows/Temp/a/b/c"),
    ("/3-ntfs-Windows/Users/*/AppData/Local/Temp/**", "3-ntfs-Windows/Users/me/AppData/Local/Temp/a/b"),
    ("/*/var/cache", "0-ext4/var/cache/apt/pkg"),
    ("/**/cache/*.bin", "0-ext4/a/b/cache/x.bin"),
    ("/**/cache/*.bin", "0-ext4/cache/x.bin"),
    ("a/**/b", "0-x/a/b"),
    ("a/**/b", "0-x/a/1/2/b"),
    ("a?c", "0-x/abc"),
    ("[a-c]x", "0-x/bx"),
    ("[!a-c]x", "0-x/dx"),
    ("[]a]x", "0-x/]x"),
    ("[.]x", "0-x/.x"),
    (r"\*", "0-x/*"),
    (r"a\[b", "0-x/a[b"),
    ("folder/", "0-x/folder/file"),
    ("/0-x", "0-x/any/thing"),
    ("näme", "0-x/näme"),
]
NO = [
    ("*.iso", "2-ext4/a/disk.iso2"),
    ("Temp/**", "3-ntfs/Temp"),
    ("Temp/**", "3-ntfs/MyTemp/one"),
    ("/Users/*", "3-ntfs/Users/me"),
    ("/*/var/cache", "0-ext4/srv/var/cache"),
    ("/*/*.iso", "0-x/a/b.iso"),
    ("a*c", "0-x/ab/c"),
    ("folder/", "0-x/a/folder"),
    ("[z-a]", "0-x/m"),
    ("[!a]", "0-x/a"),
    (r"\*", "0-x/b"),
    ("a.c", "0-x/abc"),
]


def matches(pattern: str, path: str, *, ignore_case: bool = False) -> bool:
    """Tell whether a file is left out, or one of the folders it lies in."""
    matcher = Matcher((parse_pattern(pattern),), ignore_case=ignore_case)
    positions, names = matcher.start(), path.encode("utf-8", "surrogateescape").split(b"/")
    for at, name in enumerate(names):
        positions = matcher.step(positions, name)
        if matcher.match(positions, is_folder=at + 1 < len(names)):
            return True
    return False


@pytest.mark.parametrize(("pattern", "path"), YES)
def test_what_a_pattern_names(pattern: str, path: str) -> None:
    assert matches(pattern, path)


@pytest.mark.parametrize(("pattern", "path"), NO)
def test_what_a_pattern_does_not_name(pattern: str, path: str) -> None:
    assert not matches(pattern, path)


def test_case_counts_only_where_the_file_system_says_so() -> None:
    assert not matches("*.ISO", "0-ext4/a.iso")
    assert matches("*.ISO", "0-ntfs/a.iso", ignore_case=True)


@pytest.mark.parametrize("pattern", ["", "/", "//", "a/../b", "./a", "a\0b", "[a", "x" * 5000])
def test_what_can_never_match_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError):
        parse_pattern(pattern)


names = st.text("ab.", min_size=1, max_size=3).filter(lambda name: name not in {".", ".."})
parts = st.one_of(names, st.sampled_from(["*", "**", "a*", "*b", "?", "?a", "[ab]", "[!a]"]))


@given(st.lists(parts, min_size=1, max_size=4), st.booleans(), st.lists(names, min_size=1, max_size=5))
def test_a_pattern_is_one_regular_expression(pattern: list[str], anchored: bool, path: list[str]) -> None:
    """The second matcher: the whole pattern as one expression over the whole path."""
    if pattern[-1] == "**":
        pattern = [*pattern, "*"]
    pieces = [] if anchored else ["(?:[^/]+/)*"]
    for at, part in enumerate(pattern):
        last = at + 1 == len(pattern)
        single = part.replace(".", r"\.").replace("?", "[^/]").replace("*", "[^/]*").replace("[!", "[^")
        pieces.append("(?:[^/]+/)*" if part == "**" else single + ("" if last else "/"))
    wanted = re.fullmatch("".join(pieces) + "(?:/.*)?", "/".join(path)) is not None
    text = "/" * anchored + "/".join(pattern)
    assert matches(text, "/".join(path)) == wanted


@given(st.text(min_size=1, max_size=12), st.text(min_size=1, max_size=8))
def test_any_text_is_a_pattern_or_refused(pattern: str, name: str) -> None:
    with contextlib.suppress(UsageError):
        matches(pattern, name.encode("utf-8", "replace").decode())
