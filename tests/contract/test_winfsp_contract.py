r"""What a mount adapter must do, asked of the one for WinFsp through winfspy's own Python, on Linux.

The questions are those of test_adapter_contract.py, in Windows' words. What stands below winfspy is a
stand-in (support/winfsp.py): nothing here proves that a real Windows mounts it.
"""

from __future__ import annotations

import os
import signal
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from imageformat.errors import CorruptImageError, FuseUnavailableError, MountError, MountPointError
from mountfs.adapters import MountOptions, winfsp
from mountfs.drivers import ext, ntfs
from mountfs.memorytree import Item, MemoryTree, folder
from mountfs.tree import NodeKind
from mountfs.windowsview import WindowsView
from mountfs.winfspsession import make_operations, volume_parameters
from support.disks import make_ext4, make_ntfs
from support.trees import open_image
from support.winfsp import (
    DIRECTORY_FILE,
    NON_DIRECTORY_FILE,
    OPEN_REPARSE_POINT,
    Drive,
    RefusedError,
    load,
    target_of,
)

if TYPE_CHECKING:
    from mountfs.tree import FileTree

MANY = 20_000
LENGTH = 6 << 30
NOT_FOUND, PATH_NOT_FOUND, PROTECTED = 0xC0000034, 0xC000003A, 0xC00000A2
END_OF_FILE, DEVICE_ERROR, OVERFLOW = 0xC0000011, 0xC0000185, 0x80000005
READONLY, HIDDEN, SYSTEM, DIRECTORY, NORMAL, REPARSE = 0x1, 0x2, 0x4, 0x10, 0x80, 0x400


def _numbered(offset: int, size: int) -> bytes:
    first, last = offset // 8, (offset + size + 7) // 8
    return struct.pack(f"<{last - first}Q", *range(first * 8, last * 8, 8))[offset % 8 :][:size]


def _fail(_offset: int, _size: int) -> bytes:
    raise CorruptImageError("block 7 does not match its checksum")


TREE = folder(
    {
        b"file": Item(bytes(range(256)) * 1024, mode=0o644),
        b"folder": folder({b"caf\xc3\xa9 in space": Item(b"coffee"), b"deep": folder({b"x": Item(b"down")})}),
        b"link": Item(b"folder", kind=NodeKind.SYMLINK),
        b"to-file": Item(b"folder/deep/../deep/x", kind=NodeKind.SYMLINK),
        b"round": Item(b"round", kind=NodeKind.SYMLINK),
        b"out": Item(b"../../C:/Windows", kind=NodeKind.SYMLINK),
        b"dangling": Item(b"nothing", kind=NodeKind.SYMLINK),
        b"many": folder({b"entry %d" % number: Item(b"%d" % number) for number in range(MANY)}),
        b"numbered": Item(size=LENGTH, read=_numbered),
        b"broken": Item(size=100, read=_fail),
        b"short": Item(size=100, read=lambda _offset, size: bytes(size - 1)),
        b"times": Item(b"", mode=0o640, mtime_ns=1_500_000_000_123_456_789),
        b"special": Item(kind=NodeKind.BLOCK_DEVICE, device=(8, 1)),
        b"streams": Item(b"main", streams={b"more": b"beside", b"b:c": b"odd"}),
        b"case": folder({b"README": Item(b"upper"), b"readme": Item(b"lower"), b"Readme": Item(b"mixed")}),
        b"odd": folder(
            {
                b"a:b": Item(b"colon"),
                b"aux.c": Item(b"device"),
                b"dot.": Item(b"dot"),
                b"\xff\xfe": Item(b"bytes"),
                b"back\\slash": Item(b"slash"),
                b"%escaped%x": Item(b"marked"),
            }
        ),
        b"dos": Item(b"", xattrs={"system.ntfs_attrib": struct.pack("<I", HIDDEN | SYSTEM | 0x800)}),
    }
)


def drive_of(tree: FileTree, *, own_access_lists: bool = False) -> Drive:
    package = load()
    view = WindowsView(tree, own_access_lists=own_access_lists)
    return Drive(
        package, make_operations(package, view, label="backup of the disk of yesterday evening", size=5 << 30)
    )


@pytest.fixture(scope="module")
def drive() -> Drive:
    return drive_of(MemoryTree(TREE))


def refusal(call: Any, *arguments: Any) -> int:
    with pytest.raises(RefusedError) as caught:
        call(*arguments)
    return caught.value.status


