"""The golden images of every version read as they did when they were made."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import pytest

from engine.verify import verify
from golden.make_bad_sectors import FOLDER as BAD_SECTORS
from golden.make_bad_sectors import points as bad_points
from golden.second_reader import Folder
from imageformat.errors import UnreadableBlockError
from imageformat.extent import ExtentKind
from imageformat.repository import Repository
from imageformat.storage.local import LocalStorage
from imageformat.view import ImageView

VERSIONS = sorted(path for path in Path(__file__).parent.glob("v*") if path.is_dir())


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_every_point_is_what_it_was(folder: Path) -> None:
    facts = json.loads((folder / "expected.json").read_text("utf-8"))
    with contextlib.closing(Repository(LocalStorage(folder))) as repository:
        points = repository.image_set("set").points
        assert {point.file_name: point.info.root.hex() for point in points if point.info} == facts["roots"]
        for point in points:
            view = ImageView(repository.chain(point), repository.cache)
            assert hashlib.sha256(view.pread(0, view.size)).hexdigest() == facts["sha256"][str(point.number)]
        assert [report.damages for report in verify(repository, points)] == [()] * len(points)


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_the_second_reader_agrees(folder: Path) -> None:
    facts = json.loads((folder / "expected.json").read_text("utf-8"))
    files = {path.name: path.read_bytes() for path in (folder / "set").glob("*.mfi")}
    for point in Folder(files).points():
        assert hashlib.sha256(point.read_all()).hexdigest() == facts["sha256"][str(point.image.number)]


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_the_states_are_not_conflated(folder: Path) -> None:
    with contextlib.closing(Repository(LocalStorage(folder))) as repository:
        (point,) = repository.image_set("states").points
        view = ImageView(repository.chain(point), repository.cache)
        kinds = [(extent.length // 4096, extent.kind) for extent in view.extents(0, view.size)]
        assert kinds == [
            (1, ExtentKind.DATA),
            (2, ExtentKind.ZERO),
            (4, ExtentKind.UNUSED),
            (1, ExtentKind.BAD),
        ]
        assert view.pread(0, 7 * 4096) == b"data" * 1024 + bytes(6 * 4096)
        with pytest.raises(UnreadableBlockError):
            view.pread(7 * 4096 - 1, 2)


def test_bad_sectors_and_void_frames_read_as_they_did() -> None:
    """Format 0.3, for the product and for the second reader."""
    files = {path.name: path.read_bytes() for path in (BAD_SECTORS / "set").glob("*.mfi")}
    seen = Folder(files).points()
    assert [frame.kind for frame in seen[1].image.scan()].count(4) >= 1
    with contextlib.closing(Repository(LocalStorage(BAD_SECTORS))) as repository:
        found = repository.image_set("set").points
        assert len(found) == len(seen) == 2
        for point, other, (disk, bad) in zip(found, seen, bad_points(), strict=True):
            view = ImageView(repository.chain(point), repository.cache)
            extents = view.extents(0, view.size)
            told = {
                unit
                for extent in extents
                if extent.kind is ExtentKind.BAD
                for unit in range(extent.offset // 512, -(-extent.end // 512))
            }
            assert told == bad
            units = [disk[at : at + 512] for at in range(0, len(disk), 512)]
            expected = [None if unit in bad else data for unit, data in enumerate(units)]
            assert [unit for block in range(other.image.blocks) for unit in other.units(block)] == expected
            assert other.computed_root() == (point.info.root if point.info else None)
            for unit, data in enumerate(expected):
                if data is None:
                    with pytest.raises(UnreadableBlockError):
                        view.pread(unit * 512, 1)
                else:
                    assert view.pread(unit * 512, len(data)) == data
