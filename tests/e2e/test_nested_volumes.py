"""A GPT disk with LUKS2 in a partition, LVM in that, ext4 and a whole MBR disk in that: all commands."""

from __future__ import annotations

import os
import pty
import select
import struct
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from support.containers import (
    MIB,
    PASSWORD,
    Piece,
    encrypt_luks2,
    password_file,
    volume_group,
    write_pieces,
)
from support.content import noise
from support.disks import Part, make_gpt_disk
from support.product import command_line, environment, mounted, mountfs
from support.requirements import REPOSITORY, require_tool, run

LOCKED = 64
ROOT = "2/1/1"


class Made(NamedTuple):
    image: str
    disk: Path
    password: Path
    files: dict[str, bytes]
    """Of the volume `root`, by path."""
    root: bytes
    """The bytes of the volume `root`."""
    pieces: list[Piece]
    """Where lvs says that they lie in the physical volume."""

    def place(self, offset: int) -> int:
        """Where a byte of `root` lies on the disk: behind the GPT and the LUKS header, and as lvs says."""
        piece = next(piece for piece in self.pieces if piece.start <= offset < piece.start + piece.size)
        return 5 * MIB + 16 * MIB + piece.offset + offset - piece.start


def ext4(path: Path, folder: Path, label: str, size: int = 8) -> bytes:
    run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-L", label, "-d", folder, path, f"{size}M")
    return path.read_bytes()


def mbr_disk(folder: Path) -> bytes:
    """A disk with a table and one FAT partition."""
    run("mkfs.vfat", "-C", folder / "fat", "-n", "INNER", "2048")
    (folder / "note").write_bytes(b"on a disk in a volume\n")
    run("mcopy", "-i", folder / "fat", folder / "note", "::note.txt")
    entry = struct.pack("<B3xB3xII", 0, 0x0C, 2048, 4096)
    head = bytes(440) + b"\1\2\3\4\0\0" + entry + bytes(48) + b"\x55\xaa"
    return (head.ljust(MIB, b"\0") + (folder / "fat").read_bytes()).ljust(8 * MIB, b"\0")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    require_tool("mke2fs", "mkfs.vfat", "mcopy")
    folder = tmp_path_factory.mktemp("nested")
    files = {"etc/fstab": b"# nothing\n", "big": noise(5, 700_000), "etc/deep/er/file": b"deep\n"}
    source = folder / "source"
    for name, content in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    root = ext4(folder / "root.img", source, "ROOTLABEL")
    (folder / "boot").mkdir()
    (folder / "boot" / "kernel").write_bytes(b"kernel")
    ext4(folder / "boot.img", folder / "boot", "boot", 4)
    volume = folder / "pv"
    volume.write_bytes(b"")
    os.truncate(volume, 40 * MIB)
    with volume_group(volume) as group:
        for name in ("root", "disk"):
            group.create(name, 4)
        for name in ("root", "disk"):
            group.call("lvextend", "-l", "8", f"vg0/{name}")
        group.create("empty", 2)
        pieces = {name: group.pieces(name) for name in ("root", "disk")}
    assert len(pieces["root"]) == 2
    write_pieces([volume], pieces["root"], root)
    write_pieces([volume], pieces["disk"], mbr_disk(folder))
    encrypt_luks2(volume, "--sector-size", "512")
    disk = folder / "disk.raw"
    parts = [
        Part(4 * MIB, name="boot", content=folder / "boot.img"),
        Part(72 * MIB, name="secret", content=volume),
    ]
    make_gpt_disk(disk, 80 * MIB, parts)
    mountfs("backup", disk, folder / "repo", "--set", "sda", "--quiet")
    return Made(f"{folder}/repo/sda", disk, password_file(folder), files, root, pieces["root"])


def unlocked(made: Made) -> tuple[str, str]:
    return ("--password-file", str(made.password))


def names(text: bytes) -> list[str]:
    return text.decode().splitlines()


def test_ls_at_every_depth(made: Made) -> None:
    assert names(mountfs("ls", made.image).out) == ["1-ext4-boot", "2-luks2-secret", "disk.img"]
    secret = unlocked(made)
    assert names(mountfs("ls", f"{made.image}:2", *secret).out) == ["1-lvm2-vg0"]
    assert names(mountfs("ls", f"{made.image}:2/1", *secret).out) == ["1-ext4-root", "2-mbr-disk", "3-empty"]
    assert "fstab" in names(
        mountfs("ls", f"{made.image}:2-luks2-secret/1-lvm2-vg0/1-ext4-root/etc", *secret).out
    )
    assert names(mountfs("ls", f"{made.image}:2/1/2", *secret).out) == ["1-fat12-INNER"]
    assert names(mountfs("ls", f"{made.image}:2/1/3", *secret).out) == ["README", "partition.img"]


def test_cat(made: Made) -> None:
    for name, content in made.files.items():
        assert mountfs("cat", f"{made.image}:{ROOT}/{name}", *unlocked(made)).out == content
    note = mountfs("cat", f"{made.image}:2/1/2/1/NOTE.TXT", *unlocked(made), code=None)
    other = mountfs("cat", f"{made.image}:2/1/2/1/note.txt", *unlocked(made), code=None)
    assert b"on a disk in a volume\n" in {note.out, other.out}


