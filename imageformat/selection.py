"""Naming images: ``PATH`` or ``PATH@POINT``, where PATH is an image file, a set, or a repository.

POINT is a number (``3``), the first digits of an id (``9f31c2ab``), a time, or ``latest``. Without POINT a
set means its latest point. A time is as long as what it states: a day, an hour, a minute or a second. It
means the newest point at or before its end.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from imageformat.errors import AccessDeniedError, AmbiguousNameError, NotFoundError, UsageError
from imageformat.formats import is_listed, is_ours, unlisted_suffixes
from imageformat.repository import NO_ACCESS, Access, ImageSet, Point, Repository
from imageformat.siblings import NamedFile
from imageformat.storage.local import LocalStorage, read_error
from imageformat.storage.places import is_remote, open_storage, parent_of, split_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from imageformat.errors import MountfsError
    from imageformat.storage import Storage

LATEST = "latest"
_MOST_NAMED = 10
_NUMBER = re.compile(r"\d{1,6}")
_ID = re.compile(r"[0-9a-fA-F-]{4,36}")
_COLON_FOLLOWS = re.compile(r"\d[T ]\d\d(:\d\d)?$|\d[T ][\d:.]+ ?[+-]\d\d$")
"""The beginning of a time that may go on after a colon: its hour, its minute, or the hours of its zone."""
_TWO_DIGITS = re.compile(r":\d\d(?=$|[:.,@Z ]|[+-]\d\d)")
_CLOCK = re.compile(r"[T ](\d\d)(:?\d\d)?(:?\d\d)?([.,]\d+)?", re.IGNORECASE)
_SPACE_BEFORE_ZONE = re.compile(r" (?=[+-]\d\d:?\d\d$)")
"""As `list` prints a time."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where a name points: a repository, one of its sets, or one file of a set."""

    repository: Repository
    set_name: str | None
    """None: the whole repository."""
    key: str | None
    """The image file that was named; None: all of the set."""

    def sets(self) -> tuple[ImageSet, ...]:
        """Return the sets that were named; never empty.

        Raises:
            NotFoundError: there is no image at that place.
        """
        found = self.repository.sets()
        if not found:
            missing = NotFoundError(f"{self.repository.storage.url}: there are no images here")
            if any(stored.key.lower().endswith(unlisted_suffixes()) for stored in self.repository.beside()):
                missing.add_note("raw disks are no images before they are named: name the file itself")
            raise missing
        return found

    def points(self) -> tuple[Point, ...]:
        """Return every point that was named."""
        every = [point for image_set in self.sets() for point in image_set.points]
        return tuple(point for point in every if self.key in {None, point.key})

    def point(self, selector: str | None = None) -> Point:
        """Return the one point that was named; ``latest`` when a set was.

        Raises:
            NotFoundError, AmbiguousNameError
            UsageError: the selector is no name of a point.
        """
        if self.key is not None:
            if selector is not None:
                raise UsageError(f"{self.key} is one image; a point can only be chosen from a set")
            return self.points()[0]
        sets = self.sets()
        if len(sets) > 1:
            names = ", ".join(place_names(sets))
            raise AmbiguousNameError(f"there are several sets here; name one of them: {names}")
        return select_point(sets[0], LATEST if selector is None else selector)


def place_names(sets: Sequence[ImageSet]) -> list[str]:
    """Name what lies in a repository: its sets, and the images of other tools beside them."""
    found = []
    for entry in sets:
        of_others = not entry.name or (len(sets) == 1 and not entry.is_line)
        found += [point.file_name for point in entry.points] if of_others else [entry.name]
    return found


def open_location(path: str, *, capacity: int | None = None, access: Access = NO_ACCESS) -> Location:
    """Find out what ``path`` is, also the address of a remote place, and open it.

    The caller closes the repository.

    Raises:
        NotFoundError, AccessDeniedError; of a remote place also UsageError, StorageError
    """
    if is_remote(path):
        return _open_remote(path, capacity, access)
    place = Path(path)
    try:
        place = place.resolve(strict=True)
    except OSError as error:
        raise read_error(error, place) from error
    if not place.is_dir():
        return _open_file(place, capacity, access)
    if holds_images(place):
        storage = LocalStorage(place.parent)
        repository = Repository(storage, only_set=place.name, capacity=capacity, access=access)
        return Location(repository, place.name, None)
    return Location(Repository(LocalStorage(place), capacity=capacity, access=access), None, None)


def _open_file(place: Path, capacity: int | None, access: Access) -> Location:
    folder, key = place.parent, f"{place.parent.name}/{place.name}"
    storage = LocalStorage(folder.parent)
    repository = Repository(storage, only_set=folder.name, also=key, capacity=capacity, access=access)
    return Location(repository, folder.name, key)


