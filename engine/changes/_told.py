"""What the tools of thin-provisioning-tools tell of metadata, line by line: ``<name key="value" ...>``."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.changes import ChangesUnknownError
from engine.devices import sysfs
from engine.snapshots import programs
from imageformat.errors import SnapshotError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping
    from pathlib import Path

SECTOR = 512
"""Bytes that the device mapper counts in."""
_MAX_LINE = 1024
_MAX_SAID = 400
_MAX_NUMBER = 1 << 64
_TAG = re.compile(r'<(/?)(\w+)((?: +\w+ ?= ?"[^"<>]*")*) *(/?)>')
_NUMBER = re.compile(r"[0-9]{1,9}:[0-9]{1,9}")
_ATTRIBUTE = re.compile(r'(\w+) ?= ?"([^"<>]*)"')


@dataclass(frozen=True, slots=True)
class Tag:
    """One line of such a report."""

    name: str
    """With a slash before it where it ends something."""
    values: Mapping[str, str]

    def number(self, key: str) -> int:
        """Return a value that is a number below 2**64.

        Raises:
            ChangesUnknownError: it is none.
        """
        text = self.values.get(key, "")
        if not (text.isascii() and text.isdecimal() and len(text) <= len(str(_MAX_NUMBER))):
            raise ChangesUnknownError(
                f"a report of metadata makes no sense: {key} of {self.name} is {text!r}"
            )
        if int(text) >= _MAX_NUMBER:
            raise ChangesUnknownError(f"a report of metadata makes no sense: {key} of {self.name} is {text}")
        return int(text)


def tags(lines: Iterable[str]) -> Iterator[Tag]:
    """Read the lines of a report; empty ones are left out.

    Raises:
        ChangesUnknownError: a line is anything else than one tag.
    """
    for line in lines:
        text = line.strip()
        if not text:
            continue
        found = _TAG.fullmatch(text)
        if found is None:
            raise ChangesUnknownError(f"a report of metadata makes no sense: {text[:80]!r}")
        yield Tag(found[1] + found[2], dict(_ATTRIBUTE.findall(found[3])))


def lines_of(*command: str) -> Generator[str, None, None]:
    """Run a program that only reads, and yield what it prints; it is ended when the caller is.

    Raises:
        ChangesUnknownError: it is not there, fails, or prints lines of any length; also at the end.
    """
    program = programs.find(command[0])
    if program is None:
        raise ChangesUnknownError(f"{command[0]} is not installed (package thin-provisioning-tools)")
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                [program, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                env={**os.environ, "LC_ALL": "C"},
            )
        except OSError as error:
            raise ChangesUnknownError(f"{command[0]} cannot be run: {error.strerror}") from error
        with process, contextlib.ExitStack() as ending:
            ending.callback(_end, process)
            yield from _whole_lines(process, command[0])
            process.wait()
        if process.returncode:
            said.seek(0)
            reason = " ".join(said.read(_MAX_SAID).decode("utf-8", "replace").split())
            raise ChangesUnknownError(f"{command[0]} failed: {reason}")


def _whole_lines(process: subprocess.Popen[bytes], name: str) -> Iterator[str]:
    while process.stdout is not None and (line := process.stdout.readline(_MAX_LINE)):
        if not line.endswith(b"\n"):
            raise ChangesUnknownError(f"{name} did not say all that it had to say")
        yield line.decode("ascii", "replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()


@contextlib.contextmanager
def metadata_snapshot(device: str, take: str, drop: str) -> Iterator[None]:
    """Make the metadata of a device of the device mapper readable for the time of the block.

    Raises:
        ChangesUnknownError: it cannot be made, as when somebody else has one.
    """
    try:
        programs.run("dmsetup", "message", device, "0", take)
    except SnapshotError as error:
        raise ChangesUnknownError(
            f"the metadata of {device} cannot be read now ({error}); if a program that was killed left its "
            f"snapshot of them: dmsetup message {device} 0 {drop}"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(SnapshotError):
            programs.run("dmsetup", "message", device, "0", drop)


def device_folder(path: str) -> Path | None:
    """Return where the kernel describes a block device; None for anything else."""
    number = sysfs.device_number(path)
    return sysfs.block_folder(number) if number else None


def path_of(number: str) -> str:
    """Return the path of a device by its number, ``major:minor``.

    Raises:
        SnapshotError: there is none.
    """
    folder = sysfs.block_folder(number.strip()) if _NUMBER.fullmatch(number.strip()) else None
    if folder is None:
        raise SnapshotError(f"there is no device {number.strip()[:80]}")
    return sysfs.device_path(folder)
