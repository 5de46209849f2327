"""What commands load: nobody waits for the readers of formats and file systems that he does not use."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from support.product import environment, mountfs

if TYPE_CHECKING:
    from pathlib import Path

_TOLD = """
import sys
from mountfs.cli.__main__ import run
code = run(sys.argv[1:])
print(*sorted(sys.modules), file=sys.stderr)
sys.exit(code)
"""


def loaded_by(*arguments: str | Path) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", _TOLD, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    return set(done.stderr.splitlines()[-1].split())


def test_our_own_images_load_no_reader_of_other_formats(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    mountfs("backup", tmp_path / "disk.img", tmp_path / "repo", "--set", "s")
    for arguments in (
        ("list", tmp_path / "repo"),
        ("ls", f"{tmp_path}/repo/s:/"),
        ("info", f"{tmp_path}/repo/s"),
    ):
        found = {
            name.split(".")[2] for name in loaded_by(*arguments) if name.startswith("imageformat.formats.")
        }
        assert found == {"native"}, arguments


def test_the_help_loads_next_to_nothing() -> None:
    loaded = loaded_by("--help")
    assert not {"zstandard", "xxhash", "pytsk3", "cryptography", "numpy"} & loaded
    assert not {name for name in loaded if name.startswith(("engine.", "mountfs.drivers"))}
