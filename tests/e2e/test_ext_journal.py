"""ext file systems as they are while they are in use: the kernel replays a copy, and both must show the same.

Each volume is copied while it is mounted, when much of it stands only in its journal. The kernel mounts the
copy, which replays it; the driver replays it in memory.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
from typing import TYPE_CHECKING, NamedTuple

import pytest

from imageformat.device import MemoryDevice
from imageformat.errors import CorruptImageError, MountfsError
from mountfs.drivers import ext
from mountfs.signatures import identify
from mountfs.volumes import Openers, among, read_layout
from support.content import noise
from support.entries import Entries, differences, read_entries
from support.kernel import kernel_mount, loop_device
from support.requirements import require_root, require_tool, run
from support.treeentries import tree_entries

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.root

MIB = 1 << 20
REPLAYED = "dirty: the journal is replayed in memory"
MAGIC = b"\xc0\x3b\x39\x98"


class Kind(NamedTuple):
    """How to make a volume that is in use."""

    make: tuple[str, ...]
    options: tuple[str, ...] = ("data=ordered",)
    system: str = "ext4"


KINDS = {
    "ext3 with 1 KiB blocks": Kind(("mkfs.ext3", "-b", "1024", "-J", "size=4"), system="ext3"),
    "ext4": Kind(("mkfs.ext4", "-b", "4096", "-J", "size=4")),
    "ext4 with 1 KiB blocks": Kind(("mkfs.ext4", "-b", "1024", "-J", "size=4")),
    "ext4 without checksums": Kind(("mkfs.ext4", "-O", "^metadata_csum,^64bit", "-J", "size=4")),
    "ext4 with checksums of transactions": Kind(
        ("mkfs.ext4", "-O", "^metadata_csum", "-J", "size=4"), ("journal_async_commit", "data=writeback")
    ),
    "ext4 with its data in the journal": Kind(("mkfs.ext4", "-b", "1024", "-J", "size=8"), ("data=journal",)),
    "ext4 with inline data": Kind(("mkfs.ext4", "-I", "512", "-O", "inline_data,ea_inode", "-J", "size=4")),
}


def copy_sparse(source: Path, target: Path) -> None:
    run("cp", "--sparse=always", "--reflink=never", source, target)


def put(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def use(top: Path) -> None:
    """Write more than the log holds, take much of it back, and use the blocks again."""
    for turn in range(12):
        folder = top / f"folder {turn}"
        folder.mkdir()
        for number in range(80):
            (folder / f"a file with a long name {number}").write_bytes(noise(turn, 100 + number))
        put(folder / "last", noise(turn, 5000))
        if turn > 1:
            shutil.rmtree(top / f"folder {turn - 2}")
            put(top / f"reused {turn}", noise(turn, 40_000))
    put(top / "escaped", b"".join(MAGIC + noise(block, 1020) for block in range(40)))
    os.setxattr(top / "escaped", "user.attribute", noise(3, 300))
    (top / "link").symlink_to("t" * 200)
    os.link(top / "escaped", top / "folder 11" / "twin")
    put(top / "end", b"end")


def live_copy(kind: Kind, folder: Path, change: Callable[[Path], None] = use) -> Path:
    """Make a volume, use it, and copy it while it is mounted."""
    image, copy = folder / "image", folder / "copy"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    run(kind.make[0], "-q", "-F", *kind.make[1:], image)
    options = ("noatime", *kind.options)
    with (
        loop_device(image) as device,
        kernel_mount(device, kind.system, read_only=False, options=options) as top,
    ):
        change(top)
        copy_sparse(image, copy)
    return copy


def judged(copy: Path, folder: Path, *, read_only: bool = True) -> Entries:
    """What the kernel finds after it replayed the journal."""
    judge = folder / "judge"
    copy_sparse(copy, judge)
    with (
        loop_device(judge) as device,
        kernel_mount(device, "ext4", read_only=read_only, options=("noatime",)) as top,
    ):
        return read_entries(top)


def device_of(path: Path) -> MemoryDevice:
    with path.open("rb") as file:
        return MemoryDevice(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))  # type: ignore[arg-type]


def found_in(path: Path) -> Entries:
    device = device_of(path)
    info = identify(device)
    assert info is not None
    tree = ext.PLUGIN.open(device, info)
    try:
        return tree_entries(tree)
    finally:
        tree.close()


def note_of(path: Path) -> str:
    (volume,) = read_layout(device_of(path), Openers(among(ext.PLUGIN), tuple)).volumes
    assert volume.info is not None
    return volume.info.note


@pytest.fixture(scope="module", params=KINDS)
def copy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_root()
    require_tool("mkfs.ext4")
    return live_copy(KINDS[request.param], tmp_path_factory.mktemp("live"))


def test_a_volume_in_use_is_what_the_kernel_makes_of_it(copy: Path, tmp_path: Path) -> None:
    truth = judged(copy, tmp_path)
    assert b"end" in truth
    assert differences(truth, found_in(copy)) == []
    assert note_of(copy) == REPLAYED


def test_without_its_journal_it_would_be_another(copy: Path, tmp_path: Path) -> None:
    """The test above proves nothing for a volume that is already whole."""
    plain = tmp_path / "plain"
    copy_sparse(copy, plain)
    with plain.open("r+b") as file:
        file.seek(1024 + 0x60)
        (features,) = struct.unpack("<I", file.read(4))
        file.seek(-4, os.SEEK_CUR)
        file.write(struct.pack("<I", features & ~4))
    assert differences(judged(copy, tmp_path), entries_or_nothing(plain)) != []


def entries_or_nothing(path: Path) -> Entries:
    try:
        return found_in(path)
    except MountfsError:
        return {}


def test_a_volume_that_was_cut_off(tmp_path: Path) -> None:
    """What no commit completed is not there; a copy is taken in the middle of a transaction."""
    require_root()

    def change(top: Path) -> None:
        use(top)
        for number in range(400):
            (top / f"never committed {number}").write_bytes(b"lost")
        for number in range(5):
            (top / "escaped").chmod(0o600 + number)
            os.sync()
            (top / f"after {number}").touch()

    copy = live_copy(KINDS["ext4"], tmp_path, change)
    truth = judged(copy, tmp_path)
    assert differences(truth, found_in(copy)) == []


def test_a_log_that_went_around_its_end(tmp_path: Path) -> None:
    require_root()
    require_tool("mkfs.ext4", "debugfs", "dumpe2fs")
    image = tmp_path / "image"

    def has_wrapped() -> bool:
        journal = journal_of(image)
        raw, start = image.read_bytes(), journal.start(image)
        (oldest,) = struct.unpack_from(">I", raw, journal.place(0) + 0x18)
        newer = [at for at in journal.headers(image, 2) if 20 < at < start]
        return any(struct.unpack_from(">I", raw, journal.place(at) + 8)[0] > oldest for at in newer)

    def change(top: Path) -> None:
        use(top)
        for number in range(400):
            (top / f"folder {number % 7 + 30}").mkdir(exist_ok=True)
            put(top / f"folder {number % 7 + 30}" / f"file {number}", noise(number, 3000))
            if number % 10 == 0 and has_wrapped():
                return
        raise AssertionError("the log did not wrap")

    copy = live_copy(KINDS["ext4"], tmp_path, change)
    assert differences(judged(copy, tmp_path), found_in(copy)) == []


JOURNALS = {
    "version 2": ("-c", "-v", "2"),
    "version 3": ("-c", "-v", "3"),
    "none": (),
}


@pytest.mark.parametrize("checksums", JOURNALS)
def test_a_journal_that_debugfs_wrote(checksums: str, tmp_path: Path) -> None:
    """It writes the checksums of version 2 too, and a block that a later transaction revokes."""
    require_root()
    require_tool("debugfs")
    image, blocks = tmp_path / "image", tmp_path / "blocks"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(noise(1, 12 * 1024))
    features = "metadata_csum" if checksums != "none" else "^metadata_csum"
    run("mkfs.ext4", "-q", "-F", "-b", "1024", "-O", features, "-d", source, image)
    places = run("debugfs", "-R", "blocks /file", image).split()
    blocks.write_bytes(MAGIC + noise(2, 3 * 1024 - 4))
    first = ",".join(places[:3])
    commands = [
        f"jo {' '.join(JOURNALS[checksums])}",
        f"jw -b {first} {blocks}",
        f"jw -b {places[5]},{places[6]},{places[7]} {blocks}",
        f"jw -r {places[1]},{places[6]}",
        f"jw -b {places[6]} {blocks}",
        "jc",
    ]
    script = tmp_path / "script"
    script.write_text("\n".join(commands) + "\n")
    run("debugfs", "-w", "-f", script, image)
    truth = judged(image, tmp_path)
    found = found_in(image)
    assert found != {}
    assert differences(truth, found) == []
    assert note_of(image) == REPLAYED
    original = noise(1, 12 * 1024)
    whole = bytearray(original)
    new = blocks.read_bytes()
    whole[:1024], whole[2048:3072] = new[:1024], new[2048:]
    whole[5120:6144], whole[6144:7168], whole[7168:8192] = new[:1024], new[:1024], new[2048:]
    device = device_of(image)
    tree = ext.PLUGIN.open(device, identify(device))  # type: ignore[arg-type]
    node = tree.child(tree.root(), b"file")
    assert node is not None
    assert tree.read(node, 0, node.size) == bytes(whole)


class Stored(NamedTuple):
    """Where the blocks of a journal lie on a volume, as debugfs says."""

    size: int
    blocks: list[int]

    def place(self, number: int) -> int:
        return self.blocks[number] * self.size

    def headers(self, path: Path, wanted: int) -> list[int]:
        """The numbers of the blocks with a header of a kind."""
        raw = path.read_bytes()
        heads = [struct.unpack_from(">4sI", raw, self.place(number)) for number in range(len(self.blocks))]
        return [number for number, head in enumerate(heads) if head == (MAGIC, wanted)]

    def start(self, path: Path) -> int:
        return int(struct.unpack_from(">I", path.read_bytes(), self.place(0) + 0x1C)[0])


def journal_of(path: Path) -> Stored:
    superblock = run("dumpe2fs", "-h", path)
    size = next(int(line.split()[-1]) for line in superblock.splitlines() if line.startswith("Block size"))
    return Stored(size, [int(block) for block in run("debugfs", "-R", "blocks <8>", path).split()])


def poked(path: Path, at: int, data: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)
    return path


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_root()
    require_tool("mkfs.ext4", "debugfs", "dumpe2fs")
    return live_copy(KINDS["ext4"], tmp_path_factory.mktemp("live"))


@pytest.mark.parametrize(
    ("at", "data", "reason"),
    [
        (0, b"\0\0\0\0", "no superblock"),
        (0x1C, b"\x7f\xff\xff\xff", "checksum of its superblock"),
        (0x28, b"\0\0\1\0", "features that are not supported"),
    ],
)
def test_a_journal_that_cannot_be_replayed_is_said(
    live: Path, tmp_path: Path, at: int, data: bytes, reason: str
) -> None:
    broken = tmp_path / "broken"
    copy_sparse(live, broken)
    poked(broken, journal_of(broken).place(0) + at, data)
    assert note_of(broken).startswith("dirty: the journal was not replayed: ")
    assert reason in note_of(broken)
    entries_or_nothing(broken)


def test_a_damaged_commit_ends_the_replay_and_is_said(live: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    copy_sparse(live, broken)
    journal = journal_of(broken)
    commit = next(at for at in journal.headers(broken, 2) if at > journal.start(broken))
    poked(broken, journal.place(commit) + 0x100, b"x")
    assert "only up to transaction" in note_of(broken)
    assert note_of(broken).endswith(", which is damaged")


def test_a_damaged_copy_of_a_block_is_an_error_when_it_is_read(live: Path, tmp_path: Path) -> None:
    """The kernel refuses the whole volume; what does not need that block can still be had."""
    broken = tmp_path / "broken"
    copy_sparse(live, broken)
    journal = journal_of(broken)
    for at in journal.headers(broken, 1):
        poked(broken, journal.place(at + 1) + 100, b"damage")
    device = device_of(broken)
    layout = ext.read_superblock(device)
    replay = ext.replay_journal(device, layout)
    with pytest.raises(CorruptImageError, match="damaged copy in its journal"):
        replay.device.pread(0, replay.device.size)


def test_an_external_journal_is_said(tmp_path: Path) -> None:
    require_root()
    require_tool("mkfs.ext4")
    log, image, copy = tmp_path / "log", tmp_path / "image", tmp_path / "copy"
    for path, size in ((log, 8), (image, 32)):
        with path.open("wb") as file:
            file.truncate(size * MIB)
    run("mke2fs", "-q", "-F", "-b", "4096", "-O", "journal_dev", log)
    with loop_device(log) as outer, loop_device(image) as device:
        run("mkfs.ext4", "-q", "-F", "-b", "4096", "-J", f"device={outer}", device)
        with kernel_mount(device, "ext4", read_only=False) as top:
            put(top / "file", b"content")
            copy_sparse(image, copy)
    assert note_of(copy) == "dirty: the journal was not replayed: it lies on another device"
    entries_or_nothing(copy)


def test_fast_commits_are_named(tmp_path: Path) -> None:
    require_root()
    require_tool("mkfs.ext4")

    def change(top: Path) -> None:
        use(top)
        os.sync()
        for number in range(5):
            put(top / f"quick {number}", b"quick")

    kind = Kind(("mkfs.ext4", "-b", "4096", "-O", "fast_commit", "-J", "size=8"))
    copy = live_copy(kind, tmp_path, change)
    assert note_of(copy) == f"{REPLAYED}, but its fast commits were not"
    found = found_in(copy)
    assert b"end" in found
    assert b"quick 4" in judged(copy, tmp_path, read_only=False).keys() - found.keys()
