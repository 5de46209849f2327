"""Damaged native files: every byte served is right or an error is raised, and verify names every damage."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from functools import cache

import pytest

from engine.verify import FileReport, verify
from golden.chains import (
    BLOCK,
    MadeChain,
    change,
    make_chain,
    points_by_key,
    read_point,
    repository_with,
)
from golden.second_reader import FOOTER, FRAME, HEADER, Frame, Image
from imageformat.errors import IncompleteImageError, MountfsError, error_classes
from imageformat.layer import ImageType
from imageformat.repository import Point, Repository
from imageformat.view import ImageView

BLOCKS = 300
"""More than one leaf page of 256: the index has two levels."""
FULL, INC, DIFF, INC_ON_DIFF = range(4)
DEPENDS = {FULL: {FULL}, INC: {FULL, INC}, DIFF: {FULL, DIFF}, INC_ON_DIFF: {FULL, DIFF, INC_ON_DIFF}}
KNOWN_ERRORS = {kind.__name__ for kind in error_classes()}


@cache
def chain() -> MadeChain:
    """Full, incremental, differential, and an incremental on the differential: small files, two levels."""
    chance = random.Random(3)
    disk = bytearray(BLOCKS * BLOCK + 77)
    for block in (0, 1, 2, 255, 256, 299):
        disk[block * BLOCK : block * BLOCK + 3000] = chance.randbytes(16) * (3000 // 16) + bytes(8)
    disk[7 * BLOCK : 8 * BLOCK] = chance.randbytes(BLOCK)
    disk[-77:] = chance.randbytes(77)
    second = change(chance, bytes(disk), 40)
    third = bytes(change(chance, bytes(disk), 258))
    fourth = bytes(third[:BLOCK] + bytes(BLOCK) + third[2 * BLOCK : -77] + chance.randbytes(77))
    return make_chain(
        [
            (ImageType.FULL, bytes(disk)),
            (ImageType.INCREMENTAL, second),
            (ImageType.DIFFERENTIAL, third),
            (ImageType.INCREMENTAL, fourth),
        ]
    )


def frames(which: int) -> list[Frame]:
    return list(Image(chain().files[chain().keys[which]]).scan())


def flipped(which: int, at: int, bit: int) -> dict[str, bytes]:
    key = chain().keys[which]
    content = bytearray(chain().files[key])
    content[at] ^= 1 << bit
    return {**chain().files, key: bytes(content)}


def check_reads(files: dict[str, bytes], damaged: int) -> int:
    """Every point reads right or not at all; points that do not depend on the damaged file read right."""
    refused = 0
    with repository_with(files, capacity=0) as repository:
        points = points_by_key(repository)
        for index, key in enumerate(chain().keys):
            if key not in points:
                continue
            try:
                content = read_point(repository, points[key])
            except MountfsError:
                assert damaged in DEPENDS[index], f"point {index + 1} does not depend on the damaged file"
                refused += 1
            else:
                assert content == chain().disks[index], f"point {index + 1} has wrong bytes"
    return refused


def reports(files: dict[str, bytes], which: int) -> FileReport:
    with repository_with(files, capacity=0) as repository:
        return next(iter(verify(repository, [points_by_key(repository)[chain().keys[which]]], threads=1)))


def check_flip(which: int, at: int, bit: int) -> None:
    """One flipped bit: right or refused, reported by verify, and reported where it is."""
    files = flipped(which, at, bit)
    frame = next((f for f in frames(which) if f.offset <= at < f.offset + f.length), None)
    refused = check_reads(files, which)
    report = reports(files, which)
    assert report.damaged_count == len(report.damages) > 0, f"byte {at} bit {bit} is not reported"
    assert {damage.error for damage in report.damages} <= KNOWN_ERRORS
    if frame is None:
        assert refused >= 1, "header and footer are proven when the file is opened"
        assert report.blocks == 0
    elif frame.kind == 1:
        assert refused >= 1
        (damage,) = report.damages
        assert (damage.disk_offset, damage.length) == (frame.number * BLOCK, frame.raw_length)
        assert f"block {frame.number} " in damage.message
    elif frame.kind == 2:
        assert refused >= 1
        level, page = frame.number >> 56, frame.number & (1 << 56) - 1
        size, first = BLOCK * 256 ** (level + 1), page * BLOCK * 256 ** (level + 1)
        ranges = sorted((d.disk_offset, d.length) for d in report.damages if d.disk_offset is not None)
        assert ranges[0][0] == first
        assert sum(length for _, length in ranges) == min(size, len(chain().disks[which]) - first)


def structure(which: int, *, payload_step: int) -> Iterator[int]:
    """Offsets of header, footer, frame headers, pages and ancestors; of a sample of block payloads."""
    size = len(chain().files[chain().keys[which]])
    yield from (*range(512), *range(512, HEADER, 61), *range(HEADER - 16, HEADER))
    for frame in frames(which):
        yield from range(frame.offset, frame.offset + FRAME)
        step = payload_step if frame.kind == 1 else 5
        yield from range(frame.offset + FRAME, frame.offset + frame.length, step)
        yield frame.offset + frame.length - 1
    yield from (at for at in range(size - FOOTER, size) if at % 3 == 0 or at < size - FOOTER + 216)


def test_the_chain_is_what_the_tests_need() -> None:
    with repository_with(chain().files) as repository:
        points = points_by_key(repository)
        assert [read_point(repository, points[key]) for key in chain().keys] == chain().disks
    for which in range(4):
        kinds = [(frame.kind, frame.number >> 56) for frame in frames(which)]
        assert (2, 1) in kinds
        assert (2, 0) in kinds
        assert reports(chain().files, which).damages == ()
        assert which == FULL or (3, 0) in kinds
    assert {frame.codec for frame in frames(FULL) if frame.kind == 1} == {0, 1}


@pytest.mark.parametrize("which", [FULL, DIFF, INC_ON_DIFF])
def test_flipped_bits(which: int) -> None:
    chance = random.Random(which)
    for at in structure(which, payload_step=101):
        check_flip(which, at, chance.randrange(8))


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("which", [FULL, INC, DIFF, INC_ON_DIFF])
def test_a_flipped_bit_in_every_byte(which: int) -> None:
    for at in range(len(chain().files[chain().keys[which]])):
        check_flip(which, at, at * 5 % 8)


def test_only_the_damaged_block_is_lost() -> None:
    for frame in frames(FULL):
        if frame.kind != 1:
            continue
        files = flipped(FULL, frame.offset + frame.length - 1, 0)
        with repository_with(files) as repository:
            point = points_by_key(repository)[chain().keys[FULL]]
            assert unreadable_blocks(repository, point, chain().disks[FULL]) == {frame.number}


def test_only_the_blocks_of_a_damaged_page_are_lost() -> None:
    for frame in frames(FULL):
        if frame.kind == 2 and frame.number >> 56 == 0:
            files = flipped(FULL, frame.offset + FRAME + 3, 0)
            with repository_with(files) as repository:
                point = points_by_key(repository)[chain().keys[FULL]]
                lost = unreadable_blocks(repository, point, chain().disks[FULL])
            first = frame.number * 256
            assert lost == set(range(first, min(first + 256, BLOCKS + 1)))


def unreadable_blocks(repository: Repository, point: Point, disk: bytes) -> set[int]:
    lost = set()
    for block in range(-(-len(disk) // BLOCK)):
        try:
            found = read_block(repository, point, block, len(disk))
        except MountfsError:
            lost.add(block)
        else:
            assert found == disk[block * BLOCK : (block + 1) * BLOCK]
    return lost


def read_block(repository: Repository, point: Point, block: int, size: int) -> bytes:
    view = ImageView(repository.chain(point), repository.cache)
    return view.pread(block * BLOCK, min(BLOCK, size - block * BLOCK))


@pytest.mark.parametrize("which", [FULL, DIFF])
def test_cut_files(which: int) -> None:
    """At every border, beside every border, and anywhere: the file is not a point, the others are."""
    key, chance = chain().keys[which], random.Random(5)
    content = chain().files[key]
    borders = {0, 1, 8, HEADER, HEADER + FOOTER, len(content) - FOOTER, len(content) - 16}
    borders |= {at for frame in frames(which) for at in (frame.offset, frame.offset + FRAME)}
    lengths = {near for at in borders for near in (at - 1, at, at + 1) if 0 <= near < len(content)}
    lengths |= {chance.randrange(len(content)) for _ in range(200)}
    for length in sorted(lengths):
        files = {**chain().files, key: content[:length]}
        dependents = sum(which in DEPENDS[index] for index in range(4))
        assert check_reads(files, which) == dependents
        report = reports(files, which)
        assert [damage.error for damage in report.damages] == ["IncompleteImageError"], length


def test_a_file_cut_inside_is_called_incomplete() -> None:
    key = chain().keys[INC]
    files = {**chain().files, key: chain().files[key][:-1]}
    with repository_with(files) as repository:
        point = points_by_key(repository)[key]
        assert point.state == "broken"
        with pytest.raises(IncompleteImageError):
            repository.chain(point)


@pytest.mark.parametrize("which", [FULL, INC_ON_DIFF])
def test_bytes_after_the_end_are_refused(which: int) -> None:
    key, chance = chain().keys[which], random.Random(6)
    content = chain().files[key]
    tails = [b"\0", bytes(512), content[-FOOTER:], chance.randbytes(4096), content, content[-FOOTER:] * 2]
    tails += [chance.randbytes(chance.randrange(1, 9000)) for _ in range(20)]
    for tail in tails:
        files = {**chain().files, key: content + tail}
        assert check_reads(files, which) == sum(which in DEPENDS[index] for index in range(4))
        assert reports(files, which).damaged_count == 1


def test_inserted_and_removed_bytes_are_refused() -> None:
    key, chance = chain().keys[FULL], random.Random(7)
    content = chain().files[key]
    for _ in range(150):
        at, length = chance.randrange(len(content)), chance.randrange(1, 600)
        for damaged in (
            content[:at] + chance.randbytes(length) + content[at:],
            content[:at] + content[at + length :],
        ):
            files = {**chain().files, key: damaged}
            assert check_reads(files, FULL) == 4
            assert reports(files, FULL).damaged_count > 0


def test_swapped_frames() -> None:
    """Frames of equal length at each other's place, inside a file and between files: found out."""
    chance = random.Random(8)
    for _ in range(500):
        one, two = chance.randrange(4), chance.randrange(4)
        first, second = chance.choice(frames(one)), chance.choice(frames(two))
        length = min(first.length, second.length)
        contents = {index: bytearray(chain().files[chain().keys[index]]) for index in (one, two)}
        kept = bytes(contents[one][first.offset : first.offset + length])
        other = bytes(contents[two][second.offset : second.offset + length])
        contents[one][first.offset : first.offset + length] = other
        contents[two][second.offset : second.offset + length] = kept
        files = {**chain().files, **{chain().keys[i]: bytes(content) for i, content in contents.items()}}
        for index in range(4):
            touched = DEPENDS[index] & {one, two}
            with repository_with(files, capacity=0) as repository:
                point = points_by_key(repository)[chain().keys[index]]
                try:
                    assert read_point(repository, point) == chain().disks[index]
                except MountfsError:
                    assert touched
        for index in {one, two}:
            same = contents[index] == chain().files[chain().keys[index]]
            assert (reports(files, index).damaged_count == 0) == same


