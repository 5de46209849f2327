"""What is asked of LVM and dmsetup to know what changed, against recorded answers, each failing once.

Recorded with lvm2 2.03 and thin-provisioning-tools 0.9 on Linux 6.1. The real ones run in
`tests/e2e/test_thin_changes_in_uml.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.changes import ChangesUnknownError, dm_era, lvm_thin
from engine.changes.dm_era import Eras, block_sectors, current_era, not_written, written_command
from engine.changes.lvm_thin import ThinSnapshots
from engine.snapshots import programs
from imageformat.errors import SnapshotError
from support.requirements import require_tool, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine.changes import ChangeTracker, Mark

MIB = 1 << 20
BLOCK = 64 << 10
MAPPED = "LVM-7jiBDXG5I8KWFJHdYiaxTAdyKIpC5zOtoFOfERr3buYr9M913qs2m3d6aVVgw4Gt"
KEY = "6ed630ea4ce1a2d2"
DELTA = """\
<superblock uuid="" time="2" transaction="3" data_block_size="128" nr_data_blocks="100">
  <diff left="2" right="3">
    <same begin="0" length="3"/>
    <different begin="3" length="2"/>
  </diff>
</superblock>
"""
_TAKEN = ("reserve_metadata_snap", "take_metadata_snap")
_FREED = ("release_metadata_snap", "drop_metadata_snap")
WRITTEN = """\
<blocks>
  <block block="1"/>
  <range begin="3" end = "5"/>
</blocks>
"""


class Machine:
    """A machine with one pool and one device of dm-era, whose programs say what was recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self.broken = -1
        self.kept: list[dict[str, str]] = []
        self.era = 4
        self.table = "0 131072 era 98:16 98:0 128"
        self.report = ""
        monkeypatch.setattr(programs, "run", self.run)
        for module in (lvm_thin, dm_era):
            monkeypatch.setattr(module, "path_of", lambda number: f"/dev/{number}")
            monkeypatch.setattr(module, "lines_of", self.lines)

    def run(self, *command: str, stdin: str = "") -> str:
        assert not stdin
        self.said.append(" ".join(command))
        if len(self.said) - 1 == self.broken:
            raise SnapshotError("it is broken")
        match command[:2]:
            case ["lvs", _]:
                return json.dumps({"report": [{"lv": self._volumes(" ".join(command))}]})
            case ["lvcreate", _]:
                name = command[command.index("--name") + 1]
                self.kept.append(self._volume(name, len(self.said)))
            case ["lvremove", _]:
                self.kept = [volume for volume in self.kept if f"vg/{volume['lv_name']}" != command[-1]]
            case ["dmsetup", "table"]:
                pool = "0 327680 thin-pool 254:1 254:2 128 0 0 \n"
                return pool if command[2] == "/dev/pool" else f"{self.table}\n"
            case ["dmsetup", "info"]:
                return "pool"
            case ["dmsetup", "status"]:
                return f"0 131072 era 8 12/2048 {self.era} -\n"
            case ["dmsetup", "message"]:
                self.era += command[-1] == "checkpoint"
        return ""

    def lines(self, *command: str) -> Iterator[str]:
        self.said.append(" ".join(command))
        if len(self.said) - 1 == self.broken:
            raise ChangesUnknownError("it is broken")
        yield from self.report.splitlines(keepends=True)

    def _volume(self, name: str, number: int) -> dict[str, str]:
        thin_id = "2" if not self.kept else "3"
        return {
            "vg_name": "vg", "lv_name": name, "lv_uuid": f"uuid-{number}", "segtype": "thin",
            "lv_tags": f"mountfs-kept-{KEY}", "thin_id": thin_id, "transaction_id": str(number),
            "pool_lv": "pool", "pool_lv_uuid": "oIKQbl-9EJr-ddeq-M1cK-HHzs-4WMO-FkAzAe",
        }  # fmt: skip

    def _volumes(self, command: str) -> list[dict[str, str]]:
        return self.kept if "lv_tags=" in command else [{**self._volume("data", 0), "thin_id": "1"}]


def _thin(_folder: Path) -> ThinSnapshots:
    return ThinSnapshots(MAPPED, 4 * BLOCK, KEY)


def _eras(folder: Path) -> Eras:
    (folder / "diskseq").write_text("7\n")
    (folder / "uevent").write_text("DEVNAME=dm-0\n")
    return Eras(folder, 6 * BLOCK - 512)


def _both(machine: Machine, tracker: ChangeTracker, mark: Mark) -> list[tuple[int, int]] | None:
    """Use a tracker for one backup; None: it does not know."""
    begun = tracker.begin()
    try:
        found = list(tracker.unchanged(mark))
        assert begun is not None
    except ChangesUnknownError:
        found = None
    tracker.settle(published=begun is not None)
    taken = [at for at, said in enumerate(machine.said) if said.endswith(_TAKEN)]
    freed = [at for at, said in enumerate(machine.said) if said.endswith(_FREED)]
    assert len(freed) == len([at for at in taken if at != machine.broken])
    return found


