"""What every storage must do, asked of each that is found: a new one needs its wiring here and no more."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

import pytest

import imageformat.storage
from imageformat.errors import (
    CorruptImageError,
    DestinationError,
    MountfsError,
    NotFoundError,
    SetBusyError,
    UsageError,
)
from imageformat.extent import Extent, ExtentKind
from imageformat.plugins import discover
from imageformat.storage import Storage, StorageScheme
from imageformat.storage.memory import MemoryStorage
from support import s3, sshd
from support.content import noise
from support.product import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imageformat.device import BlockDevice

SCHEMES: dict[str, StorageScheme] = {
    scheme.name: scheme for scheme in discover(imageformat.storage).available
}
MIB = 1 << 20


class Wiring(Protocol):
    """How the suite reaches one kind of storage, also around it."""

    outlives_processes: bool
    is_remote: bool
    """Each request takes long; the suite asks less often."""

    def open(self) -> Storage:
        """Another handle on the same place."""
        ...

    def plant(self, key: str, content: bytes) -> None:
        """Put an object there, or replace it, without the storage's own writer."""
        ...


@dataclass
class LocalWiring:
    place: Path
    outlives_processes = True
    is_remote = False

    def open(self) -> Storage:
        return SCHEMES["local"].open(str(self.place))

    def plant(self, key: str, content: bytes) -> None:
        path = self.place / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@dataclass
class MemoryWiring:
    place: Path
    outlives_processes = False
    is_remote = False

    def __post_init__(self) -> None:
        self.storage = MemoryStorage()

    def open(self) -> Storage:
        return self.storage

    def plant(self, key: str, content: bytes) -> None:
        self.storage.publish(key, content, replace=True)


@dataclass
class S3Wiring:
    place: Path
    outlives_processes = True
    is_remote = True

    def __post_init__(self) -> None:
        self.bucket = s3.bucket()
        self.url = f"{self.bucket.url}/{uuid4().hex}"

    def open(self) -> Storage:
        return SCHEMES["s3"].open(self.url)

    def plant(self, key: str, content: bytes) -> None:
        self.bucket.put(f"{self.url.rpartition('/')[2]}/{key}", content)


@dataclass
class SftpWiring:
    place: Path
    outlives_processes = True
    is_remote = True

    def open(self) -> Storage:
        return SCHEMES["sftp"].open(sshd.server().url(self.place))

    def plant(self, key: str, content: bytes) -> None:
        LocalWiring(self.place).plant(key, content)


WIRINGS: dict[str, Callable[[Path], Wiring]] = {
    "local": LocalWiring,
    "memory": MemoryWiring,
    "s3": S3Wiring,
    "sftp": SftpWiring,
}


