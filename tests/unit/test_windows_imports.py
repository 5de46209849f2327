"""Every module of the product can be imported where Windows' Python is all there is.

Simulated: the platform says win32, modules that only POSIX has are gone, and so is everything in ``os``,
``signal`` and ``socket`` that the documentation of Python marks "Availability: Unix". Libraries are loaded
before that: they are not what is asked.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from support.requirements import REPOSITORY

_SCRIPT = r"""
import ctypes, errno, os, pkgutil, signal, socket, subprocess, sys, types
import importlib.metadata, multiprocessing, asyncio, concurrent.futures, tempfile, getpass, shutil, platform
import cachetools, msgspec, platformdirs, pytsk3, rich.console, rich.table, rich.progress, rich.text, typer
import xxhash, zstandard, cryptography.hazmat.primitives.ciphers, cryptography.hazmat.primitives.kdf.scrypt
import typer.core, typer.main, typer.rich_utils, mfusepy, lz4.block

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
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    *failed, number = done.stdout.splitlines() or ["0"]
    assert done.returncode == 0, done.stderr
    assert [line for line in failed if line] == []
    assert int(number) > 200


@pytest.mark.parametrize("name", ["fcntl", "resource"])
def test_the_simulation_hides_what_windows_lacks(name: str) -> None:
    assert f" {name} " in _SCRIPT.replace('"', " ")
