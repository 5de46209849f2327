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
msvcrt.get_osfhandle = lambda fd: fd
sys.path.insert(0, "tests")
from support.windowsmachine import Drive, Kernel32, Volume, WindowsMachine, error
told = json.loads(os.environ.get("DRIVES", '[{}, [{"extents": [[9, 0, 1]], "points": ["C:"]}]]'))
drives = {int(number): Drive(**drive) for number, drive in told[0].items()}
machine = WindowsMachine(drives, [Volume(**volume) for volume in told[1]])
kernel32 = Kernel32(machine)
ctypes.WinDLL = lambda name, **options: kernel32
ctypes.get_last_error = lambda: kernel32.last
ctypes.WinError = error
os.O_BINARY = os.O_NOINHERIT = 0
def powershell(command, **options):
    with open(os.environ["POWERSHELL_LOG"], "a") as log:
        log.write(command[-1] + "\n")
    device = "\\\\?\\GLOBALROOT\\Device\\HarddiskVolumeShadowCopy70"
    made = {"ReturnValue": 0, "ID": os.environ["SHADOW"], "DeviceObject": device}
    said = json.dumps(made) if "MethodName Create" in command[-1] else ""
    return types.SimpleNamespace(returncode=0, stdout=said.encode(), stderr=b"")
subprocess.run = powershell
main = importlib.import_module("mountfs.cli.__main__")
for wanted, words in json.loads(sys.argv[1]):
    code = main.run(words)
    print("\n\x1e", end="", flush=True)
    if code != wanted:
        print(words, "ended with", code, "instead of", wanted, file=sys.stderr)
        sys.exit(1)