def test_the_volume_says_its_size_and_name(drive: Drive) -> None:
    assert drive.volume() == (5 << 30, 0, "backup of the disk of yesterday ")


def test_it_shows_the_tree(drive: Drive) -> None:
    assert {"file", "folder", "link"} < {entry[0] for entry in drive.open("\\").listing()}
    assert drive.open("\\file").read_all() == bytes(range(256)) * 1024
    assert drive.open("\\folder\\café in space").read_all() == b"coffee"
    assert drive.open("\\link\\café in space").read_all() == b"coffee"
    assert refusal(drive.open, "\\nothing") == NOT_FOUND
    assert refusal(drive.open, "\\nothing\\below") == PATH_NOT_FOUND
    assert refusal(drive.open, "\\file\\below") in {NOT_FOUND, PATH_NOT_FOUND}


def test_a_missing_name_has_no_access_list(drive: Drive) -> None:
    assert drive.security("\\nothing")[0] == NOT_FOUND
    assert drive.security("\\file")[0] == 0


def test_files_say_what_they_are(drive: Drive) -> None:
    info = drive.open("\\times").facts()
    assert info.LastWriteTime == 116444736000000000 + 15_000_000_001_234_567
    assert info.CreationTime == info.LastWriteTime, "unknown: not 1601"
    assert drive.open("\\file").facts().FileAttributes == NORMAL
    assert drive.open("\\times").facts().FileAttributes == NORMAL
    assert drive.open("\\streams").facts().FileAttributes == READONLY, "0444"
    assert drive.open("\\folder").facts().FileAttributes == DIRECTORY
    assert drive.open("\\special").facts().FileAttributes & SYSTEM
    assert drive.open("\\dos").facts().FileAttributes == HIDDEN | SYSTEM, (
        "compression is no matter of the mount"
    )
    assert drive.open("\\numbered").facts().FileSize == LENGTH
    assert drive.open("\\file").facts().AllocationSize == 256 * 1024


def test_an_open_that_wants_the_other_kind_is_refused(drive: Drive) -> None:
    assert refusal(drive.open, "\\file", DIRECTORY_FILE) == 0xC0000103
    assert refusal(drive.open, "\\folder", NON_DIRECTORY_FILE) == 0xC00000BA


def test_reading_past_the_end_is_said(drive: Drive) -> None:
    handle = drive.open("\\folder\\café in space")
    assert handle.read(4, 100) == b"ee"
    assert refusal(handle.read, 6, 1) == END_OF_FILE


def test_a_failure_of_the_image_is_an_error_never_zeros(drive: Drive) -> None:
    assert refusal(drive.open("\\broken").read, 0, 10) == DEVICE_ERROR
    assert refusal(drive.open("\\short").read, 0, 10) == DEVICE_ERROR


def test_four_threads_at_once_get_the_right_bytes_beyond_4_gib(drive: Drive) -> None:
    wrong: list[int] = []

    def read(seed: int) -> None:
        handle = drive.open("\\numbered")
        for step in range(100):
            offset = (seed * 12_345_679 + step * 777_777_777) % (LENGTH - 200_000)
            size = 1 + (seed + step * 7919) % 200_000
            if handle.read(offset, size) != _numbered(offset, size):
                wrong.append(offset)
        handle.close()

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_folder_of_many_entries_is_listed_whole_each_time(drive: Drive) -> None:
    handle = drive.open("\\many")
    for room in (4096, 65536):
        listed = handle.listing(room)
        names = [entry[0] for entry in listed]
        assert names[:2] == [".", ".."]
        assert sorted(names[2:]) == sorted(f"entry {number}" for number in range(MANY)), "each once"
        assert {entry[0]: entry[2] for entry in listed[2:]} == {
            f"entry {n}": len(str(n)) for n in range(MANY)
        }
    assert next(entry[0] for entry in drive.open("\\").listing()) != ".", "the top has none above it"


def test_a_name_is_looked_up_without_a_listing(drive: Drive) -> None:
    handle = drive.open("\\folder")
    assert handle.entry("CAFÉ IN SPACE") == ("café in space", 6)
    assert refusal(handle.entry, "tea") == NOT_FOUND


def test_case_does_not_matter_and_clashes_stay_apart(drive: Drive) -> None:
    assert drive.open("\\FOLDER\\Café IN space").read_all() == b"coffee"
    shown = [entry[0] for entry in drive.open("\\case").listing()[2:]]
    assert len({entry.upper() for entry in shown}) == 3, shown
    assert {drive.open(f"\\case\\{entry}").read_all() for entry in shown} == {b"upper", b"lower", b"mixed"}
    for entry in shown:
        other = drive.open(f"\\case\\{entry.upper()}").read_all()
        assert other == drive.open(f"\\case\\{entry}").read_all()
    assert drive.open("\\case\\readme").read_all() == b"upper", "as listed: README"


