"""The command lines by which snapshots are made, against recorded answers, with each command failing once.

What LVM and dmsetup said was recorded with lvm2 2.03 on Linux 6.1. The real tools run in
`tests/e2e/test_snapshots_in_uml.py`.
"""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import shlex
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.devices import sysfs
from engine.devices.source import open_source
from engine.snapshots import dm, journal, lvm, programs, taking
from engine.snapshots.provider import SourceFacts
from imageformat.errors import SnapshotError, UsageError

MIB = 1 << 20
VOLUME = {
    "vg_name": "vg", "lv_name": "data", "segtype": "linear", "lv_size": "67108864", "vg_free": "197132288",
    "vg_extent_size": "4194304", "lv_tags": "",
}  # fmt: skip
GROUP_ID, VOLUME_ID = "G8i3fmy0K2kZVxUc6BLseRMH8I5FiH4M", "Mjp0sTLt2Ef1nz1sDQv5o10Eb5buCxfK"
SIZE = 3 * MIB

_STUB = """#!/bin/sh
name=${0##*/}
echo "$name $*" >>$FOLDER/log
read -r broken <$FOLDER/broken
case "$name $*" in $broken) echo "it is broken" >&2; exit 5;; esac
case "$name $*" in
%s
esac
exit 0
"""


@dataclass
class Tools:
    """Programs that say what was recorded and note how they were called."""

    folder: Path

    def log(self) -> list[str]:
        path = self.folder / "log"
        return path.read_text().splitlines() if path.exists() else []

    def reset(self, broken: str = "") -> None:
        (self.folder / "log").unlink(missing_ok=True)
        (self.folder / "broken").write_text(f"{broken or 'nothing'}\n")


def stubs(folder: Path, monkeypatch: pytest.MonkeyPatch, answers: dict[str, str]) -> Tools:
    cases = "\n".join(f"{pattern}) printf '%s' {shlex.quote(text)};;" for pattern, text in answers.items())
    place = folder / "programs"
    place.mkdir()
    for name in ("lvs", "lvcreate", "lvremove", "dmsetup", "losetup"):
        (place / name).write_text(_STUB % cases)
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FOLDER", str(folder))
    monkeypatch.setattr(sysfs, "block_folder", lambda number, *_: Path("/sys/devices") / number)
    monkeypatch.setattr(sysfs, "device_path", lambda *_: str(folder / "picture"))
    (folder / "picture").write_bytes(b"p" * SIZE)
    (folder / "source").write_bytes(b"s" * SIZE)
    tools = Tools(folder)
    tools.reset()
    return tools


def report(**changes: str) -> str:
    return json.dumps({"report": [{"lv": [{**VOLUME, **changes}]}]})


def take(folder: Path, facts: SourceFacts, choice: str) -> bytes:
    """What is read of a snapshot that is made and removed."""
    source = open_source(str(folder / "source"))
    told: list[str] = []
    try:
        still, _ = taking.take(source, facts, choice, folder / "journal", told.append)
        try:
            return still.pread(0, 4)
        finally:
            still.close()
    finally:
        source.close()


def of_lvm(folder: Path) -> SourceFacts:
    return SourceFacts(
        str(folder / "source"), "disk", SIZE, "254:0", "vg-data", f"LVM-{GROUP_ID}{VOLUME_ID}", busy=True
    )


def test_lvm_makes_reads_and_removes_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = stubs(
        tmp_path,
        monkeypatch,
        {
            "*lv_uuid=*": report(),
            "*lv_tags=*": report(lv_name="mountfs-0123", lv_tags="mountfs-0123"),
            "*lv_kernel_major*": "  254:3\n",
        },
    )
    monkeypatch.setattr(journal.secrets, "token_hex", lambda _: "0123")
    columns = "vg_name,lv_name,segtype,lv_size,vg_free,vg_extent_size,lv_tags"
    report_ = f"lvs --reportformat json --units b --nosuffix --options {columns} --select"
    expected = [
        f"{report_} lv_uuid=Mjp0sT-Lt2E-f1nz-1sDQ-v5o1-0Eb5-buCxfK",
        (
            "lvcreate --yes --quiet --snapshot --permission r --name mountfs-0123 --addtag mountfs-0123 "
            "--extents 16 vg/data"
        ),
        "lvs --noheadings --separator : --options lv_kernel_major,lv_kernel_minor vg/mountfs-0123",
        f"{report_} lv_tags={{mountfs-0123}} vg",
        "lvremove --yes --quiet vg/mountfs-0123",
    ]
    assert take(tmp_path, of_lvm(tmp_path), "auto") == b"pppp"
    assert tools.log() == expected
    check_failures(tools, of_lvm(tmp_path), "lvm", expected)


