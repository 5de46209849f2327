"""Listings as values, from a small tree in memory."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from imageformat.errors import InterruptedByUserError, VolumeError
from mountfs.listing import branch, describe, list_directory, long_row, mode_text, time_text, tree_rows
from mountfs.tree import Node, NodeKind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Tree:
    """Folders by key; links by key."""

    def __init__(self, folders: dict[object, list[Node]], links: dict[object, bytes] | None = None) -> None:
        self._folders = folders
        self._links = links or {}

    def children(self, parent: Node) -> Iterator[Node]:
        if parent.name == b"broken":
            raise VolumeError("damaged \x1b[2J")
        if parent.name == b"stop":
            raise InterruptedByUserError("stop")
        yield from self._folders.get(parent.key, [])

    def readlink(self, node: Node) -> bytes:
        if node.key not in self._links:
            raise VolumeError("damaged")
        return self._links[node.key]

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a listing has no business with {name}")


def folder(name: str, key: object = None, **values: Any) -> Node:
    return Node(name.encode(), NodeKind.DIRECTORY, key or name, **values)


def file(name: bytes, **values: Any) -> Node:
    return Node(name, NodeKind.FILE, name, **values)


def test_a_folder_is_listed_in_order() -> None:
    tree = Tree({"d": [file(b"b"), file(b"\xff"), file(b"a"), file(b"B")]})
    assert [node.name for node in list_directory(tree, folder("d"))] == [b"B", b"a", b"b", b"\xff"]
    assert list_directory(tree, file(b"x")) == [file(b"x")]


@pytest.mark.parametrize("mode", [0o644, 0o755, 0o4755, 0o2644, 0o1777, 0o7000, 0])
def test_modes_are_written_as_ls_does(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"")
    path.chmod(mode)
    expected = subprocess.run(["ls", "-l", path], capture_output=True, text=True, check=True).stdout[:10]
    assert mode_text(file(b"f", mode=mode)) == expected


def test_long_rows() -> None:
    tree = Tree({}, {"l": b"../\x1b[31m"})
    row = long_row(
        tree, Node(b"evil\n", NodeKind.SYMLINK, "l", mode=0o777, uid=1, gid=2, links=3, mtime_ns=5)
    )
    assert (row.mode, row.links, row.owner, row.mtime_ns) == ("lrwxrwxrwx", 3, "1:2", 5)
    assert row.label == "evil\\x0a -> ../\\x1b[31m"
    assert long_row(tree, Node(b"gone", NodeKind.SYMLINK, "?")).label == "gone"
    device = long_row(tree, Node(b"null", NodeKind.CHARACTER_DEVICE, "n", device=(1, 3), size=9))
    assert (device.mode[0], device.size, device.device) == ("c", None, "1, 3")


def drawn(tree: Tree, top: Node, **options: Any) -> list[str]:
    return [
        branch(row, ascii_only=True) + row.node.name.decode() + row.note
        for row in tree_rows(tree, top, **options)
    ]


def test_a_tree_is_drawn_as_the_tree_program_does() -> None:
    tree = Tree({"top": [file(b"z"), folder("a")], "a": [file(b"2"), folder("b")], "b": [file(b"x")]})
    assert drawn(tree, folder("top")) == [
        "top",
        "|-- a",
        "|   |-- 2",
        "|   `-- b",
        "|       `-- x",
        "`-- z",
    ]
    assert drawn(tree, folder("top"), max_depth=1) == ["top", "|-- a", "`-- z"]
    assert drawn(tree, folder("top"), max_depth=0) == ["top"]
    assert [branch(row) for row in tree_rows(tree, folder("top"))][1:4] == ["├── ", "│   ├── ", "│   └── "]


def test_hostile_folders_end_with_a_note() -> None:
    cycle = folder("a", inode=1)
    tree = Tree(
        {"a": [folder("b", inode=2)], "b": [folder("again", key="a", inode=1), folder("broken"), file(b"f")]}
    )
    rows = list(tree_rows(tree, cycle))
    notes = {row.node.name: row.note for row in rows}
    assert "contains itself" in notes[b"again"]
    assert notes[b"broken"] == "damaged \\x1b[2J"
    assert len(rows) == 5


def test_an_endless_tree_ends() -> None:
    class Endless(Tree):
        def children(self, parent: Node) -> Iterator[Node]:
            yield folder("d", key=parent.key + 1)  # type: ignore[operator]

    assert len(list(tree_rows(Endless({}), folder("d", key=1)))) == 513


def test_an_interrupt_passes() -> None:
    with pytest.raises(InterruptedByUserError):
        list(tree_rows(Tree({}), folder("stop")))


def test_a_description_is_exact_and_fits_json() -> None:
    tree = Tree({}, {b"l": b"\xff"})
    plain = describe(
        tree, file("ü\x1b".encode(), size=2**70, mode=0o4644, mtime_ns=1_714_562_521_123_456_789)
    )
    assert plain["name"] == "ü\x1b"
    assert "name_b64" not in plain
    assert plain["mode"] == "4644"
    assert plain["mtime"] == "2024-05-01T11:22:01.123456789Z"
    assert plain["birth_ns"] is None
    odd = describe(tree, Node(b"a\xffb", NodeKind.SYMLINK, b"l"))
    assert (odd["name"], odd["name_b64"]) == ("a\ufffdb", "Yf9i")
    assert (odd["target"], odd["target_b64"]) == ("\ufffd", "/w==")
    assert describe(tree, Node(b"x", NodeKind.BLOCK_DEVICE, 1, device=(8, 1)))["device"] == [8, 1]
    json.dumps([plain, odd])


@pytest.mark.parametrize(
    ("when", "text"),
    [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (10**30, None),
        (-(10**30), None),
    ],
)
def test_times_no_calendar_has(when: int, text: str | None) -> None:
    assert time_text(when) == text