def test_names_that_windows_forbids_can_be_opened(drive: Drive) -> None:
    shown = [entry[0] for entry in drive.open("\\odd").listing()[2:]]
    assert len(shown) == 6
    assert not any(char in entry for entry in shown for char in '<>:"/\\|?*')
    content = {drive.open(f"\\odd\\{entry}").read_all() for entry in shown}
    assert content == {b"colon", b"device", b"dot", b"bytes", b"slash", b"marked"}


def test_a_long_path_is_walked() -> None:
    item = Item(b"deep")
    for number in range(80):
        item = folder({b"%d" % number + b"x" * 200: item})
    names = [f"{number}{'x' * 200}" for number in reversed(range(80))]
    path = "\\" + "\\".join(names)
    assert len(path) > 16_000
    assert drive_of(MemoryTree(item)).open(path).read_all() == b"deep"


def test_streams_are_listed_and_read(drive: Drive) -> None:
    handle = drive.open("\\streams")
    assert handle.streams()[0] == ("", 4)
    assert ("more", 6) in handle.streams()
    assert drive.open("\\streams:more").read_all() == b"beside"
    assert drive.open("\\STREAMS:MORE:$DATA").read_all() == b"beside"
    assert drive.open("\\streams::$DATA").read_all() == b"main"
    odd = next(entry for entry, size in handle.streams() if size == 3)
    assert ":" not in odd
    assert drive.open(f"\\streams:{odd}").read_all() == b"odd"
    assert refusal(drive.open, "\\streams:none") == NOT_FOUND
    assert drive.open("\\folder").streams() == []


def test_links_are_reparse_points_and_are_followed_inside(drive: Drive) -> None:
    handle = drive.open("\\link", OPEN_REPARSE_POINT)
    assert handle.info.FileAttributes & (REPARSE | DIRECTORY) == REPARSE | DIRECTORY
    assert handle.info.ReparseTag == 0xA000000C
    assert target_of(handle.reparse()) == "folder"
    handle = drive.open("\\to-file", OPEN_REPARSE_POINT)
    assert handle.info.FileAttributes & (REPARSE | DIRECTORY) == REPARSE
    assert target_of(handle.reparse()) == "folder\\deep\\..\\deep\\x"
    assert drive.open("\\to-file").read_all() == b"down"
    assert drive.security("\\link\\deep\\x")[:2] == (0x104, 1)
    assert refusal(drive.open("\\file").reparse) == 0xC0000275


def test_links_lead_neither_out_nor_round(drive: Drive) -> None:
    assert refusal(drive.open, "\\round") == 0xC0000280
    assert refusal(drive.open, "\\out") in {NOT_FOUND, PATH_NOT_FOUND}
    assert refusal(drive.open, "\\dangling") == NOT_FOUND
    assert refusal(drive.open, "\\out\\System32") == PATH_NOT_FOUND


def test_a_junction_is_shown_as_stored_and_followed_inside() -> None:
    target = "\\??\\C:\\Users".encode("utf-16-le")
    names = struct.pack("<HHHH", 0, len(target), len(target) + 2, 0) + target + bytes(4)
    stored = struct.pack("<IHH", 0xA0000003, len(names), 0) + names
    items = {b"Users": folder({b"me": Item(b"mine")})}
    items[b"Documents and Settings"] = Item(
        b"Users", kind=NodeKind.SYMLINK, xattrs={"system.ntfs_reparse_data": stored}
    )
    drive = drive_of(MemoryTree(folder(items)))
    handle = drive.open("\\Documents and Settings", OPEN_REPARSE_POINT)
    assert handle.info.ReparseTag == 0xA0000003
    assert handle.info.FileAttributes & DIRECTORY
    assert handle.reparse() == stored
    assert target_of(stored) == "\\??\\C:\\Users"
    assert drive.open("\\Documents and Settings\\me").read_all() == b"mine", (
        "of the image, not of this machine"
    )


