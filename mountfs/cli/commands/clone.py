"""``mountfs clone``: copy a disk, or chosen partitions of it, to another disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated

import typer

from engine.clone import ClonedDisk, ClonePlan, TargetShape, Wish, plan_clone
from engine.devices.guards import TargetFacts, target_facts, written_at
from engine.devices.source import SourceDevice, open_source
from engine.devices.target import Target
from engine.writerecord import WriteRecord
from engine.writing import MARK, Known, Tally, WriteOptions, WriteProgress, write
from imageformat.device import Slice
from imageformat.errors import IncompleteImageError, UnsupportedFeatureError, UsageError
from imageformat.extent import Extent
from imageformat.partitions import PartitionTable, read_table
from mountfs.allocation.disk import read_allocation
from mountfs.cli.command import Threads, Yes, command
from mountfs.cli.render import Column, Renderer, format_duration, format_size
from mountfs.cli.targets import TargetSerial, agreed_target
from mountfs.cli.targetwriting import Job, tally_facts, write_target
from mountfs.sectorbound import bound_sector_size

SourceName = Annotated[
    str, typer.Argument(metavar="SOURCE", help="Disk, partition or image file.", show_default=False)
]
TargetName = Annotated[
    str, typer.Argument(metavar="TARGET", help="Disk, partition or file to write.", show_default=False)
]
Partitions = Annotated[
    str | None,
    typer.Option(
        "--partitions", metavar="N,N", help="Only these partitions; default: all.", show_default=False
    ),
]
Delta = Annotated[bool, typer.Option("--delta", help="Write only what differs from what the target holds.")]
SameIds = Annotated[
    bool, typer.Option("--same-ids", help="Keep the identities of disk and partitions: a disk to swap in.")
]
Raw = Annotated[bool, typer.Option("--raw", help="Byte for byte, with table, gaps and free space.")]

EXAMPLES = """\
mountfs clone /dev/sda /dev/sdb             asks for the serial of sdb
mountfs clone /dev/sda serial=S3X --delta --target-serial S3X    each night
mountfs clone /dev/sda /dev/sdb --partitions 1,3
mountfs clone disk.img /dev/sdc --same-ids  in place of the old disk
"""


@command
def run(
    out: Renderer,
    source: SourceName,
    target: TargetName,
    partitions: Partitions = None,
    delta: Delta = False,
    same_ids: SameIds = False,
    raw: Raw = False,
    yes: Yes = False,
    target_serial: TargetSerial = None,
    threads: Threads = 0,
) -> None:
    """Copy a disk, or chosen partitions of it, to another disk; only what file systems use.

    Partition tables are made for the size and the sectors of the target, with new identities. What is
    written is read back. Until the end a mark stands in place of the table: a clone that was interrupted
    never looks whole, and the same command goes on with it.
    """
    wish = Wish(_numbers(partitions), same_ids=same_ids, raw=raw)
    device = open_source(source)
    try:
        _check_whole(device)
        facts = target_facts(target, sources=[device.identity.path])
        table = read_table(device, device.sector_size if device.identity.kind != "file" else None)
        shape = _shape(device, table, facts)
        plan = plan_clone(device, table, shape, wish)
        _check_sectors(device, table, plan, shape)
        facts = agreed_target(
            out,
            target,
            plan.needed,
            what=f"a clone of {device.identity.path}",
            sources=[device.identity.path],
            yes=yes,
            serial=target_serial,
        )
        cloned = ClonedDisk(device, plan, () if raw else _unused(out, device, table))
        job = Job(
            verb="clone",
            source=_named(device, wish),
            size=plan.size,
            sector_size=shape.sector_size,
            delta=delta,
            keeps_record=True,
            watched=plan.volumes,
        )
        options = WriteOptions(delta=delta, leave_unused=True, check=True, threads=threads)

        def writer(
            opened: Target, record: WriteRecord | None, known: Known, report: Callable[[WriteProgress], None]
        ) -> Tally:
            return write(cloned, opened, options, record=record, known=known, report=report)

        _tell(out, device, facts, plan, write_target(out, facts, job, writer))
    finally:
        device.close()


def _numbers(text: str | None) -> frozenset[int] | None:
    if text is None:
        return None
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise UsageError("--partitions takes numbers with commas between them: --partitions 1,3")
    return frozenset(map(int, words))


def _check_whole(device: SourceDevice) -> None:
    """Refuse to clone what a run that was interrupted left.

    Raises:
        IncompleteImageError
    """
    if device.pread(0, min(len(MARK), device.size)) == MARK:
        raise IncompleteImageError(
            f"{device.identity.path} is what an interrupted restore or clone left; run that again first"
        )


def _shape(device: SourceDevice, table: PartitionTable, facts: TargetFacts) -> TargetShape:
    """Look at the target as it is now."""
    if facts.kind == "new file":
        return TargetShape(device.size, table.sector_size)
    there = open_source(facts.path)
    try:
        sector_size = there.sector_size if facts.is_device else table.sector_size
        size = facts.size if facts.is_device else max(facts.size, device.size)
        return TargetShape(size, sector_size, read_table(there, sector_size))
    finally:
        there.close()


def _check_sectors(device: SourceDevice, table: PartitionTable, plan: ClonePlan, shape: TargetShape) -> None:
    """Refuse a file system that counts in sectors which the target is too coarse for.

    Raises:
        UnsupportedFeatureError
    """
    if shape.sector_size <= table.sector_size:
        return
    sizes = {entry.offset: (entry.number, entry.size) for entry in table.partitions}
    for offset in plan.volumes:
        number, size = sizes.get(offset, (0, device.size))
        kind, bound = bound_sector_size(Slice(device, offset, size))
        if 0 < bound < shape.sector_size:
            where = f"partition {number}" if number else "the source"
            raise UnsupportedFeatureError(
                f"{where} ({kind}) counts in sectors of {bound} bytes: it cannot be used on a disk with "
                f"sectors of {shape.sector_size} bytes; leave it out with --partitions"
            )


def _unused(out: Renderer, device: SourceDevice, table: PartitionTable) -> Iterable[Extent]:
    """Find what is free on the source; nothing, and a warning, while it can change."""
    path = device.identity.path
    mounted = target_facts(path).mounted_at
    if mounted:
        out.warning(
            f"{path} is mounted at {', '.join(mounted)}: what is written meanwhile may be half in the clone; "
            "unmount it, or clone a snapshot"
        )
    if written_at(path):
        out.warning(f"{path} can change: all of it is copied, free space included")
        return ()
    found = read_allocation(device, table.sector_size)
    for sentence in found.warnings():
        out.warning(sentence)
    return found.unused


def _named(device: SourceDevice, wish: Wish) -> str:
    identity = device.identity
    numbers = ",".join(map(str, sorted(wish.numbers or ())))
    place = identity.serial or identity.wwn or identity.path
    return f"clone {place} {identity.size} partitions {numbers} raw {wish.raw} same ids {wish.same_ids}"


def _tell(out: Renderer, device: SourceDevice, facts: TargetFacts, plan: ClonePlan, tally: Tally) -> None:
    path = device.identity.path
    copied = sum(end - start for start, end in plan.copied)
    out.result({"source": path, "target": facts.path, "copied": copied, **tally_facts(tally)})
    rows = [
        ("read of the source", format_size(tally.read)),
        ("read of the target", format_size(tally.compared)),
        ("written", format_size(tally.written)),
        ("made zeros", format_size(tally.zeroed)),
        ("there already", format_size(tally.skipped)),
    ]
    out.table("", ["", Column("", right=True)], rows)
    out.line(f"{facts.path}: a clone of {path}, read back and compared, in {format_duration(tally.seconds)}")
