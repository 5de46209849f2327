"""A storage that fails is no damage: it is told as what it is, and the rest is verified."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from engine.verify import Blame, FileReport, VerifyProgress, points_of_chain, verify, worst_exit_code
from golden.chains import SET, MadeChain, make_chain, points_by_key, storage_with
from imageformat.chain import Chain
from imageformat.device import BlockDevice
from imageformat.errors import (
    AccessDeniedError,
    CorruptImageError,
    MountfsError,
    NotFoundError,
    StorageError,
)
from imageformat.extent import Extent
from imageformat.layer import ImageType
from imageformat.repository import Repository
from imageformat.storage.memory import MemoryStorage
from support.content import noise
from support.product import environment

FULL, INC, LAST = range(3)
KINDS: list[type[MountfsError]] = [StorageError, AccessDeniedError, NotFoundError]


@pytest.fixture(scope="module")
def made() -> MadeChain:
    disk = noise(1, 300_000)
    return make_chain(
        [
            (ImageType.FULL, disk),
            (ImageType.INCREMENTAL, noise(2, 5000) + disk[5000:]),
            (ImageType.DIFFERENTIAL, disk[:30_000] + noise(3, 100_000) + disk[130_000:]),
        ]
    )


@dataclass
class Moody:
    """A device that fails where it is told to."""

    inside: BlockDevice
    fails: Callable[[int, int], MountfsError | None]
    block_size: int = 512

    @property
    def size(self) -> int:
        return self.inside.size

    def pread(self, offset: int, size: int) -> bytes:
        error = self.fails(offset, size)
        if error is not None:
            raise error
        return self.inside.pread(offset, size)

    def extents(self, offset: int, size: int) -> Iterator[Extent]:
        return self.inside.extents(offset, size)

    def close(self) -> None:
        self.inside.close()


@dataclass
class MoodyStorage(MemoryStorage):
    """A storage that refuses some files, or parts of them."""

    closed: dict[str, MountfsError] = field(default_factory=dict)
    bad: dict[str, Callable[[int, int], MountfsError | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        MemoryStorage.__init__(self)

    def open(self, key: str) -> BlockDevice:
        if key in self.closed:
            raise self.closed[key]
        device = super().open(key)
        return Moody(device, self.bad[key]) if key in self.bad else device


def moody(made: MadeChain) -> tuple[MoodyStorage, Repository]:
    storage = MoodyStorage()
    for key, content in made.files.items():
        storage.publish(key, content)
    return storage, Repository(storage)


def verified(repository: Repository) -> list[FileReport]:
    points = sorted(points_by_key(repository).values(), key=lambda point: point.key)
    return list(verify(repository, points, threads=2))


def states(repository: Repository) -> list[str]:
    return [point.state for point in sorted(points_by_key(repository).values(), key=lambda point: point.key)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_cannot_be_opened_is_not_damaged(made: MadeChain, kind: type[MountfsError]) -> None:
    storage, repository = moody(made)
    points_by_key(repository)
    storage.closed[made.keys[INC]] = kind("not today")
    reports = verified(repository)
    assert [report.damages for report in reports] == [()] * 3
    assert [[d.message for d in report.unread] for report in reports] == [[], ["not today"], []]
    assert reports[FULL].blocks > 0
    assert reports[LAST].blocks > 0, "it went on"
    assert worst_exit_code(reports) == kind.exit_code
    assert states(repository) == ["verified", "ok", "verified"]
    storage.closed.clear()
    assert worst_exit_code(verified(repository)) == 0
    assert states(repository) == ["verified"] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_that_cannot_be_opened_does_not_damage_its_children(
    made: MadeChain, kind: type[MountfsError]
) -> None:
    """Also when nothing was remembered, so that the parent is not even known."""
    for known in (True, False):
        storage, repository = moody(made)
        if known:
            points_by_key(repository)
        storage.closed[made.keys[FULL]] = kind("not today")
        reports = verified(repository)
        code = worst_exit_code(reports)
        assert code == kind.exit_code if known or kind is not NotFoundError else code != 0
        assert "damaged" not in states(repository)
        assert reports[LAST].blocks > 0
        storage.closed.clear()
        assert states(repository) == ["ok"] * 3, "neither the failure nor its consequence is remembered"


def test_a_part_that_cannot_be_read(made: MadeChain) -> None:
    storage, repository = moody(made)
    bad = range(100_000, 101_000)

    def fails(offset: int, size: int) -> MountfsError | None:
        return StorageError("a bad sector") if offset < bad.stop and offset + size > bad.start else None

    storage.bad[made.keys[FULL]] = fails
    report = verified(repository)[FULL]
    assert report.damages == ()
    assert 1 <= report.unread_count <= 2, "only the blocks that lie there"
    assert all(damage.disk_offset is not None and damage.length for damage in report.unread)
    assert report.blocks + report.unread_count == -(-300_000 // 4096)
    assert {damage.blame for damage in report.unread} == {Blame.STORAGE}
    assert states(repository)[FULL] == "ok"


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_that_cannot_be_read(made: MadeChain, kind: type[MountfsError]) -> None:
    storage, repository = moody(made)
    points_by_key(repository)
    size = len(made.files[made.keys[INC]])

    def fails(offset: int, length: int) -> MountfsError | None:
        inside = offset >= 4096 and offset + length <= size - 512
        return kind("a bad sector") if inside else None

    storage.bad[made.keys[INC]] = fails
    reports = verified(repository)
    assert reports[INC].damages == ()
    assert reports[INC].unread_count > 0
    assert reports[INC].blocks == 0
    assert reports[LAST].blocks > 0
    assert worst_exit_code(reports) == kind.exit_code


def test_damage_outweighs_what_could_not_be_read_and_is_remembered(made: MadeChain) -> None:
    content = bytearray(made.files[made.keys[FULL]])
    content[5000] ^= 1
    storage, repository = moody(made)
    storage.publish(made.keys[FULL], bytes(content), replace=True)
    storage.bad[made.keys[FULL]] = lambda offset, size: (
        StorageError("no") if offset <= 200_000 < offset + size else None
    )
    reports = verified(repository)
    assert reports[FULL].damaged_count == 1
    assert reports[FULL].unread_count == 1
    assert worst_exit_code(reports) == CorruptImageError.exit_code
    assert states(repository) == ["damaged"] * 3


def test_an_older_proof_outlives_a_failure_of_the_storage(made: MadeChain) -> None:
    storage, repository = moody(made)
    verified(repository)
    assert states(repository) == ["verified"] * 3
    storage.closed[made.keys[FULL]] = StorageError("not today")
    verified(repository)
    assert states(repository) == ["verified"] * 3


def test_a_missing_parent_is_no_damage_of_the_child(made: MadeChain) -> None:
    storage = storage_with(made.files)
    repository = Repository(storage)
    verified(repository)
    storage.delete(made.keys[FULL])
    reports = verified(repository)
    assert [damage.blame for report in reports for damage in report.damages] == [Blame.CHAIN] * 2
    storage.publish(made.keys[FULL], made.files[made.keys[FULL]])
    assert states(repository) == ["ok"] * 3, "put back, all is well again"


def test_only_what_files_say_is_remembered(made: MadeChain) -> None:
    storage, repository = moody(made)
    storage.closed[made.keys[INC]] = AccessDeniedError("another user's")
    storage.publish(f"{SET}/9999-odd.mfi", b"no image")
    assert states(repository) == ["ok", "broken", "ok", "broken"]
    note = json.loads(storage.load_cache(f"{SET}/") or b"")
    assert [entry["key"] for entry in note["entries"]] == [made.keys[FULL], made.keys[LAST]]
    before = storage.load_cache(f"{SET}/")
    storage.closed.clear()
    assert states(repository) == ["ok", "ok", "ok", "broken"]
    assert storage.load_cache(f"{SET}/") != before


def test_a_proof_is_not_given_to_a_file_that_came_meanwhile(made: MadeChain) -> None:
    storage, repository = moody(made)
    point = points_by_key(repository)[made.keys[FULL]]
    other = make_chain([(ImageType.FULL, noise(8, 10_000))])

    def replace(_state: VerifyProgress) -> None:
        storage.publish(made.keys[FULL], other.files[other.keys[0]], replace=True)
        points_by_key(repository)

    (report,) = verify(repository, [point], threads=1, report=replace)
    assert report.damages == ()
    assert points_by_key(repository)[made.keys[FULL]].proof is None


def test_a_long_line_is_proven_link_by_link(made: MadeChain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each link once where the parent came before: not the whole line again for every point."""
    _, repository = moody(made)
    points = sorted(points_by_key(repository).values(), key=lambda point: point.key)
    proofs: list[int] = []
    prove = Chain.prove

    def counted_prove(chain: Chain) -> None:
        proofs.append(chain.info.number)
        prove(chain)

    monkeypatch.setattr(Chain, "prove", counted_prove)
    list(verify(repository, points, threads=1))
    assert proofs == [1]
    proofs.clear()
    list(verify(repository, points[::-1], threads=1))
    assert proofs == [3, 2, 1]
    assert points_of_chain(points[INC], points) == (points[FULL], points[INC])