def _open_remote(address: str, capacity: int | None, access: Access) -> Location:
    """Find out what lies at a remote address: one image, a set, or a repository."""
    above, name = parent_of(address)
    storage = open_storage(above)
    try:
        names = _names_in(storage, f"{name}/" if name else "")
        is_file = bool(name) and not names and storage.holds(name, "")
    except BaseException:
        storage.close()
        raise
    if any(map(is_ours, names)) or (any(map(is_listed, names)) and not _has_sets(address)):
        repository = Repository(storage, only_set=name, capacity=capacity, access=access)
        return Location(repository, name, None)
    storage.close()
    if is_file:
        top, folder = parent_of(above)
        key = f"{folder}/{name}" if folder else name
        inside = Repository(open_storage(top), only_set=folder, also=key, capacity=capacity, access=access)
        return Location(inside, folder, key)
    return Location(Repository(open_storage(address), capacity=capacity, access=access), None, None)


def _names_in(storage: Storage, prefix: str) -> list[str]:
    try:
        return [stored.key.removeprefix(prefix) for stored in storage.objects(prefix)]
    except NotFoundError:
        return []


def _has_sets(address: str) -> bool:
    """Tell whether a folder of a remote place has a folder with images of our own format."""
    storage = open_storage(address)
    try:
        return any(any(map(is_ours, _names_in(storage, f"{name}/"))) for name in storage.folders())
    finally:
        storage.close()


def named_files(paths: Sequence[str]) -> tuple[NamedFile, ...]:
    """Describe files that the user allows images to open, wherever they lie.

    Raises:
        NotFoundError: one is not there.
    """
    found = []
    for text in paths:
        path = Path(text).absolute()
        if not path.is_file():
            raise NotFoundError(f"{text}: there is no such file")
        found.append(NamedFile(str(path), LocalStorage(path.parent), path.name))
    return tuple(found)


def holds_images(folder: Path) -> bool:
    """Tell whether a folder is a set: whether image files lie directly in it.

    A repository stays one also when images of other tools lie beside its sets.
    """
    return holds_own_images(folder) or (_holds(folder, is_listed) and not _is_repository(folder))


def holds_own_images(folder: Path) -> bool:
    """Tell whether images of our own format lie directly in a folder."""
    return _holds(folder, is_ours)


def _is_repository(folder: Path) -> bool:
    with contextlib.suppress(AccessDeniedError):
        return any(_holds(path, is_ours) for path in folder.iterdir() if path.is_dir())
    return False


def _holds(folder: Path, judge: Callable[[str], bool]) -> bool:
    try:
        shown = (path for path in folder.iterdir() if not path.name.startswith("."))
        return any(path.is_file() and judge(path.name) for path in shown)
    except OSError as error:
        raise read_error(error, folder) from error


@contextlib.contextmanager
def opened_location(path: str, *, capacity: int | None = None) -> Iterator[Location]:
    """`open_location` as a context that closes the repository."""
    location = open_location(path, capacity=capacity)
    try:
        yield location
    finally:
        location.repository.close()


def split_selector(text: str, exists: Callable[[str], bool]) -> tuple[str, str | None]:
    """Split ``PATH@POINT``. A path that exists as it stands is never split.

    In the path of a remote address, each ``@`` and each colon divides: what is there cannot be asked.
    """
    server, rest = split_address(text)
    if "@" not in rest or (not server and exists(text)):
        return text, None
    path, _, selector = rest.rpartition("@")
    return server + path, selector


def split_image_path(text: str, exists: Callable[[str], bool]) -> tuple[str, str | None, str | None]:
    """Split ``PATH[@POINT][:INNER]`` into path, point and path inside the image.

    The first colon whose left side names something that exists divides, so that colons in file names, in
    times and behind drive letters do no harm.
    """
    server, rest = split_address(text)
    if server:
        path, selector, inner = split_image_path(rest, lambda path: "@" not in path)
        return server + path, selector, inner
    positions = [match.start() for match in re.finditer(":", text)] + [len(text)]
    for position in positions:
        path, selector = split_selector(text[:position], exists)
        if not exists(path):
            continue
        if selector is not None and _is_partial_time(selector, text[position:]):
            continue
        inner = text[position + 1 :] if position < len(text) else None
        return path, selector, inner
    return text.partition(":")[0], None, text.partition(":")[2] if ":" in text else None


def _is_partial_time(selector: str, rest: str) -> bool:
    """Tell whether the colon belongs to a time such as ``2026-11-20T12:00`` or to its zone ``+01:00``."""
    return _COLON_FOLLOWS.search(selector) is not None and _TWO_DIGITS.match(rest) is not None


