"""Repositories, sets and points: what images there are, how they hang together, and how to name one.

A repository is a folder of sets, a set is a folder of image files; a set, or one image file, can be
opened alone. Files are found and judged by what they say of themselves, never by their names.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imageformat.cache import BlockCache
from imageformat.catalog import CatalogEntry, Problem, Proof, decode_catalog, encode_catalog
from imageformat.chain import Chain
from imageformat.errors import (
    LockedError,
    MountfsError,
    NotFoundError,
    ParentMismatchError,
    ParentMissingError,
    PartOfImageError,
)
from imageformat.formats import is_listed, open_image
from imageformat.formats.native import PLUGIN as NATIVE
from imageformat.layer import Ancestor, Opening
from imageformat.lineage import Member, standings
from imageformat.retired import hidden_keys
from imageformat.secrets import NO_SECRETS
from imageformat.siblings import Siblings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from imageformat.layer import ImageInfo, ImageLayer
    from imageformat.lineage import Standing
    from imageformat.secrets import Secrets
    from imageformat.siblings import NamedFile
    from imageformat.storage import ObjectInfo, Storage


@dataclass(frozen=True, slots=True)
class Access:
    """What the user gave to open images with."""

    secrets: Secrets = NO_SECRETS
    named: tuple[NamedFile, ...] = ()
    """Files outside of the folder of an image that it may open."""


NO_ACCESS = Access()


_NUMBERED = re.compile(r"\d{1,6}(?=[-.])")
"""The beginning of the name of one of our own images."""


@dataclass(frozen=True, slots=True)
class Point:
    """One image file of a set, as far as it can be known."""

    set_name: str
    key: str
    """Of the file in its storage."""
    size: int
    info: ImageInfo | None
    problem: Problem | None
    """Why it cannot be used: its own file, or an ancestor; None when nothing is known to be wrong."""
    proof: Proof | None = None
    """How the last verification of this file alone ended."""
    chain_damaged: bool = False
    """This file, or one that it stands on, is known to be damaged."""
    chain_verified: bool = False
    """This file and all that it stands on were verified and found right."""

    parent_key: str | None = None
    """Of the file that it stands on; None for a full image, and when that is not there."""

    @property
    def badness(self) -> tuple[bool, bool, bool]:
        """Sort key: of copies of one image, the best comes first."""
        return self.problem is not None, self.chain_damaged, not self.chain_verified

    @property
    def file_name(self) -> str:
        """Name of the image file."""
        return self.key.rsplit("/", 1)[-1]

    @property
    def is_foreign(self) -> bool:
        """Whether it is an image of another tool; False when that is not known."""
        return self.info is not None and self.info.format != NATIVE.name

    @property
    def number(self) -> int:
        """Number of the point; of a file that cannot be read, the one in its name; 0 when unknown."""
        if self.info is not None:
            return self.info.number
        match = _NUMBERED.match(self.file_name)
        return int(match[0]) if match else 0

    @property
    def state(self) -> str:
        """``verified``, ``ok`` (opens, not all was verified), ``damaged``, ``locked`` or ``broken``.

        ``damaged`` was found by a verification; ``locked`` lacks a password. A point is worth what the worst
        file of its chain is worth.
        """
        if self.problem is not None:
            return "locked" if self.problem.error == LockedError.__name__ else "broken"
        if self.chain_damaged:
            return "damaged"
        return "verified" if self.chain_verified else "ok"


@dataclass(frozen=True, slots=True)
class ImageSet:
    """The points of one source, oldest first; files that cannot be read come last.

    The set without a name is what lies beside the folders of a repository: images of other tools.
    """

    name: str
    prefix: str
    points: tuple[Point, ...]

    def latest(self) -> Point | None:
        """Return the newest point that nothing is known to be wrong with."""
        return next((point for point in reversed(self.points) if point.problem is None), None)

    @property
    def is_line(self) -> bool:
        """Whether its points are states of one source: not a folder of images that were put side by side."""
        readable = [point for point in self.points if point.info is not None]
        return any(not point.is_foreign for point in readable) or _is_one_line(readable)


class Repository:
    """The images below one place. Any number of threads may call it at once.

    Opened image files are shared by all chains and closed with the repository. ``only_set`` limits it to
    one folder; ``also`` is the key of a file that counts as an image whatever its suffix; ``access`` is what
    the user gave to open images with; ``whole`` shows files that a merge hides as well.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        only_set: str | None = None,
        also: str | None = None,
        capacity: int | None = None,
        access: Access = NO_ACCESS,
        whole: bool = False,
    ) -> None:
        self.storage = storage
        self._whole = whole
        self._access = access
        self.cache = BlockCache() if capacity is None else BlockCache(capacity)
        self._only_set = only_set
        self._also = also
        self._layers: dict[str, ImageLayer] = {}
        self._replaced: list[ImageLayer] = []
        self._best: dict[str, dict[Ancestor, Point]] = {}
        """By set: the file to take for each image; of copies, the best."""
        self._lock = threading.RLock()

    def sets(self) -> tuple[ImageSet, ...]:
        """Look again and return every set that has at least one image file, in order of name."""
        names = [self._only_set] if self._only_set is not None else ["", *self.storage.folders()]
        found = [self.image_set(name) for name in names]
        return tuple(entry for entry in found if entry.points)

    def image_set(self, name: str) -> ImageSet:
        """Look again and return one set; without points when there is nothing."""
        prefix = f"{name}/" if name else ""
        known = decode_catalog(self.storage.load_cache(prefix))
        entries = []
        objects = self._objects(prefix)
        for stored in objects:
            if is_listed(stored.key) or stored.key == self._also:
                entry = known.get(stored.key)
                if entry is None or entry.fingerprint != stored.fingerprint or entry.problem:
                    entry = self._examine(stored)
                if stored.key == self._also or not _is_part(entry):
                    entries.append((stored, entry))
        current = [entry for _, entry in entries if entry.problem is None]
        if current != list(known.values()):
            self.storage.save_cache(prefix, encode_catalog(current))
        hidden = hidden_keys(self.storage, prefix, {stored.key for stored in objects})
        if not self._whole:
            hidden -= {self._also}
            entries = [(stored, entry) for stored, entry in entries if stored.key not in hidden]
        result = ImageSet(name, prefix, _order(name, entries))
        with self._lock:
            self._best[name] = _best_by_identity(result.points)
        return result

    def beside(self) -> list[ObjectInfo]:
        """Return the files that lie in no set: beside the folders of a repository."""
        return self._objects("")

    def files(self, prefix: str) -> list[ObjectInfo]:
        """Return all files of a folder, whatever they are; none when there is no such folder."""
        return self._objects(prefix)

    def _objects(self, prefix: str) -> list[ObjectInfo]:
        try:
            return list(self.storage.objects(prefix))
        except NotFoundError:
            return []

    def _examine(self, stored: ObjectInfo) -> CatalogEntry:
        """Read what a file says of itself."""
        try:
            layer = self._open(stored.key, stored.key, BlockCache(0))
        except MountfsError as error:
            return CatalogEntry(stored.key, stored.fingerprint, None, Problem.of(error))
        info = layer.info
        layer.close()
        return CatalogEntry(stored.key, stored.fingerprint, info)

    def record_proof(self, point: Point, proof: Proof | None) -> None:
        """Remember the outcome of a verification, or forget what was known (None).

        It is bound to the file as it is now, unless that is another image than the one verified.
        """
        prefix = point.key[: -len(point.file_name)]
        known = decode_catalog(self.storage.load_cache(prefix))
        entry = known.get(point.key)
        if entry is None or entry.info is None or point.info is None or entry.proof == proof:
            return
        if (entry.info.id, entry.info.root) == (point.info.id, point.info.root):
            known[point.key] = CatalogEntry(entry.key, entry.fingerprint, entry.info, entry.problem, proof)
            self.storage.save_cache(prefix, encode_catalog(list(known.values())))

    def layer(self, point: Point) -> ImageLayer:
        """Open the image file of a point, or return it when that very image is open already."""
        with self._lock:
            known = self._layers.get(point.key)
            if known is not None and (point.info is None or _identity(known.info) == _identity(point.info)):
                return known
            layer = self._open(point.key, point.file_name, self.cache)
            if known is not None:
                self._replaced.append(known)
            self._layers[point.key] = layer
            return layer

    def fresh_layer(self, point: Point) -> ImageLayer:
        """Open the image file of a point apart from all others and without a cache; the caller closes it.

        What it says was read from the storage now: for verification.
        """
        return self._open(point.key, point.file_name, BlockCache(0))

    def _open(self, key: str, name: str, cache: BlockCache) -> ImageLayer:
        siblings = Siblings(*self.storage.real_place(key), self._access.named)
        return open_image(Opening(self.storage.open(key), name, cache, siblings, self._access.secrets))

    def chain(self, point: Point) -> Chain:
        """Open a point.

        Raises:
            ImageError, ChainError: the file or one of its ancestors is damaged, missing or replaced.
        """
        if point.problem is not None:
            raise point.problem.to_error()
        return Chain(self.layer(point), lambda ancestor: self._find(point.set_name, ancestor))

    def _find(self, set_name: str, ancestor: Ancestor) -> ImageLayer:
        """Open the file that holds an ancestor: the one with its id and its root.

        Raises:
            ParentMissingError, ParentMismatchError: there is none, or only another with its id.
        """
        if set_name not in self._best:
            self.image_set(set_name)
        best = self._best[set_name]
        point = best.get(ancestor)
        if point is not None:
            return self.layer(point)
        if any(other.id == ancestor.id for other in best):
            raise ParentMismatchError(
                f"set {set_name}: image {ancestor.id} was replaced by one of other content; put its file back"
            )
        raise ParentMissingError(
            f"set {set_name}: image {ancestor.id} cannot be read or is missing; put its file back"
        )

    def close(self) -> None:
        """Close every image file and the storage; idempotent."""
        self.release()
        self.storage.close()

    def release(self) -> None:
        """Close every image file, but not the storage; idempotent."""
        with self._lock:
            for layer in (*self._layers.values(), *self._replaced):
                layer.close()
            self._layers.clear()
            self._replaced.clear()


