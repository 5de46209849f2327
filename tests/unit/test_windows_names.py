"""Names as Windows can show them: legal, reversible, and never the same for two files of a folder."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountfs.windowsnames import NAME_UNITS, fold, from_windows_name, shown_names, to_windows_name

FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\ud800-\udfff]')
DEVICES = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|COM\d|LPT\d) *(\.|$)", re.IGNORECASE)

_SHORT = st.text("aAbBcCoOnNuUxXlLpPtT1.: %eEß\u017f\u0131\u0130µΣ\u03c3ς\u212a😀", max_size=5).map(
    str.encode
)
_RAW = st.one_of(_SHORT, st.binary(max_size=12), st.sampled_from([b"%escaped%x", b"%ESCAPED%%41", b"aux.c"]))


def is_legal(name: str) -> bool:
    return (
        0 < len(name.encode("utf-16-le", "surrogatepass")) // 2 <= NAME_UNITS
        and not FORBIDDEN.search(name)
        and name[-1] not in " ."
        and not DEVICES.match(name)
    )


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain", "plain"),
        ("naïve ☃".encode(), "naïve ☃"),
        (b"a:b", "%escaped%a%3Ab"),
        (b"100%", "100%"),
        (b"100%?", "%escaped%100%25%3F"),
        (b"dot.", "%escaped%dot%2E"),
        (b"...", "%escaped%..%2E"),
        (b"NUL", "%escaped%%4EUL"),
        (b"nul.txt", "%escaped%%6Eul.txt"),
        (b"null", "null"),
        (b"com1", "%escaped%%63om1"),
        (b"\xff", "%escaped%%FF"),
        (b"%escaped%", "%escaped%%25escaped%25"),
    ],
)
def test_only_what_windows_forbids_is_escaped(raw: bytes, shown: str) -> None:
    assert to_windows_name(raw) == shown
    assert from_windows_name(shown) == raw


@given(_RAW)
def test_every_name_is_legal_and_can_be_undone(raw: bytes) -> None:
    for distinct in (False, True):
        shown = to_windows_name(raw, distinct=distinct)
        assert is_legal(shown), shown
        assert from_windows_name(shown) == raw


@given(st.lists(_RAW, unique=True, max_size=12))
def test_no_two_of_a_folder_are_the_same_to_windows(raws: list[bytes]) -> None:
    shown = shown_names(raws)
    assert set(shown) == set(raws)
    assert len({fold(name) for name in shown.values()}) == len(raws), shown
    assert all(from_windows_name(name) == raw for raw, name in shown.items())


def test_the_first_of_a_clash_keeps_its_name() -> None:
    shown = shown_names([b"readme", b"README", b"Readme"])
    assert shown[b"README"] == "README"
    assert shown[b"readme"] == "%escaped%%!readme"
    assert shown[b"Readme"] == "%escaped%%!%52eadme"


@pytest.mark.parametrize("raw", [b"x" * 300, "😀".encode() * 130, b"A:" * 127])
def test_a_name_that_is_too_long_is_cut_and_stays_its_own(raw: bytes) -> None:
    shown = to_windows_name(raw)
    assert is_legal(shown)
    assert from_windows_name(shown) in {raw, None}
    assert to_windows_name(raw + b"y") != shown
