"""Sources, destinations and images that fail while they are used: one clear error, and nothing lost.

What a command meets before it begins is judged in test_bad_input.py; here the medium fails in the middle,
is full at any byte, or is used for something else; and every way into a bad image is tried.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from imageformat.codec import digest
from imageformat.errors import (
    BadSectorError,
    ChainCycleError,
    CorruptImageError,
    DestinationFullError,
    DestinationReadOnlyError,
    IncompleteImageError,
    MountfsError,
    ParentMismatchError,
    ParentMissingError,
    RepositoryInsideSourceError,
    SetBusyError,
    SourceReadError,
    TargetInUseError,
)
from imageformat.formats.native import structs
from support.content import damage, make_tree, noise, tree_digests
from support.disks import MIB, Part, make_ext4, make_gpt_disk
from support.kernel import kernel_mount, loop_device
from support.points import digest_of
from support.product import finish, mounted, mountfs, start
from support.requirements import require_root, run

PATIENCE = 30.0


@dataclasses.dataclass(frozen=True)
class Made:
    """A repository with two points of an ext4 disk."""

    folder: Path
    files: dict[str, str]
    first: str
    """Digest of the disk at point 1."""

    @property
    def disk(self) -> Path:
        return self.folder / "disk.img"

    @property
    def repository(self) -> Path:
        return self.folder / "repository"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("places")
    (folder / "files").mkdir()
    files = make_tree(folder / "files", symlinks=False)
    disk = make_ext4(folder / "disk.img", 8 * MIB, "", folder / "files")
    first = digest_of(disk)
    mountfs("backup", disk, folder / "repository")
    damage(disk, 7 * MIB)
    mountfs("backup", disk, folder / "repository")
    return Made(folder, files, first)


@pytest.fixture
def repository(made: Made, tmp_path: Path) -> Path:
    """A copy to break."""
    shutil.copytree(made.repository, tmp_path / "repository")
    return tmp_path / "repository"


def refused(kind: type[MountfsError], *arguments: str | Path) -> str:
    """The one line of a command that must fail in its own way."""
    (line,) = mountfs(*arguments, code=kind.exit_code).errors
    return line


def images(repository: Path) -> list[Path]:
    return sorted(repository.rglob("*.mfi"))


def kept_for_the_next(place: Path) -> bool:
    """Whether the one thing that is unfinished is what the next backup goes on with."""
    return [path.name.endswith(".mfi.resume.part") for path in unfinished(place)] == [True]


def unfinished(folder: Path) -> list[Path]:
    return list(folder.rglob(".*.part"))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: digest_of(path) for path in images(folder)}


# -- every way into a bad image --------------------------------------------------------------------------


def cut(image: Path) -> None:
    os.truncate(image, image.stat().st_size - 1)


def overwrite(image: Path) -> None:
    image.write_bytes(b"something else" * 1000)


def flip_header(image: Path) -> None:
    damage(image, 130)


def flip_footer(image: Path) -> None:
    damage(image, -400)


def remove(image: Path) -> None:
    image.unlink()


def forge_header(image: Path, **changes: object) -> None:
    """Give an image another header, with all checksums right."""
    content = bytearray(image.read_bytes())
    header = structs.unpack_header(bytes(content[: structs.HEADER_SIZE]), "x")
    packed = structs.pack_header(dataclasses.replace(header, **changes))  # type: ignore[arg-type]
    footer = structs.unpack_footer(bytes(content[-512:]), len(content), "x")
    footer = dataclasses.replace(footer, header_digest=digest(packed))
    content[: structs.HEADER_SIZE] = packed
    content[-512:] = structs.pack_footer(footer)
    image.write_bytes(content)


def make_cycle(image: Path) -> None:
    header = structs.unpack_header(image.read_bytes()[: structs.HEADER_SIZE], "x")
    forge_header(image, parent_id=header.image_id)


def replace_parent(image: Path) -> None:
    header = structs.unpack_header(image.read_bytes()[: structs.HEADER_SIZE], "x")
    forge_header(image, parent_root=bytes(len(header.parent_root)))


BAD: dict[str, tuple[int, Callable[[Path], None], type[MountfsError]]] = {
    "overwritten": (0, overwrite, CorruptImageError),
    "cut": (0, cut, IncompleteImageError),
    "header": (0, flip_header, CorruptImageError),
    "footer": (0, flip_footer, CorruptImageError),
    "parent missing": (0, remove, ParentMissingError),
    "parent replaced": (1, replace_parent, ParentMismatchError),
    "cycle": (1, make_cycle, ChainCycleError),
}
"""Which of the two images is broken, how, and what the point that needs it must say."""
WAYS = (
    ("ls", "{place}:0"),
    ("cat", "{place}:0/etc/motd"),
    ("cp", "{place}:0", "{out}/copied"),
    ("restore", "{place}", "{out}/restored.img"),
    ("mount", "{place}", "{out}/mnt"),
)


@pytest.mark.fuse
@pytest.mark.parametrize("name", BAD)
def test_every_way_into_a_bad_image_says_the_same(repository: Path, tmp_path: Path, name: str) -> None:
    which, spoil, kind = BAD[name]
    out = tmp_path / "out"
    (out / "mnt").mkdir(parents=True)
    spoil(images(repository)[which])
    before = digests(repository)
    # What stands on a bad image says that its parent is not there; the bad image says what is wrong.
    by_number = {1: kind, 2: ParentMissingError} if which == 0 else {2: kind}
    if name == "parent missing":
        del by_number[1]
    for number, expected in by_number.items():
        for way in WAYS:
            words = [word.format(place=f"{repository}/disk@{number}", out=out) for word in way]
            refused(expected, *words)
    assert [path.name for path in out.iterdir()] == ["mnt"], "nothing half-written"
    assert list((out / "mnt").iterdir()) == []
    worst = ParentMissingError if which == 0 and kind is not CorruptImageError else kind
    mountfs("verify", repository, code=worst.exit_code)
    mountfs("list", repository)
    assert digests(repository) == before
    if which == 1:
        mountfs("restore", f"{repository}/disk@1", out / "first.img")


@pytest.mark.fuse
@pytest.mark.parametrize("name", BAD)
def test_a_mounted_repository_shows_what_is_good_of_it(made: Made, repository: Path, name: str) -> None:
    which, spoil, _ = BAD[name]
    spoil(images(repository)[which])
    mountfs("backup", made.disk, repository, "--type", "full")
    with mounted(repository) as shown:
        (newest,) = (shown / "disk").glob("0003-*")
        (volume,) = newest.glob("0-ext4*")
        assert tree_digests(volume) == made.files
        assert (shown / "disk" / "latest" / "disk.img").stat().st_size == 8 * MIB


# -- sources that fail in the middle ---------------------------------------------------------------------


@contextmanager
def served(repository: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A mount whose server can be killed; what is left of it goes away."""
    folder.mkdir()
    server = start("mount", "--foreground", repository, folder)
    until = time.monotonic() + PATIENCE
    while not os.path.ismount(folder) and time.monotonic() < until:
        time.sleep(0.02)
    try:
        assert os.path.ismount(folder)
        yield server
    finally:
        subprocess.run(["umount", "--lazy", folder], check=False, capture_output=True)
        server.kill()
        server.communicate()