@pytest.fixture(params=sorted(SCHEMES))
def wiring(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wiring:
    assert request.param in WIRINGS, f"storage {request.param} needs a wiring in this file"
    for server in {"s3": [s3], "sftp": [sshd]}.get(request.param, []):
        server.use(monkeypatch)
    (tmp_path / "place").mkdir()
    return WIRINGS[request.param](tmp_path / "place")


@pytest.fixture
def storage(wiring: Wiring) -> Iterator[Storage]:
    with contextlib.closing(wiring.open()) as opened:
        yield opened


def content_of(storage: Storage, key: str) -> bytes:
    with contextlib.closing(storage.open(key)) as device:
        return device.pread(0, device.size)


def put(storage: Storage, key: str, content: bytes) -> None:
    writer = storage.create(key)
    writer.append(content)
    writer.commit()


def names(storage: Storage, prefix: str = "set/") -> list[str]:
    try:
        return [entry.key for entry in storage.objects(prefix)]
    except NotFoundError:
        return []


def test_an_object_appears_when_it_is_committed(wiring: Wiring, storage: Storage) -> None:
    writer = storage.create("set/one.mfi")
    writer.append(b"half ")
    assert names(storage) == []
    with pytest.raises(NotFoundError):
        storage.open("set/one.mfi")
    writer.append(b"whole")
    assert names(wiring.open()) == []
    writer.commit()
    writer.abort()
    writer.abort()
    assert names(storage) == names(wiring.open()) == ["set/one.mfi"]
    assert content_of(wiring.open(), "set/one.mfi") == b"half whole"


def test_the_position_is_what_was_appended(storage: Storage) -> None:
    writer = storage.create("set/one")
    position = 0
    assert writer.position == 0
    for size in (0, 1, 4095, MIB - 1, MIB, MIB + 1, 3 * MIB + 17, 5):
        writer.append(bytes(size))
        position += size
        assert writer.position == position
    writer.commit()
    assert [entry.size for entry in storage.objects("set/")] == [position]


def test_large_and_small_appends_arrive_in_order(storage: Storage) -> None:
    parts = [noise(number, size) for number, size in enumerate((7, 3 * MIB + 1, 100, MIB, 0, 9, 2 * MIB))]
    writer = storage.create("set/one")
    for part in parts:
        writer.append(part)
    writer.commit()
    assert content_of(storage, "set/one") == b"".join(parts)


def test_an_empty_object(storage: Storage) -> None:
    storage.create("set/one").commit()
    assert content_of(storage, "set/one") == b""
    with contextlib.closing(storage.open("set/one")) as device:
        assert list(device.extents(0, 0)) == []


def test_what_was_aborted_never_was(storage: Storage) -> None:
    writer = storage.create("set/one")
    writer.append(b"x" * (2 * MIB))
    writer.abort()
    writer.abort()
    assert names(storage) == []
    for attempt in (writer.commit, lambda: writer.append(b"x")):
        with pytest.raises(DestinationError):
            attempt()
    assert names(storage) == []
    put(storage, "set/one", b"again")
    assert content_of(storage, "set/one") == b"again"


def test_a_committed_writer_is_finished(storage: Storage) -> None:
    writer = storage.create("set/one")
    writer.append(b"content")
    writer.commit()
    for attempt in (writer.commit, lambda: writer.append(b"x")):
        with pytest.raises(DestinationError):
            attempt()
    assert content_of(storage, "set/one") == b"content"


def test_nothing_is_ever_replaced(wiring: Wiring, storage: Storage) -> None:
    writer = storage.create("set/one")
    writer.append(b"mine")
    wiring.plant("set/one", b"theirs")
    with pytest.raises(DestinationError, match="exists already"):
        writer.commit()
    writer.abort()
    assert content_of(storage, "set/one") == b"theirs"
    assert names(storage) == ["set/one"]


def test_the_check_sees_all_before_anybody_else(storage: Storage) -> None:
    seen: list[tuple[bytes, list[str]]] = []
    writer = storage.create("set/one")
    writer.append(b"content")

    def check(device: BlockDevice) -> None:
        seen.append((device.pread(0, device.size), names(storage)))

    writer.commit(check)
    assert seen == [(b"content", [])]


@pytest.mark.parametrize("failure", [CorruptImageError("not what was written"), KeyboardInterrupt()])
def test_what_its_check_refuses_is_not_published(storage: Storage, failure: BaseException) -> None:
    writer = storage.create("set/one")
    writer.append(b"content")

    def check(_device: BlockDevice) -> None:
        raise failure

    with pytest.raises(type(failure)):
        writer.commit(check)
    with pytest.raises(DestinationError):
        writer.commit()
    writer.abort()
    assert names(storage) == []


def test_deleting(storage: Storage) -> None:
    put(storage, "set/one", b"1")
    put(storage, "set/two", b"2")
    storage.delete("set/one")
    assert names(storage) == ["set/two"]
    for key in ("set/one", "set/never", "nowhere/one"):
        with pytest.raises(NotFoundError):
            storage.delete(key)
        with pytest.raises(NotFoundError):
            storage.open(key)


def test_listing_is_in_order_and_by_folder(wiring: Wiring, storage: Storage) -> None:
    for key in ("b/2", "b/10", "b/1", "a/x", "B/x", "é/x", "top", "b/.hidden", ".hidden/x"):
        wiring.plant(key, key.encode())
    assert list(storage.folders()) == ["B", "a", "b", "é"]
    assert names(storage, "b/") == ["b/1", "b/10", "b/2"]
    assert names(storage, "") == ["top"]
    assert names(storage, "none/") == []


def test_the_fingerprint_tells_a_replaced_object(wiring: Wiring, storage: Storage) -> None:
    wiring.plant("set/one", b"before")
    wiring.plant("set/two", b"before")
    first = {entry.key: entry.fingerprint for entry in storage.objects("set/")}
    assert first == {entry.key: entry.fingerprint for entry in wiring.open().objects("set/")}
    storage.delete("set/one")
    wiring.plant("set/one", b"the same length is not needed")
    second = {entry.key: entry.fingerprint for entry in storage.objects("set/")}
    assert second["set/one"] != first["set/one"]
    assert second["set/two"] == first["set/two"]


def test_reading_out_of_range_is_refused(storage: Storage) -> None:
    put(storage, "set/one", bytes(range(100)))
    with contextlib.closing(storage.open("set/one")) as device:
        assert device.size == 100
        assert device.pread(100, 0) == b""
        assert list(device.extents(10, 20)) == [Extent(10, 20, ExtentKind.DATA)]
        for offset, size in ((-1, 1), (0, 101), (100, 1), (0, -1)):
            with pytest.raises(UsageError):
                device.pread(offset, size)
        device.close()


def test_many_read_at_once(storage: Storage) -> None:
    content = noise(5, MIB)
    put(storage, "set/one", content)
    with contextlib.closing(storage.open("set/one")) as device, ThreadPoolExecutor(8) as pool:
        places = [(at * 7919 % (MIB - 5000), at * 31 % 5000) for at in range(800)]
        found = pool.map(lambda place: device.pread(*place), places)
        assert all(got == content[at : at + size] for got, (at, size) in zip(found, places, strict=True))


def test_one_writer_at_a_time_among_threads(wiring: Wiring, storage: Storage) -> None:
    other = wiring.open()
    with storage.exclusive("set/"):
        for rival in (storage, other):
            with pytest.raises(SetBusyError), rival.exclusive("set/"):
                pass
        with other.exclusive("another/"):
            pass
    with other.exclusive("set/"):
        pass
    with contextlib.suppress(KeyError), storage.exclusive("set/"):
        raise KeyError
    inside: list[int] = []
    most: list[int] = []
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        handle = wiring.open()
        barrier.wait()
        for _ in range(5 if wiring.is_remote else 50):
            with contextlib.suppress(SetBusyError), handle.exclusive("set/"):
                inside.append(number)
                most.append(len(inside))
                inside.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert set(most) == {1}


_WRITER = """
import sys
import imageformat.storage
from imageformat.plugins import discover
name, url = sys.argv[1:]
storage = next(s for s in discover(imageformat.storage).available if s.name == name).open(url)
with storage.exclusive("set/"):
    writer = storage.create("set/unfinished.mfi")
    writer.append(bytes(3 << 20))
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_killed_writer_leaves_no_lock_and_no_part(
    request: pytest.FixtureRequest, wiring: Wiring, storage: Storage
) -> None:
    if not wiring.outlives_processes:
        return
    command = [sys.executable, "-c", _WRITER, request.node.callspec.params["wiring"], storage.url]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "locked\n"
        with pytest.raises(SetBusyError), storage.exclusive("set/"):
            pass
        writer.kill()
    assert names(storage) == []
    with storage.exclusive("set/"):
        assert names(storage) == []
        put(storage, "set/unfinished.mfi", b"the name is free again")
    assert names(storage) == ["set/unfinished.mfi"]


def test_notes_are_kept_for_each_folder(wiring: Wiring, storage: Storage) -> None:
    assert storage.load_cache("set/") is None
    for prefix in ("set/", "two/"):
        with storage.exclusive(prefix):
            put(storage, f"{prefix}one", b"1")
    storage.save_cache("set/", b"a note")
    storage.save_cache("two/", b"")
    storage.save_cache("nowhere/", b"lost or kept, but no failure")
    assert wiring.open().load_cache("set/") == b"a note"
    assert wiring.open().load_cache("two/") == b""
    storage.save_cache("set/", b"another")
    assert storage.load_cache("set/") == b"another"
    assert names(storage) == ["set/one"], "a note is no object"


def test_notes_of_many_threads_are_whole(wiring: Wiring, storage: Storage) -> None:
    rounds = 4 if wiring.is_remote else 20
    with storage.exclusive("set/"):
        put(storage, "set/one", b"1")
    notes = [bytes([65 + number]) * 50_000 for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for note in itertools.chain.from_iterable([notes] * rounds):
            pool.submit(storage.save_cache, "set/", note)
        seen = [storage.load_cache("set/") for _ in range(2 * rounds)]
    assert set(seen) <= {None, *notes}
    assert storage.load_cache("set/") in notes


def test_every_failure_is_one_of_ours(wiring: Wiring, storage: Storage) -> None:
    wiring.plant("file", b"stands where a folder is needed")
    for attempt in (
        lambda: storage.open("file/below"),
        lambda: storage.delete("file/below"),
        lambda: list(storage.objects("file/")),
        lambda: storage.create("file/below").abort(),
        lambda: storage.save_cache("file/", b"x"),
        lambda: storage.load_cache("file/"),
    ):
        with contextlib.suppress(MountfsError):
            attempt()


def test_closing_twice_is_harmless(storage: Storage) -> None:
    storage.close()
    storage.close()


def test_every_url_has_one_scheme() -> None:
    local = (("/a/b", "local"), ("a", "local"), ("file:///a", "local"), ("memory://", "memory"))
    for url, name in (*local, ("s3://a/b", "s3"), ("sftp://a@b:1/c", "sftp")):
        assert [scheme.name for scheme in SCHEMES.values() if scheme.matches(url)] == [name]