def test_tree_and_cp(made: Made, tmp_path: Path) -> None:
    drawn = mountfs("tree", f"{made.image}", *unlocked(made)).out.decode()
    assert all(name in drawn for name in ("1-lvm2-vg0", "2-mbr-disk", "1-fat12-INNER", "fstab", "kernel"))
    mountfs("cp", f"{made.image}:2", tmp_path, *unlocked(made))
    (copy,) = tmp_path.iterdir()
    for name, content in made.files.items():
        assert (copy / "1-lvm2-vg0" / "1-ext4-root" / name).read_bytes() == content


def test_inode_numbers_are_distinct(made: Made) -> None:
    drawn = mountfs("tree", made.image, "--json", *unlocked(made)).results
    known = [row["inode"] for row in drawn if row["depth"] and row["links"] == 1 and row["kind"] == "file"]
    assert len(set(known)) == len(known)
    assert 0 not in known


def test_info(made: Made) -> None:
    def shown(*options: str) -> dict[str, tuple[str, bool]]:
        facts = mountfs("info", made.image, "--json", *options).facts
        return {
            volume["folder"]: ((volume["file_system"] or {}).get("type", ""), volume["locked"])
            for volume in facts["volumes"]
        }

    assert shown() == {"1-ext4-boot": ("ext4", False), "2-luks2-secret": ("luks2", True)}
    assert "luks2 (locked)" in mountfs("info", made.image).out.decode()
    everything = shown(*unlocked(made))
    assert everything == {
        "1-ext4-boot": ("ext4", False),
        "2-luks2-secret": ("luks2", False),
        "2-luks2-secret/1-lvm2-vg0": ("lvm2", False),
        "2-luks2-secret/1-lvm2-vg0/1-ext4-root": ("ext4", False),
        "2-luks2-secret/1-lvm2-vg0/2-mbr-disk": ("mbr", False),
        "2-luks2-secret/1-lvm2-vg0/2-mbr-disk/1-fat12-INNER": ("fat12", False),
        "2-luks2-secret/1-lvm2-vg0/3-empty": ("", False),
    }


def test_restore_of_an_inner_volume(made: Made, tmp_path: Path) -> None:
    mountfs("restore", f"{made.image}:{ROOT}", tmp_path / "root", *unlocked(made), "--verify")
    assert (tmp_path / "root").read_bytes() == made.root
    mountfs("restore", f"{made.image}:2", tmp_path / "ciphertext")
    with made.disk.open("rb") as disk:
        disk.seek(5 * MIB)
        assert (tmp_path / "ciphertext").read_bytes() == disk.read(72 * MIB)
    told = mountfs("restore", f"{made.image}:2/1", tmp_path / "none", code=LOCKED)
    assert "locked" in told.errors[0]
    assert not (tmp_path / "none").exists()
    assert mountfs("restore", f"{made.image}:{ROOT}/big", tmp_path / "none", *unlocked(made), code=2).errors


def test_a_mount(made: Made) -> None:
    with mounted(made.image + "@latest", *unlocked(made)) as folder:
        root = folder / "2-luks2-secret" / "1-lvm2-vg0" / "1-ext4-root"
        for name, content in made.files.items():
            assert (root / name).read_bytes() == content
        inodes = [path.stat().st_ino for path in folder.rglob("*") if path.is_file()]
        assert len(set(inodes)) == len(inodes)
    with mounted(made.image) as folder:
        locked = folder / "latest" / "2-luks2-secret"
        assert sorted(path.name for path in locked.iterdir()) == ["README", "partition.img"]
        assert "--password-file" in (locked / "README").read_text()


def test_locked_without_a_secret(made: Made, tmp_path: Path) -> None:
    listed = mountfs("ls", f"{made.image}:2", code=LOCKED)
    assert names(listed.out) == ["README", "partition.img"]
    assert len(listed.errors) == 1
    assert "2-luks2-secret is locked" in listed.errors[0]
    assert mountfs("cat", f"{made.image}:2/1/etc/fstab", code=LOCKED).out == b""
    assert b"ls IMAGE:2 --password-file" in mountfs("cat", f"{made.image}:2/README").out
    assert b"partition.img" in mountfs("tree", made.image).out
    mountfs("cp", f"{made.image}:2", tmp_path, code=LOCKED)