def slow_backup(source: Path, repository: Path) -> subprocess.Popen[bytes]:
    """A backup that has begun to write, and will take seconds."""
    process = start("backup", source, repository, "--level", "19", "--threads", "1")
    until = time.monotonic() + PATIENCE
    while not any(path.stat().st_size > 100_000 for path in unfinished(repository)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)
    return process


def hard_disk(path: Path, size: int) -> Path:
    path.write_bytes(noise(1, size))
    return path


def test_an_image_file_that_is_cut_short_meanwhile(tmp_path: Path) -> None:
    disk, repository = hard_disk(tmp_path / "disk.img", 48 * MIB), tmp_path / "repository"
    process = slow_backup(disk, repository)
    os.truncate(disk, MIB)
    (line,) = finish(process, code=SourceReadError.exit_code).errors
    assert str(disk) in line
    assert images(repository) == []
    assert kept_for_the_next(repository)


@pytest.mark.fuse
def test_a_source_whose_block_cannot_be_read(made: Made, repository: Path, tmp_path: Path) -> None:
    """A file in a mount answers EIO where its own image is damaged."""
    content = images(repository)[0].read_bytes()
    frame = content.index(b"MFfr", structs.HEADER_SIZE + 64 + 20_000)
    damage(images(repository)[0], frame + 300)
    target = tmp_path / "second"
    mountfs("backup", made.disk, target, "--set", "disk")
    before = digests(target)
    with mounted(f"{repository}/disk@1") as shown:
        line = refused(BadSectorError, "backup", shown / "disk.img", target, "--set", "disk")
        assert "--rescue" in line
    assert digests(target) == before
    mountfs("verify", target)
    mountfs("backup", made.disk, target, "--set", "disk")
    assert unfinished(target) == []


@pytest.mark.fuse
@pytest.mark.root
def test_a_source_that_vanishes(tmp_path: Path) -> None:
    disk, target = hard_disk(tmp_path / "disk.img", 48 * MIB), tmp_path / "target"
    mountfs("backup", disk, tmp_path / "repository", "--level", "1")
    with served(tmp_path / "repository", tmp_path / "mnt") as server:
        process = slow_backup(tmp_path / "mnt" / "disk" / "latest" / "disk.img", target)
        os.killpg(server.pid, signal.SIGKILL)
        finish(process, code=SourceReadError.exit_code)
    assert images(target) == []
    assert kept_for_the_next(target)


# -- destinations that are full or read-only -------------------------------------------------------------


@contextmanager
def small_file_system(folder: Path, size: int, *options: str) -> Iterator[Path]:
    require_root()
    folder.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", ",".join((f"size={size}", *options)), "tmpfs", folder)
    try:
        yield folder
    finally:
        run("umount", folder)


