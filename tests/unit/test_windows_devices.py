"""Drives, volumes and shadow copies of Windows, against layouts laid down in its documentation."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.devices import windows
from engine.devices.windows import DiskExtent, WindowsDisk
from engine.snapshots import journal, taking, vss
from engine.snapshots.provider import SourceFacts
from imageformat.errors import (
    AccessDeniedError,
    MountfsError,
    NotFoundError,
    SnapshotError,
    SourceReadError,
    TargetInUseError,
    UsageError,
)

# STORAGE_DEVICE_DESCRIPTOR of a disk of a virtual machine: 40 bytes of header and raw data, then texts.
DEVICE = bytes.fromhex("280000007c00000000000101280000003100000042000000470000000b0000000000000000000000") + (
    b"QEMU    \0QEMU HARDDISK   \0002.5+\0QM00013\0"
).ljust(84, b"\0")
ALIGNMENT = struct.pack("<7I", 28, 28, 0, 0, 512, 4096, 0)
PENALTY = struct.pack("<IIB3x", 12, 12, 1)
LENGTH = struct.pack("<q", 500_107_862_016)
EXTENTS = struct.pack("<I4x", 2) + struct.pack("<I4xqq", 0, 1 << 20, 1 << 30) + struct.pack("<I4xqq", 3, 0, 5)


class Machine:
    """One drive, number 2, and what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.opened: list[tuple[str, bool]] = []
        self.closed = 0
        self.refused: dict[int, int] = {}

    def open(self, path: str, *, write: bool) -> int:
        if path not in {"\\\\.\\PhysicalDrive2", "\\\\.\\C:"}:
            raise self._error(2)
        self.opened.append((path, write))
        return 77

    def control(self, handle: int, code: int, request: bytes, room: int) -> bytes:
        assert handle == 77
        self.asked.append(code)
        if code in self.refused:
            raise self._error(self.refused[code])
        if code == 0x002D1400:
            answer = {0: DEVICE, 6: ALIGNMENT, 7: PENALTY}[struct.unpack("<III", request)[0]]
        else:
            answer = {0x0007405C: LENGTH, 0x00560000: EXTENTS}.get(code, b"")
        return answer[:room]

    def close(self, handle: int) -> None:
        assert handle == 77
        self.closed += 1

    @staticmethod
    def _error(code: int) -> OSError:
        error = OSError(0, "refused")
        error.winerror = code
        return error


def test_the_drives_are_listed_with_what_they_say() -> None:
    machine = Machine()
    expected = WindowsDisk(
        "\\\\.\\PhysicalDrive2", 500_107_862_016, 512, 4096, "QEMU QEMU HARDDISK", "QM00013", True, True
    )
    assert windows.list_disks(machine) == [expected]
    assert machine.closed == len(machine.opened) == 1


def test_the_parts_of_a_volume_are_found() -> None:
    assert windows.volume_extents(Machine(), "\\\\.\\C:") == [
        DiskExtent(0, 1 << 20, 1 << 30),
        DiskExtent(3, 0, 5),
    ]


def test_a_volume_is_locked_dismounted_and_let_go() -> None:
    machine = Machine()
    with windows.locked(machine, "\\\\.\\C:") as handle:
        assert handle == 77
        assert machine.asked == [0x00090018, 0x00090020]
    assert machine.asked[-1] == 0x0009001C
    assert machine.opened == [("\\\\.\\C:", True)]
    assert machine.closed == 1


def test_a_volume_in_use_is_left_alone() -> None:
    machine = Machine()
    machine.refused[0x00090018] = 5
    with pytest.raises(TargetInUseError), windows.locked(machine, "\\\\.\\C:"):
        pytest.fail("not locked")
    assert machine.asked == [0x00090018], "neither dismounted nor unlocked"
    assert machine.closed == 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [(2, NotFoundError), (5, AccessDeniedError), (21, SourceReadError), (1, SourceReadError)],
)
def test_failures_have_their_class(code: int, kind: type[MountfsError]) -> None:
    machine = Machine()
    machine.refused[0x0007405C] = code
    with pytest.raises(kind):
        windows.describe_disk(machine, "\\\\.\\C:")


