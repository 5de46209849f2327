"""The local storage when the system refuses: nothing raw gets out, and what failed is not there."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from pathlib import Path
from stat import S_ISDIR
from typing import TYPE_CHECKING

import pytest

from imageformat.errors import (
    AccessDeniedError,
    DestinationError,
    DestinationFullError,
    MountfsError,
    NotFoundError,
    SetBusyError,
)
from imageformat.storage.local import LocalStorage

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    found = LocalStorage(tmp_path / "repo")
    with found.exclusive("set/"):
        put(found, "set/there", b"content")
    return found


@pytest.fixture
def folder(storage: LocalStorage) -> Path:
    return Path(storage.url) / "set"


def put(storage: LocalStorage, key: str, content: bytes) -> None:
    writer = storage.create(key)
    writer.append(content)
    writer.commit()


def names(storage: LocalStorage) -> list[str]:
    return [entry.key for entry in storage.objects("set/")]


def refuse(code: int, when: Callable[..., bool] = lambda *_: True) -> Callable[..., object]:
    """An operation of the system that fails with ``code`` for the arguments that ``when`` picks."""

    def operation(*arguments: object, **_named: object) -> object:
        if when(*arguments):
            raise OSError(code, os.strerror(code))
        return None

    return operation


def test_a_note_that_cannot_be_kept_is_no_failure(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.save_cache("set/", b"kept")
    for operation in ("exists", "write_bytes", "replace", "unlink", "stat"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, operation, refuse(errno.EIO))
            storage.save_cache("set/", b"lost")
    storage.save_cache("x" * 5000, b"a name that no system takes")
    assert list((Path(storage.url) / "set").glob(".*.part")) == []


def test_links_that_lead_nowhere_are_not_there(storage: LocalStorage, folder: Path) -> None:
    for place in (folder, folder.parent):
        (place / "ring-a").symlink_to("ring-b")
        (place / "ring-b").symlink_to("ring-a")
        (place / "self").symlink_to("self")
        (place / "dangling").symlink_to("nothing")
        (place / "through-a-file").symlink_to("set/there/below")
        (place / "too-long").symlink_to("x" * 300)
    (folder / "link").symlink_to("there")
    (folder.parent / "two").symlink_to("set")
    assert names(storage) == ["set/link", "set/there"]
    assert list(storage.folders()) == ["set", "two"]
    with pytest.raises(MountfsError):
        list(storage.objects("self/"))
    with pytest.raises(MountfsError):
        storage.open("set/self")


def test_an_entry_that_cannot_be_looked_at_is_told(
    storage: LocalStorage, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Denied:
        name = "secret"
        path = str(folder / "secret")

        def stat(self) -> os.stat_result:
            raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(storage, "_scan", lambda _folder: [Denied()])
    for listing in (storage.folders, lambda: storage.objects("set/")):
        with pytest.raises(AccessDeniedError, match="secret"):
            list(listing())


@pytest.mark.parametrize("operation", ["fsync", "pwrite", "posix_fadvise"])
def test_a_writer_that_failed_once_never_publishes(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """The kernel reports an fsync error once and forgets the pages: the second fsync would succeed."""
    writer = storage.create("set/new")
    writer.append(b"content")
    with monkeypatch.context() as patch:
        patch.setattr(os, operation, refuse(errno.EIO))
        with pytest.raises(DestinationError):
            writer.commit()
    for attempt in (writer.commit, lambda: writer.append(b"more")):
        with pytest.raises(DestinationError, match="start again"):
            attempt()
    writer.abort()
    assert names(storage) == ["set/there"]
    put(storage, "set/new", b"a new writer may")


def test_a_full_disk_spoils_the_writer_in_the_middle(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = storage.create("set/new")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse(errno.ENOSPC))
        with pytest.raises(DestinationFullError):
            writer.append(bytes(2 << 20))
    with pytest.raises(DestinationError, match="start again"):
        writer.append(b"x")
    writer.abort()


def of_a_folder(fd: int) -> bool:
    return S_ISDIR(os.fstat(fd).st_mode)


def test_what_was_published_but_may_not_last_is_taken_back(
    storage: LocalStorage, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = storage.create("set/new")
    writer.append(b"content")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse(errno.EIO, of_a_folder))
        with pytest.raises(DestinationError, match="cannot be written"):
            writer.commit()
    assert names(storage) == ["set/there"]
    writer.abort()
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "there"]


def test_an_interrupt_while_publishing_takes_it_back(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(fd: int) -> None:
        if of_a_folder(fd):
            raise KeyboardInterrupt

    writer = storage.create("set/new")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with contextlib.suppress(KeyboardInterrupt):
            writer.commit()
    writer.abort()
    assert names(storage) == ["set/there"]


def test_what_cannot_be_taken_back_is_told(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = storage.create("set/new")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse(errno.EIO, of_a_folder))
        patch.setattr(Path, "rename", refuse(errno.EROFS))
        with pytest.raises(DestinationError, match=r"set/new: may not outlast .* delete it"):
            writer.commit()
    writer.abort()
    assert names(storage) == ["set/new", "set/there"]


@pytest.fixture(params=["renameat2", "no renameat2"])
def rename(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also as on a system, or a file system, without a rename that never replaces."""
    if request.param == "no renameat2":
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())


@pytest.mark.usefixtures("rename")
def test_somebody_elses_object_is_never_replaced(storage: LocalStorage, folder: Path) -> None:
    writer, another = storage.create("set/new"), storage.create("set/link")
    (folder / "new").write_bytes(b"theirs")
    (folder / "link").symlink_to("nothing")
    for refused in (writer, another):
        with pytest.raises(DestinationError, match="exists already"):
            refused.commit()
        refused.abort()
    assert (folder / "new").read_bytes() == b"theirs"
    assert (folder / "link").is_symlink()
    put(storage, "set/free", b"content")
    assert names(storage) == ["set/free", "set/new", "set/there"]


def test_somebody_elses_object_is_never_taken_back(
    storage: LocalStorage, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = storage.create("set/new")
    (folder / "new").write_bytes(b"theirs")
    with monkeypatch.context() as patch:
        patch.setattr("imageformat.system.rename_new", refuse(errno.EIO))
        with pytest.raises(DestinationError, match="cannot be written"):
            writer.commit()
    writer.abort()
    assert (folder / "new").read_bytes() == b"theirs"


def test_aborting_never_fails(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = storage.create("set/new")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse(errno.EROFS))
        writer.abort()
    assert names(storage) == ["set/there"]
    with storage.exclusive("set/"):
        put(storage, "set/new", b"what was left is removed on the next entry")


def test_two_writers_of_one_name(storage: LocalStorage) -> None:
    writer = storage.create("set/new")
    with pytest.raises(DestinationError, match="another writer"):
        storage.create("set/new")
    writer.abort()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EINTR, errno.EOPNOTSUPP, errno.EIO])
def test_a_place_that_cannot_lock_is_told(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(code))
    with pytest.raises(DestinationError, match="cannot be locked") as caught, storage.exclusive("set/"):
        pass
    assert not isinstance(caught.value, SetBusyError)


def test_a_folder_with_the_name_of_a_part_does_not_stop_backups(storage: LocalStorage, folder: Path) -> None:
    (folder / ".odd.part").mkdir()
    (folder / ".dead.part").touch()
    with storage.exclusive("set/"):
        pass
    assert sorted(path.name for path in folder.glob(".*.part")) == [".odd.part"]


def test_deleting_what_is_not_there(storage: LocalStorage) -> None:
    with pytest.raises(NotFoundError):
        storage.delete("set/never")
    with pytest.raises(DestinationError):
        storage.delete("set")
