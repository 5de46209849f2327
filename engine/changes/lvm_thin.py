"""Thin volumes of LVM: what two thin snapshots of one pool have in the same block of it did not change.

With each backup a thin snapshot of what is read is kept: of the picture where one was made for the backup,
else of the volume before it is read. It pins every block that it uses: as long as it stands, the pool writes
what changes elsewhere, so the same block of the pool in the snapshots of the last run and of this one holds
the bytes that the last run read. Only what both have mapped to the same block is called unchanged.

What ties a snapshot to a point are the UUIDs of the volume and of its pool, the number of the thin device in
the pool, and the transaction that made it. A number is used again, a UUID and a transaction are not.

Sources: lvmthin(7), thin_delta(8), Documentation/admin-guide/device-mapper/thin-provisioning.rst of Linux.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
from typing import TYPE_CHECKING

from engine.changes import ChangeProvider, ChangesUnknownError, Mark, Wanted
from engine.changes._told import SECTOR, device_folder, lines_of, metadata_snapshot, path_of, tags
from engine.changes.knowledge import BlockRanges
from engine.devices import sysfs
from engine.snapshots import lvm, programs
from engine.snapshots.taking import PictureSource
from imageformat.errors import SnapshotError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

NAME = "lvm-thin"
_COLUMNS = "vg_name,lv_name,lv_uuid,segtype,lv_tags,thin_id,transaction_id,pool_lv,pool_lv_uuid"
_TIES = ("lv_uuid", "thin_id", "transaction_id", "pool_lv_uuid")
_GROUP = slice(4, 36)
"""Where the UUID of the group stands in that of a device: behind ``LVM-``."""
_KINDS = frozenset({"same", "different", "left_only", "right_only"})
_BLOCK_SECTORS = range(128, (2 << 20) + 1, 128)
"""What the block of a pool may be: 64 KiB to 1 GiB, by 64 KiB."""


class ThinSnapshots:
    """See `ChangeTracker`."""

    name = NAME

    def __init__(self, mapped_id: str, size: int, key: str, problem: str = "") -> None:
        """``mapped_id`` is the UUID of the device that is read; ``problem`` is why it cannot be trusted."""
        self._mapped_id = mapped_id
        self._size = size
        self._tag = f"mountfs-kept-{key}"
        self._refused = problem
        self._problem = problem
        self._kept: dict[str, str] | None = None

    def begin(self) -> Mark | None:
        """See `ChangeTracker.begin`; LVM that refuses is no reason to make no backup."""
        if self._refused:
            return None
        name = f"{self._tag}-{secrets.token_hex(4)}"
        try:
            volume = lvm.volume_of(self._mapped_id, _COLUMNS)
            programs.run(*keep_command(volume, name, self._tag))
            self._kept = self._find(volume["vg_name"], name)
        except SnapshotError as error:
            self._problem = f"no thin snapshot can be kept: {error}"
            return None
        return {"tracker": NAME, "snapshot": name, **{tie: self._kept[tie] for tie in _TIES}}

    def unchanged(self, mark: Mark) -> Iterator[tuple[int, int]]:
        """See `ChangeTracker.unchanged`."""
        if self._kept is None:
            raise ChangesUnknownError(self._problem)
        name = mark.get("snapshot")
        if not isinstance(name, str) or not re.fullmatch(rf"{self._tag}-[0-9a-f]{{8}}", name):
            raise ChangesUnknownError("the parent was made from another volume, or into another set")
        try:
            before = self._find(self._kept["vg_name"], name)
            check_tied(before, self._kept, mark)
            pool = path_of(programs.run(*number_command(self._mapped_id, self._kept["pool_lv_uuid"])))
            metadata = path_of(metadata_number(programs.run("dmsetup", "table", pool)))
        except SnapshotError as error:
            raise ChangesUnknownError(
                f"the snapshot that the parent began cannot be used: {error}"
            ) from error
        with metadata_snapshot(pool, "reserve_metadata_snap", "release_metadata_snap"):
            numbers = before["thin_id"], self._kept["thin_id"]
            told = lines_of(*delta_command(metadata, *numbers))
            with contextlib.closing(told):
                # Read to its end before anything is used: that nothing is missing shows there.
                found = BlockRanges(same_blocks(told, int(numbers[0]), int(numbers[1]), self._size))
        return iter(found)

    def settle(self, *, published: bool) -> None:
        """See `ChangeTracker.settle`; what cannot be removed is left to the next run."""
        if self._kept is None:
            return
        group, own = self._kept["vg_name"], self._kept["lv_name"]
        with contextlib.suppress(SnapshotError):
            for volume in lvm.report(f"lv_tags={{{self._tag}}}", group, _COLUMNS):
                if volume["lv_name"].startswith(self._tag) and (volume["lv_name"] != own) == published:
                    programs.run("lvremove", "--yes", "--quiet", f"{group}/{volume['lv_name']}")

    def _find(self, group: str, name: str) -> dict[str, str]:
        for volume in lvm.report(f"lv_tags={{{self._tag}}}", group, _COLUMNS):
            if volume["lv_name"] == name:
                return volume
        raise SnapshotError(f"{group}/{name} is not there")


def keep_command(volume: Mapping[str, str], name: str, tag: str) -> list[str]:
    """Return the command that makes a thin snapshot that nobody activates unasked; pure.

    Raises:
        SnapshotError: the volume is not thin.
    """
    origin = f"{volume['vg_name']}/{volume['lv_name']}"
    if volume["segtype"] != "thin":
        raise SnapshotError(f"{origin} is of type {volume['segtype']}, not thin")
    fixed = ["lvcreate", "--yes", "--quiet", "--snapshot", "--permission", "r"]
    return [*fixed, "--setactivationskip", "y", "--name", name, "--addtag", tag, origin]


def delta_command(metadata: str, before: str, now: str) -> list[str]:
    """Return the command that tells what differs between two thin devices; pure."""
    return ["thin_delta", "-m", "--snap1", before, "--snap2", now, metadata]


def check_tied(found: Mapping[str, str], kept: Mapping[str, str], mark: Mark) -> None:
    """Prove that a snapshot is the one of the mark, and in one pool with that of this run.

    Raises:
        ChangesUnknownError
    """
    if any(not found[tie] or mark.get(tie) != found[tie] for tie in _TIES):
        raise ChangesUnknownError("the snapshot that the parent began is another one now")
    if found["pool_lv_uuid"] != kept["pool_lv_uuid"] or found["segtype"] != "thin":
        raise ChangesUnknownError("the volume lies in another pool now")
    if not all(volume["thin_id"].isdecimal() for volume in (found, kept)):
        raise ChangesUnknownError("lvs tells no number of the thin devices")


def same_blocks(lines: Iterable[str], before: int, now: int, size: int) -> Iterator[tuple[int, int]]:
    """Read what ``thin_delta`` tells: yield ``(offset, end)`` in bytes of what is the same.

    What it does not name is in doubt, as are blocks that neither has. Ascending, disjoint, within ``size``.

    Raises:
        ChangesUnknownError: it tells of other devices, or something else, or not all; also at the end.
    """
    told = tags(lines)
    top, pair = next(told, None), next(told, None)
    if top is None or pair is None or (top.name, pair.name) != ("superblock", "diff"):
        raise ChangesUnknownError("thin_delta does not tell what differs")
    sectors = top.number("data_block_size")
    if sectors not in _BLOCK_SECTORS or (pair.number("left"), pair.number("right")) != (before, now):
        raise ChangesUnknownError("thin_delta tells of other devices")
    position = 0
    for tag in told:
        if tag.name not in _KINDS:
            break
        begin, length = tag.number("begin"), tag.number("length")
        if begin < position or not length:
            raise ChangesUnknownError("what thin_delta tells does not ascend")
        position = begin + length
        offset, end = begin * sectors * SECTOR, min(position * sectors * SECTOR, size)
        if tag.name == "same" and offset < end:
            yield offset, end
    else:
        raise ChangesUnknownError("thin_delta did not tell all")
    if tag.name != "/diff" or [tag.name for tag in told] != ["/superblock"]:
        raise ChangesUnknownError(f"thin_delta tells something that is not understood: {tag.name}")


def number_command(mapped_id: str, pool: str) -> list[str]:
    """Return the command that tells the number of the device of a pool by the UUID that LVM gave it; pure.

    Args:
        mapped_id: The UUID of a device of the same group.
        pool: The UUID of the pool.
    """
    shown = ["--columns", "--noheadings", "--separator", ":", "--options", "major,minor"]
    return ["dmsetup", "info", *shown, "--uuid", f"LVM-{mapped_id[_GROUP]}{pool.replace('-', '')}-tpool"]


def metadata_number(table: str) -> str:
    """Return the number of the device that the metadata of a pool are on, from the table of the pool.

    Raises:
        SnapshotError: it is no pool.
    """
    words = table.split()
    if len(words) < 4 or words[2] != "thin-pool" or table.strip().count("\n"):
        raise SnapshotError(f"it is no pool: {table.strip()[:80]}")
    return words[3]


def _volume_of(path: str) -> str:
    """Return the UUID of the device, where it is a logical volume; else ""."""
    folder = device_folder(path)
    found = sysfs.attribute(folder, "dm/uuid") if folder is not None else ""
    return found if lvm.is_volume(found) else ""


def _opened(wanted: Wanted) -> ThinSnapshots:
    source = wanted.source
    volume = _volume_of(source.identity.path)
    if not volume:
        raise UsageError(f"--changed {NAME} is for thin volumes of LVM")
    read, problem = volume, ""
    if isinstance(source, PictureSource):
        read = _volume_of(source.place)
        if source.provider != lvm.PLUGIN.name:
            problem = f"the picture was made by {source.provider}, and lacks what was written since"
    key = hashlib.sha256(f"{wanted.place}\0{volume}".encode(errors="surrogateescape")).hexdigest()[:16]
    return ThinSnapshots(read, source.size, key, problem)


def _suits(wanted: Wanted) -> bool:
    """It leaves a snapshot in the pool, so it goes on by itself only where it was asked for once."""
    if not _volume_of(wanted.source.identity.path):
        return False
    marks = wanted.marks()
    last = marks[-1] if marks else None
    return last is not None and last.get("tracker") == NAME


PLUGIN = ChangeProvider(NAME, _opened, _suits)