def check_failures(tools: Tools, facts: SourceFacts, choice: str, commands: list[str]) -> None:
    """Each command fails once: an error or a warning, and what is noted is cleaned up when it works again."""
    for command in dict.fromkeys(commands):
        tools.reset(command.partition("-0123")[0].replace("[", "?") + "*")
        with suppress(SnapshotError):
            take(tools.folder, facts, choice)
        tools.reset()
        assert [problem for _, problem in taking.clean(tools.folder / "journal")] in ([], [None]), command
        assert list((tools.folder / "journal").iterdir()) == [], command


@pytest.mark.parametrize(
    ("changes", "extents"),
    [
        ({}, 16),
        ({"vg_free": "8388608"}, 2),
        ({"lv_size": str(100 << 30), "vg_free": str(90 << 30)}, 5120),
        ({"lv_size": str(4 * MIB)}, 3),
        ({"vg_free": "0"}, 0),
        ({"segtype": "vdo"}, 0),
        ({"vg_free": "-1"}, 0),
    ],
)
def test_room_for_a_classic_snapshot(changes: dict[str, str], extents: int) -> None:
    if not extents:
        with pytest.raises(SnapshotError):
            lvm.create_command({**VOLUME, **changes}, "mountfs-1")
        return
    command = lvm.create_command({**VOLUME, **changes}, "mountfs-1")
    assert command[command.index("--extents") + 1] == str(extents)


def test_a_thin_snapshot_needs_no_room() -> None:
    command = lvm.create_command({**VOLUME, "segtype": "thin", "vg_free": "0"}, "mountfs-1")
    assert command[-3:] == ["--setactivationskip", "n", "vg/data"]
    assert "--extents" not in command


@settings(max_examples=60, deadline=None)
@given(
    st.text()
    | st.recursive(
        st.none() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["report", "lv", *VOLUME]), inner),
    ).map(json.dumps)
)
def test_any_report_is_understood_or_refused(text: str) -> None:
    with contextlib.suppress(SnapshotError):
        lvm.parse_report(text)


def test_what_is_not_ours_is_never_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = stubs(
        tmp_path,
        monkeypatch,
        {"*lv_tags=*": report(lv_name="mine", lv_tags="other"), "*ls": "mine\t(254:1)\n"},
    )
    lvm.remove({"snapshot": "vg/mine", "tag": "mountfs-1"})
    dm.remove({"snapshot": "mine", "device": "mine", "changes": "/etc/passwd"})
    dm.remove({"snapshot": "mountfs-1", "device": "gone", "changes": str(tmp_path / "source")})
    lvm.remove({})
    dm.remove({})
    assert not [line for line in tools.log() if line.startswith(("lvremove", "dmsetup remove", "losetup"))]
    assert (tmp_path / "source").exists()
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "odd.json").write_text("[1]")
    (tmp_path / "journal" / "new.json").write_text('{"provider": "newer", "facts": {}}')
    assert ["newer" in (problem or "") for _, problem in taking.clean(tmp_path / "journal")] == [True]
    assert [path.name for path in (tmp_path / "journal").iterdir()] == ["new.json"], (
        "not known is not removed"
    )


