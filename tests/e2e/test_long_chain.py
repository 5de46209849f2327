"""A chain of a hundred points (nightly: five hundred) of a tiny disk: every way in works at any point."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.content import mixture, noise
from support.points import Kept, digest_of
from support.product import mounted, mountfs

pytestmark = pytest.mark.xdist_group("long chain")

DISK, BLOCK = 3 << 20, 4096
"""Three pages of the index, most of which are an older image's at any point."""
FEW_FILES = 64
"""Open files that a command may have at once; usual are 1024, for chains of up to a thousand images."""


@dataclass(frozen=True)
class Long:
    """The chain, and how many points it has."""

    kept: Kept
    points: int

    @property
    def places(self) -> tuple[int, ...]:
        """Some points from all over the chain."""
        return 1, 2, self.points // 2, self.points - 1, self.points


@pytest.fixture(
    scope="module",
    params=[100, pytest.param(500, marks=[pytest.mark.nightly, pytest.mark.timeout(900)])],
)
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Long]:
    """Every point changes one block, so that blocks of every point are still in use at the end."""
    folder = tmp_path_factory.mktemp("long")
    source = folder / "disk.img"
    source.write_bytes(mixture(1, DISK))
    kept = Kept(source, folder / "repository")
    for number in range(request.param):
        with source.open("r+b") as disk:
            disk.seek(number * 7 % (DISK // BLOCK) * BLOCK)
            disk.write(noise(number, BLOCK))
        kept.back_up(block_size=BLOCK)
    return Long(kept, request.param)


def test_it_is_one_chain(chain: Long) -> None:
    (found,) = mountfs("list", "--json", chain.kept.place).facts["sets"]
    assert [point["number"] for point in found["points"]] == list(range(1, chain.points + 1))
    assert [point["depth"] for point in found["points"]] == list(range(chain.points))
    assert {point["state"] for point in found["points"]} == {"ok"}
    newest = mountfs("info", "--json", chain.kept.folder).facts
    assert len(newest["chain"]) == chain.points


def test_any_point_is_restored(chain: Long, tmp_path: Path) -> None:
    for number in chain.places:
        target = tmp_path / f"restored-{number}.img"
        mountfs("restore", "--verify", f"{chain.kept.folder}@{number}", target)
        assert digest_of(target) == chain.kept.digests[number], number


@pytest.mark.fuse
def test_any_point_is_read_in_a_mount(chain: Long) -> None:
    with mounted(chain.kept.place) as shown:
        assert len(list((shown / "disk").iterdir())) == chain.points + 1
        for number in chain.places:
            (folder,) = (shown / "disk").glob(f"{number:04}-*")
            assert digest_of(folder / "disk.img") == chain.kept.digests[number], number


def test_all_of_it_is_verified(chain: Long) -> None:
    lines = [line for line in mountfs("verify", chain.kept.place).out.splitlines() if line.startswith(b"ok ")]
    assert len(lines) == chain.points
    (found,) = mountfs("list", "--json", chain.kept.place).facts["sets"]
    assert {point["state"] for point in found["points"]} == {"verified"}


def test_a_missing_link_breaks_what_stands_on_it_and_no_more(chain: Long, tmp_path: Path) -> None:
    middle, away = chain.kept.file_of(chain.points // 2), tmp_path / "away"
    middle.rename(away)
    try:
        (found,) = mountfs("list", "--json", chain.kept.place).facts["sets"]
        broken = [point["number"] for point in found["points"] if point["state"] == "broken"]
        assert broken == list(range(chain.points // 2 + 1, chain.points + 1))
    finally:
        away.rename(middle)
    chain.kept.check_nothing_else()


def test_a_chain_longer_than_files_may_be_open(chain: Long, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_FILES, limits[1]))
    try:
        mountfs("restore", f"{chain.kept.folder}@{chain.points}", tmp_path / "restored.img")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
