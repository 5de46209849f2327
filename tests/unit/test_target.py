"""Files as targets: whole or not there, whatever fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine.devices import ioctl
from engine.devices.guards import target_facts
from engine.devices.target import open_target, part_path
from imageformat import system
from imageformat.errors import (
    AccessDeniedError,
    DestinationError,
    DestinationFullError,
    DestinationReadOnlyError,
    TargetInUseError,
    UsageError,
)
from support.content import noise

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_file_appears_at_commit_whole_and_sparse(tmp_path: Path) -> None:
    target = open_target(str(tmp_path / "out.img"), 64 * MIB, sector_size=4096)
    assert (target.size, target.sector_size) == (64 * MIB, 4096)
    target.pwrite(MIB, noise(1, 5000))
    target.zero(2 * MIB, 60 * MIB)
    assert _names(tmp_path) == [".out.img.part"]
    target.evict()
    assert target.pread(MIB - 1, 5002) == b"\0" + noise(1, 5000) + b"\0"
    target.commit()
    target.abort()
    target.close()
    assert _names(tmp_path) == ["out.img"]
    written = tmp_path / "out.img"
    assert written.read_bytes() == bytes(MIB) + noise(1, 5000) + bytes(63 * MIB - 5000)
    assert written.stat().st_blocks * 512 < MIB
    assert written.stat().st_mode & 0o777 == 0o600


def test_an_existing_file_stays_until_commit_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "out.img"
    path.write_bytes(b"before")
    path.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to("out.img")
    target = open_target(str(link), 10)
    target.pwrite(0, b"afterwards")
    assert path.read_bytes() == b"before"
    target.commit()
    assert path.read_bytes() == b"afterwards"
    assert path.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()


@pytest.mark.parametrize("end", ["abort", "close"])
def test_without_commit_nothing_is_left(tmp_path: Path, end: str) -> None:
    path = tmp_path / "out.img"
    path.write_bytes(b"before")
    target = open_target(str(path), 100)
    target.pwrite(0, b"x" * 100)
    getattr(target, end)()
    assert _names(tmp_path) == ["out.img"]
    assert path.read_bytes() == b"before"


def test_what_a_crash_left_is_taken_over_without_its_bytes(tmp_path: Path) -> None:
    (tmp_path / ".out.img.part").write_bytes(b"old" * 1000)
    target = open_target(str(tmp_path / "out.img"), 50)
    target.commit()
    assert (tmp_path / "out.img").read_bytes() == bytes(50)


def test_a_second_restore_to_the_same_file_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    first = open_target(str(tmp_path / "out.img"), 5)
    with pytest.raises(TargetInUseError, match="another restore"):
        open_target(str(tmp_path / "out.img"), 5)
    first.pwrite(0, b"first")
    first.commit()
    assert (tmp_path / "out.img").read_bytes() == b"first"


def test_a_file_that_its_writer_renames_before_we_lock_it_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_target(str(tmp_path / "out.img"), 5)
    first.pwrite(0, b"first")
    opened = os.open

    def open_then_lose_the_race(path: Path, *rest: int) -> int:
        fd = opened(path, *rest)
        if str(path).endswith(".part"):
            monkeypatch.setattr(os, "open", opened)
            first.commit()
        return fd

    facts = target_facts(str(tmp_path / "out.img"))
    monkeypatch.setattr(os, "open", open_then_lose_the_race)
    with pytest.raises(TargetInUseError):
        open_target(str(tmp_path / "out.img"), 9, expected=facts)
    assert (tmp_path / "out.img").read_bytes() == b"first"


@pytest.mark.parametrize("plant", [Path.symlink_to, Path.hardlink_to])
def test_a_link_planted_under_the_temporary_name_is_refused(
    tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    plant(tmp_path / ".out.img.part", precious)
    with pytest.raises(DestinationError, match="remove it"):
        open_target(str(tmp_path / "out.img"), 5)
    assert precious.read_bytes() == b"precious"


def test_a_file_made_or_replaced_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "out.img"
    target = open_target(str(path), 5)
    path.write_bytes(b"someone else's")
    with pytest.raises(TargetInUseError, match="meanwhile"):
        target.commit()
    target.close()
    target = open_target(str(path), 5)
    path.unlink()
    with pytest.raises(TargetInUseError, match="meanwhile"):
        target.commit()
    target.close()
    assert _names(tmp_path) == []


def test_ranges_outside_are_refused(tmp_path: Path) -> None:
    target = open_target(str(tmp_path / "out.img"), 100)
    for call in (
        lambda: target.pwrite(99, b"ab"),
        lambda: target.pread(-1, 2),
        lambda: target.zero(0, 101),
        lambda: target.extents(101, 0),
    ):
        with pytest.raises(UsageError):
            call()
    target.close()


def test_zeroing_what_was_written_works_with_and_without_holes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for offered in (True, False):
        if not offered:
            monkeypatch.setattr(ioctl, "punch_hole", lambda *_: False)
        target = open_target(str(tmp_path / "out.img"), 3 * MIB)
        target.pwrite(0, b"\xff" * (2 * MIB))
        target.zero(777, 2 * MIB - 778)
        target.zero(2 * MIB + 5, 10)
        assert target.pread(0, 3 * MIB) == b"\xff" * 777 + bytes(2 * MIB - 778) + b"\xff" + bytes(MIB)
        target.close()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (errno.ENOSPC, DestinationFullError),
        (errno.EDQUOT, DestinationFullError),
        (errno.EROFS, DestinationReadOnlyError),
        (errno.EIO, DestinationError),
        (errno.EFBIG, DestinationError),
    ],
)
def test_write_errors_name_file_and_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[DestinationError]
) -> None:
    target = open_target(str(tmp_path / "out.img"), MIB)
    whole = os.pwrite

    def failing(fd: int, data: bytes, offset: int) -> int:
        if offset >= 4096:
            raise OSError(code, os.strerror(code))
        return whole(fd, data[: 4096 - offset], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing)
        with pytest.raises(error, match=r"out\.img at byte 4096") as caught:
            target.pwrite(0, bytes(8192))
        assert type(caught.value) is error
    target.close()


def test_a_failed_fsync_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.img"
    path.write_bytes(b"before")
    target = open_target(str(path), 5)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(DestinationError, match="make durable"):
            target.commit()
    target.close()
    assert path.read_bytes() == b"before"
    assert _names(tmp_path) == ["out.img"]


def test_data_is_durable_before_the_name_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the first, a crash shows an empty file; without the second, none."""
    events: list[str] = []
    sync, rename = os.fsync, system.rename_new

    def seen_sync(fd: int) -> None:
        events.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        sync(fd)

    def seen_rename(path: Path, to: Path) -> None:
        events.append("rename")
        rename(path, to)

    target = open_target(str(tmp_path / "out.img"), 5)
    monkeypatch.setattr(os, "fsync", seen_sync)
    monkeypatch.setattr(system, "rename_new", seen_rename)
    target.commit()
    assert events == [".out.img.part", "rename", tmp_path.name]


def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuse(path: Path, *rest: int) -> int:
        if str(path).endswith(".part"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *rest)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(AccessDeniedError, match="may not be written"):
        open_target(str(tmp_path / "out.img"), 5)


def test_the_temporary_name_is_hidden_and_beside_the_file() -> None:
    assert part_path("/a/b.img") == Path("/a/.b.img.part")
