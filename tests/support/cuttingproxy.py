"""A proxy for any protocol that cuts connections after so many bytes."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Cutter:
    """Cuts each of the next connections once the bytes that belong to it have passed, in both directions."""

    port: int = 0
    limits: list[int] = field(default_factory=list)
    """For the connections to come; after the last one, nothing is cut."""
    cuts: int = 0
    connections: int = 0
    sockets: list[socket.socket] = field(default_factory=list)

    def cut_all(self) -> None:
        """Cut what is connected now."""
        for end in self.sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.sockets.clear()


@contextlib.contextmanager
def cutting_proxy(port: int) -> Iterator[Cutter]:
    """Run one before a server on this machine."""
    cutter = Cutter()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        cutter.port = listener.getsockname()[1]
        threads = [threading.Thread(target=_accept, args=(cutter, listener, port), daemon=True)]
        threads[0].start()
        try:
            yield cutter
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            cutter.cut_all()
            threads[0].join()


def _accept(cutter: Cutter, listener: socket.socket, port: int) -> None:
    pumps = []
    while True:
        try:
            near, _ = listener.accept()
        except OSError:
            break
        far = socket.create_connection(("127.0.0.1", port))
        cutter.connections += 1
        cutter.sockets += [near, far]
        left = [cutter.limits.pop(0) if cutter.limits else 1 << 60]
        for source, sink in ((near, far), (far, near)):
            pump = threading.Thread(target=_pump, args=(cutter, source, sink, left), daemon=True)
            pump.start()
            pumps.append((pump, source))
    for pump, source in pumps:
        with contextlib.suppress(OSError):
            source.shutdown(socket.SHUT_RDWR)
        pump.join()
        source.close()


def _pump(cutter: Cutter, source: socket.socket, sink: socket.socket, left: list[int]) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            left[0] -= len(data)
            if left[0] < 0:
                cutter.cuts += 1
                break
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
