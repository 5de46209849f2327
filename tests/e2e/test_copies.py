"""Copies as their users make and use them: a folder, a real S3 server, a real SSH server."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from support import s3, sshd
from support.content import noise
from support.faultproxy import Proxy, proxy_before
from support.points import Kept, digest_of
from support.product import Ran, environment, mounted, mountfs
from support.requirements import require_tool, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MIB = 1 << 20
KINDS = (
    "s3",
    pytest.param("folder", marks=pytest.mark.nightly),
    pytest.param("sftp", marks=pytest.mark.nightly),
)


@dataclass(frozen=True)
class Place:
    """Where a copy is made, and what its users have in their environment."""

    address: str
    environment: Mapping[str, str]

    def mountfs(self, *arguments: str | Path, code: int | None = 0) -> Ran:
        return mountfs(*arguments, code=code, env={**environment(), **self.environment})


def place_of(kind: str, folder: Path) -> Place:
    if kind == "s3":
        return Place(f"{s3.bucket().url}/{uuid4().hex}", s3.environment())
    if kind == "sftp":
        return Place(sshd.server().url(folder / "copy"), sshd.server().environment)
    return Place(str(folder / "copy"), {})


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    """A disk with a file system, imaged twice."""
    require_tool("mke2fs", "debugfs")
    files = tmp_path / "files"
    files.mkdir()
    (files / "a.bin").write_bytes(noise(4, 200_000))
    source = tmp_path / "disk.img"
    with source.open("wb") as disk:
        disk.truncate(8 * MIB)
    run("mke2fs", "-q", "-t", "ext4", "-d", files, source)
    found = Kept(source, tmp_path / "repo")
    found.back_up(block_size=65536)
    (tmp_path / "b.bin").write_bytes(noise(5, 100_000))
    run("debugfs", "-w", "-R", f"write {tmp_path / 'b.bin'} b.bin", source)
    found.back_up(block_size=65536)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_a_repository(kept: Kept, tmp_path: Path, kind: str) -> None:
    place = place_of(kind, tmp_path)
    copied = place.mountfs("copy", kept.place, place.address, "--json", "--quiet").facts
    assert len(copied["copied"]) == 2
    set_ = f"{place.address}/disk"
    listed = place.mountfs("list", set_, "--json").facts
    assert [point["number"] for point in listed["sets"][0]["points"]] == [1, 2]
    place.mountfs("verify", place.address)
    out = tmp_path / "out"
    place.mountfs("cp", f"{set_}@2:0-ext4/b.bin", out)
    assert out.read_bytes() == noise(5, 100_000)
    place.mountfs("restore", f"{set_}@1", tmp_path / "restored.img", "--yes")
    assert digest_of(tmp_path / "restored.img") == kept.digests[1]
    for path in kept.folder.glob("*.mfi"):
        assert bytes_at(place, kind, f"disk/{path.name}") == path.read_bytes()
    kept.back_up()
    more = place.mountfs(
        "copy", kept.place, place.address, "--set", "disk", "--no-verify", "--json", "--quiet"
    )
    assert len(more.facts["copied"]) == 1


def bytes_at(place: Place, kind: str, key: str) -> bytes:
    if kind == "s3":
        return s3.bucket().get(f"{place.address.rpartition('/')[2]}/{key}")
    return Path("/" + place.address.split("/", 3)[3] if kind == "sftp" else place.address, key).read_bytes()


@pytest.mark.nightly
def test_what_retention_deleted_in_a_copy_stays_away(kept: Kept, tmp_path: Path) -> None:
    place = place_of("folder", tmp_path)
    mountfs("backup", kept.source, kept.place, "--set", "disk", "--type", "full")
    mountfs("copy", kept.place, place.address)
    mountfs("retention", place.address, "--keep-last", "1", "--max-share", "100", "--yes")
    left = mountfs("list", place.address, "--json").facts["sets"][0]["points"]
    assert [point["number"] for point in left] == [3]
    again = mountfs("copy", kept.place, place.address, "--json", "--quiet").facts
    assert (again["copied"], again["older"]) == ([], [1, 2])
    all_of_it = mountfs("copy", kept.place, place.address, "--older", "--json", "--quiet").facts
    assert len(all_of_it["copied"]) == 2


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["folder", "s3", "sftp"])
def test_a_dry_run_says_what_the_run_does(kept: Kept, tmp_path: Path, kind: str) -> None:
    place = place_of(kind, tmp_path)
    planned = place.mountfs("copy", kept.place, place.address, "--dry-run", "--json").facts
    assert place.mountfs("list", place.address, code=60).out == b""
    made = place.mountfs("copy", kept.place, place.address, "--json", "--quiet").facts
    assert {**made, "dry_run": True} == planned
    image = kept.file_of(2).name
    assert place.mountfs("info", f"{place.address}/disk/{image}", "--json").facts


@pytest.mark.fuse
@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["s3", "sftp"])
def test_a_copy_is_mounted(kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    place = place_of(kind, tmp_path)
    place.mountfs("copy", kept.place, place.address)
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    with mounted(place.address) as folder:
        assert (folder / "disk" / "latest" / "0-ext4" / "b.bin").read_bytes() == noise(5, 100_000)


def test_a_damaged_image_is_named_and_the_rest_is_copied(kept: Kept, tmp_path: Path) -> None:
    path = kept.file_of(2)
    path.write_bytes(path.read_bytes()[:-1000])
    ran = mountfs("copy", kept.place, tmp_path / "copy", code=12)
    assert path.name in ran.err
    assert [entry.name for entry in (tmp_path / "copy" / "disk").glob("*.mfi")] == [kept.file_of(1).name]


@pytest.mark.nightly
def test_places_that_make_no_sense(kept: Kept, tmp_path: Path) -> None:
    mountfs("copy", kept.place, kept.place, code=2)
    mountfs("copy", kept.place, kept.place / "inside", code=2)
    mountfs("copy", kept.folder, kept.place.parent, code=2)
    mountfs("copy", kept.place, "ftp://host/x", code=2)
    mountfs("copy", f"{kept.folder}@1", tmp_path / "copy", code=2)
    mountfs("copy", kept.place, tmp_path / "copy", "--set", "other", code=60)
    mountfs("copy", kept.place, tmp_path / "copy")
    mountfs("copy", kept.place, tmp_path / "copy" / "disk", code=2)


@pytest.mark.nightly
def test_who_is_not_let_in_is_told(kept: Kept, tmp_path: Path) -> None:
    place = place_of("s3", tmp_path)
    stranger = Place(place.address, {**place.environment, "AWS_SECRET_ACCESS_KEY": "a-wrong-secret"})
    ran = stranger.mountfs("copy", kept.place, stranger.address, code=79)
    assert "SignatureDoesNotMatch" in ran.err
    assert "a-wrong-secret" not in ran.err
    Place(place.address, {**place.environment, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}).mountfs(
        "list", place.address, code=79
    )
    host = place_of("sftp", tmp_path)
    (tmp_path / "home" / ".ssh").mkdir(parents=True)
    unknown = Place(host.address, {"HOME": str(tmp_path / "home"), "SSH_AUTH_SOCK": ""})
    assert "known hosts" in unknown.mountfs("list", host.address, code=77).err
    (tmp_path / "home" / ".ssh" / "known_hosts").write_bytes(
        (sshd.server().home / ".ssh" / "known_hosts").read_bytes()
    )
    unknown.mountfs("list", host.address, code=79)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with proxy_before(s3.bucket().port) as found:
        yield found


@pytest.mark.parametrize(
    ("size", "stored"),
    [
        (256 * MIB, 24 * MIB),
        pytest.param(4096 * MIB, 1024 * MIB, marks=[pytest.mark.nightly, pytest.mark.timeout(1800)]),
    ],
    ids=["small", "4 GiB"],
)
def test_one_file_of_a_large_image_takes_little(tmp_path: Path, proxy: Proxy, size: int, stored: int) -> None:
    require_tool("mke2fs")
    files = tmp_path / "files"
    files.mkdir()
    for number in range(8):
        with (files / f"much{number}.bin").open("wb") as file:
            for _ in range(stored // 8 // MIB):
                file.write(os.urandom(MIB))
    wanted = noise(7, MIB)
    (files / "wanted.bin").write_bytes(wanted)
    source = tmp_path / "disk.img"
    with source.open("wb") as disk:
        disk.truncate(size)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", files, source], check=True)
    mountfs("backup", source, tmp_path / "repo", patience=900)
    place = Place(f"{s3.bucket().url}/{uuid4().hex}", s3.environment(proxy.endpoint))
    mountfs("copy", tmp_path / "repo", place.address, env={**environment(), **s3.environment()}, patience=900)
    before = proxy.fetched
    place.mountfs("cp", f"{place.address}/disk:0-ext4/wanted.bin", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == wanted
    fetched = proxy.fetched - before
    print(f"fetched {fetched / MIB:.2f} MiB of {stored / MIB:.0f} in {len(proxy.seen)} requests")
    assert fetched < 6 * MIB
