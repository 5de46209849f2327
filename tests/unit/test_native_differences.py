"""Blocks stored as what differs from an older version: small, proven, two decodes at most."""

from __future__ import annotations

import random
from concurrent.futures import Future

import pytest

from engine.verify import verify
from golden.chains import (
    BLOCK,
    MadeChain,
    add_point,
    make_chain,
    points_by_key,
    read_point,
    repository_with,
)
from golden.second_reader import Image
from imageformat.codec import Codec, decode_delta, digest, encode_delta
from imageformat.errors import CorruptImageError, MountfsError, UnsupportedFeatureError
from imageformat.formats.native import structs
from imageformat.formats.native.structs import (
    HEADER_SIZE,
    RECORD_SIZE,
    FrameHeader,
    Record,
    State,
    pack_frame,
    pack_record,
    peek_frame,
    unpack_record,
)
from imageformat.layer import ImageType
from imageformat.storage.memory import MemoryStorage
from imageformat.view import ImageView

FULL, INC = ImageType.FULL, ImageType.INCREMENTAL


def touched(disk: bytes, at: int, word: bytes) -> bytes:
    return disk[:at] + word + disk[at + len(word) :]


def made() -> MadeChain:
    """A full that does not compress, and four points that each write a word into block 3."""
    first = random.Random(11).randbytes(40 * BLOCK + 5000)
    disks = [first]
    for number in range(4):
        disks.append(touched(disks[-1], 3 * BLOCK + 50 * number, b"word %d" % number))
    return make_chain([(INC if number else FULL, disk) for number, disk in enumerate(disks)])


MADE = made()


def blocks_of(image: bytes) -> list[tuple[int, int, int, bytes]]:
    """(number, codec, length, payload) of every block frame."""
    return [(f.number, f.codec, f.length, f.payload) for f in Image(image).scan() if f.kind == 1]


def test_whole_blocks_are_what_was_asked_for() -> None:
    """Such an image needs no reader that knows differences; the next may hold some again."""
    storage = MemoryStorage()
    for number, disk in enumerate(MADE.disks[:3]):
        kind = INC if number else FULL
        key = add_point(storage, disk, kind, differences=number == 2)
        device = storage.open(key)
        image = device.pread(0, device.size)
        codecs = {codec for _, codec, _, _ in blocks_of(image)}
        assert (Codec.DELTA in codecs) == (number == 2)
        assert (structs.unpack_header(image[:HEADER_SIZE], key).incompatible != 0) == (number == 2)


def test_a_word_costs_a_word_at_any_length_of_the_chain() -> None:
    for number, key in enumerate(MADE.keys):
        blocks = blocks_of(MADE.files[key])
        if number == 0:
            assert all(codec != Codec.DELTA for _, codec, _, _ in blocks)
            continue
        ((block, codec, length, payload),) = blocks
        assert (block, codec) == (3, Codec.DELTA)
        assert length < 300
        assert unpack_record(payload, 0).layer == 0, "the reference is the plain block of the full"


def test_every_point_reads_right_and_verifies() -> None:
    with repository_with(MADE.files) as repository:
        points = points_by_key(repository)
        for key, disk in zip(MADE.keys, MADE.disks, strict=True):
            assert read_point(repository, points[key]) == disk
        reports = list(verify(repository, list(points.values())))
    assert [report.damages for report in reports] == [()] * 5
    assert [report.blocks for report in reports] == [42, 1, 1, 1, 1]


def test_an_older_reader_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structs, "KNOWN_INCOMPATIBLE", 0)
    structs.unpack_header(MADE.files[MADE.keys[0]][:HEADER_SIZE], "full")
    with pytest.raises(UnsupportedFeatureError, match="sub-block deltas"):
        structs.unpack_header(MADE.files[MADE.keys[1]][:HEADER_SIZE], "inc")


def frame_at(image: bytes, block: int) -> tuple[int, int]:
    frame = next(f for f in Image(image).scan() if f.kind == 1 and f.number == block)
    return frame.offset, frame.length


def test_a_damaged_reference_is_the_damage_of_its_own_file() -> None:
    image = bytearray(MADE.files[MADE.keys[0]])
    offset, length = frame_at(bytes(image), 3)
    image[offset + length - 1] ^= 1
    files = {**MADE.files, MADE.keys[0]: bytes(image)}
    with repository_with(files) as repository:
        points = points_by_key(repository)
        found = {
            r.point.key: [d.disk_offset for d in r.damages] for r in verify(repository, [*points.values()])
        }
        assert found == {key: [3 * BLOCK] if key == MADE.keys[0] else [] for key in MADE.keys}
        for key in MADE.keys:
            with pytest.raises(CorruptImageError, match=r"0001-full.*block 3 "):
                read_point(repository, points[key])


def test_what_cannot_be_read_is_not_built_on() -> None:
    """The full is damaged and nobody knows: the block is stored plainly, and is right in the new point."""
    image = bytearray(MADE.files[MADE.keys[0]])
    offset, length = frame_at(bytes(image), 3)
    image[offset + length - 1] ^= 1
    storage = MemoryStorage()
    for key, content in {**MADE.files, MADE.keys[0]: bytes(image)}.items():
        storage.publish(key, content)
    disk = touched(MADE.disks[-1], 3 * BLOCK, b"rescued")
    key = add_point(storage, disk, INC)
    device = storage.open(key)
    ((number, codec, *_),) = blocks_of(device.pread(0, device.size))
    assert (number, codec) == (3, Codec.STORED)


