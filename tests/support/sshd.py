"""A real SSH server with its SFTP subsystem, on a port and with keys of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from support.requirements import find_tool, require_tool, unavailable
from support.servers import at_end

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

_SUBSYSTEM = Path("/usr/lib/openssh/sftp-server")
_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {home}/.ssh/id_ed25519.pub
StrictModes no
UsePAM no
PasswordAuthentication no
MaxStartups 100
Subsystem sftp {subsystem}
"""


@dataclass(frozen=True)
class Server:
    """A server, and the home of a user who knows it and is let in."""

    port: int
    home: Path
    process: subprocess.Popen[bytes]

    def url(self, path: Path) -> str:
        return f"sftp://{getpass.getuser()}@127.0.0.1:{self.port}{path}"

    @property
    def environment(self) -> Mapping[str, str]:
        return {"HOME": str(self.home), "SSH_AUTH_SOCK": ""}


def start_server() -> Server:
    """Start another server; whoever started it ends its process."""
    require_tool("sshd", "ssh-keygen")
    if not _SUBSYSTEM.exists():
        unavailable("needs openssh-sftp-server")
    folder = Path(tempfile.mkdtemp(prefix="sshd-"))
    at_end(partial(shutil.rmtree, folder, ignore_errors=True))
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True)
    for key in (folder / "host_key", home / ".ssh" / "id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "sshd_config"
    config.write_text(_CONFIG.format(port=port, folder=folder, home=home, subsystem=_SUBSYSTEM))
    host_key = (folder / "host_key.pub").read_text().split()[:2]
    (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(host_key)}\n")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # which it insists on
    process = subprocess.Popen(
        [str(find_tool("sshd")), "-D", "-f", str(config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(500):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return Server(port, home, process)
        time.sleep(0.02)
    raise AssertionError("sshd did not start")


def end(started: Server) -> None:
    """End a server; sessions that are still open are none of its processes any more."""
    started.process.terminate()
    started.process.wait(20)


@cache
def server() -> Server:
    """The server of this process."""
    found = start_server()
    at_end(partial(end, found))
    return found


def use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process know the server and be let in."""
    for name, value in server().environment.items():
        monkeypatch.setenv(name, value)
