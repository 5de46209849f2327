"""The callbacks that WinFsp calls for one mount: `WindowsView` in the words of winfspy's operations.

winfspy gives each callback twice: ``ll_name`` is what WinFsp calls, with memory of C, and ``name`` has
Python's types. The second is used wherever it says enough. Four do not: looking up a path that leads through
a link, the size of an access list that did not fit, the spelling of a name, and streams, whose ``ll_`` in
winfspy 0.8.4 cannot be called.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeAlias

from imageformat.errors import MountfsError
from mountfs.ntstatus import NtStatus, StatusError, status_of
from mountfs.upcalls import FailureLog
from mountfs.windowsnames import NAME_UNITS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mountfs.windowsview import FileInfo, Opened, WindowsView

Untyped: TypeAlias = Any
"""What belongs to winfspy or cffi; neither has types."""

LABEL_UNITS = 32
_SECTOR = 512
_SECTORS_PER_UNIT = 8
_KEEP_MS = 1000
_FILE_DIRECTORY_FILE, _FILE_NON_DIRECTORY_FILE = 0x1, 0x40
_STREAM_INFO = "FSP_FSCTL_STREAM_INFO"
_REFUSED = (
    "set_volume_label", "create", "overwrite", "write", "set_basic_info", "set_file_size", "can_delete",
    "rename", "set_security", "set_reparse_point", "delete_reparse_point", "set_delete",
)  # fmt: skip


def volume_parameters() -> dict[str, object]:
    """Return what WinFsp is told of the volume when it is made."""
    return {
        "sector_size": _SECTOR,
        "sectors_per_allocation_unit": _SECTORS_PER_UNIT,
        "max_component_length": NAME_UNITS,
        "file_info_timeout": _KEEP_MS,
        "case_sensitive_search": 0,
        "case_preserved_names": 1,
        "unicode_on_disk": 1,
        "persistent_acls": 1,
        "reparse_points": 1,
        "named_streams": 1,
        "read_only_volume": 1,
        "post_cleanup_when_modified_only": 1,
        "file_system_name": "NTFS",  # programs look for it before they ask for streams and access lists
    }


def make_operations(binding: Untyped, view: WindowsView, *, label: str, size: int) -> Untyped:
    """Return the operations object that winfspy's ``FileSystem`` takes.

    Args:
        binding: the package winfspy, with its subpackage ``plumbing`` loaded.
        view: what is shown.
        label: of the volume; cut to the length that Windows allows.
        size: of the volume in bytes.
    """
    kind = type("Operations", (_Operations, binding.BaseFileSystemOperations), {})
    return kind(binding, view, label, size)


def _answered(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Turn every failure into winfspy's exception with a status; none ever looks like success."""

    @functools.wraps(callback)
    def call(self: _Operations, *arguments: object) -> Any:  # noqa: ANN401 (whatever the callback returns)
        try:
            return callback(self, *arguments)
        except Exception as error:
            raise self.refusal(error, callback.__name__) from error

    return call