def test_a_wrong_secret(made: Made, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong\n")
    for command in (("ls", f"{made.image}:2"), ("tree", made.image), ("cat", f"{made.image}:2/1/x")):
        told = mountfs(*command, "--password-file", wrong, code=LOCKED)
        assert len(told.errors) == 1
        assert "none of the passwords" in told.errors[0]
    assert mountfs("ls", f"{made.image}:1", "--password-file", wrong).out
    both = ("--password-file", str(wrong), *unlocked(made))
    assert names(mountfs("ls", f"{made.image}:2", *both).out) == ["1-lvm2-vg0"]


def test_without_the_library(made: Made, tmp_path: Path) -> None:
    stub = tmp_path / "cryptography"
    stub.mkdir()
    (stub / "__init__.py").write_text("raise ModuleNotFoundError('no', name='cryptography')\n")
    env = environment(PYTHONPATH=f"{tmp_path}:{REPOSITORY}")
    listed = mountfs("ls", f"{made.image}:2", *unlocked(made), env=env)
    assert names(listed.out) == ["README", "partition.img"]
    assert b"install mountfs[volumes]" in mountfs("cat", f"{made.image}:2/README", env=env).out
    assert "install mountfs[volumes]" in mountfs("info", made.image, env=env).out.decode()
    told = mountfs("cat", f"{made.image}:2/1/etc/fstab", *unlocked(made), env=env, code=60)
    assert "there is no '1'" in told.errors[0]
    assert "install mountfs[volumes]" in told.err
    assert "needs cryptography" in mountfs("doctor", env=env, code=None).out.decode()


def test_where_secrets_come_from(made: Made, tmp_path: Path) -> None:
    lines = tmp_path / "with-newline"
    lines.write_text(PASSWORD + "\n")
    assert mountfs("ls", f"{made.image}:2", "--password-file", lines).out == b"1-lvm2-vg0\n"
    assert mountfs("ls", f"{made.image}:2", "--key-file", made.password).out == b"1-lvm2-vg0\n"
    assert mountfs("ls", f"{made.image}:2", "--key-file", lines, code=LOCKED).errors
    piped = subprocess.run(
        command_line("ls", f"{made.image}:2", "--password-file", "-"),
        input=PASSWORD.encode(), env=environment(), capture_output=True, check=True,
    )  # fmt: skip
    assert piped.stdout == b"1-lvm2-vg0\n"
    assert (
        "no such file" in mountfs("ls", made.image, "--password-file", tmp_path / "none", code=60).errors[0]
    )
    assert mountfs("ls", made.image, "--password-file", "-", "--key-file", "-", code=2).errors
    long = tmp_path / "long"
    long.write_bytes(b"")
    os.truncate(long, 9 * MIB)
    assert "longer" in mountfs("ls", made.image, "--key-file", long, code=2).errors[0]


def at_a_terminal(answers: list[str], *arguments: str) -> tuple[int, str]:
    """Run a command at a terminal and answer its questions; its exit code, and all that was on the screen."""
    pid, terminal = pty.fork()
    if pid == 0:
        line = command_line(*arguments)
        os.execve(line[0], line, environment())
    shown, pending = b"", list(answers)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if select.select([terminal], [], [], 1)[0]:
            try:
                piece = os.read(terminal, 4096)
            except OSError:
                break
            if not piece:
                break
            shown += piece
            if shown.endswith(b": ") and pending and b"Password" in shown.splitlines()[-1]:
                os.write(terminal, pending.pop(0).encode() + b"\n")
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode(errors="replace")


def test_a_person_is_asked(made: Made) -> None:
    code, shown = at_a_terminal([PASSWORD], "ls", f"{made.image}:{ROOT}/etc")
    assert (code, "fstab" in shown) == (0, True)
    assert PASSWORD not in shown
    code, shown = at_a_terminal(["wrong", PASSWORD], "cat", f"{made.image}:{ROOT}/etc/fstab")
    assert (code, "# nothing" in shown) == (0, True)
    code, shown = at_a_terminal(["a", "b", "c"], "ls", f"{made.image}:2/1")
    assert (code, shown.count("Password of")) == (LOCKED, 3)
    code, shown = at_a_terminal([], "ls", made.image)
    assert (code, "Password" in shown) == (0, False)


def damaged_copy(made: Made, folder: Path, offset: int) -> str:
    """A repository whose image has damage where a byte of the disk is stored."""
    repo = folder / "repo"
    run("cp", "-r", "--reflink=auto", Path(made.image).parent, repo)
    listed = mountfs("verify", repo, "--json", code=None).results
    assert listed[0]["damaged"] == 0
    image = repo / "sda" / str(listed[0]["file"]).rsplit("/", 1)[-1]
    content = bytearray(image.read_bytes())
    with made.disk.open("rb") as disk:
        disk.seek(offset)
        wanted = disk.read(4096)
    at = content.find(wanted)
    assert at > 0, "ciphertext does not compress, so it is stored as it is"
    content[at] ^= 1
    image.chmod(0o600)
    image.write_bytes(content)
    return str(repo)


def test_verify_names_files_through_all_containers(made: Made, tmp_path: Path) -> None:
    """A damaged byte of the disk, in the ciphertext of a file."""
    place = made.place(made.root.find(made.files["big"][512_000:516_096]))
    repo = damaged_copy(made, tmp_path, place)
    (report,) = mountfs("verify", repo, "--json", *unlocked(made), code=13).results
    (damage,) = report["damages"]
    assert damage["disk_offset"] <= place < damage["disk_offset"] + damage["length"]
    assert "2-luks2-secret/1-lvm2-vg0/1-ext4-root/big" in damage["files"]
    (report,) = mountfs("verify", repo, "--json", code=13).results
    assert report["damages"][0]["files"] == ["not known: 2-luks2-secret is locked"]