def test_random_overwrites() -> None:
    """Runs of zeros, ones and noise over any place, as failing media leave them."""
    chance = random.Random(9)
    for _ in range(200):
        which = chance.randrange(4)
        key = chain().keys[which]
        content = bytearray(chain().files[key])
        at = chance.randrange(len(content)) // chance.choice([1, 512, 4096]) * 512 % len(content)
        length = min(len(content) - at, chance.choice([1, 16, 512, 4096]))
        content[at : at + length] = chance.choice([bytes(length), b"\xff" * length, chance.randbytes(length)])
        files = {**chain().files, key: bytes(content)}
        check_reads(files, which)
        same = bytes(content) == chain().files[key]
        assert (reports(files, which).damaged_count == 0) == same


def test_a_warm_cache_does_not_hide_damage_from_verify() -> None:
    """What was read before the medium failed is read again: pages too."""
    key = chain().keys[FULL]
    for frame in frames(FULL):
        with contextlib.ExitStack() as stack:
            repository = stack.enter_context(repository_with(chain().files))
            point = points_by_key(repository)[key]
            read_point(repository, point)
            content = bytearray(chain().files[key])
            content[frame.offset + FRAME] ^= 1
            repository.storage.publish(key, bytes(content), replace=True)
            report = next(iter(verify(repository, [point], threads=1)))
            assert report.damaged_count > 0, f"frame of kind {frame.kind} at {frame.offset}"
