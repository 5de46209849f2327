"""A copy that was killed inside of a file goes on inside of it, on real servers: what is sent is counted."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from engine import copying, filecopy
from imageformat.repository import Repository
from imageformat.storage import _s3writer, _sftpwriter, localwriter, unfinished
from imageformat.storage._s3requests import Bucket
from imageformat.storage.localwriter import LocalObjectWriter
from imageformat.storage.places import open_storage
from imageformat.storage.sftp import SftpStorage
from support import s3, sshd
from support.content import noise
from support.points import Kept
from support.product import mountfs

if TYPE_CHECKING:
    from collections.abc import Callable

PIECE = 640 << 10
SIZE = 5 << 20
ENGINE = (sys.executable, str(Path(__file__).with_name("one_copy_in_pieces.py")))
KINDS = ("folder", "s3", "sftp")


def mostly(*kinds: str) -> list[object]:
    """All kinds of places; these also in the default tier."""
    return [kind if kind in kinds else pytest.param(kind, marks=pytest.mark.nightly) for kind in KINDS]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """One image that is large, as measured by the pieces."""
    place = tmp_path_factory.mktemp("kept")
    source = place / "disk.img"
    source.write_bytes(noise(11, SIZE))
    found = Kept(source, place / "repo")
    found.back_up()
    return found


@dataclass
class Place:
    """A destination, looked at around the product."""

    kind: str
    folder: Path
    name: str = field(default_factory=lambda: uuid4().hex)

    @property
    def address(self) -> str:
        if self.kind == "s3":
            return f"{s3.bucket().url}/{self.name}"
        return str(self.path) if self.kind == "folder" else sshd.server().url(self.path)

    @property
    def path(self) -> Path:
        return self.folder / self.name

    def stored(self, key: str) -> bytes:
        return s3.bucket().get(f"{self.name}/{key}") if self.kind == "s3" else (self.path / key).read_bytes()

    def hidden(self) -> list[str]:
        if self.kind == "s3":
            found = [key.rpartition("/")[2] for key in s3.bucket().keys(f"{self.name}/disk/")]
            found += s3.bucket().uploads(f"{self.name}/disk/")
        else:
            found = [path.name for path in (self.path / "disk").iterdir()]
        return [name for name in found if name.endswith(".part") or "/" in name]

    def held(self) -> int:
        """Bytes of the unfinished file."""
        if self.kind == "s3":
            return sum(size for size, _ in self.parts().values())
        (part,) = (self.path / "disk").glob(".*.copy.part")
        return part.stat().st_size

    def parts(self) -> dict[int, tuple[int, str]]:
        key, upload = self.upload()
        found = s3.bucket().client.list_parts(Bucket=s3.BUCKET, Key=key, UploadId=upload)
        return {part["PartNumber"]: (part["Size"], part["ETag"]) for part in found.get("Parts", ())}

    def upload(self) -> tuple[str, str]:
        found = s3.bucket().client.list_multipart_uploads(Bucket=s3.BUCKET, Prefix=f"{self.name}/disk/")
        ((key, upload),) = [(entry["Key"], entry["UploadId"]) for entry in found["Uploads"]]
        return key, upload

    def tamper(self) -> None:
        """Change the first piece of what is there."""
        if self.kind == "s3":
            key, upload = self.upload()
            s3.bucket().client.upload_part(
                Bucket=s3.BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=noise(99, PIECE)
            )
            return
        (part,) = (self.path / "disk").glob(".*.copy.part")
        with part.open("r+b") as file:
            file.seek(1000)
            file.write(b"tampered")


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param != "folder":
        {"s3": s3, "sftp": sshd}[request.param].use(monkeypatch)
    monkeypatch.setattr(filecopy, "CHUNK", PIECE)
    monkeypatch.setattr(_s3writer, "_PART_SIZES", ((10_000, PIECE),))
    monkeypatch.setattr(_sftpwriter, "_BUFFER", PIECE)
    monkeypatch.setattr(localwriter, "_BUFFER", PIECE)
    return Place(request.param, tmp_path)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of what is handed to a server, or to the system, counted where it leaves the product."""
    found: list[int] = []
    lock = threading.Lock()

    def count(owner: type, name: str, size: Callable[..., int]) -> None:
        real = getattr(owner, name)

        def counted(*arguments: object, **named: object) -> object:
            with lock:
                found.append(size(*arguments))
            return real(*arguments, **named)

        monkeypatch.setattr(owner, name, counted)

    count(Bucket, "put_part", lambda _self, _key, _upload, _number, content: len(content))
    count(
        SftpStorage, "write", lambda _self, path, _at, content, _flags: len(content) if ".part" in path else 0
    )
    count(LocalObjectWriter, "append", lambda _self, data: len(data))
    return found


