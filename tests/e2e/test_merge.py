"""Taking points out of a set: what is left gives the same bytes, and what stood on none is not touched."""

from __future__ import annotations

import random
import shutil
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest

from engine.merge import MergePlan, finish_removal, plan_removal, points_between, remove_points
from imageformat.errors import DestinationFullError, MountfsError, UsageError
from imageformat.layer import ImageType
from imageformat.repository import ImageSet, Point
from imageformat.selection import opened_location
from imageformat.storage.local import LocalObjectWriter
from support.content import mixture, noise
from support.points import Kept

FULL, DIFF, INC = ImageType.FULL, ImageType.DIFFERENTIAL, ImageType.INCREMENTAL
DISK = 1_500_000


def change(kept: Kept, chance: random.Random) -> None:
    """Write, clear and touch here and there; sometimes the disk grows or shrinks."""
    with kept.source.open("r+b") as disk:
        size = disk.seek(0, 2)
        if chance.random() < 0.15:
            size = chance.randrange(DISK // 2, DISK * 2)
            disk.truncate(size)
        for _ in range(chance.randrange(1, 12)):
            disk.seek(chance.randrange(max(1, size - 30_000)))
            kind = chance.randrange(3)
            if kind == 0:
                disk.write(noise(chance.randrange(1 << 30), chance.randrange(1, 30_000)))
            elif kind == 1:
                disk.write(bytes(chance.randrange(1, 30_000)))
            else:
                disk.write(noise(chance.randrange(1 << 30), 40))


def random_set(folder: Path, seed: int, count: int) -> Kept:
    chance = random.Random(seed)
    folder.mkdir()
    (folder / "disk.img").write_bytes(mixture(seed, DISK))
    kept = Kept(folder / "disk.img", folder / "repo")
    for number in range(count):
        kind = chance.choice((INC, INC, INC, DIFF, FULL)) if number else FULL
        kept.back_up(kind)
        change(kept, chance)
    return kept


def image_set(kept: Kept) -> ImageSet:
    with closing(kept.repository()) as repository:
        return repository.image_set(kept.set_name)


def by_number(kept: Kept) -> dict[int, Point]:
    return {point.number: point for point in image_set(kept).points}


def remove(kept: Kept, *numbers: int) -> MergePlan:
    points = by_number(kept)
    with closing(kept.repository()) as repository:
        plan = plan_removal(repository.image_set(kept.set_name), {points[number].key for number in numbers})
        remove_points(repository, kept.set_name, plan)
    for number in numbers:
        del kept.digests[number]
    return plan


def roots(kept: Kept) -> dict[int, bytes]:
    return {point.number: point.info.root for point in image_set(kept).points if point.info}


@pytest.mark.parametrize(
    "seed", [*range(5), *(pytest.param(n, marks=pytest.mark.nightly) for n in range(5, 120))]
)
def test_whatever_is_removed_the_rest_is_the_same(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    kept = random_set(tmp_path / "set", seed, 7)
    while len(kept.digests) > 1:
        before, known = by_number(kept), roots(kept)
        gone = chance.sample(sorted(before), chance.randrange(1, min(4, len(before))))
        plan = remove(kept, *gone)
        after = by_number(kept)
        assert set(after) == set(before) - set(gone)
        assert roots(kept) == {number: root for number, root in known.items() if number in after}
        for number, point in after.items():
            written = number in {entry.number for entry in plan.rewritten}
            assert (point.key != before[number].key) == written, "what stood on none is not touched"
            assert not written or point.proof is not None
            old, new = before[number].info, point.info
            assert old is not None
            assert new is not None
            assert (old.created_ns, old.set_id, old.disks) == (new.created_ns, new.set_id, new.disks)
            assert (old.id != new.id) == written
            assert (new.type is FULL) == (new.depth == 0)
        kept.check()
        assert [path.name for path in kept.folder.glob("*.journal")] == []
        if chance.random() < 0.5:
            kept.back_up()
            kept.check()


def three(folder: Path) -> Kept:
    """A full, and two increments that change a few bytes of the same blocks."""
    folder.mkdir()
    source = folder / "disk.img"
    source.write_bytes(noise(1, 400_000))
    kept = Kept(source, folder / "repo")
    kept.back_up(FULL, block_size=65536)
    for number in (2, 3, 4):
        with source.open("r+b") as disk:
            disk.seek(number * 1000)
            disk.write(noise(number, 50))
        kept.back_up(INC)
    return kept


def stored_payloads(path: Path) -> set[bytes]:
    """The payloads of the block frames of a file, by the frames' own lengths."""
    data, found, at = path.read_bytes(), set(), 4096
    while data[at : at + 4] == b"MFfr":
        length = int.from_bytes(data[at + 8 : at + 12], "little")
        if data[at + 4] == 1:
            found.add(data[at + 64 : at + 64 + length])
        at += 64 + length
    return found


def test_frames_are_copied_as_they_are(tmp_path: Path) -> None:
    kept = three(tmp_path / "set")
    full, second, third = (stored_payloads(kept.file_of(number)) for number in (1, 2, 3))
    assert max(map(len, second | third)) < 1000, "they are differences"
    remove(kept, 2)
    merged = stored_payloads(kept.file_of(3))
    assert {payload[32:] for payload in merged} == {payload[32:] for payload in third}
    remove(kept, 1)
    changed = stored_payloads(kept.file_of(3)) - full
    assert len(changed) == 1, "only the block whose reference went was encoded again"
    kept.check()
    assert [point.info.type for point in image_set(kept).points if point.info] == [FULL, INC]


def test_a_difference_from_a_block_that_goes_is_encoded_again(tmp_path: Path) -> None:
    """Point 2 holds the block plainly, point 3 as what differs from that, and point 1 has another."""
    (tmp_path / "disk.img").write_bytes(noise(1, 65536))
    kept = Kept(tmp_path / "disk.img", tmp_path / "repo")
    kept.back_up(FULL, block_size=65536)
    for content in (noise(2, 65536), noise(2, 65000) + noise(3, 536)):
        kept.source.write_bytes(content)
        kept.back_up(INC)
    assert [len(payload) > 60_000 for payload in stored_payloads(kept.file_of(2))] == [True]
    assert [len(payload) < 1000 for payload in stored_payloads(kept.file_of(3))] == [True]
    remove(kept, 2)
    kept.check()
    remove(kept, 1)
    kept.check()


def test_a_file_that_is_hidden_can_still_be_named(tmp_path: Path) -> None:
    kept = three(tmp_path / "set")
    text = f'{{"version":1,"names":["{kept.file_of(4).name}"]}}'
    (kept.folder / "merge-new.journal").write_text(text, "utf-8")
    assert set(by_number(kept)) == {1, 2, 3}
    with opened_location(str(kept.file_of(4))) as location:
        assert location.point().number == 4


def test_the_points_between_two(tmp_path: Path) -> None:
    kept = three(tmp_path / "set")
    points = by_number(kept)
    assert points_between(image_set(kept), points[1], points[3]) == (points[1], points[2])
    for first, last in ((3, 1), (2, 2)):
        with pytest.raises(UsageError):
            points_between(image_set(kept), points[first], points[last])


def test_what_cannot_be_proven_is_not_merged(tmp_path: Path) -> None:
    kept = three(tmp_path / "set")
    path = kept.file_of(2)
    data = bytearray(path.read_bytes())
    data[4096 + 70] ^= 1  # in the payload of its only block
    path.write_bytes(data)
    before = sorted(item.name for item in kept.folder.iterdir() if item.suffix == ".mfi")
    with pytest.raises(MountfsError, match="damaged"):
        remove(kept, 1)
    assert (
        sorted(item.name for item in kept.folder.iterdir() if item.suffix != ".json" and item.name[0] != ".")
        == before
    )


def test_a_journal_that_cannot_be_read_hides_nothing_and_stops_the_next_merge(tmp_path: Path) -> None:
    kept = three(tmp_path / "set")
    for odd in (
        b"odd",
        b'{"version":1,"names":["../../x.mfi"]}',
        b'{"version":9,"names":[]}',
        b"[" * 100_000,
    ):
        (kept.folder / "merge-old.journal").write_bytes(odd)
        assert set(by_number(kept)) == {1, 2, 3, 4}
        with pytest.raises(MountfsError, match="journal"):
            remove(kept, 2)
        kept.check()


def test_a_journal_never_takes_what_a_visible_point_stands_on(tmp_path: Path) -> None:
    kept = three(tmp_path / "set")
    names = [kept.file_of(number).name for number in (2, 1)]
    text = '{{"version":1,"names":["{}","{}"]}}'.format(*names)
    (kept.folder / "merge-old.journal").write_text(text, "utf-8")
    with closing(kept.repository()) as repository:
        finish_removal(repository, kept.set_name)
    kept.check()
    assert UUID(int=0) not in {point.info.id for point in image_set(kept).points if point.info}


@pytest.mark.parametrize("which", [1, 2, 3, 4, 5])
def test_a_full_destination_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """Whatever cannot be published: a journal, one of three images, the journal of the old ones."""
    kept = three(tmp_path / "set")
    published = LocalObjectWriter.commit
    calls = []

    def commit(self: LocalObjectWriter, check: object = None) -> None:
        calls.append(self)
        if len(calls) == which:
            raise DestinationFullError("no space left")
        published(self, check)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalObjectWriter, "commit", commit)
    before = sorted(path.name for path in kept.folder.glob("*.mfi"))
    with pytest.raises(DestinationFullError):
        remove(kept, 1)
    assert sorted(path.name for path in kept.folder.glob("*.mfi")) == before
    assert list(kept.folder.glob("*.journal")) == []
    kept.check()


def copy_of(kept: Kept, place: Path) -> Kept:
    shutil.copytree(kept.place, place)
    return Kept(kept.source, place, kept.set_name, dict(kept.digests))
