"""Two files that claim to be one image: the right one is found, and a plain copy breaks nothing."""

from __future__ import annotations

import dataclasses

import pytest

from engine.verify import points_of_chain, verify
from golden.chains import (
    SET,
    MadeChain,
    add_point,
    make_chain,
    points_by_key,
    read_point,
    repository_with,
    storage_with,
)
from imageformat.codec import digest
from imageformat.errors import ParentMismatchError, ParentMissingError
from imageformat.formats.native.structs import (
    FOOTER_SIZE,
    HEADER_SIZE,
    pack_footer,
    pack_header,
    unpack_footer,
    unpack_header,
)
from imageformat.layer import ImageType
from imageformat.repository import Repository
from support.content import noise

FULL, INC, LAST = range(3)
FIRST, AFTER = f"{SET}/0000-copy.mfi", f"{SET}/zzzz-copy.mfi"
"""Names before and after all others: the order of a listing must not decide."""


@pytest.fixture(scope="module")
def made() -> MadeChain:
    disk = noise(1, 40_000)
    changed = noise(2, 5000) + disk[5000:]
    return make_chain(
        [
            (ImageType.FULL, disk),
            (ImageType.INCREMENTAL, changed),
            (ImageType.INCREMENTAL, changed[:30_000] + noise(3, 10_000)),
        ]
    )


def disguised(content: bytes, as_content: bytes) -> bytes:
    """An image with the id and set of another one, and its own root."""
    wanted = unpack_header(as_content[:HEADER_SIZE], "x")
    header = unpack_header(content[:HEADER_SIZE], "x")
    packed = pack_header(dataclasses.replace(header, image_id=wanted.image_id, set_id=wanted.set_id))
    footer = unpack_footer(content[-FOOTER_SIZE:], len(content), "x")
    footer = dataclasses.replace(footer, header_digest=digest(packed), image_id=wanted.image_id)
    return packed + content[HEADER_SIZE:-FOOTER_SIZE] + pack_footer(footer)


@pytest.fixture(scope="module")
def impostor(made: MadeChain) -> bytes:
    other = make_chain([(ImageType.FULL, noise(9, 40_000))])
    return disguised(other.files[other.keys[0]], made.files[made.keys[FULL]])


@pytest.mark.parametrize("name", [FIRST, AFTER])
def test_an_impostor_does_not_hide_the_parent(made: MadeChain, impostor: bytes, name: str) -> None:
    with repository_with(made.files | {name: impostor}) as repository:
        found = points_by_key(repository)
        assert len(found) == 4
        for key, disk in zip(made.keys, made.disks, strict=True):
            assert found[key].problem is None
            assert read_point(repository, found[key]) == disk
        assert [point.key for point in points_of_chain(found[made.keys[LAST]], found.values())] == made.keys
        reports = list(verify(repository, list(found.values()), threads=1))
        assert {report.point.key for report in reports if report.damages} == {name}, "its frames name another"


def test_an_impostor_alone_is_no_parent(made: MadeChain, impostor: bytes) -> None:
    files = {**made.files, made.keys[FULL]: impostor}
    with repository_with(files) as repository:
        found = points_by_key(repository)
        with pytest.raises(ParentMismatchError):
            repository.chain(found[made.keys[LAST]])
        chain = repository.chain(dataclasses.replace(found[made.keys[LAST]], problem=None))
        with pytest.raises(ParentMismatchError, match="put its file back"):
            chain.prove()
    del files[made.keys[FULL]]
    with repository_with(files) as repository:
        found = points_by_key(repository)
        chain = repository.chain(dataclasses.replace(found[made.keys[LAST]], problem=None))
        with pytest.raises(ParentMissingError):
            chain.prove()


@pytest.mark.parametrize("which", [FULL, INC, LAST])
@pytest.mark.parametrize("name", [FIRST, AFTER])
def test_a_plain_copy_breaks_nothing(made: MadeChain, which: int, name: str) -> None:
    files = made.files | {name: made.files[made.keys[which]]}
    storage = storage_with(files)
    repository = Repository(storage)
    found = points_by_key(repository)
    assert len(found) == 4, "both are shown"
    for key, disk in zip((*made.keys, name), (*made.disks, made.disks[which]), strict=True):
        assert read_point(repository, found[key]) == disk
    reports = list(verify(repository, list(found.values()), threads=1))
    assert [report.damages for report in reports] == [()] * 4
    assert {point.state for point in points_by_key(repository).values()} == {"verified"}
    add_point(storage, made.disks[LAST], ImageType.INCREMENTAL)
    assert [point.problem for point in points_by_key(repository).values()] == [None] * 5


@pytest.mark.parametrize("name", [FIRST, AFTER])
def test_of_two_copies_the_undamaged_one_is_used(made: MadeChain, name: str) -> None:
    damaged = bytearray(made.files[made.keys[FULL]])
    damaged[22_700] ^= 1  # in a block that only the full image has
    with repository_with(made.files | {name: bytes(damaged)}) as repository:
        list(verify(repository, list(points_by_key(repository).values()), threads=1))
        found = points_by_key(repository)
        assert {key: point.state for key, point in found.items()} == {
            **dict.fromkeys(made.keys, "verified"),
            name: "damaged",
        }
        assert read_point(repository, found[made.keys[LAST]]) == made.disks[LAST]
