"""Reflinks and FIEMAP on real btrfs and XFS against a model: nothing that changed is called unchanged.

The model is the content of the file at each mark, in memory.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import struct
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from engine.changes import ChangesUnknownError, Wanted, reflink
from engine.changes.reflink import Reflinks
from engine.devices.fiemap import Mapped, same_place
from engine.devices.source import open_source
from engine.snapshots import taking
from imageformat.repository import Repository
from imageformat.storage.local import LocalStorage
from support.content import noise, text
from support.kernel import kernel_mount, loop_device
from support.points import digest_of, digest_of_point
from support.product import mountfs
from support.requirements import require_root, require_tool, run

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root
EXAMPLES = int(os.environ.get("MOUNTFS_FUZZ_EXAMPLES", "5"))
SIZE = 2 << 20
UNIT = 4096
FICLONERANGE = 0x4020940D
LIBC = ctypes.CDLL(None, use_errno=True)
C_OFFSET = ctypes.c_longlong
MODES = {"falloc": 0x00, "fpunch": 0x01 | 0x02, "fzero": 0x01 | 0x10}
VARIANTS = {
    "btrfs": (["mkfs.btrfs", "-q"], "btrfs", ()),
    "btrfs-nodatacow": (["mkfs.btrfs", "-q"], "btrfs", ("nodatacow",)),
    "btrfs-compressed": (["mkfs.btrfs", "-q"], "btrfs", ("compress-force=zstd",)),
    "xfs": (["mkfs.xfs", "-q"], "xfs", ()),
}


@pytest.fixture(scope="module", params=VARIANTS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    command, kind, options = VARIANTS[request.param]
    require_root()
    require_tool(command[0])
    image = tmp_path_factory.mktemp("reflinks") / "fs.img"
    with image.open("wb") as file:
        file.truncate(400 << 20)
    run(*command, image)
    with loop_device(image) as device, kernel_mount(device, kind, read_only=False, options=options) as made:
        yield made
    image.unlink()


class Model:
    """A file, and what it must hold."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.content = bytearray(noise(seed, SIZE))
        path.write_bytes(self.content)
        self._fd = os.open(path, os.O_RDWR)

    def close(self) -> None:
        os.close(self._fd)
        self.path.unlink()

    def apply(self, what: str, offset: int, length: int, seed: int) -> None:
        length = min(length, SIZE - offset)
        if what in {"write", "same", "write-sync"}:
            new = bytes(self.content[offset : offset + length]) if what == "same" else noise(seed, length)
            os.pwrite(self._fd, new, offset)
            if what == "write-sync":
                os.fsync(self._fd)
        elif what == "copy":
            offset, end = offset - offset % UNIT, min(offset + length + -(offset + length) % UNIT, SIZE)
            length = end - offset
            start = seed % (SIZE - length + 1) // UNIT * UNIT
            if start < end and offset < start + length:
                return  # the kernel shares no range with itself
            self._share(start, offset, length)
            new = bytes(self.content[start : start + length])
        else:
            assert LIBC.fallocate(self._fd, MODES[what], C_OFFSET(offset), C_OFFSET(length)) == 0, what
            new = bytes(self.content[offset : offset + length]) if what == "falloc" else bytes(length)
        self.content[offset : offset + length] = new

    def _share(self, start: int, offset: int, length: int) -> None:
        """Share a range inside the file: what generations of btrfs do not show."""
        fcntl.ioctl(self._fd, FICLONERANGE, struct.pack("=qQQQ", self._fd, start, length, offset))


OPERATIONS = st.tuples(
    st.sampled_from(["write", "write-sync", "same", "copy", "fpunch", "fzero", "falloc"]),
    st.integers(0, SIZE - 1),
    st.sampled_from([1, 512, UNIT, 3 * UNIT, 100_000]),
    st.integers(0, 1 << 30),
)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # an example takes a second
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    rounds=st.lists(st.lists(OPERATIONS, max_size=5), min_size=2, max_size=4), seed=st.integers(0, 1 << 20)
)
def test_what_is_called_unchanged_is_unchanged(
    folder: Path, rounds: list[list[tuple[str, int, int, int]]], seed: int
) -> None:
    with closing(Model(folder / f"disk-{seed}-{random.random()}.img", seed)) as model:
        mark, known = None, b""
        for number, operations in enumerate([[], *rounds]):
            for operation in operations:
                model.apply(*operation)
            tracker = Reflinks(model.path, "place")
            following = tracker.begin()
            assert following is not None
            # What is written between the reflink and the read may be read or not: both must come right.
            model.apply("write", seed % SIZE, 7000, number)
            read = bytes(model.content)
            if mark is not None:
                position = 0
                for offset, end in tracker.unchanged(mark):
                    assert position <= offset < end <= SIZE
                    position = end
                    assert _same_now(model, known, offset, end, seed % SIZE)
            tracker.settle(published=True)
            mark, known = following, read
        assert model.path.read_bytes() == bytes(model.content)
        tracker.settle(published=False)