def select_point(image_set: ImageSet, selector: str) -> Point:
    """Return the point of a set that ``selector`` names.

    Raises:
        NotFoundError: none; AmbiguousNameError: several.
        ImageError, ChainError: the latest point is broken; an older one must be named to be used.
    """
    points = image_set.points
    if selector.casefold() == LATEST:
        return _latest(image_set)
    if _NUMBER.fullmatch(selector):
        found = [point for point in points if point.number == int(selector)]
        return _only(found, f"set {image_set.name} has no point number {int(selector)}", selector)
    if _ID.fullmatch(selector) and not _looks_like_time(selector):
        wanted = selector.replace("-", "").lower()
        found = [point for point in points if point.info and point.info.id.hex.startswith(wanted)]
        return _only(found, f"set {image_set.name} has no point with id {selector}", selector)
    return point_at(image_set, selector)


def _latest(image_set: ImageSet) -> Point:
    """Return the newest point; never silently an older one because the newest is broken."""
    if not image_set.is_line:
        names = [point.file_name for point in image_set.points]
        shown = ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")
        raise AmbiguousNameError(f"there are several images here; name one of them: {shown}")
    newest = max(image_set.points, key=_age, default=None)
    if newest is None:
        raise NotFoundError(f"set {image_set.name} has no points")
    if newest.problem is not None:
        usable = image_set.latest()
        error = problem_error(newest)
        if usable is not None:
            error.add_note(f"the newest usable point is {image_set.name}@{usable.number}")
        raise error
    return newest


def _age(point: Point) -> tuple[int, int]:
    return point.number, point.info.created_ns if point.info is not None else 0


def problem_error(point: Point) -> MountfsError:
    """Return why a broken point cannot be used, with the name of its file."""
    if point.problem is None:
        raise ValueError("nothing is wrong with this point")
    error = point.problem.to_error()
    return error if point.file_name in str(error) else type(error)(f"{point.key}: {error}")


def _looks_like_time(text: str) -> bool:
    return re.match(r"\d{4}-\d\d-\d\d", text) is not None


def _only(found: Sequence[Point], missing: str, selector: str) -> Point:
    if not found:
        raise NotFoundError(missing)
    if len(found) > 1 and any(point.is_foreign for point in found):
        names = ", ".join(point.file_name for point in found[:_MOST_NAMED])
        raise AmbiguousNameError(
            f"{selector} fits {len(found)} images; name the file of one of them: {names}"
        )
    if len(found) > 1:
        raise AmbiguousNameError(f"{selector} fits {len(found)} points; use more digits of the id")
    return found[0]


def point_at(image_set: ImageSet, when: str) -> Point:
    """Return the newest point at or before the end of what ``when`` states; see `end_of_time`.

    Raises:
        UsageError: it is no time; NotFoundError: all points are younger.
    """
    limit_ns = end_of_time(when)
    found = [point for point in image_set.points if point.info and point.info.created_ns < limit_ns]
    if not found:
        raise NotFoundError(f"set {image_set.name} has no point at or before {when}")
    return max(found, key=lambda point: point.info.created_ns if point.info else 0)


def end_of_time(when: str) -> int:
    """Return the first nanosecond after the stated day, hour, minute, second or fraction of a second.

    A day is a day of the calendar where we are, also one of 23 or 25 hours. An hour that a change of the
    clocks repeats ends when it is over for the second time. Local time unless it states a zone.

    Raises:
        UsageError: it is no time.
    """
    text = _SPACE_BEFORE_ZONE.sub("", when)
    try:
        return _end_of_day(date.fromisoformat(text)) if not _CLOCK.search(text) else _end_of_clock(text)
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"'{when}' names no point: use a number, an id, a day such as 2026-11-20, a time such as "
            "2026-11-20T12:00, or latest"
        ) from error


def _end_of_day(day: date) -> int:
    if day == date.max:
        return _nanoseconds(datetime.max.replace(tzinfo=UTC))
    return _nanoseconds(datetime.combine(day + timedelta(days=1), time()).astimezone())


def _end_of_clock(text: str) -> int:
    moment = datetime.fromisoformat(text)
    stated = _CLOCK.search(text)
    _, minute, second, fraction = stated.groups() if stated else (None,) * 4
    if fraction:
        unit = timedelta(microseconds=1)
    elif second:
        unit = timedelta(seconds=1)
    else:
        unit = timedelta(minutes=1) if minute else timedelta(hours=1)
    return max(_nanoseconds(moment.replace(fold=fold).astimezone(UTC) + unit) for fold in (0, 1))


def _nanoseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