def _is_one_line(points: Sequence[Point]) -> bool:
    """Tell whether images of other tools are of one set, or stand on each other by the names of files."""
    groups = {point.file_name: {point.file_name} for point in points}
    by_set: dict[UUID, str] = {}
    for point in points:
        if point.info is not None:
            parent = str(point.info.details.get("parent", "")).replace("\\", "/").rpartition("/")[2]
            for other in (parent, by_set.setdefault(point.info.set_id, point.file_name)):
                if other in groups and groups[other] is not groups[point.file_name]:
                    joined = groups[other] | groups[point.file_name]
                    groups |= dict.fromkeys(joined, joined)
    return len({id(group) for group in groups.values()}) < 2


def _is_part(entry: CatalogEntry) -> bool:
    """Tell whether a file only holds blocks for another, which is the point."""
    return entry.problem is not None and entry.problem.error == PartOfImageError.__name__


def _identity(info: ImageInfo) -> Ancestor:
    """Return what a child knows its ancestor by."""
    return Ancestor(info.id, info.root)


def _best_by_identity(points: Sequence[Point]) -> dict[Ancestor, Point]:
    best: dict[Ancestor, Point] = {}
    for point in points:
        if point.info is not None:
            rival = best.setdefault(_identity(point.info), point)
            if point.badness < rival.badness:
                best[_identity(point.info)] = point
    return best


