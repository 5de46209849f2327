"""``mountfs umount`` never hangs: it ends the mount, or says who uses it, or that it does not answer."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from imageformat.errors import MountError, MountPointError
from mountfs import mounts
from mountfs.fusesession import KEEP_VOLATILE_S
from mountfs.mounts import MountState, abort, list_mounts, unmount
from support.product import command_line, environment, mountfs
from support.requirements import require_cutting

pytestmark = [pytest.mark.fuse, pytest.mark.xdist_group("mounts")]

_spec = importlib.util.spec_from_file_location("demo_server", Path(__file__).with_name("demo_server.py"))
demo_server = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(demo_server)
Server = demo_server.Server


PATIENCE_S = 30


def is_mounted(folder: Path) -> bool:
    return f" {folder} " in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize("arguments", [".", "../mnt", "{}"])
def test_from_inside_the_mount_the_users_are_named(tmp_path: Path, arguments: str) -> None:
    folder = tmp_path / "mnt"
    folder.mkdir()
    with Server("demo", folder), subprocess.Popen(["sleep", "60"], cwd=folder) as user:
        done = mountfs("umount", arguments.format(folder), cwd=folder, code=MountError.exit_code)
        assert f"in use by sleep ({user.pid}): leave it, or use --lazy" in done.err
        assert "mountfs (" not in done.err, "the command itself is not in its own way"
        assert is_mounted(folder)
        mountfs("umount", "--lazy", arguments.format(folder), cwd=folder)
        assert not is_mounted(folder)
        user.kill()


def test_where_the_command_stands_is_not_in_its_way(tmp_path: Path) -> None:
    with Server("demo", tmp_path) as server:
        mountfs("umount", ".", cwd=tmp_path)
        assert server.wait()[0] == 0


def test_a_folder_inside_a_mount_is_told_from_the_mount(tmp_path: Path) -> None:
    with Server("demo", tmp_path):
        for place in (tmp_path / "sub", tmp_path / "none" / "deeper"):
            done = mountfs("umount", place, code=MountPointError.exit_code)
            assert f"lies inside the mount at {tmp_path}: mountfs umount {tmp_path}" in done.err


def test_a_mount_whose_server_hangs_does_not_hang_the_command(tmp_path: Path) -> None:
    require_cutting()
    with Server("hang", tmp_path):
        # More readers than a server has threads: one read that hangs need not hang a mount.
        readers = [
            subprocess.Popen(["cat", tmp_path / f"file{number}"], stderr=subprocess.DEVNULL)
            for number in range(4)
        ]
        try:
            deadline = time.monotonic() + 15
            while all(one.state is not MountState.NOT_RESPONDING for one in ours(tmp_path)):
                assert time.monotonic() < deadline
            assert "in use by cat" in mountfs("umount", tmp_path, code=MountError.exit_code).err
            assert "lies inside" in mountfs("umount", tmp_path / "file0", code=MountPointError.exit_code).err
            assert "mounted already" in mountfs("mount", "x", tmp_path, code=MountPointError.exit_code).err
        finally:
            abort(ours(tmp_path)[0])
            for reader in readers:
                reader.wait(20)


def test_a_server_that_stands_still_does_not_hang_the_command(tmp_path: Path) -> None:
    """The kernel forgets the top of a repository after a second; whoever looks at it then waits for ever."""
    disk, folder = tmp_path / "disk.img", tmp_path / "mnt"
    disk.write_bytes(bytes(1 << 20))
    folder.mkdir()
    mountfs("backup", disk, tmp_path / "repo")
    command = command_line("mount", "--foreground", tmp_path / "repo", folder)
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE) as server:
        assert b"is mounted" in server.stderr.readline()
        os.kill(server.pid, signal.SIGSTOP)
        try:
            time.sleep(KEEP_VOLATILE_S + 0.2)
            # Whoever lists the mounts of this machine meanwhile holds it until he gives up.
            deadline = time.monotonic() + PATIENCE_S
            while mountfs("umount", folder, code=None, patience=20).code:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        finally:
            os.kill(server.pid, signal.SIGCONT)
            gone = not is_mounted(folder)
            if not gone:
                server.kill()
    assert gone
    assert server.returncode == 0


def ours(folder: Path) -> list[mounts.MountRecord]:
    return [record for record in list_mounts(timeout_s=0.5) if record.mountpoint == folder]


def test_a_system_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(_path: Path, *, lazy: bool) -> tuple[int, str]:
        time.sleep(3600)
        return int(lazy), ""

    with Server("demo", tmp_path):
        with monkeypatch.context() as patch:
            patch.setattr(mounts, "UNMOUNT_S", 0.2)
            patch.setattr(mounts, "_unmount_as_root", hang)
            patch.setattr(mounts, "_unmount_as_user", hang)
            with pytest.raises(MountError, match="does not answer: use --lazy"):
                unmount(tmp_path)
            with (tmp_path / "big").open("rb"), pytest.raises(MountError, match=f"in use by .*{os.getpid()}"):
                unmount(tmp_path)
        unmount(tmp_path)