@pytest.mark.parametrize("path", ["\\file", "\\folder"])
def test_it_is_read_only(drive: Drive, path: str) -> None:
    ffi = drive.ffi
    handle = drive.open(path)
    context, info = handle.context, ffi.new("FSP_FSCTL_FILE_INFO *")
    new, done, out = drive.text("\\new"), ffi.new("uint32_t *"), ffi.new("void **")
    volume = ffi.new("FSP_FSCTL_VOLUME_INFO *")
    old = drive.text(path)
    attempts: dict[str, tuple[Any, ...]] = {
        "SetVolumeLabel": (drive.text("other"), volume),
        "Create": (new, 0, 0, 0, ffi.NULL, 0, out, info),
        "Overwrite": (context, 0, 0, 0, info),
        "Write": (context, ffi.new("char[]", b"xx"), 0, 2, 0, 0, done, info),
        "SetBasicInfo": (context, 0, 0, 0, 0, 0, info),
        "SetFileSize": (context, 0, 0, info),
        "CanDelete": (context, old),
        "SetDelete": (context, old, 1),
        "Rename": (context, old, new, 1),
        "SetSecurity": (context, 4, ffi.NULL),
        "SetReparsePoint": (context, old, ffi.NULL, 0),
        "DeleteReparsePoint": (context, old, ffi.NULL, 0),
    }
    assert {name: drive.call(name, *arguments) for name, arguments in attempts.items()} == dict.fromkeys(
        attempts, PROTECTED
    )
    assert drive.call("Flush", context, info) == 0, "nothing is left to be written"
    assert volume_parameters()["read_only_volume"] == 1


def test_everyone_may_read_and_nobody_write(drive: Drive) -> None:
    access = drive.security("\\file")[2]
    owner, group, dacl = (int.from_bytes(access[at : at + 4], "little") for at in (4, 8, 16))
    assert int.from_bytes(access[2:4], "little") & 0x8004 == 0x8004
    administrators = bytes.fromhex("01020000000000052000000020020000")
    assert access[owner : owner + 16] == access[group : group + 16] == administrators
    assert int.from_bytes(access[dacl + 4 : dacl + 6], "little") == 1
    assert access[dacl + 8] == 0, "allowed"
    assert access[dacl + 12 : dacl + 16] == (0x1200A9).to_bytes(4, "little")
    assert access[dacl + 16 : dacl + 28] == bytes.fromhex("010100000000000100000000")
    status, _, cut = drive.security("\\file", room=8)
    assert (status, cut) == (OVERFLOW, bytes(8))


def test_own_access_lists_are_shown_when_they_are_sound() -> None:
    package = load()
    sound = (
        drive_of(MemoryTree(folder({b"x": Item(b"")})))
        .security("\\x")[2]
        .replace(b"\xa9\x00\x12\x00", b"\xff\x01\x1f\x00")
    )
    tree = MemoryTree(
        folder(
            {
                b"own": Item(b"", xattrs={"system.ntfs_acl": sound}),
                b"torn": Item(b"", xattrs={"system.ntfs_acl": sound[:-1]}),
                b"none": Item(b""),
            }
        )
    )
    drive = drive_of(tree, own_access_lists=True)
    assert drive.security("\\own")[2] == sound
    torn = drive.security("\\torn")[2]
    assert sound[:-1] not in torn, "what is damaged never reaches Windows"
    assert torn.count(bytes.fromhex("01020000000000052000000020020000")) == 3, "and nobody gains by damage"
    assert bytes.fromhex("010100000000000100000000") in drive.security("\\none")[2]
    assert drive_of(tree).security("\\own")[2] != sound
    handle, size = drive.open("\\own"), package.plumbing.ffi.new("size_t *", 4)
    assert drive.call("GetSecurity", handle.context, package.plumbing.ffi.new("char[]", 4), size) == OVERFLOW
    assert size[0] == len(sound), "so that WinFsp can ask again"


def test_closed_files_are_forgotten(drive: Drive) -> None:
    operations = drive.ffi.from_handle(drive._handle)
    before = len(operations._opened_objs)
    handle = drive.open("\\file")
    assert len(operations._opened_objs) == before + 1
    handle.close()
    assert len(operations._opened_objs) == before


class _Closing(MemoryTree):
    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def on_windows(monkeypatch: pytest.MonkeyPatch) -> Any:
    package = load()
    monkeypatch.setattr(winfsp, "unavailable", lambda: None)
    monkeypatch.setattr(package.plumbing.lib, "mount_status", 0)
    return package


