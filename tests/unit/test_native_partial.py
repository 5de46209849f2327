"""Blocks with BAD sectors, byte by byte: what the map may be, and that nothing else passes for one."""

from __future__ import annotations

import contextlib
import dataclasses
import random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from engine.backup import BackupOptions, backup
from golden.chains import BLOCK, SET, MemorySource, files_of, repository_with
from imageformat.codec import digest
from imageformat.errors import BadSectorError, CorruptImageError, UnsupportedFeatureError
from imageformat.formats.native import structs
from imageformat.formats.native.partial import (
    UNIT,
    is_all_bad,
    make_map,
    map_length,
    pack_partial,
    partial_digest,
    stretches,
    unpack_partial,
)
from imageformat.layer import BlockRef, refuse_difference
from imageformat.repository import Repository
from imageformat.storage.memory import MemoryStorage

RAW = bytes(UNIT) + bytes(range(256)) * 14


@given(
    length=st.integers(1, 9000),
    bad=st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 3000)), max_size=4),
)
def test_a_map_says_what_it_was_made_of(length: int, bad: list[tuple[int, int]]) -> None:
    inside = [(start, min(size, length - start)) for start, size in bad if start < length]
    found = list(stretches(make_map(inside, length), length))
    assert sum(stretch.length for stretch in found) == length
    assert [stretch.start for stretch in found] == [
        sum(s.length for s in found[:at]) for at in range(len(found))
    ]
    units = {start // UNIT for start, _, is_bad in found if is_bad for start in range(start, start + _, UNIT)}
    assert units == {at // UNIT for start, size in inside for at in range(start, start + size)}
    assert is_all_bad(make_map(inside, length), length) == (len(units) == -(-length // UNIT))


def packed(bad_map: bytes, raw: bytes) -> tuple[memoryview, bytes]:
    return memoryview(pack_partial(raw, bad_map, 3)[1]), partial_digest(raw, bad_map)


def test_a_block_comes_back() -> None:
    payload, name = packed(b"\x01", RAW)
    assert unpack_partial(payload, len(RAW), name) == (b"\x01", RAW)
    assert map_length(64 << 10) == 16


@pytest.mark.parametrize(
    ("bad_map", "raw"),
    [
        (b"\x00", RAW),
        (b"\xff", bytes(8 * UNIT)),
        (b"\x02", RAW),
        (b"\x01\x00", RAW),
        (b"", RAW),
    ],
    ids=["none bad", "all bad", "bytes where it is bad", "a long map", "no map"],
)
def test_a_map_that_may_not_be_is_refused(bad_map: bytes, raw: bytes) -> None:
    payload, name = packed(bad_map, raw)
    with pytest.raises(CorruptImageError):
        unpack_partial(payload, len(raw), name)


def test_bits_behind_the_block_are_refused() -> None:
    raw = bytes(UNIT) + b"x" * 100
    payload, name = packed(b"\x05", raw)
    with pytest.raises(CorruptImageError, match="map"):
        unpack_partial(payload, len(raw), name)


@pytest.mark.parametrize("size", [0, 1, 5, 30])
def test_a_payload_cut_short_or_lying_is_refused(size: int) -> None:
    payload, name = packed(b"\x01", RAW)
    with pytest.raises(CorruptImageError):
        unpack_partial(payload[:size], len(RAW), name)
    bomb = memoryview(b"\x01" + zstandard.ZstdCompressor().compress(bytes(1 << 20)))
    with pytest.raises(CorruptImageError, match="states"):
        unpack_partial(bomb, len(RAW), name)


class Faulty(MemorySource):
    """Its first sector cannot be read."""

    smallest_read = UNIT

    def pread(self, offset: int, size: int) -> bytes:
        if offset < UNIT:
            raise BadSectorError("the first sector")
        return super().pread(offset, size)

    read_sectors = pread


def made() -> tuple[str, dict[str, bytes]]:
    """An image of two blocks, the first with a BAD sector."""
    storage = MemoryStorage()
    source = Faulty(random.Random(1).randbytes(2 * BLOCK))
    with contextlib.closing(Repository(storage)) as repository:
        options = BackupOptions(block_size=BLOCK, threads=1)
        key = backup(source, repository, SET, options, origin={"source": "x"}).key
    return key, files_of(storage)


def test_record_and_frame_must_agree_on_bad_sectors() -> None:
    """Else zeros of a BAD sector would be served as if they were its content."""
    _, files = made()
    with repository_with(files) as repository:
        (point,) = repository.image_set(SET).points
        layer = repository.chain(point).layer(0)
        refs = [piece.source for piece in layer.pieces(0, 0, 2 * BLOCK) if isinstance(piece.source, BlockRef)]
        assert [(ref.block, ref.partial) for ref in refs] == [(0, True), (1, False)]
        for ref in refs:
            with pytest.raises(CorruptImageError):
                layer.load((ref._replace(partial=not ref.partial),), refuse_difference)


def test_a_reader_that_lacks_it_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    key, files = made()
    header = structs.unpack_header(files[key][:4096], key)
    assert header.incompatible == structs.PARTIAL_BLOCKS
    monkeypatch.setattr(structs, "KNOWN_INCOMPATIBLE", structs.DELTA_FRAMES)
    with pytest.raises(UnsupportedFeatureError, match="needs blocks with unreadable sectors"):
        structs.unpack_header(files[key][:4096], key)


def test_the_header_names_it_only_where_it_is_needed() -> None:
    header = dataclasses.replace(structs.unpack_header(made()[1].popitem()[1][:4096], "x"), incompatible=0)
    assert structs.with_partial_blocks(header).incompatible == structs.PARTIAL_BLOCKS
    named = structs.with_partial_blocks(structs.with_partial_blocks(header))
    assert [data for _, data in named.extensions].count(structs.PARTIAL_BLOCKS_NAME[1]) <= 2
    assert digest(structs.pack_header(named)[:4080]) == structs.pack_header(named)[4080:]
