"""The ledger of what was proven, against a model that holds every byte; and real images read in parts.

Whatever the budgets are, everything is read in finite runs, what was read longest ago first.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Mapping
from functools import lru_cache
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import proof
from engine.proof import (
    Ledger,
    Stored,
    Stretch,
    decode_ledger,
    encode_ledger,
    oldest_proof,
    proven_fraction,
    recorded,
    todo,
)
from engine.proving import LEDGER_SUFFIX, prove_oldest, standing
from engine.verify import FileReport, verify
from golden.chains import SET, add_point, change, files_of, mixed_disk, storage_with
from imageformat.errors import CorruptImageError, DestinationReadOnlyError
from imageformat.layer import ImageType
from imageformat.repository import Repository
from imageformat.storage.memory import MemoryObjectWriter, MemoryStorage

sizes = st.lists(st.integers(1, 30), min_size=1, max_size=4)
budgets = st.lists(st.integers(1, 60), min_size=1, max_size=12)


class Model:
    """When each byte was read, and whether it was right."""

    def __init__(self, files: list[int]) -> None:
        self.read = [[0] * size for size in files]
        self.right = [[False] * size for size in files]

    def next(self, budget: int) -> list[tuple[int, int]]:
        every = [(when, file, at) for file, row in enumerate(self.read) for at, when in enumerate(row)]
        return [(file, at) for _, file, at in sorted(every)[:budget]]


def run(ledger: Ledger, files: list[Stored], now: int, budget: int, bad: set[tuple[int, int]]) -> list:
    """Read what is next; stretches end where damage begins and ends."""
    done = []
    for part in list(todo(ledger, files, now, budget)):
        number = next(at for at, file in enumerate(files) if file.id == part.id)
        for at in range(part.start, part.end):
            done.append((number, at))
            right = (number, at) not in bad
            ledger[part.id] = recorded(ledger.get(part.id, ()), Stretch(at, at + 1, now, right))
    return done


@given(sizes, budgets, st.sets(st.tuples(st.integers(0, 3), st.integers(0, 29)), max_size=4))
def test_the_oldest_is_read_first_and_everything_in_its_turn(
    lengths: list[int], plan: list[int], bad: set[tuple[int, int]]
) -> None:
    files = [Stored(f"image{number}", size) for number, size in enumerate(lengths)]
    ledger: Ledger = {}
    model = Model(lengths)
    for now, budget in enumerate(plan, 1):
        wanted = model.next(budget)
        assert run(ledger, files, now, budget, bad) == wanted
        for file, at in wanted:
            model.read[file][at], model.right[file][at] = now, (file, at) not in bad
        check(ledger, files, model, now)
        ledger = decode_ledger(encode_ledger(ledger))
    now = len(plan) + 1
    left = sum(row.count(0) for row in model.read)
    if left:
        run(ledger, files, now, left, bad)
    broken = any(file < len(lengths) and at < lengths[file] for file, at in bad)
    assert (oldest_proof(ledger, files, now) is None) == broken


def check(ledger: Ledger, files: list[Stored], model: Model, now: int) -> None:
    times = [when for row in model.read for when in row]
    rights = [right for row in model.right for right in row]
    assert oldest_proof(ledger, files, now) == (min(times) if all(rights) else None)
    for since in range(now + 1):
        proven = sum(right and when >= since for when, right in zip(times, rights, strict=True))
        assert proven_fraction(ledger, files, now, since) == proven / len(times)


@given(sizes, st.integers(1, 40), st.integers(0, 3))
def test_two_halves_are_one_whole(lengths: list[int], half: int, before: int) -> None:
    files = [Stored(f"image{number}", size) for number, size in enumerate(lengths)]
    start: Ledger = {}
    for now in range(1, before + 1):
        run(start, files, now, 7, set())
    whole, halves = dict(start), dict(start)
    read = run(whole, files, 10, 2 * half, set())
    parts = run(halves, files, 10, half, set())
    unread = [byte for byte in run(halves, files, 11, half, set()) if byte not in parts]
    assert set(read) == set(parts) | set(unread)


@given(sizes, budgets, st.integers(1, 5), st.integers(0, 1 << 32))
def test_a_bounded_ledger_never_claims_more(
    lengths: list[int], plan: list[int], most: int, seed: int
) -> None:
    chance, files = random.Random(seed), [Stored(f"i{number}", size) for number, size in enumerate(lengths)]
    model, ledger = Model(lengths), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "MAX_STRETCHES", most)
        for now, _ in enumerate(plan, 1):
            number = chance.randrange(len(files))
            start = chance.randrange(lengths[number])
            end, right = chance.randint(start + 1, lengths[number]), chance.random() < 0.8
            held = recorded(ledger.get(files[number].id, ()), Stretch(start, end, now, right))
            ledger[files[number].id] = held
            assert len(held) <= most
            model.read[number][start:end] = [now] * (end - start)
            model.right[number][start:end] = [right] * (end - start)
            for file, rows in enumerate(model.read):
                for part in ledger.get(files[file].id, ()):
                    assert part.read_ns <= min(rows[part.start : part.end])
                    assert not part.proven or all(model.right[file][part.start : part.end])


def test_a_clock_that_was_wrong_proves_nothing() -> None:
    files = [Stored("a", 10)]
    ledger = {"a": (Stretch(0, 10, 500, proven=True),)}
    assert oldest_proof(ledger, files, 499) is None
    assert [tuple(part) for part in todo(ledger, files, 499, 4)] == [("a", 0, 4)]
    assert oldest_proof(ledger, files, 500) == 500


@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_a_damaged_ledger_is_refused(data: bytes) -> None:
    with contextlib.suppress(CorruptImageError):
        decode_ledger(data)


@pytest.mark.parametrize(
    "rows",
    [[[0, 5, 1, True], [4, 9, 1, True]], [[5, 5, 1, True]], [[0, 5, -1, True]], [[0, 1 << 70, 1, True]]],
)
def test_stretches_that_cannot_be_are_refused(rows: list[list[object]]) -> None:
    with pytest.raises(CorruptImageError):
        decode_ledger(json.dumps({"version": 1, "images": {"a": rows}}).encode())


@lru_cache
def files_of_chain() -> Mapping[str, bytes]:
    chance, storage = random.Random(1), MemoryStorage()
    disk = bytes(mixed_disk(chance, 120))
    for kind in (ImageType.FULL, ImageType.INCREMENTAL, ImageType.INCREMENTAL):
        add_point(storage, disk, kind)
        disk = change(chance, disk, chance.randrange(100), 20)
    return files_of(storage)


def chain() -> MemoryStorage:
    return storage_with(files_of_chain())


def spoil(storage: MemoryStorage, key: str, at: int) -> None:
    with contextlib.closing(storage.open(key)) as device:
        raw = bytearray(device.pread(0, device.size))
    raw[at] ^= 1
    storage.publish(key, bytes(raw), replace=True)


def read_some(storage: MemoryStorage, budget: int | None, now: int, stop: int = -1) -> list[FileReport]:
    left = [stop]

    def stops() -> bool:
        left[0] -= 1
        return left[0] == -1

    with contextlib.closing(Repository(storage)) as repository:
        sets = (repository.image_set(SET),)
        return list(
            prove_oldest(repository, sets, budget=budget, stop=stops, threads=1, clock_ns=lambda: now)
        )


def total_of(storage: MemoryStorage) -> int:
    with contextlib.closing(Repository(storage)) as repository:
        return sum(point.size for point in repository.image_set(SET).points)


@settings(max_examples=15)
@given(st.lists(st.integers(10_000, 300_000), min_size=1, max_size=4))
def test_every_block_is_read_once_whatever_the_budgets_are(plan: list[int]) -> None:
    storage = chain()
    left = total_of(storage)
    with contextlib.closing(Repository(storage)) as repository:
        points = repository.image_set(SET).points
        blocks = sum(report.blocks for report in verify(repository, points))
    read = 0
    for now, budget in enumerate(cycle(plan), 1):
        read += sum(report.blocks for report in read_some(storage, min(budget, left), now))
        left -= min(budget, left)
        with contextlib.closing(Repository(storage)) as repository:
            known, warning = standing(storage, repository.image_set(SET))
        assert warning == ""
        assert (known.oldest_proof(now) == 1) == (left == 0)
        if not left:
            break
    assert read == blocks
    assert len([entry for entry in storage.objects(f"{SET}/") if entry.key.endswith(LEDGER_SUFFIX)]) == 1


@pytest.mark.parametrize("stop", [0, 1, 2, 5])
def test_a_run_that_is_stopped_is_gone_on_with(stop: int) -> None:
    storage = chain()
    read_some(storage, None, 1, stop)
    with contextlib.closing(Repository(storage)) as repository:
        known, _ = standing(storage, repository.image_set(SET))
        done = known.proven_fraction(9)
    assert done < 1
    assert bool(done) == (stop > 0)
    rest = round((1 - done) * total_of(storage))
    read_some(storage, rest, 2)
    with contextlib.closing(Repository(storage)) as repository:
        known, _ = standing(storage, repository.image_set(SET))
        assert known.oldest_proof(9) == (1 if stop else 2)
        assert {point.state for point in repository.image_set(SET).points} == {"verified"}


def test_damage_is_told_in_its_turn_and_stays_unproven() -> None:
    storage = chain()
    with contextlib.closing(Repository(storage)) as repository:
        key, size = max((point.size, point.key) for point in repository.image_set(SET).points)[::-1]
    spoil(storage, key, 4096 + 200)
    damages = 0
    for now in range(1, 200):
        reports = read_some(storage, size // 7, now)
        damages += sum(report.damaged_count for report in reports)
        with contextlib.closing(Repository(storage)) as repository:
            known, _ = standing(storage, repository.image_set(SET))
        assert known.oldest_proof(1000) is None
        if all(part.read_ns for file in known.files for part in known.ledger.get(file.id, ())) and (
            sum(part.end - part.start for held in known.ledger.values() for part in held)
            == sum(file.size for file in known.files)
        ):
            break
    assert 1 <= damages <= 2, "the last run may begin anew"
    assert 0.3 < known.proven_fraction(1000) < 1.0


def test_what_was_read_before_an_interruption_is_kept() -> None:
    storage = chain()
    with contextlib.closing(Repository(storage)) as repository:
        sets, seen = (repository.image_set(SET),), []

        def interrupt(done: int, _name: str) -> None:
            seen.append(done)
            if len(seen) == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            list(prove_oldest(repository, sets, threads=1, report=interrupt, clock_ns=lambda: 7))
        known, _ = standing(storage, sets[0])
    proven = sum(part.end - part.start for held in known.ledger.values() for part in held if part.proven)
    assert proven == seen[-1] > 0


def test_a_ledger_that_is_damaged_is_said_to_be() -> None:
    storage = chain()
    read_some(storage, None, 5)
    (key,) = (entry.key for entry in storage.objects(f"{SET}/") if entry.key.endswith(LEDGER_SUFFIX))
    storage.publish(key, b"{", replace=True)
    with contextlib.closing(Repository(storage)) as repository:
        known, warning = standing(storage, repository.image_set(SET))
    assert "damaged" in warning
    assert known.oldest_proof(10) is None


class ReadOnly(MemoryStorage):
    """Gives everything and takes nothing."""

    def create(self, key: str) -> MemoryObjectWriter:
        raise DestinationReadOnlyError(f"{key}: read-only")


def test_where_nothing_can_be_written_everything_is_read_and_that_is_said() -> None:
    storage, warnings = ReadOnly(), list[str]()
    for key, content in files_of_chain().items():
        storage.publish(key, content)
    with contextlib.closing(Repository(storage)) as repository:
        image_set = repository.image_set(SET)
        blocks = sum(report.blocks for report in verify(repository, image_set.points))
        reports = prove_oldest(repository, (image_set,), threads=1, warn=warnings.append)
        assert sum(report.blocks for report in reports) == blocks
    assert len(warnings) == 1
    assert "cannot be remembered" in warnings[0]
