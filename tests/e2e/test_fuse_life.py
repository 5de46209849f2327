"""How mounts begin and end: signals, unmounting, dead and hanging servers, the background, other users."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from imageformat.errors import CorruptImageError, MountError, MountPointError
from mountfs import mounts
from mountfs.adapters import MountOptions
from mountfs.memorytree import MemoryTree, folder
from mountfs.mounts import MountState, abort, clear_stale, list_mounts, unmount
from support.everyone import (
    AS_NOBODY,
    NOBODY,
    as_nobody,
    copied,
    environment_for_everyone,
    python_for_everyone,
)
from support.requirements import require_cutting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# They look at all mounts of the machine, each for some time, so they run one after the other.
pytestmark = [pytest.mark.fuse, pytest.mark.xdist_group("mounts")]

_spec = importlib.util.spec_from_file_location("demo_server", Path(__file__).with_name("demo_server.py"))
demo_server = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(demo_server)
Server = demo_server.Server


@pytest.fixture(scope="module", autouse=True, params=["devfuse", "fuse"])
def _needs_fuse(request: pytest.FixtureRequest) -> None:
    """Every adapter shows and does the same."""
    os.environ["DEMO_ADAPTER"] = request.param
    reason = demo_server.adapter().unavailable()
    if reason is not None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def state_of(mountpoint: Path) -> MountState | None:
    found = [record.state for record in list_mounts(timeout_s=1.0) if record.mountpoint == mountpoint]
    return found[0] if found else None


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_mount_cleanly(tmp_path: Path, number: int) -> None:
    with Server("demo", tmp_path) as server, (tmp_path / "hello.txt").open("rb"):
        assert state_of(tmp_path) is MountState.OK
        code, out, err = server.end(number)
        assert (code, out, err) == (0, "done\n", "")
        assert state_of(tmp_path) is None


def test_umount_ends_the_server(tmp_path: Path) -> None:
    with Server("demo", tmp_path) as server:
        unmount(tmp_path)
        assert state_of(tmp_path) is None
        assert server.wait() == (0, "done\n", "")


def test_a_mount_in_use_names_who_uses_it_and_can_be_detached(tmp_path: Path) -> None:
    with Server("demo", tmp_path) as server, (tmp_path / "big").open("rb", buffering=0) as file:
        with pytest.raises(MountError, match=rf"in use by .*\({os.getpid()}\)") as caught:
            unmount(tmp_path)
        assert not isinstance(caught.value, MountPointError)
        assert state_of(tmp_path) is MountState.OK
        unmount(tmp_path, lazy=True)
        assert state_of(tmp_path) is None
        assert file.read(10) == demo_server.pattern(0, 10)
        file.close()
        assert server.wait()[0] == 0


def test_a_killed_server_leaves_a_stale_mount_that_can_be_cleared(tmp_path: Path) -> None:
    mountpoint = tmp_path / "with space\n"
    mountpoint.mkdir()
    with Server("demo", mountpoint) as server:
        server.process.kill()
        server.process.wait()
        assert state_of(mountpoint) is MountState.STALE
        with pytest.raises(MountPointError, match="umount"):
            demo_server.adapter().mount(MemoryTree(folder({})), MountOptions(mountpoint, "x"), lambda: None)
        assert clear_stale(tmp_path / "other") == []
        assert state_of(mountpoint) is MountState.STALE
        assert [record.mountpoint for record in clear_stale(tmp_path)] == [mountpoint]
        assert state_of(mountpoint) is None
        assert list(mountpoint.iterdir()) == []


def test_a_hanging_server_is_told_from_a_dead_one_and_can_be_cut_off(tmp_path: Path) -> None:
    require_cutting()
    with Server("hang", tmp_path) as server:
        # Processes of their own: one that has a file open hangs with its server whenever it starts another.
        # More of them than a server has threads: one read that hangs need not hang a mount.
        readers = [
            subprocess.Popen(["cat", tmp_path / f"file{number}"], stderr=subprocess.PIPE)
            for number in range(4)
        ]
        try:
            eventually(lambda: state_of(tmp_path) is MountState.NOT_RESPONDING)
            assert clear_stale(tmp_path) == []
        finally:
            abort(next(record for record in list_mounts(timeout_s=0.5) if record.mountpoint == tmp_path))
        for reader in readers:
            _, err = reader.communicate(timeout=20)
            assert reader.returncode == 1
            assert b"cat:" in err
        assert state_of(tmp_path) is None
        assert server.process.poll() is None


def test_mount_points_that_will_not_do(tmp_path: Path) -> None:
    tree = MemoryTree(folder({}))
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    for name, message in [("none", "mkdir"), ("file", "not a folder"), ("full", "not empty")]:
        with pytest.raises(MountPointError, match=message):
            demo_server.adapter().mount(tree, MountOptions(tmp_path / name, "x"), lambda: None)
    (tmp_path / "used").mkdir()
    with Server("demo", tmp_path / "used"), pytest.raises(MountPointError, match="mounted already"):
        demo_server.adapter().mount(tree, MountOptions(tmp_path / "used", "x"), lambda: None)
    with pytest.raises(MountPointError, match="not a mount of mountfs"):
        unmount(tmp_path / "full")


def test_a_mount_point_behind_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with Server("demo", tmp_path / "link") as server:
        assert state_of(tmp_path / "real") is MountState.OK
        if os.geteuid() == 0:
            assert mounts._umount2(tmp_path / "link", 0)[0] != 0, "a link swapped in at the last moment"
            assert state_of(tmp_path / "real") is MountState.OK
        unmount(tmp_path / "link")
        assert server.wait()[0] == 0


def test_a_tree_without_top_folder_is_not_mounted(tmp_path: Path) -> None:
    class Broken(MemoryTree):
        def root(self) -> None:
            raise CorruptImageError("no top folder")

    with pytest.raises(CorruptImageError):
        demo_server.adapter().mount(Broken(folder({})), MountOptions(tmp_path, "x"), lambda: None)
    assert state_of(tmp_path) is None


def background(*arguments: str | Path, state: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "XDG_STATE_HOME": str(state)}
    return subprocess.run(
        [sys.executable, demo_server.__file__, *arguments, "--background"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ | environment,
    )


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    subprocess.run(["umount", "-l", path], check=False, stderr=subprocess.DEVNULL)


def test_the_background_returns_when_the_files_are_there(mountpoint: Path, tmp_path: Path) -> None:
    done = background("demo", mountpoint, state=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    assert (mountpoint / "hello.txt").read_text() == "hello\n"
    with pytest.raises(OSError, match="Input/output"):
        (mountpoint / "buggy").read_bytes()
    unmount(mountpoint)
    log = tmp_path / "mountfs" / "background.log"
    eventually(lambda: "a bug at 0+4096" in log.read_text())
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_the_background_says_why_it_failed(mountpoint: Path, tmp_path: Path) -> None:
    done = background("broken-root", mountpoint, state=tmp_path)
    assert done.returncode == CorruptImageError.exit_code
    assert done.stderr == "CorruptImageError: no top folder: the volume is damaged\n"
    done = background("demo", tmp_path / "missing", state=tmp_path)
    assert done.returncode == MountPointError.exit_code
    assert "mkdir" in done.stderr


@pytest.fixture
def device_for_everyone() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    device = Path("/dev/fuse")
    before = stat.S_IMODE(device.stat().st_mode)
    device.chmod(0o666)
    yield
    device.chmod(before)


@pytest.fixture
def nobodys_folder() -> Iterator[Path]:
    path = Path("/tmp") / f"mountfs-nobody-{os.getpid()}"
    path.mkdir()
    os.chown(path, NOBODY, NOBODY)
    yield path
    subprocess.run(["umount", "-l", path], check=False, stderr=subprocess.DEVNULL)
    shutil.rmtree(path)


def nobodys_server(folder: Path) -> Any:
    command = (*AS_NOBODY, python_for_everyone(), copied(demo_server.__file__))
    return Server("demo", folder, command=command, env=environment_for_everyone())


@pytest.mark.root
@pytest.mark.usefixtures("device_for_everyone")
def test_a_user_mounts_his_own_backup(nobodys_folder: Path) -> None:
    with nobodys_server(nobodys_folder) as server:
        read = as_nobody("cat", nobodys_folder / "secret", nobodys_folder / "hello.txt")
        assert (read.stdout, read.stderr) == ("root only\nhello\n", ""), "he reads what root owned"
        with pytest.raises(PermissionError):
            (nobodys_folder / "secret").read_text()
        code = "from mountfs.mounts import *; from pathlib import Path; import sys; "
        busy = as_nobody(
            python_for_everyone(),
            "-c",
            f"{code}import os; os.chdir(sys.argv[1]); unmount(Path.cwd())",
            nobodys_folder,
        )
        assert "MountError" in busy.stderr
        assert "is in use by python" in busy.stderr
        ended = as_nobody(python_for_everyone(), "-c", f"{code}unmount(Path(sys.argv[1]))", nobodys_folder)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert server.wait() == (0, "done\n", "")


@pytest.mark.root
@pytest.mark.usefixtures("device_for_everyone")
def test_a_user_clears_his_own_dead_mount(nobodys_folder: Path) -> None:
    with nobodys_server(nobodys_folder) as server:
        server.process.kill()
        server.process.wait()
        code = (
            "import sys; from mountfs.mounts import *; "
            "print([str(record.mountpoint) for record in clear_stale(Path(sys.argv[1]))])"
        )
        done = as_nobody(python_for_everyone(), "-c", code, nobodys_folder)
        assert (done.stdout, done.stderr) == (f"['{nobodys_folder}']\n", "")
        assert state_of(nobodys_folder) is None


@pytest.mark.root
@pytest.mark.usefixtures("device_for_everyone")
def test_what_a_user_may_not_do(nobodys_folder: Path, tmp_path: Path) -> None:
    others = as_nobody(
        python_for_everyone(), copied(demo_server.__file__), "demo", nobodys_folder, "--allow-other"
    )
    assert "user_allow_other" in others.stderr
    os.chown(nobodys_folder, 0, 0)
    foreign = as_nobody(python_for_everyone(), copied(demo_server.__file__), "demo", nobodys_folder)
    assert foreign.returncode == MountPointError.exit_code
    with Server("demo", nobodys_folder):
        code = (
            "from mountfs.mounts import *; from pathlib import Path; import sys; unmount(Path(sys.argv[1]))"
        )
        assert "AccessDeniedError" in as_nobody(python_for_everyone(), "-c", code, nobodys_folder).stderr


@pytest.mark.root
def test_allow_other_lets_others_in_under_the_permissions_of_the_files(nobodys_folder: Path) -> None:
    with Server("demo", nobodys_folder, "--allow-other"):
        assert as_nobody("cat", nobodys_folder / "link").stdout == "deep\n"
        assert "Permission denied" in as_nobody("cat", nobodys_folder / "secret").stderr
