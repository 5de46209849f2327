"""Bad input: one clear line, its own exit code, nothing lost, nothing half-written."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from imageformat.codec import digest
from imageformat.errors import (
    AccessDeniedError,
    AmbiguousNameError,
    BadSectorError,
    ChainCycleError,
    CorruptImageError,
    DestinationError,
    DestinationFullError,
    DestinationReadOnlyError,
    IncompleteImageError,
    InterruptedByUserError,
    MountfsError,
    MountPointError,
    NotAnImageError,
    NotConfirmedError,
    NotFoundError,
    ParentMismatchError,
    ParentMissingError,
    RepositoryInsideSourceError,
    SetBusyError,
    SourceMismatchError,
    SourceReadError,
    TargetHoldsImageError,
    TargetInUseError,
    TargetTooSmallError,
    UsageError,
)
from imageformat.formats.native.structs import (
    HEADER_SIZE,
    pack_footer,
    pack_header,
    unpack_footer,
    unpack_header,
)
from support.everyone import as_nobody, python_for_everyone
from support.kernel import kernel_mount, loop_device
from support.product import command_line, environment, mounted, mountfs

MIB = 1 << 20


def refused(kind: type[MountfsError], *arguments: str | Path, prefix: tuple[str, ...] = ()) -> str:
    """Run a command that must fail in its own way; the line that it says."""
    done = mountfs(*arguments, code=kind.exit_code, prefix=prefix)
    assert "Traceback" not in done.err
    lines = [line for line in done.err.splitlines() if line.startswith("mountfs: error: ")]
    assert len(lines) == 1, done.err
    told = mountfs(*arguments, "--json", code=kind.exit_code, prefix=prefix)
    assert told.out == b""
    error = json.loads(told.err.splitlines()[-1])
    assert (error["type"], error["error"], error["exit_code"]) == ("error", kind.__name__, kind.exit_code)
    return lines[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a full and two increments of an ext4 disk."""
    folder = tmp_path_factory.mktemp("bad")
    files = folder / "files"
    files.mkdir()
    for number in range(20):
        (files / f"file{number}").write_bytes(os.urandom(100_000))
    disk = folder / "disk.img"
    with disk.open("wb") as file:
        file.truncate(8 * MIB)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", files, disk], check=True)
    for number in range(3):
        if number:
            with disk.open("r+b") as file:
                file.seek(8 * MIB - number * 65536)
                file.write(os.urandom(1000))
        mountfs("backup", disk, folder / "repo", "--raw")
    return folder


@pytest.fixture
def repo(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "repo", tmp_path / "repo")
    return tmp_path / "repo"


def images(repo: Path) -> list[Path]:
    return sorted((repo / "disk").glob("*.mfi"))


def leftovers(repo: Path) -> list[str]:
    return sorted(path.name for path in repo.rglob(".*.part"))


def text_file(folder: Path) -> Path:
    (folder / "notes.txt").write_text("no image")
    return folder / "notes.txt"


def empty_file(folder: Path) -> Path:
    (folder / "empty.bin").write_bytes(b"")
    return folder / "empty.bin"


@pytest.mark.parametrize("make", [text_file, empty_file])
@pytest.mark.parametrize("command", ["info", "ls", "verify"])
def test_not_an_image(tmp_path: Path, make: Callable[[Path], Path], command: str) -> None:
    if command == "verify":
        done = mountfs(command, make(tmp_path), code=NotAnImageError.exit_code)
        assert b"not an image" in done.out
        return
    assert "not an image" in refused(NotAnImageError, command, make(tmp_path))


def test_nothing_there(tmp_path: Path, repo: Path) -> None:
    refused(NotFoundError, "list", tmp_path / "none")
    (tmp_path / "void").mkdir()
    refused(NotFoundError, "list", tmp_path / "void")
    refused(NotFoundError, "ls", f"{repo}/disk@99")
    refused(NotFoundError, "info", f"{repo}/disk@abcdef01")
    refused(NotFoundError, "info", f"{repo}/disk", "--at", "2001-01-01T00:00")
    refused(UsageError, "info", f"{repo}/disk@nonsense")
    refused(NotFoundError, "ls", f"{repo}/disk:7")
    refused(NotFoundError, "cat", f"{repo}/disk:0/none")
    refused(NotFoundError, "backup", tmp_path / "none.img", repo)
    refused(UsageError, "backup", repo.parent / "x", repo, "--type", "nonsense")
    refused(UsageError, "nonsense")
    shutil.copytree(repo / "disk", repo / "other")
    assert "disk, other" in refused(AmbiguousNameError, "info", repo)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_a_truncated_image(repo: Path, keep: float) -> None:
    first, second, _ = images(repo)
    os.truncate(second, int(second.stat().st_size * keep))
    kind = IncompleteImageError if keep else NotAnImageError
    wanted = {kind, IncompleteImageError}
    done = mountfs("info", f"{repo}/disk@2", "--json", code=IncompleteImageError.exit_code)
    assert json.loads(done.err.splitlines()[-1])["error"] in {one.__name__ for one in wanted}
    refused(ParentMissingError, "info", f"{repo}/disk@3")
    refused(ParentMissingError, "ls", f"{repo}/disk:0")
    mountfs("ls", f"{repo}/disk@1:0")
    warned = mountfs("backup", repo.parent.parent / "none", repo, code=NotFoundError.exit_code)
    assert warned.out == b""
    assert first.exists()


