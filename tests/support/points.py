"""The oracle of the fault tests: what each acknowledged point must give back, kept beside the product."""

from __future__ import annotations

import hashlib
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engine.backup import BackupOptions, backup
from engine.devices.source import open_source
from engine.verify import verify
from imageformat.repository import Point, Repository
from imageformat.storage.local import LocalStorage
from imageformat.view import ImageView

if TYPE_CHECKING:
    from imageformat.layer import ImageType

STEP = 1 << 20


@dataclass
class Kept:
    """A set, its source, and the digest of the disk at every point that was acknowledged."""

    source: Path
    place: Path
    set_name: str = "disk"
    digests: dict[int, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.place / self.set_name

    def repository(self) -> Repository:
        return Repository(LocalStorage(self.place))

    def back_up(self, kind: ImageType | None = None, *, block_size: int = 4096) -> int:
        """Image the source as it is now; the number of the new point, which is kept."""
        with closing(self.repository()) as repository, closing(open_source(str(self.source))) as device:
            options = BackupOptions(type=kind, block_size=block_size, threads=1)
            result = backup(device, repository, self.set_name, options, origin={"source": str(self.source)})
        self.digests[result.info.number] = digest_of(self.source)
        return result.info.number

    def file_of(self, number: int) -> Path:
        """The image file of a point."""
        found = list(self.folder.glob(f"{number:04}-*.mfi"))
        assert len(found) == 1, found
        return found[0]

    def check(self) -> None:
        """Every kept point lists, verifies and reads back to the byte; whatever else is visible is whole."""
        with closing(self.repository()) as repository:
            points = repository.image_set(self.set_name).points
            assert self.digests.keys() <= {point.info.number for point in points if point.info}, points
            for point in points:
                assert point.problem is None, f"{point.key}: {point.problem}"
                assert point.info is not None
                allowed = self.digests.get(point.info.number, digest_of(self.source))
                assert digest_of_point(repository, point) == allowed, f"{point.key} gives other bytes"
            for report in verify(repository, points, threads=1):
                assert not report.damages, report
        self.check_nothing_else()

    def check_nothing_else(self) -> None:
        """No file of the set has a name that it should not have."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            known = path.suffix in {".mfi", ".part", ".journal", ".proven"} or path.name in {
                ".lock",
                ".catalog.json",
            }
            assert known, f"what is {path}?"
            assert path.suffix != ".part" or path.name.startswith("."), f"{path} can be seen unfinished"

    def leftovers(self) -> list[str]:
        """Names of unfinished files."""
        return sorted(path.name for path in self.folder.glob(".*.part")) if self.folder.is_dir() else []


def digest_of_point(repository: Repository, point: Point) -> str:
    """SHA-256 of the disk that a point gives back."""
    chain = repository.chain(point)
    chain.prove()
    view = ImageView(chain, repository.cache)
    found = hashlib.sha256()
    for offset in range(0, view.size, STEP):
        found.update(view.pread(offset, min(STEP, view.size - offset)))
    return found.hexdigest()


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
