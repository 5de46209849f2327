"""Connections that are cut at any moment: SFTP goes on where it was, or ends with a clear error."""

from __future__ import annotations

import contextlib
import getpass
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imageformat.errors import DestinationError, MountfsError, StorageError
from imageformat.storage._sftpconnection import Target
from imageformat.storage.patience import Patience
from imageformat.storage.sftp import SftpStorage
from support import sshd
from support.content import noise
from support.cuttingproxy import Cutter, cutting_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageformat.device import BlockDevice

KIB = 1 << 10
PATIENCE = Patience(attempts=5, first_delay=0.001, longest_delay=0.01, connect=5, answer=5)
CONTENT = noise(6, 900 * KIB + 5)


@pytest.fixture
def cutter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cutter]:
    server = sshd.server()
    with cutting_proxy(server.port) as found:
        home = tmp_path / "home"
        (home / ".ssh").mkdir(parents=True)
        key = (server.home / ".ssh" / "known_hosts").read_text().partition(" ")[2]
        (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{found.port} {key}")
        (home / ".ssh" / "id_ed25519").write_bytes((server.home / ".ssh" / "id_ed25519").read_bytes())
        sshd.use(monkeypatch)
        monkeypatch.setenv("HOME", str(home))
        yield found


@pytest.fixture
def storage(cutter: Cutter, tmp_path: Path) -> Iterator[SftpStorage]:
    target = Target("127.0.0.1", getpass.getuser(), cutter.port)
    opened = SftpStorage("sftp://test", target, str(tmp_path / "place"), patience=PATIENCE)
    with contextlib.closing(opened):
        yield opened


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(2, 30))]
)
def test_what_is_cut_goes_on(
    cutter: Cutter, storage: SftpStorage, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Cut at random places of a write that is read back, published and read."""
    monkeypatch.setattr("imageformat.storage._sftpwriter._BUFFER", 100 * KIB)
    chance = random.Random(seed)
    storage.make_folder(storage.path(""))
    cutter.limits += [chance.randrange(20 * KIB, 700 * KIB) for _ in range(3)]
    cutter.cut_all()
    seen = []

    def check(device: BlockDevice) -> None:
        seen.append(device.pread(0, device.size))

    with storage.exclusive("set/"):
        writer = storage.create("set/one")
        for offset in range(0, len(CONTENT), 70_001):
            writer.append(CONTENT[offset : offset + 70_001])
        writer.commit(check)
    assert seen == [CONTENT]
    with contextlib.closing(storage.open("set/one")) as device:
        cutter.cut_all()
        assert device.pread(0, device.size) == CONTENT
    assert cutter.cuts >= 3
    assert [entry.key for entry in storage.objects("set/")] == ["set/one"]
    assert sorted(entry.name for entry in storage.entries(storage.path("set"))) == [".lock", "one"]


def test_a_server_that_stays_away_is_given_up(cutter: Cutter, storage: SftpStorage) -> None:
    writer = storage.create("set/one")
    writer.append(b"x" * 1000)
    cutter.limits += [0] * 1000
    cutter.cut_all()
    with pytest.raises(DestinationError, match="lost for good"):
        writer.commit()
    with pytest.raises(StorageError, match="lost for good"):
        list(storage.objects("set/"))
    cutter.limits.clear()
    writer.abort()
    assert list(storage.objects("set/")) == []


def test_a_file_that_is_cut_while_it_is_read(storage: SftpStorage, tmp_path: Path) -> None:
    path = tmp_path / "place" / "set" / "one"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    with contextlib.closing(storage.open("set/one")) as device:
        path.write_bytes(CONTENT[:1000])
        with pytest.raises(MountfsError, match="replaced or cut"):
            device.pread(500_000, 100_000)


def test_what_a_lost_connection_left_is_gone_on_with(
    cutter: Cutter, storage: SftpStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imageformat.storage._sftpwriter._BUFFER", 100 * KIB)
    pieces = [CONTENT[offset : offset + 100 * KIB] for offset in range(0, len(CONTENT), 100 * KIB)]
    with storage.exclusive("set/"):
        writer = storage.go_on("set/one", "ab" * 16)
        for piece in pieces[:6]:
            writer.append(piece)
        cutter.limits += [0] * 1000
        cutter.cut_all()
        with pytest.raises(DestinationError, match="lost for good"):
            writer.commit()
        assert writer.suspend()
        writer.abort()
        cutter.limits.clear()
        assert list(storage.objects("set/")) == []
        again = storage.go_on("set/one", "ab" * 16)
        for piece in pieces:
            again.append(piece)
        again.commit()
        again.abort()
    assert again.reused >= 200 * KIB
    assert again.reused + again.sent == len(CONTENT)
    with contextlib.closing(storage.open("set/one")) as device:
        assert device.pread(0, device.size) == CONTENT
    assert sorted(entry.name for entry in storage.entries(storage.path("set"))) == [".lock", "one"]
