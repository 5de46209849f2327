"""The wrong disk is not overwritten: what is refused, what is shown, and who has to say what.

On real block devices, by the command line. A loop device has no serial number: its size stands for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engine.devices.guards import TargetFacts
from imageformat.errors import (
    NotConfirmedError,
    NotFoundError,
    TargetHoldsImageError,
    TargetInUseError,
    TargetMismatchError,
    TargetTooSmallError,
)
from mountfs.cli import targets
from support.content import mixture
from support.disks import MIB, Part, make_ext4, make_gpt_disk
from support.kernel import kernel_mount, loop_device
from support.product import command_line, environment, mountfs
from support.requirements import require_tool, run

if TYPE_CHECKING:
    from imageformat.errors import MountfsError

SIZE = 8 * MIB


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "disk.img").write_bytes(mixture(9, SIZE))
    mountfs("backup", folder / "disk.img", folder / "repo", "--raw")
    return folder / "repo"


def _refused(kind: type[MountfsError], *arguments: str | Path) -> str:
    return mountfs(*arguments, code=kind.exit_code).err


def _typed(answer: str, *arguments: str | Path) -> tuple[int, str]:
    """Run a command on a terminal where a person types that; exit code, and what was shown."""
    handle, terminal = pty.openpty()
    child = subprocess.Popen(
        command_line(*arguments),
        env=environment(TERM="dumb"),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    os.write(handle, f"{answer}\n".encode())
    seen = bytearray()
    with contextlib.suppress(OSError):
        while piece := os.read(handle, 65536):
            seen += piece
    os.close(handle)
    return child.wait(), seen.decode()


@pytest.mark.root
def test_a_device_wants_more_than_a_yes(repository: Path, tmp_path: Path) -> None:
    target, volume = tmp_path / "target", make_ext4(tmp_path / "fs", 4 * MIB, label="letters")
    make_gpt_disk(target, SIZE, [Part(4 * MIB, content=volume)])
    before = target.read_bytes()
    with loop_device(target, partscan=True) as device:
        point = f"{repository}/disk"
        said = _refused(NotConfirmedError, "restore", point, device, "--yes")
        assert f"--target-serial '{SIZE}'" in said
        assert "holds partition 1: ext4 'letters', 4.0 MiB" in said
        for wrong in (str(SIZE + 1), "S3X", "", "/dev/sda"):
            told = _refused(TargetMismatchError, "restore", point, device, "--yes", "--target-serial", wrong)
            assert "not the disk that was demanded" in told
        for answer in ("y", "yes", "", str(SIZE - 1)):
            code, shown = _typed(answer, "restore", point, device)
            assert code == NotConfirmedError.exit_code
            assert f"type '{SIZE}':" in shown
        assert target.read_bytes() == before, "nothing of that has written"
        code, shown = _typed(str(SIZE), "restore", point, device)
        assert (code, "restored" in shown) == (0, True)
        assert target.read_bytes() == mixture(9, SIZE)
        link = tmp_path / "by-id"
        link.symlink_to(device)
        mountfs("restore", point, link, "--target-serial", str(SIZE), "--verify")
        _refused(TargetMismatchError, "restore", point, tmp_path / "file", "--target-serial", str(SIZE))
        assert not (tmp_path / "file").exists()


@pytest.mark.root
def test_a_size_names_a_device_only_while_it_is_the_only_one(repository: Path, tmp_path: Path) -> None:
    size = SIZE + 4096 * (os.getpid() % 1000 + 1)
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(b"")
        os.truncate(tmp_path / name, size)
    point, name = f"{repository}/disk", f"size={size}"
    said = _refused(NotFoundError, "restore", point, name)
    assert "mountfs: hint: /dev/" in said or not Path("/sys/block").is_dir()
    with loop_device(tmp_path / "one") as one:
        mountfs("restore", point, name, "--target-serial", str(size))
        assert (tmp_path / "one").read_bytes()[:SIZE] == mixture(9, SIZE)
        mountfs("backup", name, tmp_path / "repo", "--raw")
        assert (tmp_path / "repo" / Path(one).name).is_dir()
        with loop_device(tmp_path / "two") as two:
            said = mountfs("restore", point, name, "--target-serial", str(size), code=61).err
            assert one in said
            assert two in said
    assert (tmp_path / "two").read_bytes() == bytes(size)


@pytest.mark.root
def test_wrong_targets_are_refused_before_anybody_is_asked(repository: Path, tmp_path: Path) -> None:
    """Mounted, a partition of it mounted, under another device, small, and what is read: all unwritten."""
    volume = make_ext4(tmp_path / "volume", 40 * MIB)
    make_gpt_disk(tmp_path / "disk", 48 * MIB, [Part(40 * MIB, content=volume), Part(MIB)])
    point, agreed = f"{repository}/disk", ("--yes", "--target-serial")
    with loop_device(tmp_path / "disk", partscan=True) as device:
        with kernel_mount(f"{device}p1", "ext4", read_only=False) as folder:
            for target, size in ((device, 48 * MIB), (f"{device}p1", 40 * MIB)):
                _refused(TargetInUseError, "restore", point, target, *agreed, str(size))
            run("cp", "-r", repository, folder / "repo")
            for target, size in ((device, 48 * MIB), (f"{device}p1", 40 * MIB)):
                _refused(TargetHoldsImageError, "restore", folder / "repo", target, *agreed, str(size))
            (folder / "inner").write_bytes(b"")
            os.truncate(folder / "inner", SIZE)
            with loop_device(folder / "inner") as inner, loop_device(Path(inner)) as outer:
                _refused(TargetInUseError, "restore", point, inner, *agreed, str(SIZE))
                mountfs("restore", point, outer, *agreed, str(SIZE))
            assert (folder / "inner").read_bytes() == mixture(9, SIZE)
        _refused(TargetTooSmallError, "restore", point, f"{device}p2", *agreed, str(MIB))
    image = next((repository / "disk").glob("*.mfi"))
    with loop_device(image) as attached:
        size = image.stat().st_size // 512 * 512
        _refused(TargetHoldsImageError, "restore", point, attached, *agreed, str(size))


@pytest.mark.root
def test_disks_are_listed_as_lsblk_sees_them(tmp_path: Path) -> None:
    require_tool("lsblk")
    parts = [Part(4 * MIB, content=make_ext4(tmp_path / "fs", 4 * MIB, label="letters")), Part(MIB)]
    make_gpt_disk(tmp_path / "disk", 8 * MIB, parts)
    with (
        loop_device(tmp_path / "disk", partscan=True) as device,
        kernel_mount(f"{device}p1", "ext4") as folder,
    ):
        (told,) = [disk for disk in mountfs("disks", "--json").facts["disks"] if disk["name"] == device]
        listed = run("lsblk", "--json", "--bytes", "--output", "NAME,PATH,SIZE,SERIAL", device)
        (seen,) = json.loads(listed)["blockdevices"]
        assert (told["size"], told["serial"] or None) == (seen["size"], seen["serial"])
        assert [(part["name"], part["size"]) for part in told["partitions"]] == [
            (part["path"], part["size"]) for part in seen["children"]
        ]
        first, second = told["partitions"]
        assert (first["file_system"], first["label"], first["mounted_at"]) == (
            "ext4",
            "letters",
            [str(folder)],
        )
        assert (second["file_system"], second["label"], second["mounted_at"]) == ("", "", [])
        shown = mountfs("disks").out.decode()
        assert re.search(rf"{device}p1 +4\.0 MiB +ext4 +letters +{folder}", shown)


class _Person:
    """A renderer that answers."""

    def __init__(self, answer: str) -> None:
        self.answer, self.told, self.asked = answer, [], []  # type: ignore[var-annotated]

    def note(self, text: str) -> None:
        self.told.append(text)

    def ask(self, question: str) -> str:
        self.asked.append(question)
        return self.answer

    def confirm(self, question: str) -> bool:
        self.asked.append(question)
        return self.answer == "y"


STICK = TargetFacts(path="/dev/sdz", kind="disk", size=SIZE, model="Stick", serial="S3X", wwn="0x5")


@pytest.mark.parametrize(
    ("facts", "answer", "yes", "serial", "error"),
    [
        (STICK, "S3X", False, None, None),
        (STICK, "y", True, None, NotConfirmedError),
        (STICK, "0x5", False, None, NotConfirmedError),
        (STICK, "/dev/sdz", False, None, NotConfirmedError),
        (STICK, "", False, "S3X", None),
        (STICK, "S3X", True, "S3Y", TargetMismatchError),
        (TargetFacts("/f", "file", 5), "y", False, None, None),
        (TargetFacts("/f", "file", 5), "", True, None, None),
        (TargetFacts("/f", "file", 5), "n", False, None, NotConfirmedError),
        (TargetFacts("/f", "file", 5), "y", True, "S3X", TargetMismatchError),
        (TargetFacts("/f", "new file", 0), "", False, None, None),
        (TargetFacts("/f", "new file", 0), "", True, "S3X", TargetMismatchError),
    ],
)
def test_who_agrees_to_what(
    monkeypatch: pytest.MonkeyPatch,
    facts: TargetFacts,
    answer: str,
    yes: bool,
    serial: str | None,
    error: type[MountfsError] | None,
) -> None:
    monkeypatch.setattr(targets, "target_facts", lambda *_, **__: facts)
    person: Any = _Person(answer)

    def agree() -> TargetFacts:
        return targets.agreed_target(person, facts.path, SIZE, what="point 3", yes=yes, serial=serial)

    if error is None:
        assert agree() is facts
    else:
        with pytest.raises(error):
            agree()
    if person.asked and facts.is_device:
        assert person.told[0] == "target: /dev/sdz (Stick, serial S3X), 8.0 MiB"
        assert "type its serial number" in person.asked[0]
        assert "S3X" not in person.asked[0], "it is to be read from the line above, not typed back blindly"
