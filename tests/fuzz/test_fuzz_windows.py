"""What a hostile volume can hand to Windows: access lists and links, proven before they are passed on."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from mountfs.memorytree import Item, MemoryTree, folder
from mountfs.ntsecurity import ADMINISTRATORS, EVERYONE, is_sound, readable_by
from mountfs.ntstatus import StatusError
from mountfs.reparse import link_tag, resolved_data, symlink_data
from mountfs.tree import NodeKind
from mountfs.windowsview import WindowsView

_GOOD = readable_by(EVERYONE)


def mutated(good: bytes) -> st.SearchStrategy[bytes]:
    """Some bytes of something good are others, and its end is cut."""
    change = st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255))

    def apply(changes: list[tuple[int, int]], length: int) -> bytes:
        raw = bytearray(good)
        for at, value in changes:
            raw[at] = value
        return bytes(raw[:length])

    return st.builds(apply, st.lists(change, max_size=4), st.integers(0, len(good)))


def _inside(raw: bytes, at: int, length: int) -> bool:
    return at >= 20 and at + length <= len(raw)


def test_no_single_byte_makes_an_access_list_reach_out_of_itself() -> None:
    sound = 0
    for at in range(len(_GOOD)):
        for value in range(256):
            raw = _GOOD[:at] + bytes([value]) + _GOOD[at + 1 :]
            if is_sound(raw):
                _check_inside(raw)
                sound += 1
    assert sound > len(_GOOD), "most bytes are of names and rights"


@given(st.one_of(mutated(_GOOD), st.binary(max_size=200)))
def test_a_sound_access_list_lies_inside_of_itself(raw: bytes) -> None:
    if is_sound(raw):
        _check_inside(raw)


def _check_inside(raw: bytes) -> None:
    control, owner, group, sacl, dacl = struct.unpack_from("<2xHIIII", raw)
    for sid in (owner, group):
        assert _inside(raw, sid, 8 + 4 * raw[sid + 1])
    for present, at in ((0x10, sacl), (0x4, dacl)):
        if not control & present or not at:
            continue
        size, count = struct.unpack_from("<HH", raw, at + 2)
        assert _inside(raw, at, size)
        entry = at + 8
        for _ in range(count):
            entry += struct.unpack_from("<H", raw, entry + 2)[0]
        assert entry <= at + size


def test_ours_are_sound() -> None:
    assert is_sound(readable_by(EVERYONE))
    assert is_sound(readable_by(ADMINISTRATORS))
    assert not is_sound(_GOOD[:-1])


_LINK = symlink_data("..\\a\\b", is_relative=True) or b""


@given(st.one_of(mutated(_LINK), st.binary(max_size=64)))
def test_a_link_that_is_passed_on_has_its_names_inside(raw: bytes) -> None:
    if not link_tag(raw):
        return
    length, first, first_length, second, second_length = struct.unpack_from("<H2xHHHH", raw, 4)
    fixed = 12 if link_tag(raw) == 0xA000000C else 8
    assert 8 + length == len(raw)
    assert max(first + first_length, second + second_length) <= length - fixed


def test_a_target_that_is_too_long_is_no_reparse_point() -> None:
    assert symlink_data("x" * 5000, is_relative=True) is None
    assert resolved_data("x" * 9000) is None
    assert link_tag(_LINK) == 0xA000000C


_NAMES = st.lists(st.sampled_from(["a", "b", "..", ".", "", "l", "m", "A:", "x:y"]), max_size=6)


@given(
    _NAMES,
    st.lists(st.sampled_from([b"a", b"..", b"l", b"m", b"", b"b"]), max_size=5).map(b"/".join),
    st.lists(st.sampled_from([b"a", b"..", b"l", b"m", b"/", b"b"]), max_size=5).map(b"/".join),
    st.booleans(),
)
def test_no_path_and_no_link_leads_anywhere_but_in(
    names: list[str], first: bytes, second: bytes, last_too: bool
) -> None:
    links = {b"l": Item(first, kind=NodeKind.SYMLINK), b"m": Item(second, kind=NodeKind.SYMLINK)}
    view = WindowsView(MemoryTree(folder({b"a": folder({b"b": Item(b"x"), **links}), **links})))
    path = "\\" + "\\".join(names)
    for ask in (view.find, view.link_on_the_way):
        try:
            ask(path)
        except StatusError:
            continue
    try:
        data = view.resolved(path, last_too=last_too)
    except StatusError:
        return
    assert link_tag(data)
    assert ".." not in data[20:].decode("utf-16-le").split("\\")
