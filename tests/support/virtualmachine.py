"""A disk of qemu that is written while it is imaged: qemu-storage-daemon, driven over QMP.

It stands for a running virtual machine: the guest writes through one NBD export, and a backup reads a
picture of the disk from another one.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Self

from support.requirements import find_tool, require_tool, run

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

PATIENCE = 30.0


class VirtualDisk:
    """A qcow2 disk that a guest may write at any time."""

    def __init__(self, folder: Path, size: int) -> None:
        require_tool("qemu-storage-daemon", "qemu-img", "qemu-io")
        self.folder, self.size = folder, size
        self.socket, self._qmp_path = folder / "nbd.sock", folder / "qmp.sock"
        folder.mkdir(exist_ok=True)
        run("qemu-img", "create", "-q", "-f", "qcow2", folder / "disk.qcow2", str(size))
        self._serial = 0

    def __enter__(self) -> Self:
        self._daemon = subprocess.Popen(
            [
                str(find_tool("qemu-storage-daemon")),
                *("--chardev", f"socket,path={self._qmp_path},server=on,wait=off,id=qmp"),
                *("--monitor", "chardev=qmp"),
                *("--blockdev", f"driver=file,node-name=file,filename={self.folder / 'disk.qcow2'}"),
                *("--blockdev", "driver=qcow2,node-name=disk,file=file"),
                *("--nbd-server", f"addr.type=unix,addr.path={self.socket}"),
            ]
        )
        wait_for(self._qmp_path)
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.settimeout(PATIENCE)
        self._connection.connect(str(self._qmp_path))
        self._lines = self._connection.makefile("rw")
        self._lines.readline()
        self.qmp("qmp_capabilities")
        self.export("guest", "disk", writable=True)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self._connection.close()
        self._daemon.terminate()
        self._daemon.wait(PATIENCE)

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a command that must succeed."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._lines.write(json.dumps({"execute": command, "arguments": named}) + "\n")
        self._lines.flush()
        while True:
            answer = json.loads(self._lines.readline())
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def export(self, name: str, node: str, **more: Any) -> None:
        self.qmp("block-export-add", type="nbd", id=name, name=name, node_name=node, **more)

    def write(self, *pieces: tuple[int, int, int]) -> None:
        """Let the guest write: offset, length, and the value of every byte; -1 discards."""
        commands = []
        for offset, length, value in pieces:
            what = f"write -z -u {offset} {length}" if value < 0 else f"write -P {value} {offset} {length}"
            commands += ["-c", what]
        run("qemu-io", "-f", "raw", *commands, f"nbd+unix:///guest?socket={self.socket}")

    def content(self, export: str = "guest") -> bytes:
        """What an export holds, read by qemu-img."""
        copy = self.folder / "content.raw"
        source = f"nbd+unix:///{export}?socket={self.socket}"
        run("qemu-img", "convert", "-f", "raw", "-O", "raw", source, copy)
        try:
            return copy.read_bytes()
        finally:
            copy.unlink()

    def take_picture(self, begun: str, ended: str = "") -> str:
        """Freeze a picture, begin one bitmap and end another, all at once; the URL to image."""
        self._serial += 1
        fleece = self.folder / f"fleece{self._serial}.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", fleece, str(self.size))
        picture = {"driver": "qcow2", "node-name": "picture", "backing": "disk"}
        self.qmp("blockdev-add", **picture, file={"driver": "file", "filename": str(fleece)})
        actions = [
            {"type": "block-dirty-bitmap-add", "data": {"node": "disk", "name": begun, "persistent": True}},
            {
                "type": "blockdev-backup",
                "data": {"device": "disk", "target": "picture", "sync": "none", "job-id": "picture"},
            },
        ]
        if ended:
            ending = {"node": "disk", "name": ended}
            actions.insert(1, {"type": "block-dirty-bitmap-disable", "data": ending})
        self.qmp("transaction", actions=actions)
        self.export("disk0", "picture", **({"bitmaps": [ended]} if ended else {}))
        return f"nbd+unix:///disk0?socket={self.socket}"

    def take_back(self, begun: str, ended: str) -> None:
        """After a backup that failed: go on with the bitmap that ended, with what the new one saw."""
        self.drop_picture()
        on = {"node": "disk", "name": ended}
        merged = {"node": "disk", "target": ended, "bitmaps": [begun]}
        actions = [
            {"type": "block-dirty-bitmap-enable", "data": on},
            {"type": "block-dirty-bitmap-merge", "data": merged},
        ]
        self.qmp("transaction", actions=actions)
        self.qmp("block-dirty-bitmap-remove", node="disk", name=begun)

    def drop_picture(self, ended: str = "") -> None:
        """Undo `take_picture`, and forget the bitmap that ended with it."""
        self.qmp("block-export-del", id="disk0", mode="hard")
        deadline = time.monotonic() + PATIENCE
        while any(export["id"] == "disk0" for export in self.qmp("query-block-exports")):
            sleep_until(deadline)
        self.qmp("block-job-cancel", device="picture")
        while self.qmp("query-jobs"):
            sleep_until(deadline)
        self.qmp("blockdev-del", node_name="picture")
        (self.folder / f"fleece{self._serial}.qcow2").unlink()
        if ended:
            self.qmp("block-dirty-bitmap-remove", node="disk", name=ended)


def sleep_until(deadline: float) -> None:
    """Wait a moment, but not for ever."""
    if time.monotonic() > deadline:
        raise TimeoutError
    time.sleep(0.005)


def wait_for(path: Path) -> None:
    """Wait until a server listens on a socket."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with closing(socket.socket(socket.AF_UNIX)) as probe:
                probe.connect(str(path))
            return
        except OSError:
            sleep_until(deadline)
