"""Notifications over a real connection, to a server on this machine; and never a word of what is secret."""

from __future__ import annotations

import http.server
import json
import logging
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mountfs.plans.children import redacted
from mountfs.plans.model import Notify
from mountfs.plans.notifying import is_wanted, notify_all
from mountfs.plans.records import RunRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "hunter2secret"
RECORD = RunRecord(plan="laptop", id="x", type="full", started=0, outcome="failed")


class Server(http.server.ThreadingHTTPServer):
    """Takes what is posted, and answers what it is told to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.taken: list[dict[str, Any]] = []
        self.answer = 200

    @property
    def url(self) -> str:
        """As Apprise has it, with a password."""
        return f"json://user:{SECRET}@127.0.0.1:{self.server_port}/hook"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.taken.append(json.loads(body))
        self.send_response(self.server.answer)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_who_is_told_of_what() -> None:
    told = {
        on: [
            outcome
            for outcome in ("ok", "warning", "failed", "interrupted")
            if is_wanted(Notify(urls=("x",), on=on), outcome)
        ]
        for on in ("failure", "warning", "always")
    }
    assert told == {
        "failure": ["failed", "interrupted"],
        "warning": ["warning", "failed", "interrupted"],
        "always": ["ok", "warning", "failed", "interrupted"],
    }
    assert not is_wanted(Notify(on="always"), "failed")


def test_a_notification_arrives(server: Server, tmp_path: Path) -> None:
    named = tmp_path / "urls"
    named.write_text(f"# ours\n\n{server.url}\n")
    assert (
        notify_all(Notify(urls=(server.url,), url_file=str(named)), RECORD, "title ü", "line 1\nline 2") == ()
    )
    assert [(told["title"], told["message"], told["type"]) for told in server.taken] == [
        ("title ü", "line 1\nline 2", "failure")
    ] * 2


def test_what_goes_wrong_is_told_without_the_secret(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server.answer = 500
    urls = (
        server.url,
        f"json://user:{SECRET}@127.0.0.1:{port}/",
        f"nonsense://{SECRET}",
        f"{SECRET}://x y",
        SECRET,
        f"mailto://{SECRET}:{SECRET}@[",
    )
    with caplog.at_level(logging.DEBUG):
        problems = notify_all(Notify(urls=urls, url_file=str(tmp_path / "none")), RECORD, "t", "b")
    assert len(problems) == len(urls) + 1
    assert "No such file" in problems[0]
    assert "notification 1 (json) could not be delivered" in problems
    said = " ".join(problems) + caplog.text + "".join(capfd.readouterr())
    assert SECRET not in said
    assert len(server.taken) == 1


def test_without_the_library_that_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "apprise", None)
    problems = notify_all(Notify(urls=(f"json://{SECRET}@x",)), RECORD, "t", "b")
    assert len(problems) == 1
    assert "pip install mountfs[notify]" in problems[0]
    assert SECRET not in problems[0]


def test_passwords_in_urls_are_left_out_of_what_is_kept() -> None:
    assert redacted("copy /b sftp://me:pw@host/x s3://k:s@b") == "copy /b sftp://***@host/x s3://***@b"