@pytest.mark.parametrize("place", ["header", "frame", "index", "footer"])
def test_a_flipped_byte(made: Path, repo: Path, tmp_path: Path, place: str) -> None:
    image = images(repo)[0]
    content = bytearray(image.read_bytes())
    frame = content.index(b"MFfr", HEADER_SIZE + 64 + 20_000)
    top = int.from_bytes(content[-512 + 64 + 16 : -512 + 64 + 24], "little")
    at = {"header": 130, "frame": frame + 500, "index": top + 100, "footer": len(content) - 400}[place]
    content[at] ^= 0x10
    image.write_bytes(content)
    done = mountfs("verify", repo, code=CorruptImageError.exit_code)
    assert b"DAMAGED" in done.out
    if place in {"header", "footer"}:
        refused(CorruptImageError, "info", f"{repo}/disk@1")
        return
    mountfs("restore", f"{repo}/disk@1", tmp_path / "out.img", code=CorruptImageError.exit_code)
    assert not (tmp_path / "out.img").exists()
    assert leftovers(tmp_path) == []
    if place == "frame":
        assert b"belongs to" in done.out
        copied = mountfs("cp", f"{repo}/disk@1:0", tmp_path / "copy", code=CorruptImageError.exit_code)
        damaged = [
            path.name for path in (made / "files").iterdir() if not (tmp_path / "copy" / path.name).exists()
        ]
        assert damaged
        assert len(damaged) < 5
        for name in damaged:
            assert name in copied.err
            assert name.encode() in done.out, "verify names the file"
        for path in (tmp_path / "copy").glob("file*"):
            assert path.read_bytes() == (made / "files" / path.name).read_bytes()


