"""Proving a little at a time: what was proven longest ago is read first, and what was read is remembered.

The ledger of a set (`engine.proof`) is an object beside its images. A new one is whole and durable before the
old one is removed; where nothing can be written, nothing is remembered, and that is said. Without it,
everything counts as never proven.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from engine.parts import Part
from engine.proof import (
    MAX_LEDGER,
    Ledger,
    Stored,
    Stretch,
    decode_ledger,
    encode_ledger,
    kept,
    oldest_proof,
    proven_fraction,
    recorded,
    todo,
)
from engine.verify import verify_file
from imageformat.catalog import Proof
from imageformat.errors import MountfsError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from engine.parts import Passed
    from engine.verify import FileReport
    from imageformat.repository import ImageSet, Point, Repository
    from imageformat.storage import Storage

LEDGER_SUFFIX = ".proven"
"""``ledger-NANOSECONDS.proven``: of several, the one with the highest number that can be read counts."""
_NAME = "ledger-"
_SAVE_EVERY = 60.0
"""Seconds: what a killed process forgets."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of the files of a set."""

    files: tuple[Stored, ...]
    ledger: Ledger

    def oldest_proof(self, now_ns: int) -> int | None:
        """See `engine.proof.oldest_proof`."""
        return oldest_proof(self.ledger, self.files, now_ns)

    def proven_fraction(self, now_ns: int, since_ns: int = 0) -> float:
        """See `engine.proof.proven_fraction`."""
        return proven_fraction(self.ledger, self.files, now_ns, since_ns)


def standing(storage: Storage, image_set: ImageSet) -> tuple[Standing, str]:
    """Return what was proven of a set, and a warning when the ledger was there and could not be read."""
    ledger, warning = _load(storage, image_set.prefix)
    files = tuple(_stored(point) for point in image_set.points)
    return Standing(files, kept(ledger, {file.id for file in files})), warning


def record_whole(repository: Repository, reports: Sequence[FileReport], read_ns: int) -> str:
    """Remember that whole files were read by `engine.verify.verify`; return a warning when that failed.

    A file with damage, or that could not be read, is not remembered as proven.
    """
    by_set: dict[str, list[tuple[str, Stretch]]] = {}
    ours = {_prefix(report.point) for report in reports if _is_ours(report.point)}
    for report in reports:
        if _prefix(report.point) not in ours:
            continue
        wrong = report.damaged_count or report.unread_count
        stretch = Stretch(0, max(1, report.point.size), read_ns, not wrong)
        by_set.setdefault(_prefix(report.point), []).append((_stored(report.point).id, stretch))
    warnings = [_save(repository.storage, prefix, news) for prefix, news in by_set.items()]
    return next((warning for warning in warnings if warning), "")


def prove_oldest(
    repository: Repository,
    sets: Sequence[ImageSet],
    *,
    budget: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    threads: int = 0,
    warn: Callable[[str], None] = lambda _: None,
    report: Callable[[int, str], None] = lambda _done, _name: None,
    clock_ns: Callable[[], int] = time.time_ns,
) -> Iterator[FileReport]:
    """Read what was proven longest ago, at most once, and yield a report for each part that was read.

    It ends when ``budget`` bytes of image files were read, when ``stop`` says so, or when all was. What was
    read is remembered also when it is interrupted: when the iterator is closed, or an error ends it.
    ``report`` is told how many bytes are done, and of which file. Never stops at damage.
    """
    run = _Run(repository, sets, clock_ns(), warn)
    yield from run.reports(budget, stop, threads, report)


