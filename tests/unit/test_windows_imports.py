"""Every module of the product can be imported where Windows' Python is all there is.

Simulated: the platform says win32, modules that only POSIX has are gone, and so is everything in ``os``,
``signal`` and ``socket`` that the documentation of Python marks "Availability: Unix". Libraries are loaded
before that: they are not what is asked.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from support.disks import make_ext4
from support.requirements import REPOSITORY, require_tool
from support.winfsp import unpacked

_SCRIPT = r"""
import ctypes, errno, os, pkgutil, signal, socket, subprocess, sys, types
import importlib.metadata, multiprocessing, asyncio, concurrent.futures, tempfile, getpass, shutil
import platform, zoneinfo
import cachetools, msgspec, platformdirs, pytsk3, rich.console, rich.table, rich.progress, rich.text, typer
import xxhash, zstandard, cryptography.hazmat.primitives.ciphers, cryptography.hazmat.primitives.kdf.scrypt
import typer.core, typer.main, typer.rich_utils, mfusepy, lz4.block
import asyncssh, botocore.session, dateutil.tz, urllib3.exceptions

POSIX_ONLY = "fcntl resource termios tty pty pwd grp syslog readline spwd crypt nis".split()
for name in POSIX_ONLY:
    sys.modules[name] = None
UNIX_OS = '''
    O_CLOEXEC O_DIRECT O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_NOATIME O_PATH O_SYNC O_DSYNC O_NOCTTY O_TMPFILE
    POSIX_FADV_NORMAL POSIX_FADV_SEQUENTIAL POSIX_FADV_RANDOM POSIX_FADV_DONTNEED
    SEEK_DATA SEEK_HOLE ST_RDONLY WNOHANG XATTR_CREATE XATTR_REPLACE RTLD_NOW
    chown chroot copy_file_range eventfd fchdir fchmod fchown fdatasync fork forkpty fpathconf fstatvfs
    getegid geteuid getgid getgroups getpgid getpgrp getresuid getsid getuid getxattr killpg lchown listxattr
    lockf major makedev memfd_create minor mkfifo mknod openpty pathconf pipe2 posix_fadvise
    pread preadv pwrite pwritev readv removexattr sched_getaffinity sendfile setegid seteuid setgid
    setsid setuid setxattr splice statvfs sync sysconf tcgetpgrp ttyname uname wait3 wait4 writev
'''.split()
for name in UNIX_OS:
    if hasattr(os, name):
        delattr(os, name)
