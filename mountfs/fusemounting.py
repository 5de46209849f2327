"""Making a FUSE mount: what it needs, the options of all of ours, and the two ways to get a descriptor.

Root mounts with mount(2); everybody else through ``fusermount3``, which hands over the opened descriptor.

Permissions: without ``allow_other`` nobody but the user who mounted can reach the files, so the kernel does
not check permissions and he reads all of his own backup, whoever owned the files on the imaged machine. With
``allow_other``, or when root mounts, the kernel checks them.
"""

from __future__ import annotations

import array
import ctypes
import os
import shutil
import socket
import stat
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from imageformat.errors import MountError, MountPointError
from mountfs.names import safe_text

if TYPE_CHECKING:
    from mountfs.adapters import MountOptions

TYPE_NAME = "mountfs"
READ_AHEAD_KIB = 1024
"""Largest request a FUSE mount can make; only root may ask for that much."""

_HELPER = "fusermount3"
_CONFIGURATION = Path("/etc/fuse.conf")
_DEVICE = Path("/dev/fuse")
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_NO_HELPER = "libfuse 3 is not installed: sudo apt install fuse3 (or: dnf install fuse3, pacman -S fuse3)"


def helper_missing() -> str | None:
    """Say how to get the program that mounts for users, when it is needed and not there."""
    return _NO_HELPER if os.geteuid() != 0 and shutil.which(_HELPER) is None else None


def device_missing() -> str | None:
    """Say what is wrong with the device of FUSE, and what mends it; None when it can be used."""
    device = _DEVICE
    if not device.exists():
        return f"{device} is missing: sudo modprobe fuse (in a container: start it with --device {device})"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"{device} is not open to this user: sudo chmod 666 {device} (or join the group that owns it)"
    return None


def check_as_user(options: MountOptions, mountpoint: Path) -> None:
    """Refuse what ``fusermount3`` would refuse, in words that say what to do.

    Raises:
        MountPointError, MountError
    """
    if os.geteuid() == 0:
        return
    if not os.access(mountpoint, os.W_OK):
        raise MountPointError(
            f"{safe_text(str(mountpoint))} is not yours to write: mount on a folder of your own"
        )
    if options.allow_other and not _allows_others(_CONFIGURATION):
        raise MountError(
            f"other users can be let in only after root adds the line user_allow_other to {_CONFIGURATION}: "
            f"echo user_allow_other | sudo tee -a {_CONFIGURATION}"
        )


def _allows_others(configuration: Path) -> bool:
    try:
        lines = configuration.read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def source_name(options: MountOptions) -> str:
    """Return what the mount table shows as the source."""
    return safe_text(options.source) or TYPE_NAME


def access_words(options: MountOptions) -> list[str]:
    """Return the mount options that say who may come in."""
    words = ["allow_other"] if options.allow_other else []
    return [*words, "default_permissions"] if options.allow_other or os.geteuid() == 0 else words


def option_words(options: MountOptions) -> str:
    """Return the mount options as libfuse and ``fusermount3`` take them."""
    source = source_name(options).replace("\\", "\\\\").replace(",", "\\,")
    return ",".join(
        ["ro", "nosuid", "nodev", f"subtype={TYPE_NAME}", f"fsname={source}", *access_words(options)]
    )


def open_mounted(options: MountOptions, mountpoint: Path) -> int:
    """Mount, and return the descriptor on which the kernel asks.

    Raises:
        MountError: the operating system refused.
    """
    return (_mount_as_root if os.geteuid() == 0 else _mount_as_user)(options, mountpoint)


def _mount_as_root(options: MountOptions, mountpoint: Path) -> int:
    fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    mode = stat.S_IFDIR
    words = [f"fd={fd}", f"rootmode={mode:o}", "user_id=0", "group_id=0", *access_words(options)]
    source, target, kind = source_name(options), os.fsencode(mountpoint), f"fuse.{TYPE_NAME}"
    library = ctypes.CDLL(None, use_errno=True)
    flags = ctypes.c_ulong(_MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    refused = library.mount(source.encode(), target, kind.encode(), flags, ",".join(words).encode())
    if refused:
        text = os.strerror(ctypes.get_errno())
        os.close(fd)
        raise MountError(f"the mount at {safe_text(str(mountpoint))} was refused: {text}")
    return fd


def _mount_as_user(options: MountOptions, mountpoint: Path) -> int:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        done = subprocess.run(
            [_HELPER, "-o", option_words(options), "--", str(mountpoint)],
            env=os.environ | {"_FUSE_COMMFD": str(theirs.fileno()), "LC_ALL": "C"},
            pass_fds=[theirs.fileno()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        theirs.close()
        if done.returncode == 0:
            _, received, _, _ = socket.recv_fds(ours, 1, array.array("i").itemsize)
            if received:
                os.set_inheritable(received[0], False)  # noqa: FBT003
                return received[0]
    said = safe_text(done.stderr.decode(errors="replace").strip()) or "nothing more is known"
    raise MountError(f"the mount at {safe_text(str(mountpoint))} was refused: {said}")


def raise_read_ahead(mountpoint: Path) -> None:
    """Let the kernel read further ahead than FUSE's usual 128 KiB; only root may."""
    if os.geteuid() != 0:
        return
    with suppress(OSError):
        device = mountpoint.stat().st_dev
        bdi = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        bdi.write_text(str(READ_AHEAD_KIB), "ascii")