def _order(set_name: str, entries: Sequence[tuple[ObjectInfo, CatalogEntry]]) -> tuple[Point, ...]:
    readable = [entry for _, entry in entries if entry.info is not None]
    judged = standings([Member(entry.info, entry.proof) for entry in readable if entry.info is not None])
    standing = {entry.key: verdict for entry, verdict in zip(readable, judged, strict=True)}
    keys = [entry.key for entry in readable]
    points = [_point(set_name, stored, entry, standing.get(entry.key), keys) for stored, entry in entries]
    return tuple(sorted(points, key=_point_order))


def _point(
    set_name: str, stored: ObjectInfo, entry: CatalogEntry, standing: Standing | None, keys: Sequence[str]
) -> Point:
    if standing is None:
        return Point(set_name, entry.key, stored.size, entry.info, entry.problem, entry.proof)
    return Point(
        set_name,
        entry.key,
        stored.size,
        entry.info,
        entry.problem or standing.problem,
        entry.proof,
        chain_damaged=standing.damaged,
        chain_verified=standing.verified,
        parent_key=keys[standing.parent] if standing.parent is not None else None,
    )


def _point_order(point: Point) -> tuple[bool, int, int, str]:
    if point.info is None:
        return True, 0, 0, point.key
    return False, point.info.number, point.info.created_ns, point.key
