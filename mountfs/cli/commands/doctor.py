"""``mountfs doctor``: what works here, what does not, and what to do about it."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Annotated, NamedTuple

import typer

import imageformat.formats
import imageformat.partitions
import imageformat.storage
import mountfs.containers
import mountfs.drivers
from engine.devices.inventory import list_block_devices
from engine.snapshots.journal import journal_folder, left_over
from imageformat.layer import ImageFormat
from imageformat.plugins import discover
from mountfs import __version__
from mountfs.adapters import adapters_here
from mountfs.cli.command import command
from mountfs.cli.render import Renderer, format_size
from mountfs.cli.standstill import clean_up
from mountfs.mounts import MountState, abort, clear_stale, list_mounts

Fix = Annotated[
    bool, typer.Option("--fix", help="Detach mounts and remove snapshots of processes that died.")
]

_LIBRARIES = ("zstandard", "xxhash", "cachetools", "msgspec", "mfusepy", "pytsk3", "typer", "rich")
_OPTIONAL = {
    "cryptography": "LUKS, BitLocker, encrypted images of other tools",
    "lz4": "SquashFS and EROFS compressed by LZ4",
}
_REGISTRIES = {
    "format": imageformat.formats,
    "storage": imageformat.storage,
    "partition table": imageformat.partitions,
    "driver": mountfs.drivers,
    "container": mountfs.containers,
}
PROBLEM_EXIT = 1
_WRITTEN_OTHERWISE = frozenset({"mfi", "raw"})
"""By backup, restore and convert, not by the format itself."""
_MOST_SUFFIXES = 8


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    state: str
    """``ok``, ``missing``, ``note`` or ``stale``."""
    detail: str
    mend: str = ""


EXAMPLES = """\
mountfs doctor
mountfs doctor --fix    detach mounts and remove snapshots of dead processes
"""


@command
def run(out: Renderer, fix: Fix = False) -> int:
    """Look at this machine: libraries, FUSE, formats, drivers, disks, what dead processes left.

    Exit code 0 when everything works, 1 when something is missing or stale.
    """
    if fix:
        for record in list_mounts():
            if record.state is MountState.NOT_RESPONDING:
                abort(record)
        for record in clear_stale():
            out.note(f"{record.mountpoint}: detached, its server was dead")
        clean_up(out)
    findings = list(examine())
    out.result({"findings": [finding._asdict() for finding in findings]})
    out.table("", ("what", "state", "detail"), (finding[:3] for finding in findings))
    for finding in findings:
        if finding.mend:
            out.line(f"{finding.what}: {finding.mend}")
    return PROBLEM_EXIT if any(finding.state in {"missing", "stale"} for finding in findings) else 0


def examine() -> Iterator[Finding]:
    """Look at everything, changing nothing."""
    yield Finding(
        "mountfs", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform()}"
    )
    yield from _libraries()
    yield from _plugins()
    yield from _fuse()
    yield from _disks()
    yield from _mounts()
    yield from _snapshots()


def _libraries() -> Iterator[Finding]:
    for name in _LIBRARIES:
        try:
            yield Finding(name, "ok", version(name))
        except PackageNotFoundError:
            yield Finding(name, "missing", "", f"pip install {name}")
    for name, purpose in _OPTIONAL.items():
        try:
            yield Finding(name, "ok", f"{version(name)}: {purpose}")
        except PackageNotFoundError:
            yield Finding(name, "note", f"not installed: {purpose}", _install(name))


def _install(library: str) -> str:
    """Say what to install for an optional library: an extra of this package that brings it."""
    for line in requires("mountfs") or ():
        found = re.match(rf"{re.escape(library)}\b.*extra == ['\"](?!dev)(\w+)", line)
        if found:
            return f"pip install 'mountfs[{found[1]}]'"
    return f"pip install {library}"


def _plugins() -> Iterator[Finding]:
    for kind, package in _REGISTRIES.items():
        found = discover(package)
        for record in found.available:
            yield Finding(f"{kind} {record.name}", "ok", _abilities(record))
        for missing in found.unavailable:
            library = missing.reason.removeprefix("needs ").split(".")[0]
            yield Finding(
                f"{kind} {missing.name}", "note", f"cannot be used: needs {library}", _install(library)
            )


def _abilities(record: object) -> str:
    """Say what a plug-in is for: types of volumes that it opens, or files that it reads and writes."""
    if isinstance(record, ImageFormat):
        verbs = "reads, writes" if record.write is not None or record.name in _WRITTEN_OTHERWISE else "reads"
        suffixes = ", ".join(record.suffixes[:_MOST_SUFFIXES])
        return f"{verbs}: {suffixes}{', ...' if len(record.suffixes) > _MOST_SUFFIXES else ''}"
    return ", ".join(sorted(getattr(record, "types", ())))


def _fuse() -> Iterator[Finding]:
    for adapter in adapters_here():
        reason = adapter.unavailable()
        if reason is None:
            yield Finding(f"mount by {adapter.name}", "ok", "")
        else:
            yield Finding(f"mount by {adapter.name}", "missing", "ls, cat, cp, verify, restore work", reason)


def _disks() -> Iterator[Finding]:
    devices = list_block_devices()
    readable = sum(os.access(device.path, os.R_OK) for device in devices)
    detail = ", ".join(f"{device.path} {format_size(device.size)}" for device in devices[:8])
    if devices and not readable:
        yield Finding(
            "disks", "note", detail, "only root may read the disks: use sudo to image or restore them"
        )
    else:
        yield Finding("disks", "ok", detail or "none")


def _mounts() -> Iterator[Finding]:
    for record in list_mounts():
        stale = record.state is not MountState.OK
        yield Finding(
            f"mount {record.mountpoint}",
            "stale" if stale else "ok",
            f"{record.source}: {record.state.value}",
            "mountfs doctor --fix" if stale else "",
        )


def _snapshots() -> Iterator[Finding]:
    for entry in left_over(journal_folder()):
        entry.release()
        yield Finding(
            f"snapshot by {entry.provider}",
            "stale",
            f"{entry.facts.get('snapshot') or entry.facts.get('place0', '')}: its process is dead",
            "mountfs doctor --fix",
        )