@given(st.binary(max_size=200))
def test_no_answer_of_a_driver_is_trusted(answer: bytes) -> None:
    for parse in (
        windows.parse_length,
        windows.parse_alignment,
        windows.parse_device,
        windows.parse_seek_penalty,
        windows.parse_extents,
    ):
        try:
            parse(answer)
        except SourceReadError:
            continue


ID = "{3f2504e0-4f89-41d3-9a0c-0305e82c3301}"
DEVICE_OBJECT = "\\\\?\\GLOBALROOT\\Device\\HarddiskVolumeShadowCopy7"


class Shell:
    """PowerShell, with one volume."""

    def __init__(self, code: int = 0) -> None:
        self.scripts: list[str] = []
        self.code = code

    def __call__(self, script: str) -> str:
        self.scripts.append(script)
        if "Create" in script:
            return json.dumps({"ReturnValue": self.code, "ID": ID, "DeviceObject": DEVICE_OBJECT})
        return ""


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    shell = Shell()
    monkeypatch.setattr(vss, "run_powershell", shell)
    return shell


C_DRIVE = SourceFacts(path="\\\\.\\C:", kind="partition", size=1)


def test_a_shadow_copy_is_noted_and_removed(shell: Shell, tmp_path: Path) -> None:
    entry = journal.begin(tmp_path, "vss")
    picture = vss.create(C_DRIVE, entry)
    assert picture.path == DEVICE_OBJECT
    assert entry.facts == {"snapshot": DEVICE_OBJECT, "id": ID}
    assert "Win32_ShadowCopy -MethodName Create -Arguments @{Volume='C:\\';" in shell.scripts[0]
    vss.remove(entry.facts)
    assert shell.scripts[1].endswith(f"-Filter \"ID='{ID}'\"|Remove-CimInstance")
    entry.erase()


def test_what_a_killed_run_left_is_removed_by_the_next(shell: Shell, tmp_path: Path) -> None:
    """A lock ends with its process, so an entry that is not locked is one of a process that died."""
    for facts in ({"id": ID}, {}, {"id": "'; Remove-Item C:\\ -Recurse"}):
        entry = journal.begin(tmp_path, "vss")
        entry.note(**facts)
        entry.release()
    problems = [problem for _, problem in taking.clean(tmp_path)]
    assert shell.scripts == [vss.remove_script(ID)], "what is no identifier never reaches the shell"
    assert sorted(problem is None for problem in problems) == [False, True, True]
    assert len(list(tmp_path.iterdir())) == 1, "what cannot be removed stays noted"


@pytest.mark.parametrize("code", [1, 8, 99])
def test_the_reason_of_a_refusal_is_told(shell: Shell, tmp_path: Path, code: int) -> None:
    shell.code = code
    entry = journal.begin(tmp_path, "vss")
    with pytest.raises(SnapshotError, match="no shadow copy of C:"):
        vss.create(C_DRIVE, entry)
    assert entry.facts == {}
    entry.erase()


@pytest.mark.parametrize(
    ("path", "volume"),
    [
        ("\\\\.\\C:", "C:\\"),
        (f"\\\\?\\Volume{{{ID[1:-1]}}}", f"\\\\?\\Volume{{{ID[1:-1]}}}\\"),
        ("\\\\.\\PhysicalDrive0", None),
        ("C:\\disk.img", None),
        ("/dev/sda", None),
    ],
)
def test_only_a_volume_has_shadow_copies(
    monkeypatch: pytest.MonkeyPatch, path: str, volume: str | None
) -> None:
    assert vss.volume_name(path) == volume
    assert vss.unavailable(SourceFacts(path, "partition", 1)) is not None, "this is no Windows"
    monkeypatch.setattr("sys.platform", "win32")
    assert (vss.unavailable(SourceFacts(path, "partition", 1)) is None) is (volume is not None)


@pytest.mark.parametrize("answer", ["", "{}", "[]", '{"ReturnValue": 0, "ID": "x", "DeviceObject": "y"}'])
def test_nonsense_is_no_shadow_copy(answer: str) -> None:
    with pytest.raises(SourceReadError):
        vss.parse_created(answer, "C:\\")


@pytest.mark.parametrize("volume", ["C:", "C:\\';Remove-Item x;'", "\\\\server\\share", ""])
def test_only_volumes_reach_the_shell(volume: str) -> None:
    with pytest.raises(UsageError):
        vss.create_script(volume)
    with pytest.raises(UsageError):
        vss.remove_script(volume)
