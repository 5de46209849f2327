"""A backup that was interrupted any number of times, in any way, is in the end the image of its source.

The oracle is a backup that was never interrupted: the same root, the same bytes, nothing left over.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backup import BackupOptions, BackupResult, backup
from engine.verify import verify
from golden.chains import BLOCK, SET, MemorySource, add_point, change, files_of, mixed_disk, read_point
from golden.second_reader import UNUSED, ZERO, Folder, rebuild
from imageformat.errors import DestinationFullError, SourceReadError
from imageformat.layer import ImageType
from imageformat.repository import Repository
from imageformat.storage import localwriter
from imageformat.storage.local import LocalStorage
from imageformat.storage.localwriter import LocalResumableWriter
from imageformat.storage.memory import MemoryStorage
from support.interrupted import Killed, damage, killed_at


@dataclass
class Repo:
    """A repository in a folder, a disk, and what was told."""

    place: Path
    disk: bytes
    told: list[str] = field(default_factory=list)
    appended: int = 0

    def back_up(self, kind: ImageType | None = None, *, resume: bool = True, name: str = "") -> BackupResult:
        with contextlib.closing(Repository(LocalStorage(self.place))) as repository:
            return backup(
                MemorySource(self.disk, holes=True),
                repository,
                SET,
                BackupOptions(type=kind, block_size=BLOCK, threads=1, resume=resume),
                origin={"source": name or "/dev/fake"},
                tell=self.told.append,
            )

    def parts(self) -> list[Path]:
        return sorted((self.place / SET).glob(".*.part"))

    def check(self, result: BackupResult) -> None:
        """The point is the disk, and the file holds nothing that says otherwise."""
        assert self.parts() == []
        storage = LocalStorage(self.place)
        with contextlib.closing(Repository(storage)) as repository:
            point = next(p for p in repository.image_set(SET).points if p.key == result.key)
            assert read_point(repository, point) == self.disk
            assert [report.damages for report in verify(repository, (point,), threads=1)] == [()]
        files = files_of(storage)
        seen = next(p for p in Folder(files).points() if p.image.number == result.info.number)
        assert seen.read_all() == self.disk
        assert seen.own_counts() == seen.image.counts
        assert seen.computed_root() == seen.image.root == result.info.root
        frames = [(frame.kind, frame.number) for frame in seen.image.scan() if frame.kind in {1, 2}]
        assert len(set(frames)) == len(frames), "the file holds two versions of something"
        found = rebuild([layer for layer in seen.layers if layer is not None])
        salvaged = (bytes(BLOCK) if block in {ZERO, UNUSED} else block for block in found)
        assert (
            b"".join(block for block in salvaged if isinstance(block, bytes))[: len(self.disk)] == self.disk
        )
        fresh = MemoryStorage()
        add_point(fresh, self.disk, ImageType.FULL)
        with contextlib.closing(Repository(fresh)) as repository:
            (other,) = repository.image_set(SET).points
            assert other.info
            assert other.info.root == result.info.root


interruptions = st.lists(
    st.tuples(
        st.integers(0, 120),
        st.sampled_from(["nothing", "cut", "zeros", "flipped", "longer"]),
        st.lists(st.tuples(st.integers(0, 299), st.integers(1, 30)), max_size=2),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=25)
@given(seed=st.integers(0, 1 << 16), parent=st.booleans(), plan=interruptions)
def test_any_interruptions_give_the_image_of_the_source(seed: int, parent: bool, plan: list) -> None:
    chance = random.Random(seed)
    disk = bytes(mixed_disk(chance, 300, tail=100))
    with tempfile.TemporaryDirectory() as folder:
        repo = Repo(Path(folder), disk)
        if parent:
            repo.back_up()
            repo.disk = change(chance, change(chance, disk, 40, 100), 200, 60)
        for appends, how, changes in plan:
            with killed_at(appends), contextlib.suppress(Killed):
                repo.check(repo.back_up())
            for path in repo.parts():
                damage(path, how, chance)
            for block, count in changes:
                repo.disk = other(chance, repo.disk, block, count)
        repo.check(repo.back_up())


def other(chance: random.Random, disk: bytes, block: int, count: int) -> bytes:
    """The disk with other bytes, or zeros, in some blocks."""
    if chance.randrange(3):
        return change(chance, disk, block, count)
    return (
        disk[: block * BLOCK]
        + bytes(min(count * BLOCK, len(disk) - block * BLOCK))
        + disk[(block + count) * BLOCK :]
    )


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo(tmp_path, bytes(mixed_disk(random.Random(7), 300)))


def interrupted(repo: Repo, appends: int = 100) -> int:
    """Kill a backup; the length of what it left."""
    with killed_at(appends), pytest.raises(Killed):
        repo.back_up()
    (part,) = repo.parts()
    return part.stat().st_size


def appends_of(repo: Repo, **options: object) -> int:
    """How often the next backup appends: what it cannot take from the earlier one."""
    append, count = LocalResumableWriter.append, [0]

    def counting(self: LocalResumableWriter, data: bytes) -> None:
        count[0] += 1
        append(self, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalResumableWriter, "append", counting)
        repo.check(repo.back_up(**options))  # type: ignore[arg-type]
    return count[0]


def test_what_was_stored_is_not_stored_again(repo: Repo) -> None:
    interrupted(repo)
    again = appends_of(repo)
    assert "continuing 0001-full-" in repo.told[0]
    assert repo.told[0].endswith(" % was there")
    whole = appends_of(repo, kind=ImageType.FULL)
    assert again < whole - 90


def test_no_resume_throws_it_away(repo: Repo) -> None:
    interrupted(repo)
    assert appends_of(repo, resume=False) > 200
    assert repo.told == []


def test_a_changed_block_is_stored_again_and_its_old_frame_says_nothing(repo: Repo) -> None:
    interrupted(repo)
    repo.disk = change(random.Random(1), repo.disk, 0, 2)
    repo.check(repo.back_up())
    (path,) = (repo.place / SET).glob("*.mfi")
    kinds = [frame.kind for frame in next(iter(Folder.open(path.parent).images.values())).scan()]
    assert kinds.count(4) >= 1
    assert len(repo.told) == 1


@pytest.mark.parametrize("what", ["another source", "another size", "another parent", "garbage"])
def test_what_others_left_is_removed(repo: Repo, what: str) -> None:
    if what == "another parent":
        repo.back_up()
        repo.disk = change(random.Random(2), repo.disk, 0, 200)
    interrupted(repo)
    (part,) = repo.parts()
    kept = part.read_bytes()
    name = ""
    if what == "another source":
        name = "/dev/other"
    elif what == "another size":
        repo.disk += bytes(mixed_disk(random.Random(3), 1))
    elif what == "another parent":
        part.unlink()
        repo.back_up()
        part.write_bytes(kept)
    else:
        part.write_bytes(b"\0" + kept[1:])
    repo.told.clear()
    repo.check(repo.back_up(name=name))
    assert repo.told == []


def test_a_full_place_keeps_what_is_stored_and_says_how_much_is_missing(repo: Repo) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(localwriter, "_BUFFER", 3000)
        patch.setattr("imageformat.system.pwrite", full_after(200_000))
        with pytest.raises(DestinationFullError, match="about 1 MiB more are needed; what is stored"):
            repo.back_up()
    assert appends_of(repo) < 270
    assert repo.told[-1].startswith("continuing 0001-full")


def full_after(size: int) -> object:
    from imageformat import system  # noqa: PLC0415

    real = system.pwrite

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if offset + len(data) > size:
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    return pwrite


class Unplugged(MemorySource):
    """A disk that is gone from some byte on."""

    def pread(self, offset: int, size: int) -> bytes:
        if offset + size > 1 << 20:
            raise SourceReadError("the device is gone")
        return super().pread(offset, size)


def test_a_source_that_went_away_is_gone_on_with(repo: Repo) -> None:
    repo.disk += bytes(mixed_disk(random.Random(4), 300))
    with contextlib.closing(Repository(LocalStorage(repo.place))) as repository:
        source, options = Unplugged(repo.disk), BackupOptions(block_size=BLOCK, threads=1)
        with pytest.raises(SourceReadError):
            backup(source, repository, SET, options, origin={"source": "/dev/fake"}, tell=repo.told.append)
    assert repo.told == ["what is stored is kept; the same command goes on from there"]
    assert appends_of(repo) < 420