def test_a_block_that_changed_its_length_is_stored_plainly() -> None:
    longer = MADE.disks[0] + b"tail"
    chain = make_chain([(FULL, MADE.disks[0]), (INC, longer), (INC, touched(longer, 41 * BLOCK, b"x"))])
    codecs = [codec for _, codec, _, _ in blocks_of(chain.files[chain.keys[1]])]
    assert Codec.DELTA not in codecs
    with repository_with(chain.files) as repository:
        for key, point in points_by_key(repository).items():
            assert read_point(repository, point) == chain.disks[chain.keys.index(key)]


def exchanged(image: bytes, payload: bytes) -> bytes:
    """The image with another difference in the same place, padded by nothing: lengths must agree."""
    offset, length = frame_at(image, 3)
    header = peek_frame(image[offset : offset + 64])
    assert header is not None
    assert len(payload) + 64 == length
    frame = pack_frame(
        FrameHeader(header.kind, Codec.DELTA, len(payload), BLOCK, 3, header.image_id, header.digest),
        payload,
    )
    return image[:offset] + frame + image[offset + length :]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("itself", lambda record: record._replace(layer=2)),
        ("a younger image", lambda record: record._replace(layer=4)),
        ("zeros", lambda record: record._replace(state=State.ZERO)),
        ("a page", lambda record: record._replace(state=State.PAGE)),
        ("another content", lambda record: record._replace(digest=bytes(16))),
        ("another place", lambda record: record._replace(offset=record.offset + 1)),
        ("the header", lambda record: record._replace(offset=0)),
        ("no bytes", lambda record: record._replace(length=0)),
    ],
)
def test_a_difference_from_something_else_is_refused(name: str, change: object) -> None:
    image = MADE.files[MADE.keys[2]]
    ((_, _, _, payload),) = blocks_of(image)
    record = change(unpack_record(payload, 0))  # type: ignore[operator]
    forged = exchanged(image, pack_record(record) + payload[RECORD_SIZE:])
    with repository_with({**MADE.files, MADE.keys[2]: forged}) as repository:
        view = ImageView(repository.chain(points_by_key(repository)[MADE.keys[2]]), repository.cache)
        with pytest.raises(CorruptImageError):
            view.pread(3 * BLOCK, 10)
        assert view.pread(4 * BLOCK, 10) == MADE.disks[2][4 * BLOCK : 4 * BLOCK + 10], name


def test_a_difference_from_a_difference_is_refused() -> None:
    younger, older = (MADE.files[MADE.keys[at]] for at in (2, 1))
    ((_, _, _, payload),) = blocks_of(younger)
    offset, length = frame_at(older, 3)
    header = peek_frame(older[offset : offset + 64])
    assert header is not None
    record = Record(header.digest, offset, length, State.DATA, 1)
    forged = exchanged(younger, pack_record(record) + payload[RECORD_SIZE:])
    with repository_with({**MADE.files, MADE.keys[2]: forged}) as repository:
        view = ImageView(repository.chain(points_by_key(repository)[MADE.keys[2]]), repository.cache)
        with pytest.raises(CorruptImageError, match="difference from a difference"):
            view.pread(3 * BLOCK, 10)


def test_a_reader_never_waits_for_another_one_that_loads_the_reference() -> None:
    """Each would wait for the other if both loaded a difference and the other's reference."""
    with repository_with(MADE.files) as repository:
        points = points_by_key(repository)
        base = ImageView(repository.chain(points[MADE.keys[0]]), repository.cache)
        seen: list[object] = []
        original = repository.cache.get_many
        repository.cache.get_many = lambda keys, load: (seen.extend(keys), original(keys, load))[1]  # type: ignore[method-assign]
        base.pread(3 * BLOCK, 1)
        (key,) = (key for key in seen if isinstance(key, tuple) and isinstance(key[1], int))
        repository.cache.get_many = original  # type: ignore[method-assign]
        repository.cache._values.clear()
        repository.cache._flights[key] = Future()
        view = ImageView(repository.chain(points[MADE.keys[1]]), repository.cache)
        assert view.pread(3 * BLOCK, BLOCK) == MADE.disks[1][3 * BLOCK : 4 * BLOCK]


@pytest.mark.parametrize("size", [4096, 65536, 1 << 20, 4 << 20])
def test_the_codec_gives_back_what_it_took(size: int) -> None:
    chance = random.Random(size)
    older = chance.randbytes(size)
    for raw in (older, touched(older, size // 2, b"new"), chance.randbytes(size), bytes(size)):
        packed = encode_delta(raw, older)
        assert digest(decode_delta(packed, size, older)) == digest(raw)
        with pytest.raises(MountfsError):
            decode_delta(packed, size + 1, older)
    assert len(encode_delta(touched(older, size // 2, b"new"), older)) <= max(100, size // 512)
