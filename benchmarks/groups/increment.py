"""The second day over the first: time and size."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from benchmarks import machine, peers, product
from benchmarks.runner import Bench, Case, Sample, Target, stored_mib, timed

if TYPE_CHECKING:
    from pathlib import Path

TITLE = "Incremental image"
REBASE = "qemu-img rebase"
TARGETS = (
    Target("incremental, time", "seconds", product.NAME, (REBASE, peers.RESTIC, peers.BORG), 2.0),
    Target("incremental, time", "seconds", product.NAME, (peers.DD,), 1.3, at_most=True),
    Target("incremental, size", "mib", product.NAME, (REBASE,), 0.35, at_most=True),
)


def run(bench: Bench) -> None:
    """Everyone has the first day and is given the second, cold; what they did is undone for every round."""
    first, second, _ = bench.workload.days
    cases: dict[str, Case] = {
        product.NAME: _product(bench),
        peers.DD: lambda: _cold(second, lambda: timed(peers.read_once(second))),
    }
    if bench.needs(REBASE, "qemu-img"):
        cases[REBASE] = _rebase(bench)
    source = bench.scratch / "source"
    source.mkdir()
    _become(source, first)
    if bench.needs(peers.RESTIC, "restic"):
        cases[peers.RESTIC] = _restic(bench, source)
    if bench.needs(peers.BORG, "borg"):
        cases[peers.BORG] = _borg(bench, source)
    _become(source, second)
    bench.run(cases)


def _cold(disk: Path, measure: Case) -> Sample:
    machine.cold([disk])
    return measure()


def _become(source: Path, disk: Path) -> None:
    """The disk of another day under the name of the day before: restic and borg go by names."""
    peers.remove(source / "disk.img")
    os.link(disk, source / "disk.img")


def _product(bench: Bench) -> Case:
    first, second, _ = bench.workload.days
    template, repo = bench.scratch / "template", bench.scratch / "repo"
    product.run(product.backup(first, template))
    before = stored_mib(template)

    def case() -> Sample:
        peers.fresh_copy(template, repo)
        sample = _cold(second, lambda: timed(product.backup(second, repo)))
        return {**sample, "mib": stored_mib(repo) - before}

    return case


def _rebase(bench: Bench) -> Case:
    """Only `rebase` compares; `convert -B` writes everything. Compressing the overlay is not timed."""
    first, second, _ = bench.workload.days
    base, overlay, small = (bench.scratch / name for name in ("base.qcow2", "over.qcow2", "small.qcow2"))
    product.run(peers.to_qcow2(first, base))

    def case() -> Sample:
        peers.remove(overlay, small)
        product.run(["qemu-img", "create", "-f", "qcow2", "-b", str(second), "-F", "raw", str(overlay)])
        rebase = ["qemu-img", "rebase", "-b", str(base), "-F", "qcow2", str(overlay)]
        machine.cold([base])
        sample = _cold(second, lambda: timed(rebase))
        product.run(peers.compressed_overlay(overlay, base, small))
        return {**sample, "mib": stored_mib(small)}

    return case


def _restic(bench: Bench, source: Path) -> Case:
    template, folder = bench.scratch / "restic-template", bench.scratch / "restic"
    template.mkdir()
    password = {"RESTIC_PASSWORD": "bench"}
    timed(peers.restic(template, "init"), **password)
    timed(peers.restic(template, "backup", source), **password)
    before = stored_mib(template / "repo")

    def case() -> Sample:
        peers.fresh_copy(template, folder)
        command = peers.restic(folder, "backup", "--force", source)
        sample = _cold(source / "disk.img", lambda: timed(command, **password))
        return {**sample, "mib": stored_mib(folder / "repo") - before}

    return case


def _borg(bench: Bench, source: Path) -> Case:
    template, folder = bench.scratch / "borg-template", bench.scratch / "borg"
    template.mkdir()

    def create(place: Path, name: str) -> Sample:
        command = ["borg", "create", "-C", "zstd,3", f"{place}/repo::{name}", source]
        return timed(command, **peers.borg_environment(place / "home"))

    timed(["borg", "init", "-e", "none", template / "repo"], **peers.borg_environment(template / "home"))
    create(template, "day0")
    before = stored_mib(template / "repo")

    def case() -> Sample:
        peers.fresh_copy(template, folder)
        sample = _cold(source / "disk.img", lambda: create(folder, "day1"))
        return {**sample, "mib": stored_mib(folder / "repo") - before}

    return case