_UNRELIABLE = """
import os, sys
real, bad = os.pread, sys.argv.pop(1)
def pread(fd, size, offset):
    if offset >= 4096 and os.readlink(f"/proc/self/fd/{fd}").endswith(bad):
        raise OSError(5, "Input/output error")
    return real(fd, size, offset)
os.pread = pread
from mountfs.cli.__main__ import main
sys.exit(main())
"""


def test_the_command_tells_failures_from_damage(made: MadeChain, tmp_path: Path) -> None:
    for key, content in made.files.items():
        path = tmp_path / key
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    arguments = (made.keys[INC], "verify", str(tmp_path))
    results = {}
    for options in ((), ("--json",)):
        results[options] = subprocess.run(
            [sys.executable, "-c", _UNRELIABLE, *arguments, *options],
            capture_output=True,
            env=environment(),
            check=False,
            text=True,
        )
    told = results[()]
    assert told.returncode == StorageError.exit_code, told.stderr
    assert "NOT READ" in told.stdout
    assert "Input/output error" in told.stdout
    assert "1 image could not be read" in told.stdout
    assert "DAMAGED" not in told.stdout
    assert told.stdout.count("ok  ") == 2
    lines = [json.loads(line) for line in results["--json",].stdout.splitlines()]
    counts = {line["file"]: (line["damaged"], line["unread"] > 0) for line in lines if "file" in line}
    assert counts == {key: (0, key == made.keys[INC]) for key in made.keys}
