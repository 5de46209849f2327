"""Images on a machine that is reached by SFTP: ``sftp://[USER@]HOST[:PORT]/PATH``; ``/~/`` is the home.

An object is written under a hidden name, synced where the server can (``fsync@openssh.com``), read back and
renamed, which in this version of the protocol never replaces. What it cannot: sync a folder.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

import asyncssh
from asyncssh import FXF_CREAT, FXF_READ, FXF_TRUNC, FXF_WRITE

from imageformat.errors import DestinationError, MountfsError, NotFoundError, StorageError, UsageError
from imageformat.storage import ObjectInfo, StorageScheme
from imageformat.storage._sftpconnection import Connection, Target
from imageformat.storage._sftpwriter import SftpContinuingWriter, SftpObjectWriter
from imageformat.storage.leases import LEASE_NAME, Note, leased
from imageformat.storage.patience import DEFAULT_PATIENCE
from imageformat.storage.ranges import RangeDevice
from imageformat.storage.unfinished import is_kept, name_of_copy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncssh import SFTPAttrs, SFTPClient

    from imageformat.device import BlockDevice
    from imageformat.storage.leases import Lease
    from imageformat.storage.patience import Patience

_THREADS = 4
_CACHE_NAME = ".catalog.json"
_OWN_MARK = ".lock"
_LARGEST_CACHE = 256 << 20
_URL = re.compile(
    r"sftp://(?:(?P<user>[^@/:]+)@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^@/:]+)(?::(?P<port>\d{1,5}))?(?P<path>/.*)?"
)


class _Entry(NamedTuple):
    name: str
    size: int
    mtime: int
    mode: int


class SftpStorage:
    """See `Storage` and `ContinuingStorage`; keys are paths below one folder."""

    def __init__(self, url: str, target: Target, root: str, *, patience: Patience = DEFAULT_PATIENCE) -> None:
        self._url = url.rstrip("/")
        self._root = root
        self._connection = Connection(target, patience)
        self.pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="sftp")
        self._leases: dict[str, Lease] = {}

    @property
    def url(self) -> str:
        """See `Storage.url`."""
        return self._url

    def path(self, key: str) -> str:
        """Return a key as the server has it."""
        return posixpath.join(self._root, key) if key else self._root

    def folders(self) -> Iterator[str]:
        """See `Storage.folders`; hidden folders do not count."""
        yield from (entry.name for entry in self._scan("") if stat.S_ISDIR(entry.mode))

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Storage.objects`; hidden files are not objects."""
        for entry in self._scan(prefix):
            if stat.S_ISREG(entry.mode):
                yield ObjectInfo(f"{prefix}{entry.name}", entry.size, f"{entry.size}-{entry.mtime}")

    def _scan(self, prefix: str) -> list[_Entry]:
        """List what is not hidden, links followed."""
        shown = [entry for entry in self.entries(self.path(prefix)) if not entry.name.startswith(".")]
        found = []
        for entry in shown:
            seen: _Entry | None = entry
            if stat.S_ISLNK(entry.mode):
                seen = self.look(self.path(f"{prefix}{entry.name}"))
            if seen is not None:
                found.append(seen._replace(name=entry.name))
        return sorted(found)

    def entries(self, folder: str) -> list[_Entry]:
        """List a folder of the server, hidden names too."""

        async def action(client: SFTPClient) -> list[_Entry]:
            entries = await client.readdir(folder or ".")
            named = ((_text(entry.filename), entry.attrs) for entry in entries)
            return [_entry(name, attrs) for name, attrs in named if name not in {".", ".."}]

        return self._connection.run(self._named(folder), action)

    def look(self, path: str) -> _Entry | None:
        """Return what a path leads to; None when that is nothing."""

        async def action(client: SFTPClient) -> _Entry:
            return _entry(path, await client.stat(path))

        try:
            return self._connection.run(self._named(path), action)
        except NotFoundError:
            return None

    def _named(self, path: str) -> str:
        """Name a path as a person knows it."""
        return f"{self._url}{path.removeprefix(self._root)}" if path.startswith(self._root) else path

    def open(self, key: str) -> BlockDevice:
        """See `Storage.open`."""
        found = self.look(self.path(key))
        if found is None or not stat.S_ISREG(found.mode):
            raise NotFoundError(f"{self._url}/{key}: no such file")
        return self.device(self.path(key), found, f"{self._url}/{key}")

    def device(self, path: str, found: _Entry, name: str) -> BlockDevice:
        """Open a file that is known already."""

        def fetch(offset: int, size: int) -> bytes:
            return self._read(path, offset, size, found, name)

        return RangeDevice(name, found.size, fetch, self.pool, lambda: self._let_go(path))

    def _read(self, path: str, offset: int, size: int, of: _Entry, name: str) -> bytes:
        async def action(client: SFTPClient) -> bytes:
            async with self._connection.handle(client, path, FXF_READ) as file:
                data = await file.read(size, offset)
                if len(data) < size:
                    now = await file.stat()
                    if (now.size, now.mtime) == (of.size, of.mtime):
                        raise asyncssh.SFTPConnectionLost("the answer was too short")
                return _bytes(data)

        data = self._connection.run(name, action)
        if len(data) != size:
            raise StorageError(f"{name}: was replaced or cut while in use; start again")
        return data

    def _let_go(self, path: str) -> None:
        with contextlib.suppress(MountfsError):
            self._connection.run(path, lambda _client: self._connection.let_go(path))

    def holds(self, key: str, prefix: str) -> bool:
        """See `Storage.holds`."""

        async def action(client: SFTPClient) -> bool:
            place = await client.realpath(self.path(key))
            top = await client.realpath(self.path(prefix))
            inside = _text(place).startswith(f"{_text(top).rstrip('/')}/")
            return inside and stat.S_ISREG((await client.stat(place)).permissions or 0)

        try:
            return self._connection.run(key, action)
        except MountfsError:
            return False

    def real_place(self, key: str) -> tuple[SftpStorage, str]:
        """See `Storage.real_place`; a link counts as the file itself."""
        return self, key

    def modified_ns(self, key: str) -> int:
        """See `Storage.modified_ns`; whole seconds."""
        try:
            found = self.look(self.path(key))
        except MountfsError:
            return 0
        return found.mtime * 1_000_000_000 if found is not None else 0

    def create(self, key: str) -> SftpObjectWriter:
        """See `Storage.create`."""
        return SftpObjectWriter(self, key)

    def go_on(self, key: str, identity: str) -> SftpContinuingWriter:
        """See `ContinuingStorage.go_on`."""
        folder, part = posixpath.dirname(self.path(key)), name_of_copy(identity)
        self.make_folder(folder)
        if any(entry.name == part and not stat.S_ISREG(entry.mode) for entry in self.entries(folder)):
            raise DestinationError(f"{self._named(folder)}/{part}: is no file, and is not written to")
        return SftpContinuingWriter(self, key, part)

    def make_folder(self, folder: str) -> None:
        """Make a folder and those above it."""

        async def action(client: SFTPClient) -> None:
            if folder and not await client.isdir(folder):
                await client.makedirs(folder, exist_ok=True)

        self._connection.run(self._named(folder), action, writing=True)

    def write(self, path: str, offset: int, content: bytes, flags: int) -> None:
        """Write a piece of a file; the same again does no harm."""

        async def action(client: SFTPClient) -> None:
            async with self._connection.handle(client, path, flags) as file:
                if content:
                    await file.write(content, offset)

        self._connection.run(self._named(path), action, writing=True)

    def truncate(self, path: str, size: int) -> None:
        """Cut a file."""
        self._connection.run(self._named(path), lambda client: client.truncate(path, size), writing=True)

    def sync(self, path: str) -> None:
        """Make the server sync a file, if it can, and close it."""

        async def action(client: SFTPClient) -> None:
            async with self._connection.handle(client, path, FXF_WRITE) as file:
                with contextlib.suppress(asyncssh.SFTPOpUnsupported):
                    await file.fsync()
            await self._connection.let_go(path)

        self._connection.run(self._named(path), action, writing=True)

    def rename(self, old: str, new: str) -> None:
        """Give a file its name, if that is free."""
        self._connection.run(self._named(new), lambda client: client.rename(old, new), writing=True)

    def remove(self, path: str) -> None:
        """Remove a file."""

        async def action(client: SFTPClient) -> None:
            await self._connection.let_go(path)
            await client.remove(path)

        self._connection.run(self._named(path), action, writing=True)

    def put(self, path: str, content: bytes) -> None:
        """Write a small file in place of what may be there."""
        part = f"{path}.{uuid4().hex[:8]}.part"

        async def action(client: SFTPClient) -> None:
            async with client.open(part, FXF_WRITE | FXF_CREAT | FXF_TRUNC, encoding=None) as file:
                await file.write(content)
            try:
                await client.posix_rename(part, path)
            except asyncssh.SFTPOpUnsupported:
                with contextlib.suppress(asyncssh.SFTPNoSuchFile):
                    await client.remove(path)
                await client.rename(part, path)

        async def persistently(client: SFTPClient) -> None:
            try:
                await action(client)
            except asyncssh.SFTPNoSuchFile:  # another writer, who has just come, took it for a dead one's
                await action(client)

        self._connection.run(self._named(path), persistently, writing=True)

    def get(self, path: str, most: int) -> bytes | None:
        """Return a small file whole; None when there is none, or it is larger."""

        async def action(client: SFTPClient) -> bytes | None:
            async with client.open(path, FXF_READ, encoding=None) as file:
                if ((await file.stat()).size or 0) > most:
                    return None
                return _bytes(await file.read())

        try:
            return self._connection.run(self._named(path), action)
        except NotFoundError:
            return None

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        self.remove(self.path(key))

    @contextlib.contextmanager
    def exclusive(self, prefix: str) -> Iterator[None]:
        """See `Storage.exclusive` and `leases`."""
        folder = self.path(prefix).rstrip("/")
        self.make_folder(folder)
        with leased(_SftpNotes(self, folder)) as lease:
            self._leases[prefix] = lease
            try:
                if self.look(f"{folder}/{_OWN_MARK}") is None:
                    self.put(f"{folder}/{_OWN_MARK}", b"")
                self._remove_partials(folder)
                yield
            finally:
                del self._leases[prefix]

    def _remove_partials(self, folder: str) -> None:
        entries = self.entries(folder)
        now = max((entry.mtime for entry in entries if entry.name.startswith(LEASE_NAME)), default=0)
        for entry in entries:
            hidden = entry.name.startswith(".") and entry.name.endswith(".part")
            if hidden and stat.S_ISREG(entry.mode) and not is_kept(entry.name, now - entry.mtime):
                with contextlib.suppress(NotFoundError):
                    self.remove(f"{folder}/{entry.name}")

    def check_lease(self, key: str) -> None:
        """Make sure that nobody else may write where ``key`` is; see `Lease.check`."""
        lease = self._leases.get(key[: key.rfind("/") + 1])
        if lease is not None:
            lease.check()

    def load_cache(self, prefix: str) -> bytes | None:
        """See `Storage.load_cache`."""
        try:
            return self.get(self.path(f"{prefix}{_CACHE_NAME}"), _LARGEST_CACHE)
        except MountfsError:
            return None

    def save_cache(self, prefix: str, data: bytes) -> None:
        """See `Storage.save_cache`; only in folders that are ours."""
        with contextlib.suppress(MountfsError):
            if self.look(self.path(f"{prefix}{_OWN_MARK}")) is not None:
                self.put(self.path(f"{prefix}{_CACHE_NAME}"), data)

    def close(self) -> None:
        """See `Storage.close`."""
        self.pool.shutdown(cancel_futures=True)
        self._connection.close()


