"""Checks the rules of the house that no linter knows; prints each breach and ends with 1."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

PRODUCT = ("mountfs", "imageformat", "engine")
MAX_LINES = 450
BANNED_NAMES = frozenset({"utils", "util", "helpers", "helper", "common", "misc", "manager", "base"})
UNFINISHED = re.compile(r"NotImplementedError|\b(TODO|FIXME|XXX)\b")
ONE_MACHINE = re.compile(r"/work/(shared|main)|/tmp/wt\b|/home/\w+/|/root/")


def tracked() -> list[Path]:
    """Files of the repository, also those not committed yet."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
    return [path for path in map(Path, filter(None, listed)) if path.is_file()]


def breaches(files: list[Path]) -> list[str]:
    """One line for every broken rule."""
    found: list[str] = []
    sources = [path for path in files if path.suffix == ".py"]
    for path in sources:
        words = set(re.split(r"[_.]", path.stem)) | set(path.parent.parts)
        found += [f"{path}: say what it is for, not '{name}'" for name in sorted(words & BANNED_NAMES)]
        found += _content_breaches(path, path.read_text(encoding="utf-8").splitlines())
    tests = [path for path in sources if path.parts[0] == "tests"]
    found += [f"{path}: tests are no package" for path in tests if path.name == "__init__.py"]
    names = Counter(path.stem for path in tests if path.name.startswith("test_"))
    found += [
        f"tests: the module name {name} is used {count} times" for name, count in names.items() if count > 1
    ]
    return found


def _content_breaches(path: Path, lines: list[str]) -> list[str]:
    found: list[str] = []
    if path.parts[0] in PRODUCT and len(lines) > MAX_LINES:
        found.append(f"{path}: {len(lines)} lines do not fit into the head; split it")
    if path.parts[0] != ".ci":
        for number, line in enumerate(lines, 1):
            if path.parts[0] in PRODUCT and UNFINISHED.search(line):
                found.append(f"{path}:{number}: unfinished")
            if ONE_MACHINE.search(line):
                found.append(f"{path}:{number}: names a path of one machine")
    return found


if __name__ == "__main__":
    broken = breaches(tracked())
    print("\n".join(broken) if broken else "layout: every rule of the house is kept")
    sys.exit(bool(broken))
