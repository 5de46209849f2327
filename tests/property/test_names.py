"""Names: escaped reversibly for paths, harmless as text."""

import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st

from mountfs.names import from_path_name, safe_text, to_path_name

tricky = st.lists(
    st.sampled_from(
        [b"%", b"2", b"F", b"f", b"E", b"e", b"5", b"0", b"/", b"\0", b".", b"%00", b"%escaped%"]
    ),
    max_size=8,
).map(b"".join)
names = st.binary(max_size=40) | tricky


@given(names)
@example(b"")
@example(b"\0")
@example(b"%escaped%%2F")
@example(b"%2")
@example(b"..")
@example(b"%2E")
def test_a_path_name_can_be_undone(raw: bytes) -> None:
    assert from_path_name(to_path_name(raw)) == raw


@given(names)
def test_a_path_name_is_one_legal_component(raw: bytes) -> None:
    name = to_path_name(raw)
    assert name not in {b"", b".", b".."}
    assert b"/" not in name
    assert b"\0" not in name


@given(names)
@example(b"a%2Fb.html")
@example(b"%escaped%")
def test_a_legal_name_stays_as_it_is(raw: bytes) -> None:
    legal = raw not in {b"", b".", b".."} and not set(raw) & {0, 0x2F} and not raw.startswith(b"%escaped%")
    assert (to_path_name(raw) == raw) == legal


@given(st.text(alphabet=st.characters(), max_size=30) | st.binary(max_size=30))
@example("\x1b[2J")
@example(b"\x9b31m")
@example("\u202etxt.exe")
@example("\ud800")
@example("\x85\u2028\u2029\ufeff")
def test_safe_text_has_nothing_that_steers_a_terminal(name: str | bytes) -> None:
    text = safe_text(name)
    assert all(char == " " or unicodedata.category(char)[0] not in "CZ" for char in text)
    text.encode("utf-8")


@given(st.text(alphabet=st.characters(), max_size=30) | st.binary(max_size=30))
def test_safe_text_is_stable(name: str | bytes) -> None:
    assert safe_text(safe_text(name)) == safe_text(name)


def test_safe_text_shows_what_was_there() -> None:
    assert safe_text("größe 日本.txt") == "größe 日本.txt"
    assert safe_text("C:\\x") == "C:\\x"
    assert safe_text("a\\\n") == "a\\\\\\x0a"
    assert safe_text(b"\xff\x9b") == "\\xff\\x9b"
    assert safe_text("\x9b") == "\\u009b", "not to be taken for a stray byte"
    assert safe_text("\U000e0001") == "\\U000e0001"


@given(st.binary(max_size=12), st.binary(max_size=12))
def test_names_that_need_escapes_stay_distinct(left: bytes, right: bytes) -> None:
    shown = {safe_text(name + b"\n") for name in (left, right)}
    assert len(shown) == len({left, right})
