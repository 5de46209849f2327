"""Fuzz one parser, guided by coverage: ``run.py NAME [options of libFuzzer]``. See the README beside it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

TESTS = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

with atheris.instrument_imports(include=["imageformat", "mountfs"]):
    from support.fuzztargets import TARGETS


def main() -> None:
    name, *options = sys.argv[1:] or [""]
    if name not in TARGETS:
        sys.exit(f"name one of: {', '.join(TARGETS)}")
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder:
        seed = target.seed(Path(folder))
    corpus = Path(tempfile.mkdtemp(prefix=f"corpus-{name}-"))
    (corpus / "seed").write_bytes(seed.content)
    limit = f"-max_len={len(seed.content)}"
    atheris.Setup([sys.argv[0], limit, *options, str(corpus)], lambda data: _feed(target, seed, data))
    atheris.Fuzz()


def _feed(target: object, seed: object, data: bytes) -> None:
    target.feed(seed, data)


main()