def test_a_signal_ends_it_and_the_tree_stays_with_its_owner(on_windows: Any, tmp_path: Path) -> None:
    tree, calls, seen = _Closing(TREE), [], {}

    def ready() -> None:
        calls.append("ready")
        library = on_windows.plumbing.lib
        seen["reading"] = library.parameters
        drive = Drive(on_windows, on_windows.plumbing.ffi.from_handle(library.system.UserContext))
        seen["content"] = drive.open("\\folder\\deep\\x").read_all()
        signal.raise_signal(signal.SIGTERM)

    place = tmp_path / "drive"
    winfsp.mount(tree, MountOptions(place, "/images/disk.mfi"), ready)
    assert calls == ["ready"], "once"
    assert seen["content"] == b"down"
    assert on_windows.plumbing.lib.calls == ["create", "set mount point", "start", "stop", "delete"]
    assert not tree.closed
    assert not place.exists()
    assert signal.getsignal(signal.SIGTERM) is not None


def test_a_mount_that_is_refused_is_said(on_windows: Any, tmp_path: Path) -> None:
    on_windows.plumbing.lib.mount_status = 0xC0000035
    with pytest.raises(MountError, match="OBJECT_NAME_COLLISION"):
        winfsp.mount(MemoryTree(TREE), MountOptions(tmp_path / "drive", "x"), lambda: None)


def test_it_does_not_hide_files_under_a_mount(on_windows: Any, tmp_path: Path) -> None:
    with pytest.raises(MountPointError, match="there already"):
        winfsp.mount(MemoryTree(TREE), MountOptions(tmp_path, "x"), lambda: None)


def test_elsewhere_it_says_what_is_missing() -> None:
    assert winfsp.unavailable() == "WinFsp mounts are made on Windows only"
    with pytest.raises(FuseUnavailableError):
        winfsp.mount(MemoryTree(TREE), MountOptions(Path("x"), "x"), lambda: None)


def _made(folder_path: Path) -> Path:
    """A folder with content of all sizes, deep names and links."""
    (folder_path / "deep" / "er").mkdir(parents=True)
    for number, size in enumerate((0, 1, 511, 4096, 70_000, 300_001)):
        (folder_path / "deep" / f"file {number}").write_bytes(bytes(number ^ i % 251 for i in range(size)))
    (folder_path / "deep" / "er" / "naïve ☃").write_bytes(b"snow")
    os.utime(folder_path / "deep" / "file 4", (1_600_000_000, 1_700_000_000))
    (folder_path / "link").symlink_to("deep/er")
    (folder_path / "deep" / "up").symlink_to("../deep/file 3")
    return folder_path


def _shown(drive: Drive, path: str) -> dict[str, bytes]:
    """Content of every file below a folder, by its path."""
    found: dict[str, bytes] = {}
    for entry, attributes, size in drive.open(path or "\\").listing():
        below = f"{path}\\{entry}"
        if entry in {".", ".."} or entry == "lost+found" or attributes & (REPARSE | SYSTEM):
            continue
        if attributes & DIRECTORY:
            found |= _shown(drive, below)
        else:
            handle = drive.open(below)
            found[below] = handle.read_all()
            assert len(found[below]) == size
            handle.close()
    return found


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "ntfs"])
def test_a_real_volume_is_shown_as_it_was_written(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    _made(source)
    make, driver = {"ext4": (make_ext4, ext), "ntfs": (make_ntfs, ntfs)}[kind]
    image = make(tmp_path / "image", 64 << 20, populate_from=source)
    tree = open_image(driver, image)
    try:
        drive = drive_of(tree, own_access_lists=True)
        expected = {
            "\\" + str(path.relative_to(source)).replace("/", "\\"): path.read_bytes()
            for path in source.rglob("*")
            if path.is_file() and not path.is_symlink() and "link" not in path.parts
        }
        assert _shown(drive, "") == expected
        assert drive.open("\\link\\naïve ☃").read_all() == b"snow"
        assert drive.open("\\DEEP\\Up").read_all() == (source / "deep" / "file 3").read_bytes()
        info = drive.open("\\deep\\file 4").facts()
        assert info.LastWriteTime == 1_700_000_000 * 10**7 + 116444736000000000
        assert drive.open("\\deep").info.FileAttributes & DIRECTORY
        stored = tree.xattrs(drive.ffi.from_handle(drive.open("\\deep\\file 4").context).entry.node)
        access = drive.security("\\deep\\file 4", room=65536)[2]
        assert access == stored.get("system.ntfs_acl", access)
        assert ("system.ntfs_acl" in stored) == (kind == "ntfs")
    finally:
        tree.close()
