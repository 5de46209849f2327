"""The golden images of every version read as they did when they were made."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import pytest

from engine.verify import verify
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