@pytest.mark.fuse
def test_a_damaged_block_in_a_mount_is_eio(made: Path, repo: Path) -> None:
    image = images(repo)[0]
    content = bytearray(image.read_bytes())
    frame = content.index(b"MFfr", HEADER_SIZE + 64 + 20_000)
    block = int.from_bytes(content[frame + 16 : frame + 24], "little")
    content[frame + 300] ^= 1
    image.write_bytes(content)
    source = (made / "disk.img").read_bytes()
    with mounted(f"{repo}/disk@1") as folder, (folder / "disk.img").open("rb", buffering=0) as file:
        for number in range(8 * MIB // 65536):
            if number == block:
                with pytest.raises(OSError, match="Input/output error"):
                    os.pread(file.fileno(), 4096, number * 65536)
            elif number < 8 * MIB // 65536 - 2:
                assert os.pread(file.fileno(), 4096, number * 65536) == source[number * 65536 :][:4096]


def test_parents(repo: Path) -> None:
    first = images(repo)[0]
    moved = first.with_name("renamed.mfi")
    first.rename(moved)
    mountfs("verify", repo)
    moved.unlink()
    for point in (2, 3):
        refused(ParentMissingError, "ls", f"{repo}/disk@{point}:0")
    mountfs("verify", repo, code=ParentMissingError.exit_code)
    assert "put its file back" in refused(ParentMissingError, "restore", f"{repo}/disk", repo / "out")
    assert not (repo / "out").exists()


def forge(path: Path, **changes: object) -> None:
    """Give an image another header, with the right checksum, and a footer that fits it."""
    content = bytearray(path.read_bytes())
    header = dataclasses.replace(unpack_header(bytes(content[:HEADER_SIZE]), "x"), **changes)
    footer = unpack_footer(bytes(content[-512:]), len(content), "x")
    packed = pack_header(header)
    footer = dataclasses.replace(footer, header_digest=digest(packed), image_id=header.image_id)
    content[:HEADER_SIZE] = packed
    content[-512:] = pack_footer(footer)
    path.write_bytes(content)


def header_id(path: Path) -> UUID:
    return unpack_header(path.read_bytes()[:HEADER_SIZE], "x").image_id


def test_a_replaced_parent(made: Path, repo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.img"
    other.write_bytes(os.urandom(8 * MIB))
    mountfs("backup", other, tmp_path / "two", "--set", "disk")
    impostor = images(tmp_path / "two")[0]
    first = images(repo)[0]
    set_id = unpack_header(first.read_bytes()[:HEADER_SIZE], "x").set_id
    forge(impostor, image_id=header_id(first), set_id=set_id)
    shutil.copy(impostor, first)
    refused(ParentMismatchError, "ls", f"{repo}/disk@2:0")
    refused(ParentMismatchError, "restore", f"{repo}/disk@3", tmp_path / "out")
    warned = mountfs("backup", made / "disk.img", repo, "--set", "disk", code=3)
    assert "a full image was made" in warned.err


def test_a_cycle(repo: Path) -> None:
    _, second, third = images(repo)
    forge(second, parent_id=header_id(third))
    refused(ChainCycleError, "ls", f"{repo}/disk@2:0")
    refused(ChainCycleError, "info", f"{repo}/disk@3")


@pytest.mark.root
def test_a_source_that_fails_in_the_middle(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(os.urandom(8 * MIB))
    mountfs("backup", disk, tmp_path / "repo", "--set", "s")
    with loop_device(disk) as device:
        os.truncate(disk, 3 * MIB)
        line = refused(BadSectorError, "backup", device, tmp_path / "repo", "--set", "s")
    assert "--rescue" in line
    assert len(list((tmp_path / "repo" / "s").glob("*.mfi"))) == 1
    assert all(name.endswith(".resume.part") for name in leftovers(tmp_path))
    mountfs("verify", tmp_path / "repo")
    refused(SourceReadError, "backup", tmp_path, tmp_path / "repo")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.root
def test_a_full_destination(made: Path, small: Path, tmp_path: Path) -> None:
    disk = tmp_path / "small.img"
    disk.write_bytes(os.urandom(2 * MIB))
    mountfs("backup", disk, small / "repo")
    disk.write_bytes(os.urandom(2 * MIB))
    assert "no space" in refused(DestinationFullError, "backup", disk, small / "repo")
    (kept,) = leftovers(small)
    assert kept.endswith(".resume.part"), "for the next run"
    refused(DestinationFullError, "restore", f"{made}/repo/disk", small / "out.img")
    assert not (small / "out.img").exists()
    fill = subprocess.run(["dd", "if=/dev/zero", f"of={small}/ballast"], capture_output=True, check=False)
    assert b"No space" in fill.stderr
    mountfs("list", small / "repo")
    mountfs("verify", small / "repo")
    mountfs("restore", f"{small}/repo/small@1", tmp_path / "back.img")


@pytest.mark.root
def test_a_read_only_destination(made: Path, small: Path) -> None:
    shutil.copytree(made / "repo", small / "repo")
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    refused(DestinationReadOnlyError, "backup", made / "disk.img", small / "repo")
    refused(DestinationReadOnlyError, "restore", f"{made}/repo/disk", small / "out.img")
    mountfs("list", small / "repo")
    mountfs("verify", small / "repo")


def test_a_file_where_a_folder_is_needed(made: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(DestinationError, "backup", made / "disk.img", tmp_path / "file")


@pytest.mark.root
def test_the_wrong_target_and_the_wrong_place(made: Path, tmp_path: Path) -> None:
    disk = tmp_path / "target.img"
    with disk.open("wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", disk], check=True)
    before = disk.stat().st_mtime_ns
    with loop_device(disk) as device:
        with kernel_mount(device, "ext4", read_only=False) as folder:
            refused(TargetInUseError, "restore", f"{made}/repo/disk", device, "--yes")
            refused(RepositoryInsideSourceError, "backup", device, folder / "repo")
            shutil.copytree(made / "repo", folder / "repo")
            refused(TargetHoldsImageError, "restore", f"{folder}/repo/disk", device, "--yes")
        refused(NotConfirmedError, "restore", f"{made}/repo/disk", device)
    with disk.open("wb") as file:
        file.truncate(4 * MIB)
    with loop_device(disk) as device:
        refused(TargetTooSmallError, "restore", f"{made}/repo/disk", device, "--yes")
    assert disk.stat().st_mtime_ns > before
    image = images(made / "repo")[0]
    refused(TargetHoldsImageError, "restore", f"{made}/repo/disk", image, "--yes")
    refused(NotFoundError, "restore", f"{made}/repo/disk", tmp_path / "no" / "where")


def test_an_existing_file_is_not_overwritten_unasked(made: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    refused(NotConfirmedError, "restore", f"{made}/repo/disk", tmp_path / "kept")
    assert (tmp_path / "kept").read_text() == "kept"
    mountfs("restore", f"{made}/repo/disk", tmp_path / "kept", "--yes")
    assert (tmp_path / "kept").read_bytes() == (made / "disk.img").read_bytes()


def test_another_source_does_not_get_into_a_set(made: Path, repo: Path, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(os.urandom(MIB))
    assert "--set" in refused(SourceMismatchError, "backup", tmp_path / "disk.img", repo)
    mountfs("backup", tmp_path / "disk.img", repo, "--set", "disk")
    for name in ("", ".hidden", "a/b", "x" * 200, "-x"):
        refused(UsageError, "backup", tmp_path / "disk.img", repo, f"--set={name}" if name else "--set= ")


def test_two_writers_of_one_set(made: Path, repo: Path) -> None:
    with (repo / "disk" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(SetBusyError, "backup", made / "disk.img", repo)
        mountfs("verify", repo)
    mountfs("backup", made / "disk.img", repo)


@pytest.mark.fuse
def test_mount_points(made: Path, tmp_path: Path) -> None:
    repo = made / "repo"
    refused(MountPointError, "mount", repo, tmp_path / "none")
    refused(MountPointError, "mount", repo, text_file(tmp_path))
    refused(MountPointError, "mount", repo, tmp_path)
    refused(MountPointError, "umount", tmp_path)
    with mounted(repo) as folder:
        refused(MountPointError, "mount", repo, folder)


@pytest.mark.root
def test_without_permission(made: Path, repo: Path) -> None:
    python = python_for_everyone()
    place = Path(tempfile.mkdtemp(prefix="shut-"))
    place.chmod(0o755)
    shutil.copytree(repo, place / "repo")
    for image in images(place / "repo"):
        image.chmod(0o600)
    (place / "repo" / "disk" / ".catalog.json").unlink()
    done = as_nobody(python, "-m", "mountfs.cli.__main__", "info", place / "repo" / "disk@1")
    assert done.returncode == AccessDeniedError.exit_code
    assert "permission denied" in done.stderr
    done = as_nobody(python, "-m", "mountfs.cli.__main__", "backup", made / "disk.img", place / "repo")
    assert done.returncode == AccessDeniedError.exit_code


def test_a_name_that_plays_with_the_terminal(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "evil\n\x1b[2Jname").write_text("x")
    disk = tmp_path / "d.img"
    with disk.open("wb") as file:
        file.truncate(4 * MIB)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", files, disk], check=True)
    repo = tmp_path / "re\x1b[31mpo"
    seen = [
        mountfs("backup", disk, repo),
        mountfs("ls", f"{repo}/d:0"),
        mountfs("ls", "-l", f"{repo}/d:0"),
        mountfs("tree", f"{repo}/d:0"),
        mountfs("cp", f"{repo}/d:0", tmp_path / "out"),
        mountfs("list", repo / "no\x1bne", code=NotFoundError.exit_code),
    ]
    for done in seen:
        assert b"\x1b" not in done.out
        assert "\x1b" not in done.err
    assert (tmp_path / "out" / "evil\n\x1b[2Jname").read_text() == "x"


def test_nobody_reads_on(made: Path) -> None:
    with subprocess.Popen(
        command_line("tree", f"{made}/repo/disk:"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay", [0.0, 0.3, 0.6])
def test_an_interrupted_backup_leaves_only_what_the_next_goes_on_with(
    tmp_path: Path, number: int, delay: float
) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(os.urandom(48 * MIB))
    command = command_line("backup", disk, tmp_path / "repo", "--level", "19", "--threads", "1")
    # A shell may have told its background jobs to ignore Ctrl-C.
    start = "import os, signal, sys; signal.signal(2, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    command = [command[0], "-c", start, *command]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment(), text=True) as process:
        deadline = time.monotonic() + 30
        while not leftovers(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == InterruptedByUserError.exit_code, err
    assert err.count("mountfs: error:") == 1
    assert "Traceback" not in err
    assert list((tmp_path / "repo").rglob("*.mfi")) == []
    assert all(name.endswith(".resume.part") for name in leftovers(tmp_path))
    mountfs("list", tmp_path / "repo", code=NotFoundError.exit_code)
    mountfs("backup", disk, tmp_path / "repo")
    mountfs("verify", tmp_path / "repo")
    assert leftovers(tmp_path) == []
