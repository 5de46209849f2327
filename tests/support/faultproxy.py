"""A proxy before an S3 server that counts what passes, and does to it what networks and bad servers do."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

_HOP = {"connection", "transfer-encoding", "keep-alive", "expect"}


@dataclass
class Request:
    """What a client asks; a fault may change it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query, keep_blank_values=True)

    @property
    def is_read(self) -> bool:
        """A range of an object, not a listing."""
        return self.method == "GET" and "Range" in self.headers


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Fault:
    """Happens to the first ``times`` requests that match, after ``skip`` others."""

    matches: Callable[[Request], bool]
    before: Callable[[Request], Answer | None] = lambda _request: None
    """Changes the request, or answers it."""
    after: Callable[[Answer], Answer | None] = lambda answer: answer
    """Changes the answer; None: the connection is cut instead."""
    cut_at: Callable[[int], int] = lambda size: size
    """How much of the body is sent before the connection is cut."""
    times: int = 1
    skip: int = 0
    happened: int = 0


@dataclass
class Proxy:
    port: int
    faults: list[Fault] = field(default_factory=list)
    seen: list[Request] = field(default_factory=list)
    fetched: int = 0
    """Bytes of the bodies of answers to GET."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fault_of(self, request: Request) -> Fault | None:
        with self.lock:
            self.seen.append(request)
            for fault in self.faults:
                if fault.happened < fault.times and fault.matches(request):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.happened += 1
                    return fault
        return None


@contextlib.contextmanager
def proxy_before(port: int) -> Iterator[Proxy]:
    """Run a proxy before a server on this machine."""
    proxy = Proxy(0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            request = Request(self.command, self.path, dict(self.headers.items()), self.rfile.read(size))
            fault = proxy.fault_of(request)
            answer = fault.before(request) if fault is not None else None
            answer = answer or _ask(port, request)
            if fault is not None:
                changed = fault.after(answer)
                if changed is None:
                    self.close_connection = True
                    return
                answer = changed
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if "Content-Length" not in answer.headers and self.command != "HEAD":
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            most = fault.cut_at(len(answer.body)) if fault is not None else len(answer.body)
            if self.command == "GET":
                with proxy.lock:
                    proxy.fetched += most
            with contextlib.suppress(OSError):
                self.wfile.write(answer.body[:most])
            if most < len(answer.body):
                self.close_connection = True

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        proxy.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()


def _ask(port: int, request: Request) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.items():
            if name.lower() not in _HOP:
                connection.putheader(name, value)
        connection.endheaders(request.body or None)
        response = connection.getresponse()
        body = response.read()
        headers = {name: value for name, value in response.getheaders() if name.lower() not in _HOP}
        if request.method != "HEAD":
            headers = {name: value for name, value in headers.items() if name.lower() != "content-length"}
        return Answer(response.status, headers, body)
    finally:
        connection.close()


def refusal(status: int, code: str) -> Callable[[Request], Answer]:
    """Answer with an error as S3 words them."""

    def answer(request: Request) -> Answer:
        text = f"<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>"
        body = b"" if request.method == "HEAD" else text.encode()
        return Answer(status, {"Content-Type": "application/xml"}, body)

    return answer
