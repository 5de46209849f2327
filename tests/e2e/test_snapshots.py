"""Images of what is written meanwhile: frozen, or by a copy that shares blocks. Needs root and loop devices.

The judges are fsfreeze, fsck and the kernel's own mounts.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from engine.devices.source import SourceDevice, open_source
from engine.rescue import SectorReader
from engine.snapshots import freeze, taking
from engine.snapshots.freezing import frozen
from imageformat.errors import SnapshotError
from support.disks import make_btrfs, make_ext4, make_xfs
from support.kernel import kernel_mount, loop_device
from support.product import environment, mountfs
from support.requirements import find_tool, require_root, require_tool, run
from support.writers import check_written, writing

pytestmark = pytest.mark.root
MIB = 1 << 20
MAKERS = {"ext4": (make_ext4, 24 * MIB), "xfs": (make_xfs, 320 * MIB), "btrfs": (make_btrfs, 128 * MIB)}


@pytest.fixture(autouse=True)
def ready() -> None:
    require_root()
    require_tool("fsfreeze", "e2fsck", "mkfs.xfs", "mkfs.btrfs", "xfs_repair")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "snapshots"


def is_frozen(place: Path) -> bool:
    """Ask another program: what is frozen cannot be frozen again."""
    done = subprocess.run([str(find_tool("fsfreeze")), "-f", str(place)], capture_output=True, check=False)
    if done.returncode:
        assert b"busy" in done.stderr, done.stderr
        return True
    run("fsfreeze", "-u", place)
    return False


def until(condition: object, what: str) -> None:
    end = time.monotonic() + 20
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, what
        time.sleep(0.02)


def entries_of(device: str) -> tuple[object, ...]:
    source = open_source(device)
    try:
        return taking.facts_of(source).written
    finally:
        source.close()


def digest(device: SourceDevice) -> str:
    found = hashlib.sha256()
    for at in range(0, device.size, MIB):
        found.update(device.pread(at, min(MIB, device.size - at)))
    return found.hexdigest()


@pytest.mark.parametrize("kind", ["ext4", "xfs", pytest.param("btrfs", marks=pytest.mark.nightly)])
def test_a_file_system_stands_still_and_is_let_go_whoever_dies(
    tmp_path: Path, folder: Path, kind: str
) -> None:
    make, size = MAKERS[kind]
    with (
        loop_device(make(tmp_path / "disk", size)) as device,
        kernel_mount(device, kind, read_only=False) as top,
    ):
        with writing(top) as counter:
            with frozen(entries_of(device), folder):  # type: ignore[arg-type]
                assert is_frozen(top)
                stood = counter.read_text()
                time.sleep(0.2)
                assert counter.read_text() == stood
                assert len(list(folder.iterdir())) == 1
            assert not is_frozen(top)
            until(lambda: counter.read_text() != stood, "the writer does not go on")
        with (
            pytest.raises(SnapshotError, match="longer than"),
            frozen(entries_of(device), folder, seconds=0.2),
        ):
            until(lambda: not is_frozen(top), "the time limit does not end it")
        assert list(folder.iterdir()) == []
        for victims in ("parent", "child", "both"):
            with _holder(device, folder) as holder:
                assert is_frozen(top)
                child = _child_of(holder.pid)
                if victims != "parent":
                    os.kill(child, signal.SIGKILL)
                if victims != "child":
                    holder.kill()
                    holder.wait()
                if victims == "parent":
                    until(lambda: not is_frozen(top), "the child does not thaw")
                elif victims == "child":
                    holder.communicate(b"go\n")
                    assert holder.returncode == 7, "it tells that this is no picture"
                else:
                    assert is_frozen(top), "nobody is left that could thaw it"
            assert [problem for _, problem in taking.clean(folder)] == [None] * (victims != "child")
            assert not is_frozen(top)
            assert list(folder.iterdir()) == []


_HOLD = """
import sys
from pathlib import Path
from engine.devices.source import open_source
from engine.snapshots.freezing import frozen
from engine.snapshots.taking import facts_of
from imageformat.errors import SnapshotError
source = open_source(sys.argv[1])
try:
    with frozen(facts_of(source).written, Path(sys.argv[2])):
        print("frozen", flush=True)
        sys.stdin.readline()
except SnapshotError:
    sys.exit(7)
