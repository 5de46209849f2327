"""Verifying as a habit: a budget for each run, and verification after each backup."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from engine.sourcecheck import compare_with_source
from imageformat.device import MemoryDevice
from imageformat.errors import VerificationError
from support.disks import MIB
from support.kernel import kernel_mount, loop_device
from support.product import mountfs
from support.requirements import require_root, require_tool, run


def source_of(path: Path, seed: int) -> Path:
    path.write_bytes(random.Random(seed).randbytes(6 * MIB))
    return path


def ledgers(repo: Path) -> list[Path]:
    return sorted(repo.glob("*/*.proven"))


def test_a_repository_is_proven_in_parts_and_nothing_blocks_it(tmp_path: Path) -> None:
    repo, source = tmp_path / "repo", tmp_path / "disk.img"
    for seed in (1, 2):
        mountfs("backup", source_of(source, seed), repo, "--type", "full")
    shares, read = [], 0
    for _ in range(5):
        done = mountfs("verify", repo, "--budget", "3MiB", "--json")
        last = done.results[-1]
        shares.append(last["proven_fraction"])
        read += sum(fact["stored_bytes"] for fact in done.results[:-1])
        if last["proven_since_ns"]:
            break
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert 12 * MIB <= read < 17 * MIB, "the last run goes on with the oldest"
    assert len(ledgers(repo)) == 1
    assert "all of it since" in mountfs("verify", repo, "--budget", "2h").out.decode()
    assert "verified" in mountfs("list", repo).out.decode()
    ledgers(repo)[0].write_bytes(b"{")
    assert "counts as never proven" in mountfs("verify", repo, "--budget", "1MiB").err
    assert mountfs("verify", f"{repo}/disk@1", "--budget", "1MiB", code=2).err
    for wrong in ("0", "1 day", "x"):
        mountfs("verify", repo, "--budget", wrong, code=2)


def test_damage_has_the_exit_code_of_verify(tmp_path: Path) -> None:
    repo, source = tmp_path / "repo", tmp_path / "disk.img"
    mountfs("backup", source_of(source, 1), repo)
    (image,) = repo.glob("disk/*.mfi")
    content = bytearray(image.read_bytes())
    content[3 * MIB] ^= 1
    image.write_bytes(content)
    codes = [mountfs("verify", repo, "--budget", "2MiB", code=None).code for _ in range(3)]
    assert codes.count(13) == 1
    facts = json.loads(ledgers(repo)[0].read_text("utf-8"))
    (rows,) = facts["images"].values()
    bad = [row for row in rows if not row[3]]
    assert len(bad) == 1
    assert bad[0][1] - bad[0][0] < 2 * MIB


def test_what_is_left_out_is_not_compared_with_the_source(tmp_path: Path) -> None:
    require_root()
    require_tool("mke2fs")
    repo, source = tmp_path / "repo", source_of(tmp_path / "disk.img", 5)
    with source.open("r+b") as file:
        file.write(bytes(MIB))
    run("mke2fs", "-q", "-F", "-t", "ext4", "-E", "nodiscard", source)
    with loop_device(source) as device, kernel_mount(device, "ext4", read_only=False) as top:
        (top / "big.iso").write_bytes(random.Random(6).randbytes(MIB))
        refused = mountfs("backup", device, repo, "--verify", "source", code=2)
        assert "cannot be compared with its image" in refused.err
        assert not list(repo.glob("*/*.mfi"))
    done = mountfs("backup", source, repo, "--verify", "source", "--exclude", "*.iso").out.decode()
    assert "every block verified" in done
    assert "equal to the source" in done
    assert ledgers(repo)


def test_a_source_that_differs_is_found() -> None:
    disk = random.Random(1).randbytes(3 * MIB)
    assert compare_with_source(MemoryDevice(disk), MemoryDevice(disk)) == len(disk)
    other = disk[: 2 * MIB + 7] + b"\0\1" + disk[2 * MIB + 9 :]
    with pytest.raises(VerificationError, match=rf"disk offset {2 * MIB + 7}"):
        compare_with_source(MemoryDevice(disk), MemoryDevice(other))
    with pytest.raises(VerificationError, match="the source has"):
        compare_with_source(MemoryDevice(disk), MemoryDevice(disk[:-1]))
