"""The stored corrupt and odd images: no crash, no hang, little memory, only errors of ours.

They run in a few subprocesses with a limited address space, so that a crash of a library or a lack of memory
is seen as such; an alarm ends what takes longer than ten seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

Results = tuple[dict[tuple[str, str], tuple[int, list[str]]], list[int]]

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("MOUNTFS_SHARED_DATA", REPOSITORY.parent / "shared" / "data")) / "fs-images"

BATCHES = 4

WORKER = r"""
import json, lzma, resource, signal, sys
from pathlib import Path

from imageformat.device import MemoryDevice
from imageformat.errors import MountfsError
from imageformat.plugins import discover
from mountfs import drivers
from mountfs.tree import FileSystemInfo, NodeKind

DRIVERS = {name: driver for driver in discover(drivers).available for name in driver.types}
resource.setrlimit(resource.RLIMIT_AS, (768 << 20, 768 << 20))


def visit(tree):
    seen, entries, errors, pending = set(), 0, [], [tree.root()]
    while pending:
        directory = pending.pop()
        try:
            for node in tree.children(directory):
                entries += 1
                try:
                    if node.kind is NodeKind.DIRECTORY and node.key not in seen:
                        seen.add(node.key)
                        pending.append(node)
                    elif node.kind is NodeKind.FILE:
                        tree.read(node, 0, 65536)
                        list(tree.extents(node))
                    elif node.kind is NodeKind.SYMLINK:
                        tree.readlink(node)
                    tree.xattrs(node)
                    tree.streams(node)
                except MountfsError as error:
                    errors.append(str(error))
        except MountfsError as error:
            errors.append(str(error))
    return entries, errors


for path in sys.argv[1:]:
    content = lzma.decompress(Path(path).read_bytes())
    for name in sorted(DRIVERS):
        signal.alarm(10)
        try:
            tree = DRIVERS[name].open(MemoryDevice(content), FileSystemInfo(name))
            entries, errors = visit(tree)
            tree.close()
        except MountfsError as error:
            entries, errors = -1, [str(error)]
        signal.alarm(0)
        print(json.dumps([Path(path).name, name, entries, errors]), flush=True)
    del content
# Not ru_maxrss, which a new program inherits from the one that started it.
(peak,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
print(json.dumps(["memory", int(peak)]))
"""

STORED = sorted((SHARED / "odd").glob("*.xz"))


@pytest.fixture(scope="module")
def results() -> Results:
    if not STORED:
        if os.environ.get("CI"):
            pytest.fail(f"missing: {SHARED}")
        pytest.skip(f"missing: {SHARED}")
    found, memory = {}, []
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, *map(str, STORED[start::BATCHES])],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for start in range(BATCHES)
    ]
    for worker in workers:
        output, complaints = worker.communicate()
        lines = [json.loads(line) for line in output.splitlines()]
        assert worker.returncode == 0, f"{worker.returncode} after {lines[-1:]}: {complaints}"
        memory.append(lines.pop()[1])
        found |= {(image, name): (entries, errors) for image, name, entries, errors in lines}
    return found, memory


def test_nothing_crashes_hangs_or_needs_much_memory(results: Results) -> None:
    found, memory = results
    assert {image for image, _ in found} == {path.name for path in STORED}
    assert max(memory) < 512 << 10


def test_every_error_names_its_reason(results: Results) -> None:
    found, _ = results
    for (image, name), (_, errors) in found.items():
        for error in errors:
            assert len(error) > 15, (image, name)
            assert "unknown" not in error, (image, name)


def test_the_odd_images_that_are_only_odd_can_be_listed(results: Results) -> None:
    """dosfstools' images are sound, and most of e2fsprogs' are damaged in one place."""
    found, _ = results
    for (image, name), (_entries, errors) in found.items():
        if image.startswith("dosfstools") and name == "fat32":
            assert errors == [], image
    ext = {
        image: entries for (image, name), (entries, _) in found.items() if name == "ext4" and "e2fs" in image
    }
    closed = {image for image, entries in ext.items() if entries < 0}
    assert {image.split("__")[1].removesuffix("_image.xz") for image in closed} == {
        "f_badroot",
        "f_crashdisk",
        "f_desc_size_zero",
        "f_detect_junk",
        "f_detect_xfs",
    }
