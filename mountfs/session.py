"""One open repository and everything that was opened from it: views, trees, read-ahead.

A session owns and unwinds it all. What a point looks like, as a disk and as a tree, is put together here.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Self

from imageformat.plugins import discover
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
    """Return the folder name of a point in a mount: number, type and time in UTC."""
    if point.info is None:
        return point.file_name
    moment = datetime.fromtimestamp(point.info.created_ns // 1_000_000_000, UTC)
    return f"{point.info.number:04d}-{point.info.type.value}-{moment:%Y-%m-%dT%H%M%S}Z"


def file_system_drivers() -> tuple[FileSystemDriver, ...]:
    """Every file-system driver that works here."""
    return discover(drivers).available


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
            file_system_drivers(),
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
            point = location.point(selector)
            return self.disk_only(point) if disk_only else self.disk_tree(point)
        location.sets()
        if location.set_name is not None:
            return self._set_tree(location.set_name, disk_only=disk_only)
        return FolderTree(lambda: self._set_entries(disk_only=disk_only))

    def _set_entries(self, *, disk_only: bool) -> Mapping[bytes, Entry]:
        return {
            image_set.name.encode(): Entry(
                open=partial(self._set_tree, image_set.name, disk_only=disk_only),
                mtime_ns=_newest_ns(image_set),
            )
            for image_set in self.location.repository.sets()
        }

    def _set_tree(self, name: str, *, disk_only: bool) -> FileTree:
        return FolderTree(lambda: self._point_entries(name, disk_only=disk_only))

    def _point_entries(self, name: str, *, disk_only: bool) -> Mapping[bytes, Entry]:
        image_set = self.location.repository.image_set(name)
        entries = {
            point_name(point).encode(): Entry(
                open=partial(self.disk_only if disk_only else self.disk_tree, point),
                mtime_ns=point.info.created_ns if point.info else 0,
                identity=_identity(point),
            )
            for point in image_set.points
        }
        latest = image_set.latest()
        if latest is not None:
            entries[LATEST_LINK] = Entry(link=point_name(latest).encode(), mtime_ns=_newest_ns(image_set))
        return entries

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
