"""Files as sources, and the errors of everything that is none."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from engine.devices.source import open_source
from imageformat.errors import AccessDeniedError, NotFoundError, SourceReadError, UsageError
from imageformat.extent import Extent, ExtentKind
from support.content import noise

if TYPE_CHECKING:
    from pathlib import Path

UNIT = 64 * 1024


def _sparse(path: Path) -> bytes:
    """Data, hole, data, hole."""
    model = bytearray(8 * UNIT)
    with path.open("wb") as file:
        file.truncate(len(model))
        for offset in (0, 3 * UNIT):
            model[offset : offset + UNIT] = noise(offset, UNIT)
            file.seek(offset)
            file.write(model[offset : offset + UNIT])
    return bytes(model)


def test_a_file_reads_as_it_is_and_its_holes_are_zero(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    model = _sparse(path)
    source = open_source(str(path), sector_size=4096)
    assert (source.size, source.sector_size, source.identity.kind) == (len(model), 4096, "file")
    assert source.pread(0, len(model)) == model
    assert source.pread(3 * UNIT - 7, 100) == model[3 * UNIT - 7 : 3 * UNIT + 93]
    assert source.pread(len(model), 0) == b""
    data, zero = ExtentKind.DATA, ExtentKind.ZERO
    assert list(source.extents(100, 7 * UNIT)) == [
        Extent(100, UNIT - 100, data),
        Extent(UNIT, 2 * UNIT, zero),
        Extent(3 * UNIT, UNIT, data),
        Extent(4 * UNIT, 3 * UNIT + 100, zero),
    ]
    assert list(source.extents(5, 0)) == []
    source.close()
    source.close()


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, -1), (0, 8 * UNIT + 1), (8 * UNIT, 1)])
def test_ranges_outside_are_refused(tmp_path: Path, offset: int, size: int) -> None:
    _sparse(tmp_path / "disk.img")
    source = open_source(str(tmp_path / "disk.img"))
    with pytest.raises(UsageError):
        source.pread(offset, size)
    with pytest.raises(UsageError):
        source.extents(offset, size)
    source.close()


def test_a_file_that_shrinks_is_an_error_at_its_new_end_never_zeros(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(noise(1, 8 * UNIT))
    source = open_source(str(path))
    os.truncate(path, 3 * UNIT + 10)
    assert source.pread(0, 3 * UNIT) == noise(1, 8 * UNIT)[: 3 * UNIT]
    for offset, size in ((0, 8 * UNIT), (3 * UNIT, UNIT), (3 * UNIT + 10, 1)):
        with pytest.raises(SourceReadError, match=rf"disk\.img ends at byte {3 * UNIT + 10} .*shrank"):
            source.pread(offset, size)
    with pytest.raises(SourceReadError, match="shrank"):
        list(source.extents(4 * UNIT, UNIT))
    with pytest.raises(SourceReadError, match="shrank"):
        list(source.extents(0, 8 * UNIT))
    source.close()


def test_a_file_system_without_holes_says_all_is_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _sparse(tmp_path / "disk.img")
    source = open_source(str(tmp_path / "disk.img"))

    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "not offered")

    with monkeypatch.context() as patch:
        patch.setattr(os, "lseek", refuse)
        assert list(source.extents(3, 5 * UNIT)) == [Extent(3, 5 * UNIT, ExtentKind.DATA)]
    source.close()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.EIO, r"cannot read .* at byte 1024 \(sector 2\): "),
        (errno.ENXIO, "at byte 1024 .*gone.*unplugged"),
    ],
)
def test_a_read_error_names_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    """Short reads are continued, so the error names the byte at which it really happened."""
    _sparse(tmp_path / "disk.img")
    source = open_source(str(tmp_path / "disk.img"))
    whole = os.preadv

    def failing(fd: int, buffers: list[memoryview], offset: int) -> int:
        if offset >= 1024:
            raise OSError(code, os.strerror(code))
        return whole(fd, [buffers[0][: min(1024 - offset, 300)]], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", failing)
        assert len(source.pread(0, 1024)) == 1024
        with pytest.raises(SourceReadError, match=said):
            source.pread(512, 4096)
    source.close()


def test_links_are_resolved(tmp_path: Path) -> None:
    _sparse(tmp_path / "disk.img")
    (tmp_path / "by-id").symlink_to("disk.img")
    source = open_source(str(tmp_path / "by-id"))
    assert source.identity.path == str((tmp_path / "disk.img").resolve())
    source.close()


def test_what_is_no_disk_is_refused_with_a_reason(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, said in (
        (tmp_path, "a folder"),
        ("/dev/null", "a character device"),
        (tmp_path / "pipe", "a pipe"),
    ):
        with pytest.raises(SourceReadError, match=f"is {said}: name a disk"):
            open_source(str(path))
    for missing in (tmp_path / "missing", tmp_path / "pipe" / "below"):
        with pytest.raises(NotFoundError, match="does not exist"):
            open_source(str(missing))


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        (errno.EACCES, AccessDeniedError, "may not be read by this user"),
        (errno.EPERM, AccessDeniedError, "may not be read by this user"),
        (errno.ENOMEDIUM, SourceReadError, "no medium"),
        (errno.EIO, SourceReadError, "cannot be opened"),
    ],
)
def test_refusals_of_the_kernel_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception], said: str
) -> None:
    _sparse(tmp_path / "disk.img")

    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(error, match=said):
            open_source(str(tmp_path / "disk.img"))
