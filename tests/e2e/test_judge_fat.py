"""FAT12, FAT16, FAT32 and exFAT in one disk, at two points, against the programs that wrote them.

The judge of FAT is mtools, which copies everything out of the source again; that of exFAT is the driver of
exfat-fuse, which mounts it. Both must find what the mounted image shows and what ``mountfs cp`` copies.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imageformat.errors import DestinationError
from support.content import noise, text
from support.disks import BASIC_DATA, MIB, Part, Placed, make_exfat, make_fat, make_gpt_disk
from support.entries import Entries, differences, read_entries
from support.kernel import kernel_mount, loop_device
from support.product import mounted, mountfs
from support.requirements import find_tool, require_fuse, require_root, require_tool, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.fuse

FATS = ("fat12", "fat16", "fat32")
SIZES = {"fat12": 3 * MIB, "fat16": 16 * MIB, "fat32": 40 * MIB, "exfat": 24 * MIB}
POINTS = (1, 2)
OLDEST, NEWEST = 315_532_800, 4_354_819_198
"""1980-01-01 00:00:00 and 2107-12-31 23:59:58: what FAT can say, as UTC."""
LEAPLESS = 4_107_542_400
"""2100-03-01: from here on mtools, when it reads, and exfat-fuse are wrong: no leap year is 2100."""
FORMAT_HAS_NOT = frozenset({"mode", "uid", "gid", "links", "ctime_ns"})


@dataclass(frozen=True)
class History:
    """The disk at two points: as images, and as copies that the judges look at."""

    repository: Path
    copies: dict[int, Path]
    places: dict[str, Placed]
    shown: Path
    """The repository, mounted."""

    def volume(self, point: int, system: str) -> Path:
        (found,) = (self.shown / "disk").glob(f"{point:04}-*/{self.places[system].number}-{system}*")
        return found

    def copied(self, point: int, system: str, target: Path) -> Path:
        place = f"{self.repository}/disk@{point}:{self.places[system].number}"
        mountfs("cp", "--quiet", place, target)
        return target


def mtools(command: str, image: str, *arguments: str | Path) -> None:
    """Run one of the mtools upon ``FILE@@OFFSET``; FAT has local times, and here it is Greenwich."""
    program = find_tool(command)
    assert program is not None
    environment = {**os.environ, "TZ": "UTC", "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [program, "-i", image, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, f"{command} {arguments}: {done.stderr}"


def populate(top: Path) -> None:
    """What FAT can hold: long, Unicode and short names of all cases, times to the limits, a crowd."""
    contents = {
        "empty": b"",
        "UPPER.TXT": b"upper",
        "lower.txt": b"lower",
        "Mixed.Case": b"mixed",
        "LOWER.ext": b"a short name whose halves differ in case",
        "ünïcödé файл 文件.text": b"unicode",
        "n" * 251 + ".txt": b"255 characters",
        "  leading blanks": b"blanks",
        ".hidden.dots.many": b"dots",
        "one cluster": noise(1, 4096),
        "photo.jpg": noise(2, 300_001),
        "folder with a long name/deep/er/notes.txt": text(3, 20_000),
        **{f"crowd/a name of many entries {number}": b"%d" % number for number in range(300)},
    }
    for name, data in contents.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (top / "void").mkdir()
    chance = random.Random(4)
    for path in sorted(top.rglob("*")):
        os.utime(path, (10**9, chance.randrange(OLDEST, LEAPLESS)))
    os.utime(top / "empty", (10**9, OLDEST))
    os.utime(top / "UPPER.TXT", (10**9, NEWEST))


def alter_fat(image: str, folder: Path) -> None:
    """What people do between two backups; the freed clusters leave room that the new file is torn into."""
    for number in range(0, 300, 2):
        mtools("mdel", image, f"::/crowd/a name of many entries {number}")
    (folder / "new.bin").write_bytes(noise(5, 400_000))
    (folder / "photo.jpg").write_bytes(noise(6, 299_000))
    os.utime(folder / "new.bin", (10**9, 1_500_000_001))
    mtools("mcopy", image, "-m", folder / "new.bin", "::/folder with a long name/torn to pieces.bin")
    mtools("mcopy", image, "-m", "-o", folder / "photo.jpg", "::/photo.jpg")
    mtools("mren", image, "::/Mixed.Case", "::/other Name.of it")
    mtools("mdeltree", image, "::/folder with a long name/deep")
    mtools("mattrib", image, "+r", "+h", "+s", "::/lower.txt")


def populate_exfat(top: Path) -> None:
    populate(top)
    for name in ("ü" * 255, "😀" * 127, "smile 😀.txt"):
        Path(top, name).write_bytes(name.encode())
    with (top / "torn").open("wb") as torn, (top / "between").open("wb") as other:
        for number in range(60):
            for file in (torn, other):
                file.write(noise(number, 8192))
                file.flush()
                os.fsync(file.fileno())
    with (top / "grown").open("wb") as grown:
        grown.write(b"start")
        grown.truncate(600_001)
    os.utime(top / "UPPER.TXT", (10**9, LEAPLESS - 2))
    os.utime(top / "grown", (1_234_567_890, 987_654_322))


def alter_exfat(top: Path) -> None:
    for number in range(0, 300, 2):
        (top / "crowd" / f"a name of many entries {number}").unlink()
    with (top / "photo.jpg").open("r+b") as file:
        file.seek(123_456)
        file.write(noise(7, 10_000))
    os.truncate(top / "torn", 300_000)
    (top / "between").unlink()
    (top / "Mixed.Case").rename(top / "void" / "mIXED.cASE")
    (top / "new.bin").write_bytes(noise(8, 500_000))


def make_disk(folder: Path, systems: tuple[str, ...]) -> tuple[Path, dict[str, Placed]]:
    """A GPT disk with a volume of each kind, those of FAT already filled."""
    source, disk, parts = folder / "source", folder / "disk.img", []
    source.mkdir()
    populate(source)
    for system in systems:
        content = folder / system
        if system == "exfat":
            make_exfat(content, SIZES[system], "Big Card")
        else:
            make_fat(content, SIZES[system], "CARD", bits=int(system.removeprefix("fat")))
            mtools("mcopy", str(content), "-s", "-m", "-Q", *sorted(source.iterdir()), "::")
        parts.append(Part(SIZES[system], BASIC_DATA, system, content))
    placed = make_gpt_disk(disk, sum(SIZES[system] for system in systems) + 4 * MIB, parts)
    return disk, dict(zip(systems, placed, strict=True))


def image_twice(folder: Path, systems: tuple[str, ...], alter: Callable[[Path, Placed], None]) -> History:
    disk, places = make_disk(folder, systems)
    repository, copies = folder / "repository", {}
    for point in POINTS:
        for system in systems:
            if point == 2 or system == "exfat":
                alter(disk, places[system])
        mountfs("backup", disk, repository)
        copies[point] = folder / f"copy-{point}.img"
        run("cp", "--sparse=always", "--reflink=never", disk, copies[point])
    return History(repository, copies, places, Path())


@pytest.fixture(scope="module")
def cards() -> Iterator[History]:
    require_fuse()
    require_tool("mkfs.vfat", "mcopy", "mdel", "mren", "mdeltree", "mattrib")
    folder = Path(tempfile.mkdtemp(prefix="fat-"))

    def alter(disk: Path, place: Placed) -> None:
        alter_fat(f"{disk}@@{place.offset}", folder)

    made = image_twice(folder, FATS, alter)
    with mounted(made.repository) as shown:
        yield History(made.repository, made.copies, made.places, shown)
    shutil.rmtree(folder)


def as_mtools_reads(history: History, point: int, system: str, target: Path) -> Entries:
    """What mtools copies out of the source; its folders have the times of the copying."""
    target.mkdir()
    image = f"{history.copies[point]}@@{history.places[system].offset}"
    mtools("mcopy", image, "-s", "-m", "-Q", "-n", "::*", f"{target}/")
    found = comparable(read_entries(target))
    if found[b"UPPER.TXT"]["mtime_ns"] == (NEWEST + 24 * 3600) * 10**9:
        found[b"UPPER.TXT"]["mtime_ns"] = NEWEST * 10**9  # see LEAPLESS
    return found


def comparable(entries: Entries) -> Entries:
    """Without what mtools does not copy: any access time, and the times of folders."""
    unknown = {"file": {"atime_ns"}, "directory": {"atime_ns", "mtime_ns"}}
    return {
        path: {name: value for name, value in entry.items() if name not in unknown[entry["kind"]]}
        for path, entry in entries.items()
    }


def in_steps_of_two_seconds(entries: Entries) -> Entries:
    step = 2 * 10**9
    return {
        path: {**entry, "mtime_ns": entry["mtime_ns"] // step * step} if "mtime_ns" in entry else entry
        for path, entry in entries.items()
    }


@pytest.mark.parametrize("system", FATS)
@pytest.mark.parametrize("point", POINTS)
def test_mtools_reads_what_the_mount_shows_and_cp_copies(
    cards: History, point: int, system: str, tmp_path: Path
) -> None:
    truth = as_mtools_reads(cards, point, system, tmp_path / "truth")
    assert len(truth) > (300 if point == 1 else 150)
    shown = comparable(read_entries(cards.volume(point, system)))
    assert differences(truth, shown, ignoring=FORMAT_HAS_NOT) == []
    copied = comparable(read_entries(cards.copied(point, system, tmp_path / "copy")))
    assert differences(truth, copied, ignoring=FORMAT_HAS_NOT) == []


@pytest.mark.parametrize("system", FATS)
def test_the_first_point_is_what_was_put_in(cards: History, system: str) -> None:
    source = in_steps_of_two_seconds(comparable(read_entries(cards.repository.parent / "source")))
    shown = comparable(read_entries(cards.volume(1, system)))
    assert shown[b"empty"]["mtime_ns"] == OLDEST * 10**9
    assert shown[b"UPPER.TXT"]["mtime_ns"] == NEWEST * 10**9
    assert differences(source, shown, ignoring=FORMAT_HAS_NOT) == []


@pytest.mark.parametrize("system", FATS)
def test_what_is_marked_read_only_cannot_be_written(cards: History, system: str) -> None:
    before, after = cards.volume(1, system) / "lower.txt", cards.volume(2, system) / "lower.txt"
    assert before.stat().st_mode & 0o222 == after.stat().st_mode & 0o222 | 0o200
    assert (
        cards.volume(2, system) / "folder with a long name" / "torn to pieces.bin"
    ).stat().st_size == 400_000


@pytest.fixture(scope="module")
def big_card() -> Iterator[History]:
    require_root()
    require_fuse()
    require_tool("mkfs.exfat", "mount.exfat-fuse", "losetup", "partx")
    folder = Path(tempfile.mkdtemp(prefix="exfat-"))
    changes = iter((populate_exfat, alter_exfat))

    def alter(disk: Path, place: Placed) -> None:
        change = next(changes)
        with loop_device(disk, partscan=True) as device:
            part = f"{device}p{place.number}"
            with kernel_mount(part, "exfat-fuse", read_only=False) as top:
                change(top)

    made = image_twice(folder, ("exfat",), alter)
    with mounted(made.repository) as shown:
        yield History(made.repository, made.copies, made.places, shown)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def judged(big_card: History) -> dict[int, Entries]:
    """What exfat-fuse finds in the copies of the source."""
    found = {}
    for point, copy in big_card.copies.items():
        with (
            loop_device(copy, partscan=True, read_only=True) as device,
            kernel_mount(f"{device}p1", "exfat-fuse") as top,
        ):
            found[point] = read_entries(top)
    return found


@pytest.mark.root
@pytest.mark.parametrize("point", POINTS)
def test_exfat_in_the_mount_is_what_exfat_fuse_sees(
    big_card: History, judged: dict[int, Entries], point: int
) -> None:
    shown = read_entries(big_card.volume(point, "exfat"))
    assert ("ü" * 255).encode() in shown
    assert differences(judged[point], shown, ignoring=FORMAT_HAS_NOT) == []


@pytest.mark.root
@pytest.mark.parametrize("point", POINTS)
def test_the_copy_of_exfat_is_what_exfat_fuse_sees(
    big_card: History, judged: dict[int, Entries], point: int, tmp_path: Path
) -> None:
    """But for names that Linux's own file systems cannot hold: those are told, and the rest is copied."""
    place = f"{big_card.repository}/disk@{point}:1"
    done = mountfs("cp", "--json", place, tmp_path / "copy", code=DestinationError.exit_code)
    told = done.facts["failures"]
    impossible = {path for path in judged[point] if max(map(len, path.split(b"/"))) > 255}
    assert done.facts["failure_count"] == len(told) == len(impossible) == 2
    possible = {path: entry for path, entry in judged[point].items() if path not in impossible}
    copied = read_entries(tmp_path / "copy")
    # Reading folders changes their access times.
    assert differences(possible, copied, ignoring=FORMAT_HAS_NOT | {"atime_ns"}) == []
