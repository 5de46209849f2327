"""Which mounts can change a source while it is being imaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from engine.devices.guards import written_at
from imageformat.errors import NotFoundError
from support.fakemachine import MIB, FakeMachine

if TYPE_CHECKING:
    from pathlib import Path


def test_only_what_is_mounted_to_be_written_counts(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path)
    machine.disk("sda", "8:0", 50 * MIB)
    machine.partition("sda", 1, "8:1", 10 * MIB, MIB)
    machine.partition("sda", 2, "8:2", 10 * MIB, 12 * MIB)
    machine.disk("sdb", "8:16", 50 * MIB)
    machine.mount("8:1", "/still", options="ro,noload")
    machine.mount("8:16", "/other")
    assert written_at(f"{machine.roots.dev}/sda", machine.roots) == ()
    machine.mount("8:2", "/moving")
    machine.mount("8:2", "/again")
    assert written_at(f"{machine.roots.dev}/sda", machine.roots) == ("/moving", "/again")
    assert written_at(f"{machine.roots.dev}/sda2", machine.roots) == ("/moving", "/again")
    assert written_at(f"{machine.roots.dev}/sda1", machine.roots) == ()


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        written_at(str(tmp_path / "none"), FakeMachine(tmp_path / "machine").roots)
