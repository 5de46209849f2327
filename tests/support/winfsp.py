"""winfspy's own Python, from its published wheel for Windows, over a stand-in for its compiled part.

The stand-in is what lies below winfspy: the structures of ``winfsp/fsctl.h`` as cffi lays them out, and what
it calls of WinFsp's library, written after its documentation. Nothing of winfspy is changed.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import tempfile
import types
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import cffi

from support.requirements import REPOSITORY, unavailable

VERSION = "0.8.4"
WHEEL_PYTHON = "3.11"
"""The newest Python that this version has wheels for."""

STRUCTURES = """
typedef struct { uint64_t TotalSize; uint64_t FreeSize; uint16_t VolumeLabelLength;
    uint16_t VolumeLabel[32]; } FSP_FSCTL_VOLUME_INFO;
typedef struct { uint32_t FileAttributes; uint32_t ReparseTag; uint64_t AllocationSize; uint64_t FileSize;
    uint64_t CreationTime; uint64_t LastAccessTime; uint64_t LastWriteTime; uint64_t ChangeTime;
    uint64_t IndexNumber; uint32_t HardLinks; uint32_t EaSize; } FSP_FSCTL_FILE_INFO;
typedef struct { uint16_t Size; FSP_FSCTL_FILE_INFO FileInfo; uint8_t Padding[24];
    uint16_t FileNameBuf[]; } FSP_FSCTL_DIR_INFO;
typedef struct { uint16_t Size; uint64_t StreamSize; uint64_t StreamAllocationSize;
    uint16_t StreamNameBuf[]; } FSP_FSCTL_STREAM_INFO;
