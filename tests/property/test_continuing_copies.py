"""What an earlier copy brought is used where it is right, and only there, whatever is left of it."""

from __future__ import annotations

import hashlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.copying import CopyItem
from engine.filecopy import content_identity
from imageformat.storage import _s3writer, localwriter
from imageformat.storage.local import LocalStorage
from imageformat.storage.unfinished import KEPT_S, is_kept, name_of_copy
from support.content import noise

IDENTITY = "0123456789abcdef" * 2
WRITER = "f" * 32
PART = 1000
SOURCE = noise(5, 10_300)
FATES = ("missing", "right", "tampered", "short", "empty")


def pieces(content: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    return [content[start:end] for start, end in pairwise(places)]


class OneUpload:
    """A server that has one upload and counts what it is sent."""

    def __init__(self, parts: dict[int, bytes]) -> None:
        self.held = parts
        self.came: list[int] = []
        self.made: bytes | None = None
        self.notes: set[str] = {"note"}

    def parts(self, _key: str, _upload: str) -> dict[int, tuple[int, str]]:
        return {
            number: (len(data), f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"')
            for number, data in self.held.items()
        }

    def put(self, key: str, _content: bytes, **_options: object) -> None:
        self.notes.add(key)

    def put_part(self, _key: str, _upload: str, number: int, content: bytes) -> str:
        self.came.append(number)
        self.held[number] = content
        return self.parts("", "")[number][1]

    def complete(self, _key: str, _upload: str, etags: list[str]) -> None:
        known = self.parts("", "")
        assert etags == [known[number][1] for number in range(1, len(etags) + 1)]
        self.made = b"".join(self.held[number] for number in range(1, len(etags) + 1))

    def head(self, _key: str) -> SimpleNamespace | None:
        return None if self.made is None else SimpleNamespace(writer=WRITER, size=len(self.made))

    def delete(self, key: str) -> None:
        self.notes.discard(key)


@settings(max_examples=60, deadline=None)
@given(
    fates=st.lists(st.sampled_from(FATES), min_size=12, max_size=12),
    cuts=st.lists(st.integers(0, 20_000), max_size=20),
)
def test_parts_of_an_upload(fates: list[str], cuts: list[int]) -> None:
    left = {}
    for number, fate in enumerate(fates, 1):
        right = SOURCE[(number - 1) * PART : number * PART]
        flipped = bytes([right[0] ^ 1]) + right[1:] if right else b"x"
        made = {"right": right, "tampered": flipped, "short": right[:-1], "empty": b""}
        if fate in made:
            left[number] = made[fate]
    wrong = [number for number in range(1, 12) if fates[number - 1] != "right"]
    bucket = OneUpload(left)
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(_s3writer, "_PART_SIZES", ((100, PART),))
        storage = SimpleNamespace(
            bucket=bucket, url="s3://x", pool=pool, full_key=str, check_lease=lambda _key: None
        )
        writer = _s3writer.S3ContinuingWriter(storage, "one", "note", _s3writer.Kept(WRITER, "upload"))
        for piece in pieces(SOURCE, cuts):
            writer.append(piece)
        writer.commit()
        writer.abort()
    assert bucket.made == SOURCE
    assert sorted(bucket.came) == wrong, "what is right is not sent, what is not is"
    assert writer.sent == sum(len(SOURCE[(number - 1) * PART : number * PART]) for number in wrong)
    assert writer.reused + writer.sent == len(SOURCE)
    assert bucket.notes == set()


@settings(max_examples=40, deadline=None)
@given(
    kept=st.integers(0, len(SOURCE)),
    damage=st.none() | st.integers(0, len(SOURCE) - 1),
    extra=st.binary(max_size=3),
    cuts=st.lists(st.integers(0, 20_000), max_size=20),
    stop=st.integers(0, 20),
)
def test_a_part_file(kept: int, damage: int | None, extra: bytes, cuts: list[int], stop: int) -> None:
    """Cut, flipped, or longer than it should be; and a run that stops in the middle harms nothing."""
    left = bytearray(SOURCE[:kept] + extra)
    if damage is not None and damage < len(left):
        left[damage] ^= 1
    both = enumerate(zip(left, SOURCE, strict=False))
    right = next((at for at, (a, b) in both if a != b), min(len(left), len(SOURCE)))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(localwriter, "_BUFFER", 3000)
        storage = LocalStorage(Path(folder))
        with storage.exclusive("set/"):
            (Path(folder) / "set" / name_of_copy(IDENTITY)).write_bytes(left)
        with storage.exclusive("set/"):
            first = storage.go_on("set/x", IDENTITY)
            for piece in pieces(SOURCE, cuts)[:stop]:
                first.append(piece)
            assert first.reused <= right
            assert first.suspend() or not first.position
        with storage.exclusive("set/"):
            writer = storage.go_on("set/x", IDENTITY)
            other = storage.go_on("set/y", IDENTITY[::-1])
            for piece in pieces(SOURCE, cuts):
                writer.append(piece)
                other.append(piece)
            writer.commit()
            other.commit()
        assert (Path(folder) / "set" / "x").read_bytes() == SOURCE
        assert (Path(folder) / "set" / "y").read_bytes() == SOURCE
        assert other.reused == 0, "what was brought of another file is not looked at"
        assert writer.reused + writer.sent == len(SOURCE)
        if damage is None and not extra:
            assert writer.reused >= right
        assert not list((Path(folder) / "set").glob(".*.part"))


@settings(max_examples=30)
@given(age=st.floats(-1e6, 1e9), name=st.text() | st.just(name_of_copy(IDENTITY)))
def test_what_is_swept_up(age: float, name: str) -> None:
    assert is_kept(name, age) == (name == name_of_copy(IDENTITY) and age <= KEPT_S)


def test_what_tells_one_file_from_another() -> None:
    def identity(key: str, size: int, id_: int, root: bytes) -> str:
        info = SimpleNamespace(id=UUID(int=id_), root=root)
        return content_identity(CopyItem(key, size, SimpleNamespace(info=info, is_foreign=False)), 5)

    base = ("set/a", 7, 1, b"r")
    others = [("set/b", 7, 1, b"r"), ("set/a", 8, 1, b"r"), ("set/a", 7, 2, b"r"), ("set/a", 7, 1, b"s")]
    foreign = [content_identity(CopyItem("set/a", 7, None), ns) for ns in (5, 6)]
    found = [identity(*facts) for facts in (base, *others)] + foreign
    assert len(set(found)) == len(found)
    assert all(is_kept(name_of_copy(each), 0) for each in found)