"""


def _holder(device: str, folder: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, device, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"frozen\n"
    return process


def _child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def test_doctor_shows_and_removes_what_a_dead_process_left(tmp_path: Path) -> None:
    state = {"XDG_STATE_HOME": str(tmp_path / "state")}
    with (
        loop_device(make_ext4(tmp_path / "disk", 8 * MIB)) as device,
        kernel_mount(device, "ext4", read_only=False) as top,
        _holder(device, tmp_path / "state" / "mountfs" / "snapshots") as holder,
    ):
        assert (
            "its process is dead" not in mountfs("doctor", code=None, env=environment(**state)).out.decode()
        )
        os.kill(_child_of(holder.pid), signal.SIGKILL)
        holder.kill()
        holder.wait()
        assert (
            f"{top}: its process is dead" in mountfs("doctor", code=1, env=environment(**state)).out.decode()
        )
        assert is_frozen(top)
        said = mountfs("doctor", "--fix", code=None, env=environment(**state))
        assert f"snapshot by freeze {top}" in said.err
        assert "its process is dead" not in said.out.decode()
        assert not is_frozen(top)


def test_what_somebody_else_froze_is_left_alone(tmp_path: Path, folder: Path) -> None:
    with (
        loop_device(make_ext4(tmp_path / "disk", 8 * MIB)) as device,
        kernel_mount(device, "ext4", read_only=False) as top,
    ):
        run("fsfreeze", "-f", top)
        try:
            with pytest.raises(SnapshotError, match="somebody else"), frozen(entries_of(device), folder):  # type: ignore[arg-type]
                pytest.fail("it cannot be frozen twice")
            assert is_frozen(top)
        finally:
            run("fsfreeze", "-u", top)
        assert list(folder.iterdir()) == []


def test_a_device_is_imaged_while_writers_wait(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        loop_device(make_ext4(tmp_path / "disk", 24 * MIB)) as device,
        kernel_mount(device, "ext4", read_only=False) as top,
        writing(top) as counter,
    ):
        warned = mountfs("backup", device, tmp_path / "live", "--set", "live")
        assert f"is mounted at {top}" in warned.err
        assert "lvm: it is no logical volume" in warned.err
        mountfs("backup", device, tmp_path / "repo", "--set", "still", "--snapshot", "freeze")
        said = mountfs("backup", device, tmp_path / "repo", "--set", "still", "--snapshot", "lvm", code=33)
        assert "it is no logical volume" in said.err
        assert not is_frozen(top)
        stood = counter.read_text()
        until(lambda: counter.read_text() != stood, "the writer does not go on")
        monkeypatch.setattr(freeze, "LIMIT_S", 0.3)
        source = open_source(device)
        still, _ = taking.take(source, taking.facts_of(source), "freeze", folder, pytest.fail)
        until(lambda: not is_frozen(top), "the time limit does not end it")
        with pytest.raises(SnapshotError, match="was let go"):
            still.pread(0, 4096)
        still.close()
    target = tmp_path / "back"
    mountfs("restore", tmp_path / "repo" / "still", target, "--yes")
    run("e2fsck", "-f", "-n", target)
    with loop_device(target) as device, kernel_mount(device, "ext4") as top:
        assert check_written(top)


@pytest.fixture(params=["xfs", pytest.param("btrfs", marks=pytest.mark.nightly)])
def sharing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder in a file system in which files share blocks."""
    kind = request.param
    make = {"xfs": make_xfs, "btrfs": make_btrfs}[kind]
    with ExitStack() as stack:
        device = stack.enter_context(loop_device(make(tmp_path / "below", 400 * MIB)))
        yield stack.enter_context(kernel_mount(device, kind, read_only=False))


def test_an_image_file_is_imaged_as_it_was_at_one_moment(sharing: Path, tmp_path: Path, folder: Path) -> None:
    disk = make_ext4(sharing / "vm.img", 24 * MIB)
    assert "snapshot" not in mountfs("backup", disk, tmp_path / "idle").err, "nobody writes"
    with (
        loop_device(disk) as device,
        kernel_mount(device, "ext4", read_only=False) as top,
        writing(top) as counter,
    ):
        source = open_source(str(disk))
        still, _ = taking.take(source, taking.facts_of(source), "auto", folder, pytest.fail)
        first, stood = digest(still), counter.read_text()
        until(lambda: counter.read_text() != stood, "the writer does not go on")
        assert digest(still) == first
        assert digest(source) != first
        assert isinstance(still, SectorReader)
        assert still.read_sectors(MIB, 4096) == still.pread(MIB, 4096), "for bad sectors, past the cache"
        assert sorted(path.name for path in sharing.iterdir()) == ["vm.img"], "the copy has no name"
        still.close()
        assert list(folder.iterdir()) == []
        for number in range(2):
            said = mountfs("backup", disk, tmp_path / "repo", "--set", "vm")
            assert "a snapshot (reflink)" in said.err
            assert "can change" not in said.err, "free space is left out"
            assert said.err.count("warning") == 0, said.err
            target = tmp_path / f"back{number}"
            mountfs("restore", tmp_path / "repo" / "vm", target, "--yes")
            run("e2fsck", "-f", "-n", target)
            with loop_device(target) as copy, kernel_mount(copy, "ext4") as seen:
                assert check_written(seen)
        assert not is_frozen(top)