class _SftpNotes:
    """See `Notes`."""

    def __init__(self, storage: SftpStorage, folder: str) -> None:
        self._storage = storage
        self._folder = folder
        self.place = f"{storage.url}{folder.removeprefix(storage.path(''))}"

    def put(self, name: str, content: bytes) -> None:
        """See `Notes.put`."""
        self._storage.put(f"{self._folder}/{name}", content)

    def listed(self, prefix: str) -> list[Note]:
        """See `Notes.listed`."""
        found = self._storage.entries(self._folder)
        return [
            Note(entry.name, entry.mtime)
            for entry in found
            if entry.name.startswith(prefix) and not entry.name.endswith(".part")
        ]

    def read(self, name: str, most: int) -> bytes:
        """See `Notes.read`."""
        try:
            return self._storage.get(f"{self._folder}/{name}", most) or b""
        except StorageError:
            return b""

    def delete(self, name: str) -> None:
        """See `Notes.delete`."""
        with contextlib.suppress(NotFoundError):
            self._storage.remove(f"{self._folder}/{name}")


def _text(name: bytes | str) -> str:
    return name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")


def _bytes(data: bytes | str) -> bytes:
    """Return what a file that was opened without an encoding gave."""
    return data if isinstance(data, bytes) else data.encode()


def _entry(name: str, attrs: SFTPAttrs) -> _Entry:
    return _Entry(name, attrs.size or 0, int(attrs.mtime or 0), attrs.permissions or 0)


def _open_sftp(url: str) -> SftpStorage:
    match = _URL.fullmatch(url)
    if match is None or int(match["port"] or 0) > 65535:
        raise UsageError(f"{url}: an SFTP place is sftp://USER@HOST:PORT/PATH")
    path = match["path"] or "/"
    root = path[3:].strip("/") if path.startswith("/~/") else path.rstrip("/") or "/"
    target = Target(match["host"].strip("[]"), match["user"] or "", int(match["port"] or 0))
    return SftpStorage(url, target, root)


PLUGIN = StorageScheme("sftp", lambda url: url.startswith("sftp://"), _open_sftp)