def test_dm_makes_reads_and_removes_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sectors = SIZE // 512
    table = f"0 {sectors} linear 98:32 0\n"
    tools = stubs(
        tmp_path,
        monkeypatch,
        {
            "*table?mapped": table,
            "*table?mountfs-0123-real": table,
            "*--show*": "/dev/loop7\n",
            "*associated*": "/dev/loop7\n",
            "*?ls": "mapped\t(254:0)\nmountfs-0123\t(254:2)\nmountfs-0123-real\t(254:1)\n",
            "*suspended*": "Active\n",
            "*major*": "254\n",
            "*minor*": "1\n",
        },
    )
    monkeypatch.setattr(journal.secrets, "token_hex", lambda _: "0123")
    monkeypatch.setattr(dm.tempfile, "gettempdir", lambda: str(tmp_path))
    facts = SourceFacts(str(tmp_path / "source"), "disk", SIZE, "254:0", "mapped", "", busy=True)
    monkeypatch.setattr(dm, "holds", lambda *_: False)
    assert take(tmp_path, facts, "auto") == b"pppp"
    said = tools.log()
    begin = said.index("dmsetup suspend mapped")
    assert said[:begin] == [
        "dmsetup table mapped",
        f"losetup --find --show {tmp_path}/mountfs-0123.cow",
        "dmsetup create mountfs-0123-real",
        "dmsetup create mountfs-0123 --notable",
        (
            "dmsetup load mountfs-0123 --readonly --table "
            f"0 {sectors} snapshot /dev/mapper/mountfs-0123-real /dev/loop7 N 8"
        ),
        f"dmsetup load mapped --table 0 {sectors} snapshot-origin /dev/mapper/mountfs-0123-real",
    ]
    assert said[begin + 1 : begin + 3] == ["dmsetup resume mountfs-0123", "dmsetup resume mapped"]
    assert not (tmp_path / "mountfs-0123.cow").exists()
    check_failures(tools, facts, "dm", said)
    assert not (tmp_path / "mountfs-0123.cow").exists()


@pytest.mark.parametrize(
    "table",
    [
        "",
        "0 6144 crypt aes-xts-plain64 :64:logon:cryptsetup:x 0 98:0 0",
        "0 6144 linear 98:0 0\n6145 1 linear 98:0 9",
        "0 6143 linear 98:0 0",
        "x 6144 linear 98:0 0",
        "0 -1 linear",
    ],
)
def test_tables_that_cannot_stand_twice_are_refused(table: str) -> None:
    with pytest.raises(SnapshotError):
        dm.check_table(table, SIZE)
    assert dm.check_table("0 4096 linear 98:0 0\n4096 2048 striped 2 128 98:0 0 98:16 0\n", SIZE) == 6144


def test_a_program_is_not_ended_in_its_middle_by_ctrl_c(tmp_path: Path) -> None:
    timer = threading.Timer(0.3, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        programs.run("sh", "-c", f"sleep 1; cat >{tmp_path / 'done'}", stdin="all")
    timer.join()
    assert (tmp_path / "done").read_text() == "all"
    with pytest.raises(SnapshotError, match="failed: no"):
        programs.run("sh", "-c", "echo no >&2; exit 5")
    with pytest.raises(SnapshotError, match="not installed"):
        programs.run("no-such-program-anywhere")


def test_auto_tries_the_next_and_says_why_none_could(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stubs(tmp_path, monkeypatch, {"*lv_uuid=*": report(vg_free="0"), "*lv_tags=*": '{"report": []}'})
    source = open_source(str(tmp_path / "source"))
    facts = of_lvm(tmp_path)
    still, refusals = taking.take(source, facts, "auto", tmp_path / "journal", pytest.fail)
    assert still is source
    assert {refusal.name for refusal in refusals} >= {"lvm", "dm", "reflink", "btrfs"}
    assert "vg has no free space" in {refusal.name: refusal.reason for refusal in refusals}["lvm"]
    assert list((tmp_path / "journal").iterdir()) == []
    with pytest.raises(SnapshotError, match="no free space"):
        taking.take(source, facts, "lvm", tmp_path / "journal", pytest.fail)
    still_only = SourceFacts(facts.path, "file", SIZE, file_system="btrfs")
    assert taking.take(source, still_only, "auto", tmp_path / "journal", pytest.fail) == (source, ())
    assert taking.take(source, facts, "none", tmp_path / "journal", pytest.fail) == (source, ())
    with pytest.raises(UsageError, match="choose auto, none, btrfs, dm, freeze, lvm"):
        taking.take(source, facts, "zfs", tmp_path / "journal", pytest.fail)
    source.close()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_any_entry_of_the_journal_is_understood_or_dropped(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "one.json").write_bytes(content)
        for prefix in (b"", b'{"provider": "lvm", "facts": {"a": 1}}\n'):
            Path(folder, "two.json").write_bytes(prefix + content)
            for entry in journal.left_over(Path(folder)):
                assert all(isinstance(fact, str) for fact in (*entry.facts, *entry.facts.values()))
                entry.release()
        assert [path.name for path in Path(folder).iterdir()] == ["two.json"]
