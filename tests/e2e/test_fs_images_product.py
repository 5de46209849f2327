"""Every stored good image through the product, from its own file to every listed entry.

The images were made by other programs; what they hold (`expectations.json`, `expected/*.json`) was read by
the kernel, ntfs-3g, exfat-fuse, 7z, xorriso, libbde and qemu-img. Where we differ, the difference stands here
with its reason; nothing is left out silently, and a difference that is gone is an error too.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import signal
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from imageformat.errors import MountfsError
from imageformat.repository import Access
from imageformat.secrets import Secrets
from mountfs.cli.__main__ import run
from mountfs.session import Session
from mountfs.tree import NodeKind
from support.requirements import shared_data_folder, unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mountfs.disktree import DiskTree
    from mountfs.tree import FileTree, Node

FOLDER = (
    Path(os.environ.get("MOUNTFS_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data")) / "fs-images"
)
PIECE = 4 << 20
MOST_HASHED = 2 << 30
"""Larger disks are read as a whole in the nightly run only."""
TYPES = {"vfat": r"fat(12|16|32)", "hfsplus": r"hfs\+", "crypto_LUKS": r"luks[12]", "LVM2_member": "lvm2"}
TYPES |= {"BitLocker": "bitlocker"}
KINDS = {"dir": NodeKind.DIRECTORY, "file": NodeKind.FILE, "symlink": NodeKind.SYMLINK}
CONTAINER_TYPES = frozenset({"0x5", "0xf", "0x85"})
"""Extended partitions: what is in them is listed, not they."""


class Deviation(NamedTuple):
    """Something that is not as the other tool says, and why."""

    case: str
    path: str
    """Of the entry, as a regular expression; empty for what is said of a whole image."""
    what: str
    reason: str


DEVIATIONS = [
    Deviation("ext4-ext4view-disk1", r"encrypted_dir/.*", "missing", "fscrypt: the kernel lists ciphertext"),
    Deviation("exfat-sr", r".*", "mtime_ns", "exfat-fuse ignores the field of 10 ms; seconds are compared"),
    Deviation("iso-dfvfs", r".*", "mode", "no Rock Ridge: xorriso's 0755 is made up; ours: 0444, 0555"),
    Deviation("iso-dftt14-dirtree1", r".*", "mode", "no Rock Ridge: xorriso's 0644 is made up; ours: 0444"),
    Deviation("iso-libcdio-copying-rr", r".*", "mode", "xorriso adds the owner's write bit"),
    Deviation("iso-libcdio-copying-rr", r".*Copy2|.*/COPYING", "mtime_ns", "when xorriso extracted the link"),
    Deviation("iso-libarchive-joliet", r"symlink", "mtime_ns", "when xorriso extracted the link"),
    Deviation("iso-libcdio-copying-rr", r"fd0|zero", "extra", "device nodes, which xorriso did not extract"),
    Deviation("pt-utillinux-dos+bsd", r"whole", "file system", "its partition table wins over an old ext3"),
    Deviation("pt-utillinux-dos+bsd", r"volume 0", "missing", "its partition table wins over an old ext3"),
    Deviation("hfsp-goapfs-basic-dmg", r"hello.txt|hardlink-to-hello", "mtime_ns", "7z: the link's own time"),
]


def load_cases() -> list[Any]:
    if not (FOLDER / "expectations.json").exists():
        return []
    return [
        pytest.param(case, id=case["id"])
        for case in json.loads((FOLDER / "expectations.json").read_text())["good"]
    ]


CASES = load_cases()


def unpack(case: dict[str, Any], folder: Path) -> Path:
    """Unpack an image under the suffix that it had, leaving what is zeros a hole."""
    name, packed = next((name, packed) for name, packed in case["packed"].items() if name.startswith("disk."))
    target = folder / name
    with lzma.open(FOLDER / packed) as source, target.open("wb") as file:
        while piece := source.read(1 << 20):
            if any(piece):
                file.write(piece)
            else:
                file.seek(len(piece), os.SEEK_CUR)
        file.truncate()
    return target


@contextmanager
def signals_kept() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def command(
    capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0
) -> list[dict[str, Any]]:
    """Run a command line of the product in this process; its results."""
    capsys.readouterr()
    with signals_kept():
        ended = run([*map(str, arguments), "--json", "--quiet"])
    said = capsys.readouterr()
    assert ended == code, (arguments, said.err)
    return [json.loads(line) for line in said.out.splitlines()]


def passwords(case: dict[str, Any], folder: Path) -> list[list[str]]:
    """The options that unlock a case, one list for each way."""
    ways = []
    for key in ("passphrase", "recovery"):
        if key in case:
            (folder / key).write_text(case[key])
            ways.append(["--password-file", str(folder / key)])
    return ways or [[]]


def digest_of(read: Any, size: int) -> str:
    digest = hashlib.sha256()
    for offset in range(0, size, PIECE):
        digest.update(read(offset, min(PIECE, size - offset)))
    return digest.hexdigest()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def plain(text: str) -> str:
    r"""Undo how blkid writes: ``\ `` for a space, ``M-x`` for a byte above 127, ``^x`` for a control."""
    raw, position = bytearray(), 0
    while position < len(text):
        part = re.match(r"(M-)?(\^)?(\\(?=.))?(.)", text[position:], re.DOTALL)
        assert part is not None
        value = ord(part[4]) ^ (0x40 if part[2] else 0)
        raw.append(value | 0x80 if part[1] else value)
        position += part.end()
    return raw.decode()


def wrong_partitions(case: dict[str, Any], volumes: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    shown = {(volume["offset"], volume["size"]): volume for volume in volumes if volume["offset"] is not None}
    for part in case.get("partitions", []):
        if part["type"] in CONTAINER_TYPES:
            continue
        name = f"partition {part['number']}"
        volume = shown.get((part["start"], part["length"]))
        if volume is None:
            yield name, "missing"
            continue
        held = volume["partition"] or {}
        if part["scheme"] == "gpt":
            same = {
                "type": held.get("type_id", "").lower(),
                "name": held.get("name"),
                "uuid": held.get("uuid"),
            }
            yield from ((name, key) for key, value in same.items() if value != part[key])
        elif int(str(held.get("type_id", "0x0")), 16) != int(part["type"], 16):
            yield name, "type"
        if part.get("fs", {}).get("TYPE"):
            yield from ((name, what) for what in wrong_system(part["fs"], volume["file_system"]))


def wrong_system(said: dict[str, str], shown: dict[str, Any] | None) -> Iterator[str]:
    """Yield what of a file system is not as blkid says."""
    if shown is None or not re.fullmatch(TYPES.get(said["TYPE"], re.escape(said["TYPE"])), shown["type"]):
        yield "file system"
        return
    if plain(said.get("LABEL", "")) != shown["label"]:
        yield "label"
    if said.get("UUID", "").lower() != (shown["uuid"] or "").lower():
        yield "uuid"


def wrong_facts(case: dict[str, Any], facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if facts["format"] != case["format"]:
        yield "format", facts["format"]
    if facts["disk"]["size"] != case["disk"]["size"]:
        yield "disk", "size"
    whole = case.get("whole", {})
    if case.get("sector_size", facts["disk"]["sector_size"]) != facts["disk"]["sector_size"]:
        yield "disk", "sector size"
    volumes = facts["volumes"]
    yield from wrong_partitions(case, volumes)
    if whole.get("TYPE"):
        first = next((volume for volume in volumes if volume["number"] == 0), None)
        yield from (("whole", what) for what in wrong_system(whole, first and first["file_system"]))


def all_nodes(tree: DiskTree, top: Node) -> dict[str, Node]:
    found, pending = {}, [("", top)]
    while pending:
        path, parent = pending.pop()
        try:
            for node in tree.children(parent):
                below = f"{path}/{node.name.decode('utf-8', 'surrogateescape')}".removeprefix("/")
                found[below] = node
                if node.kind is NodeKind.DIRECTORY:
                    pending.append((below, node))
        except MountfsError as error:
            assert "encrypted" in str(error)  # noqa: PT017 (any other error fails the case)
    return found


def differences(
    tree: FileTree, node: Node, truth: dict[str, Any], found: dict[str, Node], *, whole_seconds: bool
) -> Iterator[str]:
    """Yield what of a node is not as the truth has it."""
    expected = KINDS.get(truth["type"])
    if node.kind is not expected:
        yield "type"
        return
    try:
        content = tree.read(node, 0, node.size) if expected is NodeKind.FILE else b""
    except MountfsError:
        content = None
    compared = {
        "size": lambda: node.size,
        "sha256": lambda: content is not None and digest(content),
        "mode": lambda: oct(node.mode),
        "uid": lambda: node.uid,
        "gid": lambda: node.gid,
        "mtime_ns": lambda: node.mtime_ns,
        "target": lambda: tree.readlink(node).decode(),
    }
    yield from (key for key, value in compared.items() if key in truth and truth[key] != value())
    if whole_seconds and node.mtime_ns // 10**9 != truth["mtime_ns"] // 10**9:
        yield "mtime"
    if "same_as" in truth:
        other = found.get(truth["same_as"])
        if other is None or not node.inode == other.inode != 0 or node.links < 2:
            yield "same_as"
    for key in {"xattrs", "streams", "ads"} & set(truth):
        wanted = {name: (value["size"], value["sha256"]) for name, value in truth[key].items()}
        try:
            held = dict(tree.xattrs(node))
            held |= {s.name.decode(): tree.read(node, 0, s.size, s.name) for s in tree.streams(node)}
        except MountfsError:
            yield key
            continue
        if {name: (len(value), digest(value)) for name, value in held.items()} != wanted:
            yield key


def wrong_files(case: dict[str, Any], tree: DiskTree) -> Iterator[tuple[str, str]]:
    for system in case.get("filesystems", []):
        if "truth" not in system:
            continue
        truth = {entry["path"]: entry for entry in json.loads((FOLDER / system["truth"]).read_text())}
        top = tree.child(tree.root(), b"%d" % system["partition"])
        if top is None:
            yield f"volume {system['partition']}", "missing"
            continue
        found = all_nodes(tree, top)
        yield from ((path, "missing") for path in truth.keys() - found.keys())
        yield from ((path, "extra") for path in found.keys() - truth.keys())
        seconds = system["type"] == "exfat"
        for path in truth.keys() & found.keys():
            for what in differences(tree, found[path], truth[path], found, whole_seconds=seconds):
                yield path, what


def judge(case: str, wrong: list[tuple[str, str]]) -> None:
    """Nothing is wrong but what the table says, and all that it says."""
    known = [entry for entry in DEVIATIONS if entry.case == case]

    def covered(entry: Deviation, pair: tuple[str, str]) -> bool:
        return entry.what == pair[1] and re.fullmatch(entry.path, pair[0]) is not None

    assert [pair for pair in wrong if not any(covered(entry, pair) for entry in known)] == []
    stale = [entry for entry in known if not any(covered(entry, pair) for pair in wrong)]
    assert stale == [], "a deviation is listed that no longer happens"


def test_the_stored_images_are_there() -> None:
    shared_data_folder()
    if not CASES:
        unavailable(f"needs {FOLDER}")
    assert len(CASES) >= 40


@pytest.mark.parametrize("case", CASES)
def test_image_holds_what_others_say(
    case: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = unpack(case, tmp_path)
    before = image.stat()
    ways = passwords(case, tmp_path)
    code = BROKEN_INSIDE.get(case["id"], (0,))[0]
    (facts,) = command(capsys, "info", image, *ways[0], code=code)
    wrong = list(wrong_facts(case, facts))
    (listed,) = command(capsys, "ls", image, *ways[0])
    names = [entry["name"] for entry in listed["entries"]]
    assert "disk.img" in names
    assert {volume["folder"] for volume in facts["volumes"] if "/" not in volume["folder"]} <= {*names}
    (verified,) = command(capsys, "verify", image, *ways[0])
    assert verified["damaged"] == verified["unread"] == 0
    secrets = Secrets(tuple(case[key].encode() for key in ("passphrase", "recovery") if key in case))
    with (
        Session(str(image), access=Access(secrets)) as session,
        closing(session.disk_tree(session.location.point())) as tree,
    ):
        if case["disk"]["size"] <= MOST_HASHED:
            view = session.view(session.location.point())
            assert digest_of(view.pread, view.size) == case["disk"]["sha256"]
        wrong += wrong_files(case, tree)
    judge(case["id"], wrong)
    after = image.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns), "it was written to"


BROKEN_INSIDE = {
    "luks2-utillinux": (62, "nothing but the first 4 KiB of the header was stored"),
    "lvm2-utillinux": (62, "nothing but the label was stored: the metadata of its group is not there"),
}
"""Headers without what they describe: named for what they are, and an error says what is missing."""

LOCKED = [param for param in CASES if "passphrase" in param.values[0]]


@pytest.mark.parametrize("case", LOCKED)
def test_what_is_encrypted_opens_with_each_key_and_with_no_other(
    case: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = unpack(case, tmp_path)
    (facts,) = command(capsys, "info", image)
    assert [volume["locked"] for volume in facts["volumes"]] == [True]
    (tmp_path / "wrong").write_text("no")
    command(capsys, "ls", f"{image}:0", "--password-file", tmp_path / "wrong", code=64)
    for number, way in enumerate(passwords(case, tmp_path)):
        (facts,) = command(capsys, "info", image, *way)
        assert facts["volumes"][0]["locked"] is False
        target = tmp_path / f"plain-{number}"
        command(capsys, "restore", f"{image}:0/1", target, *way)
        if "plain_sha256" in case:
            with target.open("rb") as file:
                assert hashlib.file_digest(file, "sha256").hexdigest() == case["plain_sha256"]


@pytest.mark.parametrize("case", [param for param in CASES if param.values[0]["disk"]["size"] < 20 << 20])
def test_restore_gives_the_disk(
    case: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = unpack(case, tmp_path)
    command(capsys, "restore", image, tmp_path / "restored")
    with (tmp_path / "restored").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == case["disk"]["sha256"]


@pytest.mark.nightly
@pytest.mark.parametrize("case", [param for param in CASES if param.values[0]["disk"]["size"] > MOST_HASHED])
def test_a_huge_disk_has_the_bytes_that_others_read(case: dict[str, Any], tmp_path: Path) -> None:
    image = unpack(case, tmp_path)
    with Session(str(image)) as session:
        view = session.view(session.location.point())
        assert digest_of(view.pread, view.size) == case["disk"]["sha256"]