for name in [name for name in dir(signal) if name.startswith("SIG") and name not in
             {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN"}]:
    delattr(signal, name)
for name in ("pthread_kill", "pthread_sigmask", "setitimer", "sigwait", "alarm", "pause"):
    delattr(signal, name)
for name in ("AF_UNIX", "recv_fds", "send_fds"):
    delattr(socket, name)
os.O_BINARY, os.O_NOINHERIT = 0x8000, 0x80
def no_library(name, *arguments, **options):
    if name is None:
        raise TypeError("Windows has no library of everything that is loaded")
    raise OSError(f"{name} is not there")
ctypes.CDLL = no_library
for name in ("msvcrt", "winreg"):
    sys.modules[name] = types.ModuleType(name)
sys.platform = "win32"
del errno.ENOMEDIUM

"""

_IMPORT_ALL = r"""
import engine, imageformat, mountfs
failed = []
for package in (imageformat, engine, mountfs):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".", onerror=failed.append):
        if module.name.endswith("__main__") and module.name.count(".") == 1:
            continue
        try:
            __import__(module.name)
        except Exception as error:
            failed.append(f"{module.name}: {type(error).__name__}: {error}")
print("\n".join(failed))
print(len([name for name in sys.modules if name.split(".")[0] in {"engine", "imageformat", "mountfs"}]))
"""


def test_every_module_can_be_imported_on_windows() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT + _IMPORT_ALL],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    *failed, number = done.stdout.splitlines() or ["0"]
    assert done.returncode == 0, done.stderr
    assert [line for line in failed if line] == []
    assert int(number) > 200


_COMMANDS = r"""
import errno, importlib, json
msvcrt = sys.modules["msvcrt"]
msvcrt.LK_NBLCK, msvcrt.held = 2, {}
def locking(fd, mode, length):
    key = os.fstat(fd).st_ino
    if msvcrt.held.get(key, fd) != fd:
        raise OSError(errno.EACCES, "denied")
    msvcrt.held[key] = fd
msvcrt.locking = locking
winreg = sys.modules["winreg"]
winreg.KEY_READ = winreg.KEY_WOW64_32KEY = winreg.HKEY_LOCAL_MACHINE = 0
def open_key(*arguments):
    raise FileNotFoundError(2, "no such key")
winreg.OpenKey = open_key
real_rename = os.rename
class Move:
    def __call__(self, source, target, flags):
        if os.path.lexists(target):
            return 0
        real_rename(source, target)
        return 1
class Library:
    MoveFileExW = Move()
ctypes.WinDLL = lambda name, **options: Library
ctypes.get_last_error = lambda: 183
ctypes.WinError = lambda code: FileExistsError(17, "there already")
os.O_BINARY = os.O_NOINHERIT = 0
main = importlib.import_module("mountfs.cli.__main__").main
sys.argv = ["mountfs", *json.loads(sys.argv[1])]
main()
"""


_WITH_WINFSP = r"""
import os, sys, threading
sys.path.insert(0, "tests")
from support import winfsp
package = winfsp.load()
def started(system, threads):
    def use():
        drive = winfsp.Drive(package, package.plumbing.ffi.from_handle(system.UserContext))
        volume = next(name for name, _, _ in drive.open("\\").listing() if name.startswith("0-"))
        content = drive.open(f"\\{volume}\\Hello\\WORLD").read_all()
        print(drive.volume()[2], content.decode(), file=sys.stderr, flush=True)
        signal.raise_signal(signal.SIGINT)
    threading.Timer(0.2, use).start()
    return 0
package.plumbing.lib.FspFileSystemStartDispatcher = started
"""


def _on_windows(*words: str, code: int = 0, before: str = "", **more: str) -> bytes:
    command = [sys.executable, "-c", before + _SCRIPT + _COMMANDS, json.dumps(words)]
    environment = os.environ | more
    done = subprocess.run(command, capture_output=True, cwd=REPOSITORY, check=False, env=environment)
    if before:
        assert done.returncode == code, done.stderr.decode()
        return done.stderr
    assert done.returncode == code, done.stderr.decode()
    return done.stdout


def test_a_file_can_be_backed_up_looked_into_and_verified(tmp_path: Path) -> None:
    disk, repository = tmp_path / "disk.img", str(tmp_path / "repository")
    content = random.Random(7).randbytes(3 << 20)
    disk.write_bytes(content)
    _on_windows("backup", str(disk), repository)
    disk.write_bytes(b"changed" + content[7:])
    _on_windows("backup", str(disk), repository)
    listed = json.loads(_on_windows("list", repository, "--json").splitlines()[0])
    assert listed
    _on_windows("verify", repository)
    _on_windows("restore", repository, str(tmp_path / "back.img"), code=40)
    assert not (tmp_path / "back.img").exists()
    assert _on_windows("doctor", code=1).count(b"WinFsp") >= 1
    _on_windows("mount", repository, str(tmp_path / "drive"), code=71)


def test_an_image_becomes_a_drive_by_the_command_line(tmp_path: Path) -> None:
    require_tool("mke2fs")
    unpacked()
    (tmp_path / "content" / "hello").mkdir(parents=True)
    (tmp_path / "content" / "hello" / "world").write_text("of linux")
    image = make_ext4(tmp_path / "small.img", 8 << 20, populate_from=tmp_path / "content")
    assert _on_windows("cat", f"{image}:0/hello/world") == b"of linux"
    assert b"world" in _on_windows("ls", f"{image}:0/hello")
    _on_windows("cp", f"{image}:0/hello", str(tmp_path), code=40)
    (tmp_path / "winfsp" / "bin").mkdir(parents=True)
    place = tmp_path / "drive"
    said = _on_windows(
        "mount", str(image), str(place), before=_WITH_WINFSP, WINFSP_LIBRARY_PATH=str(tmp_path / "winfsp")
    )
    assert b"small.img of linux" in said
    assert b"end it with: Ctrl-C" in said, "there is no background on Windows"
    assert not place.exists()


@pytest.mark.parametrize("name", ["fcntl", "resource"])
def test_the_simulation_hides_what_windows_lacks(name: str) -> None:
    assert f" {name} " in _SCRIPT.replace('"', " ")