def _same_now(model: Model, known: bytes, offset: int, end: int, written: int) -> bool:
    """Compare with what was read; what this round writes after its reflink comes again in the next one."""
    now = bytearray(model.content)
    begin, stop = max(offset, written), min(end, written + 7000)
    if begin < stop:
        now[begin:stop] = known[begin:stop]
    return bytes(now[offset:end]) == known[offset:end]


def test_what_lies_in_the_same_place_in_both() -> None:
    one = (Mapped(0, 100, 1000), Mapped(100, 50, 5000), Mapped(200, 100, 7000))
    other = (Mapped(0, 40, 1000), Mapped(40, 20, 9000), Mapped(60, 60, 1060), Mapped(210, 200, 7010))
    assert list(same_place(one, other, 250)) == [(0, 40), (60, 100), (210, 250)]
    assert list(same_place(one, one, 1000)) == [(0, 100), (100, 150), (200, 300)]
    assert not list(same_place(one, (), 1000))


def test_reflink_that_was_touched_is_not_believed(folder: Path) -> None:
    with closing(Model(folder / "touched.img", 1)) as model:
        first = Reflinks(model.path, "place")
        mark = first.begin()
        assert mark is not None
        kept = folder / str(mark["file"])
        for damage in (
            lambda: kept.chmod(0o600),
            lambda: run("cp", "--remove-destination", "--reflink=always", model.path, kept),
            kept.unlink,
        ):
            damage()
            second = Reflinks(model.path, "place")
            second.begin()
            with pytest.raises(ChangesUnknownError):
                list(second.unchanged(mark))
            second.settle(published=False)
        third = Reflinks(model.path, "place")
        third.begin()
        for lie in ({"file": "../touched.img"}, {"file": 7}, {"file": "touched.img"}, {}):
            with pytest.raises(ChangesUnknownError):
                list(third.unchanged({**mark, **lie} if lie else {}))
        third.settle(published=True)
        third.settle(published=False)
        assert not list(folder.glob(".mountfs-*"))


def test_what_is_kept_is_of_the_moment_of_the_picture(folder: Path, tmp_path: Path) -> None:
    disk = folder / "moving.img"
    disk.write_bytes(noise(1, SIZE))
    run("sync", disk)
    source = open_source(str(disk))
    still, _ = taking.take(source, taking.facts_of(source), "reflink", tmp_path / "journal", pytest.fail)
    with closing(still):
        # Neither in the picture nor, then, in what is kept of it.
        with disk.open("r+b") as file:
            file.seek(1 << 20)
            file.write(noise(2, UNIT))
            os.fsync(file.fileno())
        provider = reflink.PLUGIN
        first = provider.open(Wanted(still, "place"))
        mark = first.begin()
        assert mark is not None
        first.settle(published=True)
    with closing(open_source(str(disk))) as now:
        second = provider.open(Wanted(now, "place"))
        assert second.begin() is not None
        known = list(second.unchanged(mark))
        assert known or "compress" in _options(folder)
        assert not any(offset < (1 << 20) + UNIT and end > 1 << 20 for offset, end in known)
        second.settle(published=True)
        second.settle(published=False)
    disk.unlink()


def test_backups_of_an_image_file_read_what_changed(folder: Path, tmp_path: Path) -> None:
    disk = folder / "vm.img"
    disk.write_bytes(text(1, 12 << 20))
    repository = tmp_path / "repo"
    mountfs("backup", disk, repository, "--changed", "reflink")
    for number in range(1, 2):
        with disk.open("r+b") as file:
            file.seek(number * 5 << 20)
            file.write(noise(number + 2, 300_000))
        ran = mountfs("backup", disk, repository, "--json")  # it goes on by itself
        changes = ran.facts["changes"]
        assert changes["tracker"] == "reflink"
        assert not changes["missed_offsets"]
        # What is compressed lies nowhere in particular, and is read.
        assert (changes["inherited_bytes"] > 8 << 20) != ("compress" in _options(folder)), changes
        with closing(Repository(LocalStorage(repository))) as opened:
            assert digest_of_point(opened, opened.image_set("vm").points[-1]) == digest_of(disk)
    assert len(list(folder.glob(".mountfs-*"))) == 1
    for path in (disk, *folder.glob(".mountfs-*")):
        path.unlink()


def _options(folder: Path) -> str:
    return run("findmnt", "-no", "OPTIONS", "--target", folder)