@pytest.mark.parametrize(
    ("make", "report", "known"),
    [
        (_thin, DELTA, [(0, 3 * BLOCK)]),
        (_eras, WRITTEN, [(0, BLOCK), (2 * BLOCK, 3 * BLOCK), (5 * BLOCK, 6 * BLOCK - 512)]),
    ],
)
def test_every_command_that_fails_makes_a_full_scan(
    make: Callable[[Path], ChangeTracker],
    report: str,
    known: list[tuple[int, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(monkeypatch)
    machine.report = report
    mark = make(tmp_path).begin()
    assert mark is not None
    assert json.loads(json.dumps(mark)) == mark
    kept, era = list(machine.kept), machine.era
    machine.said.clear()
    assert _both(machine, make(tmp_path), mark) == known
    assert len(machine.kept) == len(kept)  # the new one instead of the old one
    commands = list(machine.said)
    freed = next(at for at, said in enumerate(commands) if said.endswith(_FREED))
    for broken, command in enumerate(commands):
        machine.said.clear()
        machine.kept, machine.era, machine.broken = list(kept), era, broken
        assert _both(machine, make(tmp_path), mark) == (known if broken >= freed else None), command
    machine.broken = -1
    for text in ("", report[:-10], report[:60], report + report, report.replace('begin="3"', 'begin="-3"')):
        machine.report = text
        machine.kept, machine.era = list(kept), era
        assert _both(machine, make(tmp_path), mark) is None, text
    for lie in ({"snapshot": "data", "era": 99}, {"snapshot": 7, "era": "4"}, {"lv_uuid": "", "boot": ""}):
        machine.report = report
        machine.kept, machine.era = list(kept), era
        assert _both(machine, make(tmp_path), {**mark, **lie}) is None, lie


def test_another_table_or_number_of_the_device_is_another_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch)
    machine.report = WRITTEN
    mark = _eras(tmp_path).begin()
    assert mark is not None
    machine.table = "0 131072 era 98:32 98:0 128"
    assert _both(machine, _eras(tmp_path), mark) is None
    machine.table = "0 131072 era 98:16 98:0 128"
    assert _both(machine, _eras(tmp_path), mark) is not None
    tracker = _eras(tmp_path)
    (tmp_path / "diskseq").write_text("8\n")
    assert _both(machine, tracker, mark) is None


@settings(max_examples=30, deadline=None)
@given(
    eras=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    since=st.integers(1, 6),
    tail=st.integers(1, BLOCK),
)
def test_what_was_not_written_since_an_era(
    eras: list[int], since: int, tail: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Real metadata, made by `era_restore`, against the list that they were made of."""
    require_tool("era_restore", "era_invalidate")
    folder = tmp_path_factory.mktemp("era")
    rows = "".join(f'<era block="{block}" era="{era}"/>' for block, era in enumerate(eras))
    (folder / "xml").write_text(
        f'<superblock uuid="" block_size="128" nr_blocks="{len(eras)}" current_era="6">'
        f"<era_array>{rows}</era_array></superblock>"
    )
    with (folder / "metadata").open("wb") as file:
        file.truncate(1 << 20)
    run("era_restore", "-i", folder / "xml", "-o", folder / "metadata")
    # Only the kernel makes the snapshot of metadata that is asked for there.
    command = [word for word in written_command(str(folder / "metadata"), since) if "snapshot" not in word]
    size = (len(eras) - 1) * BLOCK + tail
    found = list(not_written(run(*command).splitlines(), BLOCK, size))
    clean = {block for offset, end in found for block in range(offset // BLOCK, -(-end // BLOCK))}
    assert clean == {block for block, era in enumerate(eras) if era < since}
    assert not found or found[-1][1] <= size


@pytest.mark.parametrize(
    "text", ["", "0 8 era Error", "0 8 era 8 1/2 x -", "0 8 linear 98:0 0", "0 8 era a b 0"]
)
def test_devices_that_failed_tell_no_era(text: str) -> None:
    for read in (current_era, block_sectors):
        with pytest.raises(SnapshotError):
            read(text)


@pytest.mark.parametrize("failing", ["", "suspend", "resume"])
def test_a_device_that_stood_goes_on_and_a_failure_is_told(failing: str, tmp_path: Path) -> None:
    tool = tmp_path / "dmsetup"
    tool.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/log\ntest "$1" != "{failing}"\n')
    tool.chmod(0o755)
    settle = ("sh", "-c", dm_era._SETTLE, "sh", str(tool), "/dev/dm-0")
    if failing:
        with pytest.raises(SnapshotError):
            programs.run(*settle)
    else:
        programs.run(*settle)
    assert (tmp_path / "log").read_text() == "suspend /dev/dm-0\nresume /dev/dm-0\n"
