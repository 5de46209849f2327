"""One open repository and everything that was opened from it: views, trees, read-ahead.

A session owns and unwinds it all. What a point looks like, as a disk and as a tree, is put together here.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Self

from imageformat.plugins import discover, nearest
from imageformat.repository import NO_ACCESS, Access
from imageformat.selection import open_location, problem_error
from imageformat.view import ImageView, ReadAhead
from mountfs import containers, drivers
from mountfs.disktree import DiskTree
from mountfs.flattree import FlatTree
from mountfs.foldertree import Entry, FolderTree

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from imageformat.repository import ImageSet, Point
    from imageformat.selection import Location
    from mountfs.containers import VolumeContainer
    from mountfs.tree import FileSystemDriver, FileTree

DISK_IMAGE = b"disk.img"
LATEST_LINK = b"latest"


def point_name(point: Point) -> str:
    """Return the folder name of a point in a mount: number, type and time in UTC.

    An image of another tool has the name of its file, which people know, and which no other has.
    """
    if point.info is None or point.is_foreign:
        return point.file_name
    moment = datetime.fromtimestamp(point.info.created_ns // 1_000_000_000, UTC)
    return f"{point.info.number:04d}-{point.info.type.value}-{moment:%Y-%m-%dT%H%M%S}Z"


def disk_name(number: int) -> bytes:
    """Return the folder name of a disk of an image that has several; ``--disk`` takes the same number."""
    return b"disk%d" % number


@cache
def drivers_of(type_name: str) -> tuple[FileSystemDriver, ...]:
    """Return the file-system driver that knows a type, if there is one here; the others are not loaded."""
    found = nearest(drivers, type_name, lambda driver: type_name in driver.types)
    return () if found is None else (found,)


def volume_containers() -> tuple[VolumeContainer, ...]:
    """Every kind of container that can be opened here."""
    return discover(containers).available


class Session:
    """An opened repository, set or image. Use it as a context manager. Thread-safe once open."""

    def __init__(
        self,
        path: str,
        *,
        capacity: int | None = None,
        read_ahead: bool = True,
        access: Access = NO_ACCESS,
    ) -> None:
        self.location: Location = open_location(path, capacity=capacity, access=access)
        self._secrets = access.secrets
        self._stack = ExitStack()
        self._stack.callback(self.location.repository.close)
        self._read_ahead: ReadAhead | None = None
        if read_ahead and (os.cpu_count() or 1) > 1:
            self._read_ahead = ReadAhead()
            self._stack.callback(self._read_ahead.close)

    def view(self, point: Point, *, disk: int = 0) -> ImageView:
        """Open a point's disk.

        The catalogue has proven that every ancestor is there; each is proven again by its own file when it
        is first needed, so that opening does not depend on the length of the chain.

        Raises:
            ImageError, ChainError: the point cannot be trusted.
        """
        if point.problem is not None:
            raise problem_error(point)
        repository = self.location.repository
        return ImageView(repository.chain(point), repository.cache, disk=disk, read_ahead=self._read_ahead)

    def disk_tree(self, point: Point, *, disk: int = 0) -> DiskTree:
        """Open a point as a tree of its volumes; the caller closes it."""
        view = self.view(point, disk=disk)
        created_ns = point.info.created_ns if point.info else 0
        return DiskTree(
            view,
            drivers_of,
            containers=volume_containers,
            secrets=self._secrets,
            image_name=DISK_IMAGE,
            sector_size=view.sector_size,
            time_ns=created_ns,
        )

    def disk_only(self, point: Point, *, disk: int = 0) -> FileTree:
        """Open a point as a folder that holds nothing but the virtual disk; the caller closes it."""
        created_ns = point.info.created_ns if point.info else 0
        return FlatTree({DISK_IMAGE: self.view(point, disk=disk)}, time_ns=created_ns)

    def tree(self, selector: str | None, *, disk_only: bool = False) -> FileTree:
        """Return what a mount shows: one point, the points of a set, or the sets of a repository.

        The trees of sets and repositories look again for new points while they are in use.
        """
        location = self.location
        if selector is not None or location.key is not None:
            return self._point_tree(location.point(selector), disk_only=disk_only)
        location.sets()
        if location.set_name is not None:
            return self._set_tree(location.set_name, disk_only=disk_only)
        return FolderTree(lambda: self._set_entries(disk_only=disk_only))

    def _set_entries(self, *, disk_only: bool) -> Mapping[bytes, Entry]:
        entries: dict[bytes, Entry] = {}
        for image_set in self.location.repository.sets():
            if image_set.name:
                entries[os.fsencode(image_set.name)] = Entry(
                    open=partial(self._set_tree, image_set.name, disk_only=disk_only),
                    mtime_ns=_newest_ns(image_set),
                )
            else:
                entries |= self._points_of(image_set, disk_only=disk_only)
        return entries

    def _set_tree(self, name: str, *, disk_only: bool) -> FileTree:
        return FolderTree(lambda: self._point_entries(name, disk_only=disk_only))

    def _point_entries(self, name: str, *, disk_only: bool) -> Mapping[bytes, Entry]:
        image_set = self.location.repository.image_set(name)
        entries = self._points_of(image_set, disk_only=disk_only)
        latest = image_set.latest() if image_set.is_line else None
        if latest is not None:
            link = os.fsencode(point_name(latest))
            entries[LATEST_LINK] = Entry(link=link, mtime_ns=_newest_ns(image_set))
        return entries

    def _points_of(self, image_set: ImageSet, *, disk_only: bool) -> dict[bytes, Entry]:
        return {
            os.fsencode(point_name(point)): Entry(
                open=partial(self._point_tree, point, disk_only=disk_only),
                mtime_ns=point.info.created_ns if point.info else 0,
                identity=_identity(point),
            )
            for point in image_set.points
        }

    def _point_tree(self, point: Point, *, disk_only: bool) -> FileTree:
        """Open a point as a mount shows it: its disk, or a folder for each when it has several."""
        open_disk = self.disk_only if disk_only else self.disk_tree
        if point.info is None or len(point.info.disks) == 1:
            return open_disk(point)
        time_ns = point.info.created_ns
        entries = {
            disk_name(number): Entry(open=partial(open_disk, point, disk=number), mtime_ns=time_ns)
            for number in range(len(point.info.disks))
        }
        return FolderTree(lambda: entries)

    def close(self) -> None:
        """Close everything; idempotent."""
        self._stack.close()

    def __enter__(self) -> Self:
        """Return the session."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close everything."""
        self.close()


def _newest_ns(image_set: ImageSet) -> int:
    return max((point.info.created_ns for point in image_set.points if point.info), default=0)


def _identity(point: Point) -> bytes:
    """Changes when the file of a point was replaced or its state changed."""
    known = point.info.id.bytes + point.info.root if point.info else b""
    return known + (point.problem.message.encode() if point.problem else b"")
