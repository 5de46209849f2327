"""The catalogue is a cache: missing, wrong or stale, what the files say counts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from engine.backup import BackupOptions, backup
from engine.devices.source import open_source
from imageformat.device import BlockDevice
from imageformat.errors import AmbiguousNameError, NotFoundError, UsageError
from imageformat.layer import ImageType
from imageformat.repository import ImageSet, Repository
from imageformat.selection import (
    open_location,
    point_at,
    select_point,
    split_image_path,
    split_selector,
)
from imageformat.storage.local import LocalStorage


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    disk = folder / "disk.img"
    repository = Repository(LocalStorage(folder / "repo"))
    hours = iter(range(100))
    for number in range(4):
        disk.write_bytes(os.urandom(20_000))
        device = open_source(str(disk))
        kind = ImageType.DIFFERENTIAL if number == 2 else None
        backup(
            device,
            repository,
            "set",
            BackupOptions(type=kind, block_size=4096),
            origin={"source": "x"},
            clock_ns=lambda: (1_700_000_000 + 3600 * next(hours)) * 10**9,
        )
        device.close()
    repository.close()
    return folder / "repo"


@pytest.fixture
def place(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "repo")
    return tmp_path / "repo"


def points(place: Path) -> ImageSet:
    repository = Repository(LocalStorage(place))
    found = repository.image_set("set")
    repository.close()
    return found


def facts(found: ImageSet) -> list[tuple[object, ...]]:
    return [(point.number, point.info and point.info.root, point.problem) for point in found.points]


@pytest.mark.parametrize(
    "content", [None, b"", b"not json", b'{"version": 99, "entries": []}', b'{"version":1}']
)
def test_the_catalogue_is_rebuilt(place: Path, content: bytes | None) -> None:
    catalogue = place / "set" / ".catalog.json"
    before = facts(points(place))
    assert catalogue.exists()
    catalogue.unlink()
    if content is not None:
        catalogue.write_bytes(content)
    assert facts(points(place)) == before
    assert b'"entries"' in catalogue.read_bytes()


def test_a_file_that_changed_is_read_again(place: Path) -> None:
    assert all(point.problem is None for point in points(place).points)
    first = min((place / "set").glob("*.mfi"))
    content = bytearray(first.read_bytes())
    content[100] ^= 1
    first.write_bytes(content)
    broken = points(place)
    assert [point.problem is None for point in broken.points] == [False] * 4
    content[100] ^= 1
    first.write_bytes(content)
    assert all(point.problem is None for point in points(place).points)


def test_a_lying_catalogue_does_not_give_wrong_bytes(place: Path) -> None:
    catalogue = place / "set" / ".catalog.json"
    points(place)
    one, two = sorted((place / "set").glob("*.mfi"))[:2]
    lies = (
        catalogue.read_bytes().replace(one.name.encode(), b"@").replace(two.name.encode(), one.name.encode())
    )
    catalogue.write_bytes(lies.replace(b"@", two.name.encode()))
    assert [point.number for point in points(place).points] == [1, 2, 3, 4], "bound to the fingerprint"


def test_a_catalogue_that_cannot_be_kept_is_no_failure(place: Path) -> None:
    catalogue = place / "set" / ".catalog.json"
    catalogue.unlink(missing_ok=True)
    catalogue.mkdir()
    assert len(points(place).points) == 4
    assert list((place / "set").glob(".*.part")) == []


def test_points_are_named_in_every_way(original: Path) -> None:
    found = points(original)
    third = found.points[2]
    assert third.info is not None
    for name in ("3", "0003", third.info.id.hex[:8], str(third.info.id), "2023-11-15T00:59:00+00:00"):
        assert select_point(found, name) == third, name
    assert select_point(found, "latest").number == 4
    assert point_at(found, "2023-11-14T22:13:20+00:00").number == 1
    for name, kind in (("9", NotFoundError), ("deadbeef", NotFoundError), ("soon", UsageError)):
        with pytest.raises(kind):
            select_point(found, name)
    with pytest.raises(NotFoundError):
        point_at(found, "1999-01-01")


def test_a_time_without_a_zone_is_local(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time  # noqa: PLC0415

    try:
        monkeypatch.setenv("TZ", "America/New_York")
        time.tzset()
        assert point_at(points(original), "2023-11-14T17:13:20").number == 1
        assert point_at(points(original), "2023-11-14T22:13:20").number == 4
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("repo", ("repo", None, None)),
        ("repo@3", ("repo", "3", None)),
        ("repo:2/a:b", ("repo", None, "2/a:b")),
        ("repo@3:2/a@b", ("repo", "3", "2/a@b")),
        ("repo@2026-11-20T12:00", ("repo", "2026-11-20T12:00", None)),
        ("repo@2026-11-20T12:00:30:2/x", ("repo", "2026-11-20T12:00:30", "2/x")),
        ("a:b", ("a:b", None, None)),
        ("a:b:1", ("a:b", None, "1")),
        ("we@ird", ("we@ird", None, None)),
        ("we@ird@5:1", ("we@ird", "5", "1")),
        ("none:1/x", ("none", None, "1/x")),
    ],
)
def test_names_are_taken_apart(text: str, expected: tuple[str, str | None, str | None]) -> None:
    there = {"repo", "a:b", "we@ird"}
    assert split_image_path(text, there.__contains__) == expected
    if expected[2] is None:
        assert split_selector(text, there.__contains__) == expected[:2]


def test_a_place_is_a_repository_a_set_or_a_file(original: Path, tmp_path: Path) -> None:
    first = min((original / "set").glob("*.mfi"))
    assert len(open_location(str(original)).points()) == 4
    assert open_location(str(original / "set")).point("2").number == 2
    assert open_location(str(first)).point().number == 1
    with pytest.raises(UsageError):
        open_location(str(first)).point("2")
    shutil.copytree(original, tmp_path / "two")
    shutil.copytree(original / "set", tmp_path / "two" / "other")
    with pytest.raises(AmbiguousNameError):
        open_location(str(tmp_path / "two")).point()
    lone = tmp_path / "lone" / "image.bin"
    lone.parent.mkdir()
    shutil.copy(first, lone)
    assert open_location(str(lone)).point().number == 1
    assert [path.name for path in lone.parent.iterdir()] == ["image.bin"], "no catalogue beside a lone file"


class CountingStorage(LocalStorage):
    """Tells which files were opened."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.opened: list[str] = []

    def open(self, key: str) -> BlockDevice:
        self.opened.append(key)
        return super().open(key)


def test_with_a_right_catalogue_only_what_is_read_is_opened(place: Path) -> None:
    (place / "set" / ".catalog.json").unlink(missing_ok=True)
    storage = CountingStorage(place)
    repository = Repository(storage)
    first = repository.image_set("set")
    assert storage.opened == sorted(point.key for point in first.points), "each once"
    storage.opened.clear()
    assert repository.image_set("set") == first
    assert storage.opened == [], "a listing asks the catalogue"
    repository.chain(first.points[1])
    repository.chain(first.points[1])
    assert storage.opened == [first.points[1].key], "a point is opened without its ancestors"
    repository.chain(first.points[1]).prove()
    assert storage.opened == [first.points[1].key, first.points[0].key]
    repository.close()