def kill_at(kept: Kept, place: Place, most: int) -> None:
    command = [*ENGINE, str(kept.place), place.address, kept.set_name, str(most)]
    assert subprocess.run(command, check=False, timeout=100).returncode == -9


def go_on(kept: Kept, place: Place) -> int:
    """Copy; how many bytes were said to have been there."""
    told: list[int] = []
    with closing(kept.repository()) as source, closing(Repository(open_storage(place.address))) as copy:
        copying.copy_set(source, copy, kept.set_name, continued=lambda _item, count: told.append(count))
    (file,) = kept.folder.glob("*.mfi")
    assert place.stored(f"disk/{file.name}") == file.read_bytes()
    assert place.hidden() == []
    assert len(told) <= 1
    return sum(told)


@pytest.mark.parametrize("place", mostly("s3", "sftp"), indirect=True)
@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(2, 12))]
)
def test_killed_inside_of_a_file_again_and_again(
    kept: Kept, place: Place, sent: list[int], seed: int
) -> None:
    chance = random.Random(seed)
    size = kept.file_of(1).stat().st_size
    for share in (chance.uniform(0.2, 0.6), chance.uniform(0.65, 0.9)):
        kill_at(kept, place, int(SIZE * share))
        with closing(Repository(open_storage(place.address))) as copy:
            assert not copy.image_set(kept.set_name).points, "nothing is there before it is whole and proven"
    held = place.held()
    assert held >= PIECE
    told = go_on(kept, place)
    assert told > 0
    whole = size if place.kind != "s3" else size - size % PIECE
    assert 0 < sum(sent) <= size - told
    assert sum(sent) <= whole - held + 2 * PIECE, "what was there was not sent again"


@pytest.mark.parametrize("place", mostly("sftp"), indirect=True)
def test_what_was_tampered_with_is_sent_again(kept: Kept, place: Place, sent: list[int]) -> None:
    kill_at(kept, place, SIZE * 3 // 4)
    place.tamper()
    told = go_on(kept, place)
    if place.kind == "s3":
        assert 0 < told < SIZE * 3 // 4, "the other parts are right"
    else:
        assert told == 0
    left = kept.file_of(1).stat().st_size - told
    assert PIECE <= sum(sent) <= left if place.kind == "s3" else sum(sent) == left


@pytest.mark.parametrize("place", mostly("folder"), indirect=True)
def test_what_belongs_to_another_image_is_not_used(
    kept: Kept, place: Place, sent: list[int], tmp_path: Path
) -> None:
    """It has the same size, and another id and root."""
    source = tmp_path / "other.img"
    source.write_bytes(noise(12, SIZE))
    other = Kept(source, tmp_path / "other")
    other.back_up()
    kill_at(kept, place, SIZE // 2)
    names = place.hidden()
    with closing(Repository(open_storage(str(tmp_path / "other")))) as source_:
        (point,) = source_.image_set("disk").points
        with closing(open_storage(place.address)) as target, target.exclusive("disk/"):
            item = copying.CopyItem(point.key, point.size, point)
            filecopy.copy_file(source_.storage, target, item, verify=True)
    assert sum(sent) >= point.size - PIECE, "all of it was sent"
    assert place.hidden() == names, "and the other still waits"
    assert place.stored(point.key) == (tmp_path / "other" / point.key).read_bytes()


@pytest.mark.parametrize("place", mostly("s3"), indirect=True)
def test_ctrl_c_keeps_what_was_sent_until_it_is_too_old(
    kept: Kept, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = 0

    def report(_item: copying.CopyItem, count: int) -> None:
        nonlocal done
        done += count
        if done > SIZE // 2:
            raise KeyboardInterrupt

    with closing(kept.repository()) as source, closing(Repository(open_storage(place.address))) as copy:
        with pytest.raises(KeyboardInterrupt):
            copying.copy_set(source, copy, kept.set_name, report=report)
        assert place.held() > SIZE // 3
        with copy.storage.exclusive("disk/"):
            assert place.held() > SIZE // 3, "other writers leave it"
        monkeypatch.setattr(unfinished, "KEPT_S", -100)
        with copy.storage.exclusive("disk/"):
            assert place.hidden() == []


@pytest.mark.parametrize("place", ["folder"], indirect=True)
def test_the_command_says_what_was_there(kept: Kept, place: Place) -> None:
    kill_at(kept, place, SIZE * 3 // 4)
    share = place.held() * 100 // kept.file_of(1).stat().st_size
    ran = mountfs("copy", kept.place, place.address)
    assert f"continuing disk/{kept.file_of(1).name}, {share} % was there" in ran.err
