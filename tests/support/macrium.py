"""The real Macrium files, unpacked once in a run, and what is known of them."""

from __future__ import annotations

import json
import shutil
import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from support.requirements import shared_data_folder, unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def unpacked(archive: str, folder: Path) -> Iterator[Path]:
    """An archive of the shared data, unpacked; it is big, and so removed at the end."""
    packed = shared_data_folder() / archive
    if not packed.exists():
        unavailable(f"needs {packed}")
    with zipfile.ZipFile(packed) as opened:
        opened.extractall(folder)
    yield folder
    shutil.rmtree(folder)


def known_facts() -> dict[str, Any]:
    """What was measured of the real files, by other programs."""
    path = shared_data_folder().parent / "formats" / "mrimgx-demo.json"
    if not path.exists():
        unavailable(f"needs {path}")
    facts: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return facts