"""


_SHADOW = "{3f2504e0-4f89-41d3-9a0c-0305e82c3301}"


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


def _on_windows(*commands: tuple[int, list[str]], before: str = "", **more: str) -> tuple[list[bytes], bytes]:
    """Run commands one after the other in one process; what each wrote, and what all said."""
    command = [sys.executable, "-c", before + _SCRIPT + _COMMANDS, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, cwd=REPOSITORY, check=False, env=os.environ | more)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.split(b"\n\x1e")[:-1], done.stderr


def test_a_file_can_be_backed_up_looked_into_restored_and_converted(tmp_path: Path) -> None:
    disk, repository = tmp_path / "disk.img", str(tmp_path / "repository")
    content = random.Random(7).randbytes(3 << 20)
    names = ("back.img", "first.img", "made.raw", "made.vhdx", "again", "again.img")
    back, first, raw, vhdx, again, last = (str(tmp_path / name) for name in names)
    disk.write_bytes(content)
    _on_windows((0, ["backup", str(disk), repository]))
    disk.write_bytes(b"changed" + content[7:])
    (tmp_path / "first.img").write_bytes(b"there already")
    wrote, _ = _on_windows(
        (0, ["backup", str(disk), repository]),
        (0, ["list", repository, "--json"]),
        (0, ["verify", repository]),
        (0, ["restore", repository, back, "--verify"]),
        (53, ["restore", f"{repository}/disk@1", first]),
        (0, ["restore", f"{repository}/disk@1", first, "--yes"]),
        (0, ["convert", f"{repository}/disk@1", raw]),
        (0, ["convert", f"{repository}/disk@1", vhdx]),
        (0, ["convert", vhdx, again, "--set", "same"]),
        (0, ["restore", again, last]),
        (1, ["doctor"]),
        (71, ["mount", repository, str(tmp_path / "drive")]),
    )
    assert json.loads(wrote[1].splitlines()[0])
    assert b"WinFsp" in wrote[10]
    assert Path(back).read_bytes() == disk.read_bytes()
    assert [Path(path).read_bytes() == content for path in (first, raw, last)] == [True] * 3
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_an_image_becomes_a_drive_by_the_command_line(tmp_path: Path) -> None:
    require_tool("mke2fs")
    unpacked()
    (tmp_path / "content" / "hello").mkdir(parents=True)
    (tmp_path / "content" / "hello" / "world").write_text("of linux")
    (tmp_path / "content" / "a:b").write_text("colon")
    image = make_ext4(tmp_path / "small.img", 8 << 20, populate_from=tmp_path / "content")
    out = tmp_path / "out"
    out.mkdir()
    wrote, _ = _on_windows(
        (0, ["cat", f"{image}:0/hello/world"]),
        (0, ["ls", f"{image}:0/hello"]),
        (0, ["cp", f"{image}:0/hello", f"{image}:0/a:b", str(out), "--json"]),
    )
    assert wrote[0] == b"of linux"
    assert b"world" in wrote[1]
    told = json.loads(wrote[2])
    assert (told["files"], told["failures"]) == (2, [])
    assert (out / "hello" / "world").read_text() == "of linux"
    assert (out / "%escaped%a%3Ab").read_text() == "colon"
    times = [(tmp_path / place / "hello" / "world").stat().st_mtime_ns for place in ("out", "content")]
    assert times[0] // 10**9 == times[1] // 10**9, "mke2fs keeps seconds"
    (tmp_path / "winfsp" / "bin").mkdir(parents=True)
    place = tmp_path / "drive"
    _, said = _on_windows(
        (0, ["mount", str(image), str(place)]),
        before=_WITH_WINFSP,
        WINFSP_LIBRARY_PATH=str(tmp_path / "winfsp"),
    )
    assert b"small.img of linux" in said
    assert b"end it with: Ctrl-C" in said, "there is no background on Windows"
    assert not place.exists()


def test_drives_are_listed_imaged_and_overwritten_by_the_command_line(tmp_path: Path) -> None:
    """All of it by ctypes: structures, handles and buffers go to a kernel32 that reads what they say.

    Of the volume that is mounted a shadow copy is imaged, which has other bytes here than what goes on.
    """
    mib = 1 << 20
    log = tmp_path / "log"
    more = {"POWERSHELL_LOG": str(log), "SHADOW": _SHADOW, "XDG_STATE_HOME": str(tmp_path / "state")}
    contents = {number: random.Random(number).randbytes(4 * mib) for number in (0, 1, 2)}
    drives = {}
    for number, content in contents.items():
        (tmp_path / f"drive{number}").write_bytes(content)
        drives[number] = {"file": str(tmp_path / f"drive{number}"), "serial": f"SN{number}"}
    shadow = random.Random(70).randbytes(2 * mib)
    (tmp_path / "drive70").write_bytes(shadow)
    drives[70] = {"file": str(tmp_path / "drive70")}
    volumes = [
        {"extents": [[0, mib, 2 * mib]], "points": ["C:\\"]},
        {"extents": [[2, mib, 2 * mib]], "points": ["E:\\"]},
    ]
    two, repository = "\\\\.\\PhysicalDrive2", str(tmp_path / "repository")

    place, agreed = f"{repository}/PhysicalDrive1", "--target-serial"

    def run(*commands: tuple[int, list[str]]) -> list[bytes]:
        return _on_windows(*commands, DRIVES=json.dumps([drives, volumes]), **more)[0]

    wrote = run(
        (0, ["disks", "--json"]),
        (0, ["backup", "serial=sn1", repository]),
        (0, ["backup", "E:", repository]),
        (43, ["backup", "C:", repository]),
        (53, ["restore", place, two, "--yes"]),
        (55, ["restore", place, two, agreed, "SN1"]),
        (52, ["restore", place, "\\\\.\\PhysicalDrive0", agreed, "SN0"]),
        (60, ["restore", place, "\\\\.\\PhysicalDrive7", agreed, "SN0"]),
        (50, ["restore", place, "E:", agreed, "SN2"]),
    )
    assert [(disk["serial"], disk["mounted_at"]) for disk in json.loads(wrote[0])["disks"]] == [
        ("SN0", ["C:\\"]),
        ("SN1", []),
        ("SN2", ["E:\\"]),
    ]
    assert (tmp_path / "drive2").read_bytes() == contents[2], "none of that wrote"
    made, removed = log.read_text().splitlines()
    assert "-MethodName Create -Arguments @{Volume='E:\\';" in made
    assert removed.endswith(f"-Filter \"ID='{_SHADOW}'\"|Remove-CimInstance")
    assert list((tmp_path / "state" / "mountfs" / "snapshots").iterdir()) == [], "nothing is noted any more"
    run((0, ["restore", place, two, agreed, "SN2", "--verify"]))
    assert (tmp_path / "drive2").read_bytes() == contents[1]
    run((0, ["restore", f"{repository}/E", "E:", agreed, "SN2", "--verify"]))
    whole = contents[1][:mib] + shadow + contents[1][3 * mib :]
    assert (tmp_path / "drive2").read_bytes() == whole
    assert (tmp_path / "drive1").read_bytes() == contents[1]


@pytest.mark.parametrize("name", ["fcntl", "resource"])
def test_the_simulation_hides_what_windows_lacks(name: str) -> None:
    assert f" {name} " in _SCRIPT.replace('"', " ")
