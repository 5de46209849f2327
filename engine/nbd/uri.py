"""Names of NBD exports: ``nbd://host:10809/export`` and ``nbd+unix:///export?socket=/path``.

Source: "The NBD Uniform Resource Indicator (URI) format" (doc/uri.md of the nbd project).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from imageformat.errors import UsageError

DEFAULT_PORT = 10809
SCHEMES = ("nbd", "nbd+unix", "nbds", "nbds+unix", "nbd+vsock", "nbds+vsock")
_MAX_NAME = 4096
"""Bytes of an export name ("Values" in the protocol)."""
_MAX_SOCKET = 107
"""Bytes of the path of a Unix socket."""
NO_TLS = (
    "connections with TLS are not supported; reach the server through 'ssh -L', or over its Unix socket on "
    "the same machine"
)


@dataclass(frozen=True, slots=True)
class NbdUri:
    """Where an export is: a Unix socket, or a host and port."""

    export: str
    socket: str = ""
    """Path of the Unix socket; empty: ``host`` and ``port`` say where."""
    host: str = ""
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        name = quote(self.export, safe="/")
        if self.socket:
            return f"nbd+unix:///{name}?socket={quote(self.socket, safe='/')}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == DEFAULT_PORT else f":{self.port}"
        return f"nbd://{host}{port}/{name}"

    @property
    def label(self) -> str:
        """What a person would call it: the export, or the server of one without a name."""
        return self.export or (Path(self.socket).stem if self.socket else self.host)


def parse_uri(text: str) -> NbdUri:
    """Read a URI; a user name in it serves TLS only and is left out, an unknown parameter is ignored.

    Raises:
        UsageError: it names no export, or one that needs TLS.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        sockets = parse_qs(parts.query, keep_blank_values=True, errors="strict").get("socket", [])
        export = unquote(parts.path.removeprefix("/"), errors="strict")
    except ValueError as error:
        raise UsageError(f"{text} is not the URI of an NBD export: {error}") from error
    if parts.scheme.startswith("nbds"):
        raise UsageError(f"{text}: {NO_TLS}")
    if parts.scheme not in {"nbd", "nbd+unix"}:
        raise UsageError(f"{text}: use nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH")
    if len(export.encode()) > _MAX_NAME or "\0" in export:
        raise UsageError(f"{text}: the name of an export has no zero byte and at most {_MAX_NAME} bytes")
    if parts.scheme == "nbd":
        if not host or sockets:
            raise UsageError(f"{text}: nbd:// takes a host, nbd+unix:// a socket: nbd://HOST:PORT/EXPORT")
        return NbdUri(export, host=host, port=DEFAULT_PORT if port is None else port)
    if parts.netloc or len(sockets) != 1 or not sockets[0]:
        raise UsageError(f"{text}: name the socket once: nbd+unix:///EXPORT?socket=/PATH")
    if len(sockets[0].encode()) > _MAX_SOCKET or "\0" in sockets[0]:
        raise UsageError(f"{text}: the path of a socket has at most {_MAX_SOCKET} bytes")
    return NbdUri(export, socket=str(Path(sockets[0]).absolute()))
