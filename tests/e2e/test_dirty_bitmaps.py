"""Increments of a qemu disk that is written meanwhile: dirty bitmaps over NBD, and how a lie is found.

The judges are qemu-img, which reads the same picture, and a count of the bytes that are read.
"""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine.backup import BackupOptions, BackupResult, backup
from engine.changes import Wanted, open_tracker
from engine.changes.knowledge import Tracking, marks_of
from engine.sampling import Sampling
from engine.sources import open_any
from imageformat.cache import BlockCache
from imageformat.repository import Repository
from imageformat.storage.local import LocalStorage
from imageformat.view import ImageView
from support.counting import Counted
from support.product import mountfs
from support.virtualmachine import VirtualDisk

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 48 << 20
BLOCK = 64 << 10


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[VirtualDisk]:
    with VirtualDisk(tmp_path / "vm", SIZE) as made:
        made.write((0, 16 << 20, 1), (20 << 20, 8 << 20, 2), (40 << 20, 4 << 20, 3))
        yield made


class Imaged:
    """A set of images of the disk."""

    def __init__(self, folder: Path) -> None:
        self.place = folder / "repo"
        self.read = 0

    def back_up(self, url: str, begun: str, seed: int, samples: int = 16) -> BackupResult:
        with closing(Repository(LocalStorage(self.place))) as repository, closing(open_any(url)) as device:
            marks = marks_of(repository.image_set("disk0"))
            tracker = open_tracker(
                "dirty-bitmap", lambda name: Wanted(device, "here", name, begun, lambda: marks)
            )
            source = Counted(device)
            result = backup(
                source,
                repository,
                "disk0",
                BackupOptions(block_size=BLOCK, any_source=True),
                origin={"source": url},
                tracking=Tracking(tracker, Sampling(samples, seed)),
            )
            self.read = source.read
            return result

    def content(self) -> bytes:
        """The newest point."""
        with closing(Repository(LocalStorage(self.place))) as repository:
            point = repository.image_set("disk0").points[-1]
            with closing(ImageView(repository.chain(point), BlockCache(4 << 20))) as view:
                return view.pread(0, view.size)


def test_increments_read_what_changed_and_equal_the_picture(disk: VirtualDisk, tmp_path: Path) -> None:
    chance = random.Random("increments")
    imaged = Imaged(tmp_path)
    ended = ""
    for number in range(5):
        if number == 3:
            # A backup that failed: the last bitmap goes on, and the new one is merged into it.
            disk.take_picture("failed", ended)
            disk.write((30 << 20, BLOCK, 77))
            disk.take_back("failed", ended)
            disk.write((33 << 20, BLOCK, 78))
        url = disk.take_picture(f"b{number}", ended)
        frozen = disk.content("disk0")
        # The guest goes on while the picture is read: the next bitmap has it, this picture has not.
        disk.write(*((chance.randrange(SIZE - 70_000) & ~511, 70_144, 100 + number) for _ in range(2)))
        result = imaged.back_up(url, f"b{number}", number)
        assert imaged.content() == frozen, number
        if number:
            assert result.info.parent_id is not None
            assert not result.changes.reason
            assert result.changes.sampled == 16
            # Few writes of 70 kB touch at most three blocks each; samples are read as well.
            assert imaged.read <= (7 * 3 + 16) * BLOCK
        else:
            assert imaged.read >= 28 << 20
        disk.drop_picture(ended)
        ended = f"b{number}"
        disk.write(
            (chance.randrange(SIZE - 70_000) & ~511, 70_144, 200 + number),
            (chance.randrange(20) * BLOCK, 3 * BLOCK, -1),
        )


def test_bitmap_that_was_cleared_behind_our_back_is_found(disk: VirtualDisk, tmp_path: Path) -> None:
    imaged = Imaged(tmp_path)
    imaged.back_up(disk.take_picture("b0"), "b0", 0)
    disk.drop_picture()
    disk.write((0, 8 << 20, 9))  # 128 of 448 blocks
    disk.qmp("block-dirty-bitmap-clear", node="disk", name="b0")
    url = disk.take_picture("b1", "b0")
    result = imaged.back_up(url, "b1", seed=1)
    assert result.changes.missed
    assert not result.changes.inherited.blocks
    assert imaged.read >= 28 << 20
    assert imaged.content() == disk.content("disk0")
    recorded = result.info.details["changes"]
    assert isinstance(recorded, dict)
    assert recorded["missed"] == list(result.changes.missed)

    # Told in text and JSON by the command, with an exit code of its own.
    disk.drop_picture("b0")
    disk.write((20 << 20, 8 << 20, 10))
    disk.qmp("block-dirty-bitmap-clear", node="disk", name="b1")
    url = disk.take_picture("b2", "b1")
    ran = mountfs(
        "backup", url, str(imaged.place), "--set", "disk0", "--next-bitmap", "b2", "--json", code=35
    )
    assert "misses changes" in ran.err
    assert ran.facts["changes"]["missed_offsets"]
    assert imaged.content() == disk.content("disk0")


def test_bitmap_that_cannot_be_tied_to_the_parent_is_not_used(disk: VirtualDisk, tmp_path: Path) -> None:
    imaged = Imaged(tmp_path)
    url = disk.take_picture("b0")
    repository = str(imaged.place)
    mountfs("backup", url, repository, "--next-bitmap", "b0")
    # Begun twice: what changed between the two is in neither.
    mountfs("backup", url, repository, "--next-bitmap", "b0", code=2)
    # Not offered by the server: never begun, lost in a crash, or not exported.
    ran = mountfs("backup", url, repository, "--changed", "dirty-bitmap=b0", "--json")
    assert ran.facts["changes"]["inherited_bytes"] == 0
    assert "does not offer the bitmap b0" in ran.facts["changes"]["reason"]
    # The image before had no mark.
    ran = mountfs("backup", url, repository, "--changed", "dirty-bitmap", "--next-bitmap", "b1", "--json")
    assert ran.facts["changes"]["reason"] == "the parent recorded no mark"
    disk.drop_picture()
    url = disk.take_picture("b2", "b0")
    ran = mountfs("backup", url, repository, "--changed", "dirty-bitmap=b0", "--json")
    # An older image began with that name: its children would take the new bitmap for theirs.
    mountfs("backup", url, repository, "--next-bitmap", "b0", code=2)
    assert "began with the bitmap b1" in ran.facts["changes"]["reason"]
    assert imaged.content() == disk.content("disk0")