typedef struct { uint32_t Status; uintptr_t Information; } IO_STATUS_BLOCK;
typedef struct { char unused[20]; } SECURITY_DESCRIPTOR;
typedef struct FSP_FILE_SYSTEM { void *UserContext; } FSP_FILE_SYSTEM;
"""


class StandIn(cffi.FFI):
    """A cffi.FFI that lets winfspy declare its callbacks."""

    def __init__(self) -> None:
        super().__init__()
        self.callbacks: dict[str, Any] = {}
        self.cdef(STRUCTURES)

    def new(self, cdecl: Any, init: Any = None) -> Any:
        """The two structures that winfspy only fills are kept as Python objects."""
        if cdecl in {"FSP_FILE_SYSTEM_INTERFACE*", "FSP_FSCTL_VOLUME_PARAMS*"}:
            return types.SimpleNamespace()
        return super().new(cdecl, init)

    def def_extern(self, *_arguments: Any, **_options: Any) -> Any:  # type: ignore[override]
        def keep(function: Any) -> Any:
            self.callbacks[function.__name__] = function
            return function

        return keep


class Library:
    """What winfspy calls of WinFsp's library."""

    WFSPY_FSP_FSCTL_DISK_DEVICE_NAME = "WinFsp.Disk"

    def __init__(self, ffi: StandIn) -> None:
        self._ffi = ffi
        self.calls: list[str] = []
        self.parameters: tuple[Any, ...] = ()
        self.interface: Any = None
        self.system: Any = None
        self.mount_status = 0
        self.mountpoint = ""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("WFSPY_"):
            return 0
        if name.startswith("_trampolin_"):
            return self._ffi.callbacks[name]
        raise AttributeError(name)

    def LocalFree(self, _memory: Any) -> None:  # noqa: N802
        """Nothing of ours is Windows' memory."""

    def configure_FSP_FSCTL_VOLUME_PARAMS(self, _params: Any, *values: Any) -> None:  # noqa: N802
        self.parameters = values

    def FspFileSystemCreate(self, _device: str, _params: Any, interface: Any, created: Any) -> int:  # noqa: N802
        self.calls = ["create"]
        self.interface = interface
        self.system = self._ffi.new("FSP_FILE_SYSTEM *")
        created[0] = self.system
        return 0

    def FspFileSystemSetMountPoint(self, _system: Any, mountpoint: str) -> int:  # noqa: N802
        self.calls.append("set mount point")
        self.mountpoint = mountpoint
        if not self.mount_status:
            Path(mountpoint).mkdir()
        return self.mount_status

    def FspFileSystemStartDispatcher(self, _system: Any, _threads: int) -> int:  # noqa: N802
        self.calls.append("start")
        return 0

    def FspFileSystemStopDispatcher(self, _system: Any) -> None:  # noqa: N802
        self.calls.append("stop")

    def FspFileSystemDelete(self, _system: Any) -> None:  # noqa: N802
        self.calls.append("delete")
        Path(self.mountpoint).rmdir()

    def FspFileSystemAddDirInfo(self, info: Any, buffer: Any, length: int, written: Any) -> int:  # noqa: N802
        return self._add(info, buffer, length, written)

    def FspFileSystemAddStreamInfo(self, info: Any, buffer: Any, length: int, written: Any) -> int:  # noqa: N802
        return self._add(info, buffer, length, written)

    def _add(self, info: Any, buffer: Any, length: int, written: Any) -> int:
        """Append a record at a multiple of 8; NULL is the end, a size of 0."""
        ffi = self._ffi
        end = info == ffi.NULL
        size = 2 if end else info.Size
        room = size if end else -(-size // 8) * 8
        if written[0] + room > length:
            return 0
        ffi.memmove(
            ffi.cast("char *", buffer) + written[0], bytes(2) if end else ffi.buffer(info, size), size
        )
        written[0] += room
        return 1


class _SameTrace:
    """For winfspy's wish to trace its threads like all others: they already are."""

    @property
    def _trace_hook(self) -> Any:
        return sys.gettrace()


@cache
def load() -> Any:
    """Import winfspy; the package, with ``plumbing`` and ``operations`` loaded."""
    folder = unpacked()
    sys.path.insert(0, str(folder))
    sys.modules["winreg"] = types.ModuleType("winreg")
    ffi = StandIn()
    bindings = types.ModuleType("winfspy.plumbing.bindings")
    bindings.ffi, bindings.lib = ffi, Library(ffi)  # type: ignore[attr-defined]
    bindings.enable_debug_log = lambda: None  # type: ignore[attr-defined]
    sys.modules["winfspy.plumbing.bindings"] = bindings
    try:
        package = importlib.import_module("winfspy")
    finally:
        sys.path.remove(str(folder))
        del sys.modules["winreg"]
    package.operations.threading = _SameTrace()
    return package


@cache
def unpacked() -> Path:
    """The folder of the unpacked wheel, fetched by pip once and kept where tools keep such things."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache_home / "mountfs-tests" / f"winfspy-{VERSION}"
    if not (folder / "winfspy" / "operations.py").exists():
        _fetch(folder)
    return folder


def _fetch(folder: Path) -> None:
    """Download and unpack beside the folder, then rename: other workers may be doing the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        command = [
            sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:",
            "--platform", "win_amd64", "--python-version", WHEEL_PYTHON, "-d", made, f"winfspy=={VERSION}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
        wheel = next(Path(made).glob("*.whl"), None) if done.returncode == 0 else None
        if wheel is None:
            unavailable(f"needs the wheel of winfspy {VERSION}: {done.stderr.strip()[-200:]}")
        content = Path(made) / "content"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(content, [name for name in archive.namelist() if name.endswith(".py")])
        with contextlib.suppress(OSError):
            content.rename(folder)


class RefusedError(Exception):
    """The file system answered with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status:#010x}")
        self.status = status


DIRECTORY_FILE, NON_DIRECTORY_FILE, OPEN_REPARSE_POINT = 0x1, 0x40, 0x200000
_REPARSE, _OVERFLOW = 0x104, 0x80000005


class Drive:
    """Asks a file system as WinFsp's driver and library do, with memory of C and in their order."""

    def __init__(self, package: Any, operations: Any) -> None:
        self.package = package
        self.ffi = package.plumbing.ffi
        self.lib = package.plumbing.lib
        self._handle = self.ffi.new_handle(operations)
        self._system = self.ffi.new("FSP_FILE_SYSTEM *")
        self._system.UserContext = self._handle

    def call(self, name: str, *arguments: Any) -> int:
        return int(self.ffi.callbacks[f"_trampolin_fs_{name}"](self._system, *arguments) or 0)

    def checked(self, name: str, *arguments: Any) -> None:
        status = self.call(name, *arguments)
        if status:
            raise RefusedError(status)

    def text(self, value: str) -> Any:
        return self.ffi.new("wchar_t[]", value)

    def volume(self) -> tuple[int, int, str]:
        info = self.ffi.new("FSP_FSCTL_VOLUME_INFO *")
        self.checked("GetVolumeInfo", info)
        label = self.ffi.buffer(info.VolumeLabel, 2 * 32)[: info.VolumeLabelLength]
        return info.TotalSize, info.FreeSize, bytes(label).decode("utf-16-le")

    def security(self, path: str, room: int = 4096) -> tuple[int, int, bytes]:
        """Status, attributes (or the place of a link), descriptor; asked again when it did not fit."""
        attributes, size = self.ffi.new("uint32_t *"), self.ffi.new("size_t *", room)
        buffer = self.ffi.new("char[]", max(room, 1))
        status = self.call("GetSecurityByName", self.text(path), attributes, buffer, size)
        return status, attributes[0], bytes(self.ffi.buffer(buffer, min(size[0], room)))

    def resolve(self, path: str, index: int, *, last_too: bool) -> str:
        status, size = self.ffi.new("IO_STATUS_BLOCK *"), self.ffi.new("size_t *", 16 << 10)
        buffer = self.ffi.new("char[]", 16 << 10)
        answer = self.call("ResolveReparsePoints", self.text(path), index, last_too, status, buffer, size)
        if answer != _REPARSE:
            raise RefusedError(answer)
        assert (status.Status, status.Information) == (_REPARSE, 0xA000000C)
        return target_of(bytes(self.ffi.buffer(buffer, size[0])))

    def open(self, path: str, options: int = 0) -> Handle:
        """As CreateFile does: links on the way and, unless it asks for the link itself, in the end."""
        for _ in range(8):
            status, found, _ = self.security(path)
            if status == _OVERFLOW:
                status, found, _ = self.security(path, room=65536)
            if status == _REPARSE:
                path = self.resolve(path, found, last_too=not options & OPEN_REPARSE_POINT)
                continue
            if status:
                raise RefusedError(status)
            if not found & 0x400 or options & OPEN_REPARSE_POINT:
                break
            path = self.resolve(path, path.rindex("\\"), last_too=True)
        context, info = self.ffi.new("void **"), self.ffi.new("FSP_FSCTL_FILE_INFO *")
        self.checked("Open", self.text(path), options, 0x120089, context, info)
        return Handle(self, context[0], info)


def target_of(data: bytes) -> str:
    """The name that is substituted, of a symbolic link ([MS-FSCC] 2.1.2.4) or a junction (2.1.2.5)."""
    tag = int.from_bytes(data[:4], "little")
    offset, length = (int.from_bytes(data[at : at + 2], "little") for at in (8, 10))
    start = {0xA000000C: 20, 0xA0000003: 16}[tag] + offset
    return data[start : start + length].decode("utf-16-le")


class Handle:
    """An open file."""

    def __init__(self, drive: Drive, context: Any, info: Any) -> None:
        self._drive = drive
        self.context = context
        self.info = info

    def read(self, offset: int, length: int) -> bytes:
        ffi = self._drive.ffi
        buffer, done = ffi.new("char[]", length), ffi.new("uint32_t *")
        self._drive.checked("Read", self.context, buffer, offset, length, done)
        return bytes(ffi.buffer(buffer, done[0]))

    def read_all(self) -> bytes:
        parts: list[bytes] = []
        while sum(map(len, parts)) < self.info.FileSize:
            parts.append(self.read(sum(map(len, parts)), 1 << 20))
        return b"".join(parts)

    def facts(self) -> Any:
        info = self._drive.ffi.new("FSP_FSCTL_FILE_INFO *")
        self._drive.checked("GetFileInfo", self.context, info)
        return info

    def listing(self, room: int = 4096) -> list[tuple[str, int, int]]:
        """Name, attributes and size of all entries, asked for in pages of ``room`` bytes."""
        found: list[tuple[str, int, int]] = []
        ffi = self._drive.ffi
        while True:
            marker = self._drive.text(found[-1][0]) if found else ffi.NULL
            buffer, done = ffi.new("char[]", room), ffi.new("uint32_t *")
            self._drive.checked("ReadDirectory", self.context, ffi.NULL, marker, buffer, room, done)
            page, at_end = _records(bytes(ffi.buffer(buffer, done[0])))
            assert page or at_end, "a page without an entry would be asked for for ever"
            found += [
                (name(r, 104), int.from_bytes(r[8:12], "little"), int.from_bytes(r[24:32], "little"))
                for r in page
            ]
            if at_end:
                return found

    def streams(self) -> list[tuple[str, int]]:
        ffi = self._drive.ffi
        buffer, done = ffi.new("char[]", 65536), ffi.new("uint32_t *")
        self._drive.checked("GetStreamInfo", self.context, buffer, 65536, done)
        records, at_end = _records(bytes(ffi.buffer(buffer, done[0])))
        assert at_end
        return [(name(record, 24), int.from_bytes(record[8:16], "little")) for record in records]

    def reparse(self) -> bytes:
        ffi = self._drive.ffi
        buffer, size = ffi.new("char[]", 16 << 10), ffi.new("size_t *", 16 << 10)
        self._drive.checked("GetReparsePoint", self.context, self._drive.text("\\ignored"), buffer, size)
        return bytes(ffi.buffer(buffer, size[0]))

    def entry(self, wanted: str) -> tuple[str, int]:
        """Spelling and size of one name in the folder."""
        ffi = self._drive.ffi
        memory = ffi.new("char[]", 104 + 2 * 255)
        info = ffi.cast("FSP_FSCTL_DIR_INFO *", memory)
        self._drive.checked("GetDirInfoByName", self.context, self._drive.text(wanted), info)
        return name(bytes(ffi.buffer(memory, info.Size)), 104), info.FileInfo.FileSize

    def close(self) -> None:
        self._drive.call("Cleanup", self.context, self._drive.ffi.NULL, 0)
        self._drive.call("Close", self.context)


def name(record: bytes, at: int) -> str:
    return record[at:].decode("utf-16-le", "surrogatepass")


def _records(page: bytes) -> tuple[list[bytes], bool]:
    """The records of a page, and whether it says that there are no more."""
    found, at = [], 0
    while at < len(page):
        size = int.from_bytes(page[at : at + 2], "little")
        if not size:
            return found, True
        found.append(page[at : at + size])
        at += -(-size // 8) * 8
    return found, False
