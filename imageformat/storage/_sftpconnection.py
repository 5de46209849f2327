"""One SFTP connection, used by any number of threads, and made again when it breaks.

asyncssh runs on an event loop in a thread of its own. Everything that it holds is touched there only. Host
keys must be known, as ``ssh`` itself wants it; the user's ssh configuration, agent and keys are used, never a
password. Sources: draft-ietf-secsh-filexfer-02 (version 3); OpenSSH PROTOCOL, section 4 (extensions).
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import asyncssh
from asyncssh import SFTPClient, SFTPClientFile

from imageformat.errors import (
    AccessDeniedError,
    CredentialsError,
    DestinationError,
    DestinationFullError,
    DestinationReadOnlyError,
    MountfsError,
    NotFoundError,
    StorageError,
)
from imageformat.storage.patience import PassingError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from imageformat.storage.patience import Patience

Result = TypeVar("Result")

MAX_HANDLES = 64
"""Open at the server at once, unless more are in use."""
_BROKEN = (
    asyncssh.ConnectionLost,
    asyncssh.DisconnectError,
    asyncssh.SFTPConnectionLost,
    asyncssh.SFTPNoConnection,
    asyncssh.ChannelOpenError,
    BrokenPipeError,
    ConnectionError,
    TimeoutError,
    CancelledError,
)
_NOTHING = (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath, asyncssh.SFTPNotADirectory)
_FULL = (asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded)


class Target(NamedTuple):
    """Whom to connect to; what is empty is left to the ssh configuration."""

    host: str
    user: str = ""
    port: int = 0


@dataclass(slots=True)
class _Handle:
    file: SFTPClientFile
    users: int = 0


class Connection:
    """Runs actions on the SFTP client of a server; see the module. Thread-safe.

    Raises:
        NotFoundError, AccessDeniedError, CredentialsError; StorageError when reading; DestinationError,
        DestinationFullError and DestinationReadOnlyError when writing.
    """

    def __init__(self, target: Target, patience: Patience) -> None:
        self._target = target
        self._patience = patience
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._client: SFTPClient | None = None
        self._ssh: asyncssh.SSHClientConnection | None = None
        self._connecting: asyncio.Lock | None = None
        self._handles: OrderedDict[tuple[str, int], _Handle] = OrderedDict()
        self._reached = False

    def run(
        self, place: str, action: Callable[[SFTPClient], Awaitable[Result]], *, writing: bool = False
    ) -> Result:
        """Return what ``action`` returns. After a lost connection it is run again: it must bear that."""

        def attempt() -> Result:
            with _said(place, self._target.host, writing=writing):
                return self._attempt(action)

        try:
            return self._patience.run(attempt)
        except PassingError as error:
            reason = _reason(error.__cause__) if error.__cause__ is not None else "it failed"
            raise _failed(f"{place}: the connection was lost for good: {reason}", writing) from error

    def _attempt(self, action: Callable[[SFTPClient], Awaitable[Result]]) -> Result:
        future = asyncio.run_coroutine_threadsafe(self._do(action), self._running_loop())
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="sftp")
                self._thread.start()
            return self._loop

    async def _do(self, action: Callable[[SFTPClient], Awaitable[Result]]) -> Result:
        client = await self._connected()
        try:
            return await asyncio.wait_for(_finished(action(client)), self._patience.answer)
        except _BROKEN:
            if client is self._client:
                self._forget()
            raise

    async def _connected(self) -> SFTPClient:
        if self._connecting is None:
            self._connecting = asyncio.Lock()
        async with self._connecting:
            if self._client is None:
                try:
                    await self._connect()
                except OSError as error:
                    if self._reached:
                        raise ConnectionError(str(error)) from error
                    raise OSError(str(error)) from error  # a wrong name or port is not tried again
            if self._client is None:
                raise ConnectionError("there is no connection")
            return self._client

    async def _connect(self) -> None:
        target = self._target
        options: dict[str, object] = {"username": target.user} if target.user else {}
        if target.port:
            options["port"] = target.port
        self._ssh = await asyncssh.connect(
            target.host,
            password_auth=False,
            kbdint_auth=False,
            connect_timeout=self._patience.connect,
            login_timeout=self._patience.answer,
            keepalive_interval=self._patience.answer / 4,
            **options,
        )
        self._client = await self._ssh.start_sftp_client(path_errors="surrogateescape")
        self._reached = True

    def _forget(self) -> None:
        """Drop a connection that broke, and every handle with it."""
        self._handles.clear()
        self._client = None
        if self._ssh is not None:
            self._ssh.abort()
            self._ssh = None

    @asynccontextmanager
    async def handle(self, client: SFTPClient, path: str, flags: int) -> AsyncIterator[SFTPClientFile]:
        """Give the file of a path, open for as long as there is room; only inside of an action."""
        known = self._handles.get((path, flags))
        if known is None:
            file = await client.open(path, flags, encoding=None)
            if client is not self._client:
                raise ConnectionError("the connection was lost")
            known = self._handles.setdefault((path, flags), _Handle(file))
            if known.file is not file:
                await file.close()
        self._handles.move_to_end((path, flags))
        known.users += 1
        try:
            yield known.file
        finally:
            known.users -= 1
            await self._shrink()

    async def _shrink(self) -> None:
        while len(self._handles) > MAX_HANDLES:
            idle = next((name for name, handle in self._handles.items() if not handle.users), None)
            if idle is None:
                return
            await self._handles.pop(idle).file.close()

    async def let_go(self, path: str) -> None:
        """Close the handles of a path; only inside of an action."""
        for name in [name for name in self._handles if name[0] == path]:
            known = self._handles.get(name)
            if known is not None and not known.users:  # it may have got one while another was closed
                del self._handles[name]
                with suppress(asyncssh.SFTPError):
                    await known.file.close()

    def close(self) -> None:
        """End the connection and its thread; idempotent."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(self._forget)
        loop.call_soon_threadsafe(loop.call_soon, loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
            with suppress(BaseException):
                loop.run_until_complete(task)
        loop.close()


async def _finished(awaitable: Awaitable[Result]) -> Result:
    return await awaitable


@contextmanager
def _said(place: str, host: str, *, writing: bool) -> Iterator[None]:
    """Translate what asyncssh raises."""
    try:
        yield
    except asyncssh.HostKeyNotVerifiable as error:
        raise AccessDeniedError(
            f"{host}: its host key is not among the known hosts; check it with ssh: {_reason(error)}"
        ) from error
    except (asyncssh.PermissionDenied, asyncssh.KeyImportError) as error:
        raise CredentialsError(f"{host}: no key that was offered is let in: {_reason(error)}") from error
    except _BROKEN as error:
        raise PassingError from error
    except asyncssh.SFTPError as error:
        raise _refusal(place, error, writing=writing) from error
    except (asyncssh.Error, OSError) as error:
        raise _failed(f"{place}: cannot be reached: {_reason(error)}", writing) from error


def _refusal(place: str, error: asyncssh.SFTPError, *, writing: bool) -> MountfsError:
    if isinstance(error, _NOTHING):
        return NotFoundError(f"{place}: no such file or folder")
    if isinstance(error, asyncssh.SFTPPermissionDenied):
        return AccessDeniedError(f"{place}: permission denied")
    if isinstance(error, _FULL) or "no space" in error.reason.lower():
        return DestinationFullError(f"{place}: no space left")
    if isinstance(error, asyncssh.SFTPWriteProtect):
        return DestinationReadOnlyError(f"{place}: the file system is read-only")
    return _failed(f"{place}: the server refused: {_reason(error)}", writing)


def _failed(message: str, writing: bool) -> MountfsError:  # noqa: FBT001 (which of two classes)
    return DestinationError(message) if writing else StorageError(message)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
