"""Addresses of remote places, and the notes that keep a second writer out."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import msgspec
import pytest

from imageformat.errors import DestinationError, SetBusyError, UsageError
from imageformat.selection import split_image_path, split_selector
from imageformat.storage import leases
from imageformat.storage.leases import Note, leased
from imageformat.storage.places import is_remote, open_storage, parent_of, split_address


def nothing_exists(_path: str) -> bool:
    return False


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("s3://bucket/a/set@3", ("s3://bucket/a/set", "3", None)),
        ("s3://profile@bucket/a/set", ("s3://profile@bucket/a/set", None, None)),
        ("s3://profile@bucket/a/set@latest:/etc/motd", ("s3://profile@bucket/a/set", "latest", "/etc/motd")),
        ("sftp://me@host:2222/a/set@2:1-ext4/x:y", ("sftp://me@host:2222/a/set", "2", "1-ext4/x:y")),
        ("sftp://host/a/set@2026-11-20T12:00:etc", ("sftp://host/a/set", "2026-11-20T12:00", "etc")),
        ("sftp://host/a/one.mfi:1-ext4", ("sftp://host/a/one.mfi", None, "1-ext4")),
        ("sftp://[::1]:22/a", ("sftp://[::1]:22/a", None, None)),
    ],
)
def test_addresses_are_taken_apart(text: str, parts: tuple[str, str | None, str | None]) -> None:
    assert split_image_path(text, nothing_exists) == parts
    if parts[2] is None:
        assert split_selector(text, nothing_exists) == parts[:2]


def test_what_is_remote() -> None:
    assert [is_remote(text) for text in ("s3://b", "sftp://h/x", "/a", "file:///a", "a:b", "C:\\x")] == [
        True, True, False, False, False, False,
    ]  # fmt: skip
    assert split_address("sftp://me@h:1/a/b") == ("sftp://me@h:1", "/a/b")
    assert parent_of("s3://b/a/set/") == ("s3://b/a", "set")
    assert parent_of("s3://b/set") == ("s3://b", "set")
    assert parent_of("s3://b") == ("s3://b", "")


@pytest.mark.parametrize("address", ["ftp://host/x", "s3://", "s3:///x", "sftp:///x", "sftp://h:99999/x"])
def test_addresses_that_make_no_sense(address: str) -> None:
    with pytest.raises(UsageError):
        open_storage(address)


@dataclass
class Board:
    """Notes in memory with a clock of their own."""

    place: str = "board/set"
    now: float = 1000.0
    notes: dict[str, tuple[float, bytes]] = field(default_factory=dict)
    lists: bool = True

    def put(self, name: str, content: bytes) -> None:
        self.notes[name] = self.now, content

    def listed(self, prefix: str) -> list[Note]:
        found = [Note(name, written) for name, (written, _) in self.notes.items() if name.startswith(prefix)]
        return found if self.lists else []

    def read(self, name: str, most: int) -> bytes:
        return self.notes.get(name, (0, b""))[1][:most]

    def delete(self, name: str) -> None:
        self.notes.pop(name, None)


def owner(**changes: object) -> bytes:
    """A note of somebody on another machine, who cannot be asked whether he lives."""
    known = {"host": "far", "boot": "b", "space": "s", "pid": 7, "started": "1"}
    return msgspec.json.encode({**known, **changes})


def test_a_lease_is_left_and_taken_away() -> None:
    board = Board()
    with leased(board):
        assert len(board.notes) == 1
        with pytest.raises(SetBusyError), leased(board):
            pass
    assert not board.notes


@pytest.mark.parametrize("content", [owner(), b"", b"half a no", b"[1]"])
def test_a_living_rival_is_respected_until_its_note_expires(content: bytes) -> None:
    board = Board()
    board.put(".lease-rival", content)
    with pytest.raises(SetBusyError), leased(board):
        pass
    assert list(board.notes) == [".lease-rival"]
    board.now += leases.LIFETIME_S + 1
    with leased(board):
        assert ".lease-rival" not in board.notes


def test_a_dead_process_of_this_machine_holds_nothing() -> None:
    board = Board()
    me = msgspec.json.decode(msgspec.json.encode(leases._this_process()))
    board.put(".lease-dead", msgspec.json.encode({**me, "pid": 2**22 + 1}))
    board.put(".lease-again", msgspec.json.encode({**me, "started": "1"}))
    with leased(board):
        assert len(board.notes) == 1
    board.put(".lease-other-container", msgspec.json.encode({**me, "pid": 2**22 + 1, "space": "pid:[1]"}))
    with pytest.raises(SetBusyError), leased(board):
        pass


def test_a_place_that_does_not_list_what_it_stores_locks_nobody_out_and_is_refused() -> None:
    board = Board(lists=False)
    with pytest.raises(DestinationError, match="not listed"), leased(board):
        pass
    assert not board.notes


def test_two_that_come_at_once_never_both_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """As two processes: without what this process knows of itself."""
    board = Board()
    inside, most = [0], [0]

    class Forgetful(set[object]):
        def __contains__(self, _key: object) -> bool:
            return False

    monkeypatch.setattr(leases, "_held", Forgetful())

    def work() -> None:
        for _ in range(200):
            try:
                with leased(board):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    time.sleep(0)
                    inside[0] -= 1
            except SetBusyError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_a_lease_that_was_taken_over_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(leases, "_uptime", lambda: now[0])
    board = Board()
    with leased(board) as lease:
        lease.check()
        now[0] += leases.LIFETIME_S  # it slept, and nobody came
        lease.check()
        now[0] += leases.LIFETIME_S
        board.notes.clear()
        with pytest.raises(DestinationError, match="cut off"):
            lease.check()