class _Operations:
    """See winfspy's ``BaseFileSystemOperations``, which stands behind it in the class that is made of it."""

    _opened_objs: dict[Any, Any]

    def __init__(self, binding: Untyped, view: WindowsView, label: str, size: int) -> None:
        super().__init__()
        self._plumbing = binding.plumbing
        self._configure = binding.operations.configure_file_info
        self._view = view
        self._label = _cut(label)
        self._size = size
        self._failures = FailureLog()

    def refusal(self, error: Exception, what: str) -> Exception:
        """Return what is raised to winfspy for a failure."""
        if isinstance(error, StatusError):
            status = error.status
        else:
            self._failures.errno_of(error, what)
            status = status_of(error) if isinstance(error, MountfsError) else NtStatus.IO_DEVICE_ERROR
        return self._status_error(status)

    def _status_error(self, status: NtStatus) -> Exception:
        found: Exception = self._plumbing.NTStatusError(self._plumbing.NTSTATUS(int(status)))
        return found

    @_answered
    def get_volume_info(self) -> dict[str, object]:
        return {"total_size": self._size, "free_size": 0, "volume_label": self._label}

    def ll_get_security_by_name(
        self, name: Untyped, attributes: Untyped, access: Untyped, size: Untyped
    ) -> int:
        ffi = self._plumbing.ffi
        try:
            index = self._view.link_on_the_way(ffi.string(name))
        except Exception as error:  # noqa: BLE001 - an exception that escaped would be no answer
            return int(self.refusal(error, "look-up").args[0])
        if index is None:
            answer: int = super().ll_get_security_by_name(name, attributes, access, size)  # type: ignore[misc]
            return answer
        if attributes != ffi.NULL:
            attributes[0] = index
        return int(self._plumbing.NTSTATUS.STATUS_REPARSE)

    @_answered
    def get_security_by_name(self, name: str) -> tuple[int, bytes, int]:
        opened = self._view.find(name)
        access = self._view.access(opened)
        return opened.info.attributes, access, len(access)

    @_answered
    def open(self, name: str, create_options: int, _granted_access: int) -> Opened:
        opened = self._view.find(name)
        is_folder = bool(opened.info.attributes & 0x10)
        if create_options & _FILE_DIRECTORY_FILE and not is_folder:
            raise StatusError(NtStatus.NOT_A_DIRECTORY)
        if create_options & _FILE_NON_DIRECTORY_FILE and is_folder:
            raise StatusError(NtStatus.FILE_IS_A_DIRECTORY)
        return opened

    @_answered
    def close(self, _opened: Opened) -> None:
        """Nothing is held."""

    @_answered
    def cleanup(self, _opened: Opened, _name: str | None, _flags: int) -> None:
        """Nothing was changed."""

    @_answered
    def flush(self, _opened: Opened | None) -> None:
        """Nothing was changed."""

    @_answered
    def read(self, opened: Opened, offset: int, length: int) -> bytes:
        return self._view.read(opened, offset, length)

    @_answered
    def get_file_info(self, opened: Opened) -> dict[str, int]:
        return _facts(opened.info)

    @_answered
    def get_dir_info_by_name(self, opened: Opened, name: str) -> dict[str, object]:
        shown, info = self._view.entry_info(opened, name)
        return {"file_name": shown, **_facts(info)}

    def ll_get_dir_info_by_name(self, context: Untyped, name: Untyped, dir_info: Untyped) -> int:
        """Answer with the spelling of the tree; winfspy's own gives back what was asked."""
        ffi = self._plumbing.ffi
        try:
            facts = self.get_dir_info_by_name(ffi.from_handle(context), ffi.string(name))
        except self._plumbing.NTStatusError as refused:
            return int(refused.value)
        encoded = facts["file_name"].encode("utf-16-le")
        ffi.memmove(dir_info.FileNameBuf, encoded, len(encoded))
        dir_info.Size = ffi.sizeof("FSP_FSCTL_DIR_INFO") + len(encoded)
        self._configure(dir_info.FileInfo, **facts)
        return int(NtStatus.SUCCESS)

    @_answered
    def read_directory(self, opened: Opened, marker: str | None) -> Iterator[dict[str, object]]:
        entries = self._view.listing(opened, marker)
        first = next(entries, None)  # what cannot be listed is said before anything was
        return iter(()) if first is None else self._entries(first, entries)

    def _entries(
        self, first: tuple[str, FileInfo], others: Iterator[tuple[str, FileInfo]]
    ) -> Iterator[dict[str, object]]:
        yield {"file_name": first[0], **_facts(first[1])}
        for name, info in others:
            yield {"file_name": name, **_facts(info)}

    @_answered
    def get_security(self, opened: Opened) -> tuple[bytes, int]:
        access = self._view.access(opened)
        return access, len(access)

    def ll_get_security(self, context: Untyped, access: Untyped, size: Untyped) -> int:
        ffi = self._plumbing.ffi
        room = size[0] if size != ffi.NULL else None
        answer: int = super().ll_get_security(context, access, size)  # type: ignore[misc]
        if room is not None and answer == NtStatus.BUFFER_OVERFLOW:
            size[0] = self.get_security(ffi.from_handle(context))[1]
        return answer

    @_answered
    def get_reparse_point(self, opened: Opened, _name: str, buffer: Untyped, size: Untyped) -> None:
        self._give(self._view.reparse_data(opened), buffer, size)

    @_answered
    def resolve_reparse_points(
        self, name: str, _index: int, last_too: int, io_status: Untyped, buffer: Untyped, size: Untyped
    ) -> None:
        data = self._view.resolved(name, last_too=bool(last_too))
        self._give(data, buffer, size)
        io_status.Status = NtStatus.REPARSE
        io_status.Information = int.from_bytes(data[:4], "little")
        raise StatusError(NtStatus.REPARSE)

    def _give(self, data: bytes, buffer: Untyped, size: Untyped) -> None:
        ffi = self._plumbing.ffi
        if ffi.NULL in {buffer, size}:
            return
        if len(data) > size[0]:
            raise StatusError(NtStatus.BUFFER_TOO_SMALL)
        ffi.memmove(buffer, data, len(data))
        size[0] = len(data)

    def ll_get_stream_info(self, context: Untyped, buffer: Untyped, length: int, written: Untyped) -> int:
        try:
            streams = self._view.streams(self._plumbing.ffi.from_handle(context))
        except Exception as error:  # noqa: BLE001 - an exception that escaped would be no answer
            return int(self.refusal(error, "streams").args[0])
        for name, size in streams:
            if not self._add_stream(name, size, buffer, length, written):
                return int(NtStatus.BUFFER_OVERFLOW)
        self._plumbing.lib.FspFileSystemAddStreamInfo(self._plumbing.ffi.NULL, buffer, length, written)
        return int(NtStatus.SUCCESS)

    def _add_stream(self, name: str, size: int, buffer: Untyped, length: int, written: Untyped) -> bool:
        ffi = self._plumbing.ffi
        encoded = name.encode("utf-16-le")
        total = ffi.sizeof(_STREAM_INFO) + len(encoded)
        memory = ffi.new("char[]", total)
        info = ffi.cast(f"{_STREAM_INFO} *", memory)
        info.Size = total
        info.StreamSize = size
        info.StreamAllocationSize = -(-size // _SECTOR) * _SECTOR
        ffi.memmove(info.StreamNameBuf, encoded, len(encoded))
        return bool(self._plumbing.lib.FspFileSystemAddStreamInfo(info, buffer, length, written))


def _refuse(self: _Operations, *_arguments: object) -> None:
    raise self._status_error(NtStatus.MEDIA_WRITE_PROTECTED)


for _name in _REFUSED:
    setattr(_Operations, _name, _refuse)


def _facts(info: FileInfo) -> dict[str, int]:
    return {
        "file_attributes": info.attributes,
        "reparse_tag": info.reparse_tag,
        "allocation_size": info.allocation,
        "file_size": info.size,
        "creation_time": info.created,
        "last_access_time": info.accessed,
        "last_write_time": info.written,
        "change_time": info.changed,
        "index_number": info.number,
    }


def _cut(label: str) -> str:
    raw = label.encode("utf-16-le", "replace")[: 2 * LABEL_UNITS]
    return raw.decode("utf-16-le", "ignore")
