"""Images of other tools: random reads of qcow2, through our own reader and through QEMU's.

qemu-nbd answers a client in the process that measures; its peer is our reader in that process. A mounted disk
goes through the kernel, as QEMU's FUSE export does; beside qemu-nbd it carries that way on its back.
"""

from __future__ import annotations

import random
import time
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Protocol

from benchmarks import machine, peers, product
from benchmarks.groups.disk import product_disk, qemu_disk
from benchmarks.nbd import NbdReader
from benchmarks.reading import random_reads, warm
from benchmarks.runner import Bench, Case, Sample, Target, timed
from benchmarks.workload import BLOCK
from imageformat.selection import open_location
from imageformat.view import ImageView, ReadAhead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from benchmarks.workload import Workload

TITLE = "qcow2"
KINDS = {"plain": [], "zstd": ["-c", "-o", "compression_type=zstd"]}
IN_PROCESS = "mountfs in the process"
DISK = "mountfs disk"
NBD = "qemu-nbd"
QSD = "qemu-storage-daemon"
TARGETS = tuple(
    Target(f"random 4 KiB, {kind}, {state}, {ours}", f"{state}_{kind}_per_s", ours, (theirs,), 1.0)
    for ours, theirs in ((IN_PROCESS, NBD), (DISK, QSD), (DISK, NBD))
    for kind in KINDS
    for state in ("cold", "warm", "hot")
)
_HOT = 24 << 20
"""Fits into every cache that is compared."""
_CHUNK = 64 << 10


class Reader(Protocol):
    """Whoever gives bytes of the disk."""

    def pread(self, offset: int, size: int) -> bytes:
        """Read a range."""
        ...


def run(bench: Bench) -> None:
    """Read the same files in all ways.

    Cold: nothing of them is in memory. Warm: the file is in the page cache. Hot: what is read was read
    before.
    """
    if not bench.needs("qcow2", "qemu-img"):
        return
    images = {kind: _converted(bench, kind) for kind in KINDS}
    cases: dict[str, Case] = {
        IN_PROCESS: lambda: _measure(bench, images, lambda image: partial(_in_process, image)),
        DISK: lambda: _measure_mounted(bench, images, lambda image: product_disk(str(image), bench.scratch)),
    }
    if bench.needs(NBD, "qemu-nbd"):
        socket = bench.scratch / "nbd.sock"
        cases[NBD] = lambda: _measure(bench, images, lambda image: partial(_nbd, image, socket))
    if bench.needs(QSD, "qemu-storage-daemon"):
        cases[QSD] = lambda: _measure_mounted(bench, images, lambda image: qemu_disk(image, bench.scratch))
    bench.run(cases)


def _converted(bench: Bench, kind: str) -> Path:
    image = bench.scratch / f"{kind}.qcow2"
    words = ["qemu-img", "convert", "-O", "qcow2", *KINDS[kind]]
    product.run([*words, str(bench.workload.days[0]), str(image)])
    return image


def _places(workload: Workload, *, quick: bool) -> tuple[list[int], list[int], list[int]]:
    """Offsets of cold reads, offsets of the chunks to warm, and offsets of reads inside of these."""
    chance = random.Random(7)
    blocks = [block for offset, size in workload.changeable for block in range(offset, offset + size, BLOCK)]
    chunks = sorted({block - block % _CHUNK for block in blocks})
    chosen = sorted(chance.sample(chunks, min(len(chunks), _HOT // _CHUNK)))
    few = 50 if quick else 1
    cold = chance.choices(blocks, k=min(4000, len(blocks) // 8) // few)
    hot = [chance.choice(chosen) + chance.randrange(0, _CHUNK, BLOCK) for _ in range(10_000 // few)]
    return cold, chosen, hot


def _measure(
    bench: Bench,
    images: dict[str, Path],
    serving: Callable[[Path], Callable[[], AbstractContextManager[Reader]]],
) -> Sample:
    found: dict[str, float] = {}
    cold, chunks, hot = _places(bench.workload, quick=bench.quick)
    for kind, image in images.items():
        serve = serving(image)
        machine.cold([image])
        with serve() as reader:
            found[f"cold_{kind}_per_s"] = _per_s(reader, cold)
        timed(peers.read_once(image))
        with serve() as reader:
            found[f"warm_{kind}_per_s"] = _per_s(reader, cold)
        with serve() as reader:
            for chunk in chunks:
                reader.pread(chunk, _CHUNK)
            found[f"hot_{kind}_per_s"] = _per_s(reader, hot)
    return found


def _per_s(reader: Reader, places: Sequence[int]) -> float:
    started = time.perf_counter()
    for place in places:
        if len(reader.pread(place, BLOCK)) != BLOCK:
            raise OSError(f"short read at {place}")
    return len(places) / (time.perf_counter() - started)


def _measure_mounted(
    bench: Bench, images: dict[str, Path], serve: Callable[[Path], AbstractContextManager[Path]]
) -> Sample:
    found: dict[str, float] = {}
    cold, chunks, hot = _places(bench.workload, quick=bench.quick)
    for kind, image in images.items():
        machine.cold([image])
        with serve(image) as disk:
            found[f"cold_{kind}_per_s"] = random_reads(disk, [cold])
        timed(peers.read_once(image))
        with serve(image) as disk:
            found[f"warm_{kind}_per_s"] = random_reads(disk, [cold])
        with serve(image) as disk:
            warm(disk, chunks, _CHUNK)
            found[f"hot_{kind}_per_s"] = random_reads(disk, [hot], direct=True)
    return found


@contextmanager
def _in_process(image: Path) -> Iterator[Reader]:
    """Open an image as a mount does, without the mount."""
    with ExitStack() as stack:
        location = open_location(str(image))
        stack.callback(location.repository.close)
        read_ahead = stack.enter_context(closing(ReadAhead()))
        chain = location.repository.chain(location.point())
        yield ImageView(chain, location.repository.cache, read_ahead=read_ahead)


@contextmanager
def _nbd(image: Path, socket: Path) -> Iterator[Reader]:
    """Export an image with qemu-nbd and connect to it."""
    socket.unlink(missing_ok=True)
    with (
        peers.serving(peers.nbd_server(image, socket), socket),
        closing(NbdReader(socket)) as reader,
    ):
        yield reader
