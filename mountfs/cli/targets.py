"""The target named on a command line: which one is meant, and does a person agree that it is overwritten?

A name can be wrong by one letter, and disks look alike. So a device is never overwritten because somebody
said yes: its serial number is typed, after model, size and contents were shown, or given by the script.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from engine.devices.guards import check_mark, check_target, describe, is_mark, marks, target_facts
from engine.devices.source import open_source
from imageformat.errors import MountfsError, NotConfirmedError
from mountfs.cli.render import format_size
from mountfs.volumes import Openers, Volume, among, read_layout

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.devices.guards import TargetFacts
    from mountfs.cli.render import Renderer

TargetSerial = Annotated[
    str | None,
    typer.Option(
        "--target-serial",
        metavar="SERIAL",
        help="For scripts: overwrite the disk TARGET if this is its serial number. Without one: its size.",
        show_default=False,
    ),
]
"""The option of a command that calls `agreed_target`."""


def agreed_target(
    out: Renderer,
    name: str,
    size: int,
    *,
    what: str,
    images: Iterable[str] = (),
    sources: Iterable[str] = (),
    yes: bool,
    serial: str | None,
) -> TargetFacts:
    """Find what is to be overwritten, refuse it if it must not be, show it, and ask.

    A new file needs no consent; an existing file ``yes`` or an answer; a device its serial number, by
    ``serial`` or typed by a person: ``yes`` is not enough.

    Args:
        out: Where it is shown.
        name: Path, ``serial=``, ``wwn=`` or ``size=``.
        size: Bytes that will be written.
        what: That, in a few words: ``point 3 of sdb``.
        images: See `target_facts`.
        sources: See `target_facts`.
        yes: The option ``--yes``.
        serial: The option `TargetSerial`.

    Returns:
        The facts to give to `open_target`, which finds out when the name moves to another disk.

    Raises:
        TargetMismatchError: its serial number is another.
        NotConfirmedError: nobody agreed.
        MountfsError: see `target_facts` and `check_target`.
    """
    facts = target_facts(name, images, sources=sources)
    if serial is not None:
        check_mark(facts, serial)
    check_target(facts, size)
    if facts.kind == "new file":
        return facts
    out.note(f"target: {describe(facts)}, {format_size(facts.size)}")
    for line in contents(facts.path):
        out.note(f"  holds {line}")
    question = f"overwrite it with {what} ({format_size(size)})?"
    if facts.is_device:
        if serial is None:
            _ask_for_mark(out, facts, question)
    elif not yes and not out.confirm(question):
        raise NotConfirmedError(
            f"{facts.path} exists and was not overwritten; answer yes, or use --yes in scripts"
        )
    return facts


def _ask_for_mark(out: Renderer, facts: TargetFacts, question: str) -> None:
    mark = marks(facts)[0]
    wanted = "its serial number" if facts.serial else f"'{mark}'"
    typed = out.ask(f"{question} To agree, type {wanted}:")
    if not typed:
        raise NotConfirmedError(
            f"{describe(facts)} was not overwritten: nobody typed {wanted}; scripts pass "
            f"--target-serial '{mark}', --yes is not enough for a device"
        )
    if not is_mark(facts, typed):
        raise NotConfirmedError(f"{describe(facts)} was not overwritten: '{typed}' is not {wanted}")


def contents(path: str) -> tuple[str, ...]:
    """Say what is on a device or in a file now: partitions, file systems and their labels, for people."""
    return tuple(_volume_text(volume) for volume in volumes_on(path))


def volumes_on(path: str) -> tuple[Volume, ...]:
    """Return what is on a device or in a file now; nothing where it cannot be read."""
    try:
        device = open_source(path)
    except MountfsError:
        return ()
    try:
        return read_layout(device, Openers(among(), tuple), device.sector_size).volumes
    finally:
        device.close()


def _volume_text(volume: Volume) -> str:
    place = f"partition {volume.number}: " if volume.number else ""
    kind = volume.info.type if volume.info is not None else "nothing that is known"
    label = volume.info.label if volume.info is not None else ""
    named = f" '{label}'" if label else ""
    part = volume.partition.name if volume.partition is not None else ""
    known_as = f", partition name '{part}'" if part and part != label else ""
    return f"{place}{kind}{named}, {format_size(volume.size)}{known_as}"