@pytest.mark.root
def test_a_destination_that_is_full_at_any_level(tmp_path: Path) -> None:
    """From no room for a folder to the last page of the footer: refused, until it fits."""
    disk = hard_disk(tmp_path / "disk.img", MIB)
    outcomes = []
    with small_file_system(tmp_path / "small", 4 * MIB) as small:
        mountfs("backup", disk, small / "repository")
        before = digests(small)
        disk.write_bytes(noise(2, MIB))
        stored = images(small)[0].stat().st_size
        used = shutil.disk_usage(small).used
        for room in (0, 1, 4, 16, stored // 8192, stored // 4096 - 1, stored // 4096, stored // 4096 + 8):
            run("mount", "-o", f"remount,size={used + room * 4096}", small)
            done = mountfs("backup", disk, small / "repository", code=None)
            outcomes.append(done.code)
            if done.code:
                assert done.code == DestinationFullError.exit_code
                assert ["no space" in line for line in done.errors] == [True]
                assert digests(small) == before
                assert not unfinished(small) or kept_for_the_next(small)
        assert unfinished(small) == []
        mountfs("verify", small / "repository")
        assert len(images(small)) == 2
        mountfs("restore", f"{small}/repository/disk", tmp_path / "back.img")
    assert outcomes[-1] == 0
    assert set(outcomes[:-2]) == {DestinationFullError.exit_code}
    assert (tmp_path / "back.img").read_bytes() == disk.read_bytes()


@pytest.mark.root
def test_a_destination_without_room_for_names(made: Made, tmp_path: Path) -> None:
    for names in range(2, 6):
        with small_file_system(tmp_path / "small", 32 * MIB, f"nr_inodes={names}") as small:
            done = mountfs("backup", made.disk, small / "repository", code=None)
            assert unfinished(small) == []
            if done.code:
                assert (done.code, len(done.errors)) == (DestinationFullError.exit_code, 1)
                assert images(small) == []
            else:
                mountfs("verify", small / "repository")


@pytest.mark.root
@pytest.mark.parametrize("room", [0, 64 << 10, 400 << 10])
def test_cp_and_restore_into_what_is_full(made: Made, tmp_path: Path, room: int) -> None:
    with small_file_system(tmp_path / "small", room + 4096) as small:
        (small / "ballast").write_bytes(b"x")
        place = f"{made.repository}/disk@1"
        refused(DestinationFullError, "restore", place, small / "restored.img")
        assert [path.name for path in small.iterdir()] == ["ballast"]
        mountfs("cp", f"{place}:0", small / "copied", code=DestinationFullError.exit_code)
        assert unfinished(small) == []
        for name, found in tree_digests(small / "copied").items() if (small / "copied").exists() else ():
            assert made.files[name] == found, "what is there is whole"


@pytest.mark.root
def test_cp_into_what_is_read_only(made: Made, tmp_path: Path) -> None:
    with small_file_system(tmp_path / "small", MIB, "ro") as small:
        refused(DestinationReadOnlyError, "cp", f"{made.repository}/disk@1:0/hello.txt", small / "hello.txt")
        refused(DestinationReadOnlyError, "cp", f"{made.repository}/disk@1:0", small / "copied")
        refused(DestinationReadOnlyError, "backup", made.disk, small / "repository")


# -- places that are used for something else -------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("partitioned", [False, True], ids=["volume", "disk"])
def test_a_disk_that_is_in_use(made: Made, tmp_path: Path, partitioned: bool) -> None:
    """Its file, the whole disk and the partition are one thing, however they are named."""
    volume = make_ext4(tmp_path / "volume", 24 * MIB)
    disk = tmp_path / "used.img"
    if partitioned:
        make_gpt_disk(disk, 32 * MIB, [Part(24 * MIB, content=volume)])
    else:
        volume.rename(disk)
    with ExitStack() as stack:
        device = stack.enter_context(loop_device(disk, partscan=partitioned))
        part = f"{device}p1" if partitioned else device
        folder = stack.enter_context(kernel_mount(part, "ext4", read_only=False))
        for source in {device, part, str(disk)}:
            refused(RepositoryInsideSourceError, "backup", source, folder / "repository")
            assert not (folder / "repository").exists()
        for target in {device, part, str(disk)}:
            refused(TargetInUseError, "restore", f"{made.repository}/disk", target, "--yes")
        (folder / "still").write_bytes(b"works")
        os.sync()
        assert (folder / "still").read_bytes() == b"works"


def test_two_backups_of_one_set_at_once(tmp_path: Path) -> None:
    disk, repository = hard_disk(tmp_path / "disk.img", 24 * MIB), tmp_path / "repository"
    process = slow_backup(disk, repository)
    refused(SetBusyError, "backup", disk, repository)
    assert len(unfinished(repository)) == 1, "the other one's file is left alone"
    mountfs("backup", disk, repository, "--set", "another", "--level", "1")
    finish(process)
    told = mountfs("list", "--json", repository).facts
    assert [len(found["points"]) for found in told["sets"]] == [1, 1]
    mountfs("verify", repository)
