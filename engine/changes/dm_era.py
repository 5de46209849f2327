"""dm-era: which blocks of a device were written since an era began, kept by the kernel.

With each backup a new era is begun, and what is on its way to the device arrives, before it is read. The
next backup asks for what was written since that era. Nothing on a disk proves that the eras of dm-era are
still those of the point, and that nobody wrote below it: so a mark holds for the same device of the kernel,
with the same table, in the same run of the machine. A restart means that everything is read.

Sources: Documentation/admin-guide/device-mapper/era.rst of Linux, era_invalidate(8).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from engine.changes import ChangeProvider, ChangesUnknownError, Mark, Wanted
from engine.changes._told import SECTOR, device_folder, lines_of, metadata_snapshot, path_of, tags
from engine.changes.knowledge import BlockRanges
from engine.devices import sysfs
from engine.devices.sysfs import LOCAL
from engine.snapshots import programs
from engine.snapshots.taking import PictureSource, facts_of
from imageformat.errors import SnapshotError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

NAME = "dm-era"
_SETTLE = '"$1" suspend "$2"; ended=$?; "$1" resume "$2" && exit $ended'
"""In one program that ends by itself: killed in between, we would leave the device suspended."""


class Eras:
    """See `ChangeTracker`."""

    name = NAME

    def __init__(self, folder: Path, size: int, problem: str = "") -> None:
        """``folder`` describes the device; ``problem`` is why it cannot be trusted."""
        self._folder = folder
        self._device = sysfs.device_path(folder)
        self._size = size
        self._refused = problem
        self._problem = problem

    def begin(self) -> Mark | None:
        """See `ChangeTracker.begin`; a device that refuses is no reason to make no backup."""
        if self._refused:
            return None
        try:
            tie = self._tie()
            before = self._era()
            programs.run("dmsetup", "message", self._device, "0", "checkpoint")
            era = self._era()
            # A write of an older era may still be on its way: it must arrive before the first read.
            programs.run("sh", "-c", _SETTLE, "sh", programs.find("dmsetup") or "dmsetup", self._device)
            if era <= before or self._tie() != tie:
                raise SnapshotError("it began no new era")
        except SnapshotError as error:
            self._problem = f"no era can be begun: {error}"
            return None
        self._problem = ""
        return {"tracker": NAME, "era": era, **tie}

    def unchanged(self, mark: Mark) -> Iterator[tuple[int, int]]:
        """See `ChangeTracker.unchanged`."""
        if self._problem:
            raise ChangesUnknownError(self._problem)
        try:
            tie, now = self._tie(), self._era()
            table = programs.run("dmsetup", "table", self._device)
            sectors, metadata = block_sectors(table), path_of(table.split()[3])
        except SnapshotError as error:
            raise ChangesUnknownError(f"the eras cannot be read: {error}") from error
        era = mark.get("era")
        if any(mark.get(fact) != value for fact, value in tie.items()):
            raise ChangesUnknownError("the device or the machine was started again since the parent")
        if type(era) is not int or not 0 < era <= now:
            raise ChangesUnknownError("the device knows nothing of the era that the parent began")
        with metadata_snapshot(self._device, "take_metadata_snap", "drop_metadata_snap"):
            told = lines_of(*written_command(metadata, era))
            with contextlib.closing(told):
                # Read to its end before anything is used: that nothing is missing shows there.
                found = BlockRanges(not_written(told, sectors * SECTOR, self._size))
        return iter(found)

    def settle(self, *, published: bool) -> None:
        """See `ChangeTracker.settle`: an era takes no room."""

    def _tie(self) -> dict[str, str]:
        tie = {
            "boot": sysfs.attribute(LOCAL.proc / "sys/kernel/random", "boot_id"),
            "sequence": sysfs.attribute(self._folder, "diskseq"),
            "table": programs.run("dmsetup", "table", self._device).strip(),
        }
        if not all(tie.values()):
            raise SnapshotError("this kernel does not number its devices")
        return tie

    def _era(self) -> int:
        return current_era(programs.run("dmsetup", "status", self._device))


def current_era(status: str) -> int:
    """Return the era from the status of a device of dm-era.

    Raises:
        SnapshotError: it tells none, as when its metadata failed.
    """
    words = status.split()
    if len(words) != 7 or words[2] != "era" or not _is_number(words[5]):
        raise SnapshotError(f"it tells no era: {status.strip()[:80]}")
    return int(words[5])


def block_sectors(table: str) -> int:
    """Return how many sectors a block has, from the table of a device of dm-era.

    Raises:
        SnapshotError: it is no such device.
    """
    words = table.split()
    if len(words) != 6 or words[:1] != ["0"] or words[2] != "era" or not _is_number(words[5]):
        raise SnapshotError(f"it is no device of dm-era: {table.strip()[:80]}")
    if not int(words[5]):
        raise SnapshotError("its blocks have no sectors")
    return int(words[5])


def written_command(metadata: str, era: int) -> list[str]:
    """Return the command that tells what was written since an era; pure."""
    return ["era_invalidate", "--metadata-snapshot", "--written-since", str(era), metadata]


def not_written(lines: Iterable[str], block_size: int, size: int) -> Iterator[tuple[int, int]]:
    """Read what ``era_invalidate`` tells: yield ``(offset, end)`` in bytes of what it does not name.

    Ascending, disjoint, within ``size``.

    Raises:
        ChangesUnknownError: it tells something else, or not all; also at the end.
    """
    told = tags(lines)
    blocks = -(-size // block_size)
    top = next(told, None)
    if top is None or top.name != "blocks":
        raise ChangesUnknownError("era_invalidate does not tell what was written")
    position = 0
    for tag in told:
        if tag.name == "range":
            begin, end = tag.number("begin"), tag.number("end")
        elif tag.name == "block":
            begin = tag.number("block")
            end = begin + 1
        else:
            break
        if not position <= begin < end <= blocks:
            raise ChangesUnknownError("what era_invalidate tells is of another device, or does not ascend")
        if position < begin:
            yield position * block_size, begin * block_size
        position = end
    else:
        raise ChangesUnknownError("era_invalidate did not tell all")
    if tag.name != "/blocks" or next(told, None) is not None:
        raise ChangesUnknownError(f"era_invalidate tells something that is not understood: {tag.name}")
    if position < blocks:
        yield position * block_size, size


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= len(str(1 << 32))


def _folder(wanted: Wanted) -> Path | None:
    """Return where the kernel describes the source, where it is a device of dm-era."""
    folder = device_folder(wanted.source.identity.path)
    if folder is None or not sysfs.attribute(folder, "dm/name"):
        return None
    try:
        block_sectors(programs.run("dmsetup", "table", sysfs.device_path(folder)))
    except SnapshotError:
        return None
    return folder


def _opened(wanted: Wanted) -> Eras:
    folder = _folder(wanted)
    if folder is None:
        raise UsageError(f"--changed {NAME} is for devices of dm-era")
    problem = ""
    if isinstance(wanted.source, PictureSource):
        problem = "the picture was made before the era began, and lacks what was written since"
    elif facts_of(wanted.source).written:
        # To let writes arrive the device stands for a moment; what ends that could lie on it.
        problem = "a file system on it is mounted to be written"
    return Eras(folder, wanted.source.size, problem)


def _suits(wanted: Wanted) -> bool:
    """It lets the device stand for a moment, so it goes on by itself only where it was asked for once."""
    if _folder(wanted) is None:
        return False
    marks = wanted.marks()
    last = marks[-1] if marks else None
    return last is not None and last.get("tracker") == NAME


PLUGIN = ChangeProvider(NAME, _opened, _suits)
