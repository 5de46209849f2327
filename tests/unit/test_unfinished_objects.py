"""Objects that outlast their writer: against a bytearray, and when the system fails."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imageformat.errors import DestinationError, DestinationFullError
from imageformat.storage import localwriter
from imageformat.storage.local import LocalStorage
from imageformat.storage.unfinished import ResumableStorage, ResumableWriter

operations = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.binary(max_size=9000)),
        st.tuples(st.just("overwrite"), st.integers(0, 20_000), st.binary(max_size=9000)),
        st.tuples(st.just("cut"), st.integers(0, 20_000)),
        st.tuples(st.just("read"), st.integers(0, 20_000), st.integers(0, 20_000)),
        st.tuples(st.just("resume")),
    ),
    max_size=12,
)


@settings(max_examples=60)
@given(plan=operations)
def test_an_unfinished_object_is_the_bytes_that_were_written(plan: list) -> None:
    model = bytearray()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(localwriter, "_BUFFER", 5000)
        storage = LocalStorage(Path(folder))
        assert isinstance(storage, ResumableStorage)
        with storage.exclusive("set/"):
            writer = storage.create_resumable("set/x")
            assert isinstance(writer, ResumableWriter)
            for name, *arguments in plan:
                if name == "append":
                    writer.append(arguments[0])
                    model += arguments[0]
                elif name == "overwrite":
                    at = min(arguments[0], len(model))
                    data = arguments[1][: len(model) - at]
                    writer.overwrite(at, data)
                    model[at : at + len(data)] = data
                elif name == "cut":
                    at = min(arguments[0], len(model))
                    writer.cut(at)
                    del model[at:]
                elif name == "read":
                    at = min(arguments[0], len(model))
                    size = min(arguments[1], len(model) - at)
                    assert writer.read(at, size) == model[at : at + size]
                else:
                    assert writer.suspend()
                    assert storage.unfinished("set/") == ["set/x"]
                    writer = storage.resume("set/x", "set/x")
                assert writer.position == len(model)
            writer.commit()
        assert Path(folder, "set", "x").read_bytes() == model
        assert storage.unfinished("set/") == []


def failing(code: int) -> object:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_what_an_fsync_lost_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    writer = storage.create_resumable("set/x")
    writer.append(b"content")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(errno.EIO))
        with pytest.raises(DestinationError):
            writer.commit()
    assert not writer.suspend()
    assert storage.unfinished("set/") == []


def test_a_full_place_gets_some_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    writer = storage.create_resumable("set/x")
    writer.append(bytes(3 << 20))
    with monkeypatch.context() as patch:
        patch.setattr("imageformat.system.pwrite", failing(errno.ENOSPC))
        with pytest.raises(DestinationFullError):
            writer.append(bytes(1 << 20))
    assert writer.suspend()
    (part,) = (tmp_path / "set").iterdir()
    assert part.stat().st_size == 3 << 19
    with storage.exclusive("set/"):
        assert storage.unfinished("set/") == ["set/x"]
        storage.discard("set/x")
    assert storage.unfinished("set/") == []


def test_a_link_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    other = tmp_path / "other"
    other.write_bytes(b"not ours")
    (tmp_path / "set" / ".x.resume.part").symlink_to(other)
    storage = LocalStorage(tmp_path)
    with pytest.raises(DestinationError):
        storage.resume("set/x", "set/x")
    with storage.exclusive("set/"):
        assert storage.unfinished("set/") == []
    assert other.read_bytes() == b"not ours"