class _Run:
    """One run over some sets. One use, one thread."""

    def __init__(
        self, repository: Repository, sets: Sequence[ImageSet], now_ns: int, warn: Callable[[str], None]
    ) -> None:
        self._repository = repository
        self._now_ns = now_ns
        self._warn = warn
        self._points: dict[str, Point] = {}
        self._files: list[Stored] = []
        self._ledger: Ledger = {}
        self._news: dict[str, list[tuple[str, Stretch]]] = {}
        self._ids: dict[str, set[str]] = {}
        self._done = 0
        for image_set in sets:
            if any(map(_is_ours, image_set.points)):
                self._ids[image_set.prefix] = {_stored(point).id for point in image_set.points}
            known, warning = standing(repository.storage, image_set)
            if warning:
                warn(warning)
            for point in image_set.points:
                file = _stored(point)
                key = f"{image_set.prefix}\n{file.id}"
                if key not in self._points:
                    self._points[key] = point
                    self._files.append(file._replace(id=key))
                    self._ledger[key] = known.ledger.get(file.id, ())

    def reports(
        self,
        budget: int | None,
        stop: Callable[[], bool],
        threads: int,
        report: Callable[[int, str], None],
    ) -> Iterator[FileReport]:
        linked: set[str] = set()
        saved = time.monotonic()
        try:
            for part in todo(self._ledger, self._files, self._now_ns, budget):
                if stop():
                    return
                point = self._points[part.id]

                yield verify_file(
                    self._repository,
                    point,
                    threads=threads,
                    proven=linked,
                    part=Part(part.start, part.end, partial(self._pass, part.id, report), stop),
                )
                self._tell_catalog(part.id)
                if time.monotonic() - saved > _SAVE_EVERY:
                    self._save()
                    saved = time.monotonic()
        finally:
            self._save()

    def _pass(self, key: str, report: Callable[[int, str], None], passed: Passed) -> None:
        stretch = Stretch(passed.start, passed.end, self._now_ns, passed.right)
        self._done += stretch.end - stretch.start
        self._ledger[key] = recorded(self._ledger[key], stretch)
        prefix, _, image_id = key.partition("\n")
        if prefix in self._ids:
            self._news.setdefault(prefix, []).append((image_id, stretch))
        report(self._done, self._points[key].file_name)

    def _tell_catalog(self, key: str) -> None:
        """Let the catalogue know of a file that is now wholly proven: since its oldest part was."""
        point = self._points[key]
        since = oldest_proof(self._ledger, [file for file in self._files if file.id == key], self._now_ns)
        if since is not None:
            self._repository.record_proof(point, Proof(since, 0))
        elif point.proof is not None and any(
            not part.proven and part.read_ns == self._now_ns for part in self._ledger[key]
        ):
            self._repository.record_proof(point, None)

    def _save(self) -> None:
        news, self._news = self._news, {}
        for prefix, entries in news.items():
            warning = _save(self._repository.storage, prefix, entries, self._ids[prefix])
            if warning:
                self._warn(warning)


def _is_ours(point: Point) -> bool:
    """Tell whether a set with this image is one that we write to: not a folder of images of other tools."""
    return point.info is not None and not point.is_foreign


def _prefix(point: Point) -> str:
    return point.key[: -len(point.file_name)]


def _stored(point: Point) -> Stored:
    """Name a file by its image; one that cannot be read, by its name."""
    return Stored(str(point.info.id) if point.info is not None else point.file_name, max(1, point.size))


def _load(storage: Storage, prefix: str) -> tuple[Ledger, str]:
    """Read the newest ledger that can be read; a warning when a newer one, or the only one, cannot."""
    warning = ""
    try:
        names = _ledgers(storage, prefix)
    except MountfsError as error:
        return {}, f"what was proven is not known: {error}"
    for key in reversed(names):
        try:
            with contextlib.closing(storage.open(key)) as device:
                data = device.pread(0, device.size) if device.size <= MAX_LEDGER else b""
            return decode_ledger(data), warning
        except MountfsError as error:
            warning = f"{key}: {error}; what only this one knew counts as never proven"
    return {}, warning


def _ledgers(storage: Storage, prefix: str) -> list[str]:
    found = [
        (int(name[len(_NAME) : -len(LEDGER_SUFFIX)]), entry.key)
        for entry in storage.objects(prefix)
        if (name := entry.key.removeprefix(prefix)).startswith(_NAME)
        and name.endswith(LEDGER_SUFFIX)
        and name[len(_NAME) : -len(LEDGER_SUFFIX)].isdecimal()
    ]
    return [key for _, key in sorted(found)]


def _save(
    storage: Storage, prefix: str, news: Sequence[tuple[str, Stretch]], ids: Collection[str] | None = None
) -> str:
    """Add what was read to the ledger as it is now; return why that failed.

    With ``ids``, what it holds of other images is forgotten.
    """
    try:
        ledger, _ = _load(storage, prefix)
        old = _ledgers(storage, prefix)
        for image_id, stretch in news:
            ledger[image_id] = recorded(ledger.get(image_id, ()), stretch)
        ledger = ledger if ids is None else kept(ledger, ids)
        target = storage.create(f"{prefix}{_NAME}{_following(prefix, old)}{LEDGER_SUFFIX}")
        try:
            target.append(encode_ledger(ledger))
            target.commit()
        finally:
            target.abort()
        for key in old:
            with contextlib.suppress(MountfsError):
                storage.delete(key)
    except MountfsError as error:
        return f"what was proven cannot be remembered: {error}"
    return ""


def _following(prefix: str, old: Sequence[str]) -> int:
    """Return a number above all that are there, whatever the clock says."""
    last = int(old[-1].removeprefix(prefix)[len(_NAME) : -len(LEDGER_SUFFIX)]) if old else 0
    return max(time.time_ns(), last + 1)
