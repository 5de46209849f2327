"""A chain that is known to be damaged is told as such and never built on."""

from __future__ import annotations

import os
from pathlib import Path

from imageformat.errors import CorruptImageError, UsageError
from support.product import mountfs

WARNED = 3


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def states(repo: Path) -> list[str]:
    return [point["state"] for point in mountfs("list", repo, "--json").facts["sets"][0]["points"]]


def test_a_backup_does_not_continue_what_verify_found_damaged(tmp_path: Path) -> None:
    disk, repo = tmp_path / "disk.img", tmp_path / "repo"
    disk.write_bytes(os.urandom(1 << 20))
    mountfs("backup", disk, repo)
    content = bytearray(disk.read_bytes())
    content[500_000:500_010] = bytes(10)
    disk.write_bytes(content)
    mountfs("backup", disk, repo)
    full, _ = sorted((repo / "disk").glob("*.mfi"))
    flip(full, 100_000)
    mountfs("verify", repo, code=CorruptImageError.exit_code)
    assert states(repo) == ["damaged", "damaged"]
    ran = mountfs("backup", disk, repo, code=WARNED)
    assert "damaged" in ran.err
    mountfs("restore", f"{repo}/disk@3", tmp_path / "back.img")
    assert (tmp_path / "back.img").read_bytes() == content
    mountfs("backup", disk, repo)
    assert states(repo) == ["damaged", "damaged", "ok", "ok"]


def test_a_differential_stands_on_a_full(tmp_path: Path) -> None:
    disk, repo = tmp_path / "disk.img", tmp_path / "repo"
    disk.write_bytes(os.urandom(1 << 18))
    mountfs("backup", disk, repo)
    mountfs("backup", disk, repo)
    ran = mountfs("backup", disk, repo, "--type", "diff", "--parent", "2", code=UsageError.exit_code)
    assert "point 2 is not full" in ran.err
    mountfs("backup", disk, repo, "--type", "diff", "--parent", "1")
