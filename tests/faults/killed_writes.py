"""Restores and clones that are really killed, many in one process: killed_writes.py SCENARIO FOLDER POINTS

Each run is a fork that kills itself with SIGKILL before its n-th call that changes something; then it is
looked at what is there, another fork runs to its end, and the target has to be the source. Prints how often
it was killed. Needs a loop device for clones: FOLDER has ``source``, ``before``, and a ``device`` link.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.clone import ClonedDisk, TargetShape, Wish, plan_clone
from engine.devices import ioctl
from engine.devices.guards import target_facts
from engine.devices.source import open_source
from engine.restore import restore
from engine.writing import MARK, WriteOptions, write
from imageformat import system
from imageformat.partitions import read_table
from imageformat.repository import Repository
from imageformat.storage.local import LocalStorage
from imageformat.view import ImageView
from mountfs.cli.render import make_renderer
from mountfs.cli.targetwriting import Job, write_target

CALLS = ((system, "pwrite"), (system, "sync_data"), (system, "replace"), (system, "rename_new"),
         (system, "sync_folder"), (os, "fsync"), (os, "ftruncate"), (ioctl, "punch_hole"))  # fmt: skip
SMALL = 300_000
"""Bytes between checkpoints."""


def clone(folder: Path, target: str, *, delta: bool) -> None:
    source = open_source(str(folder / "source"))
    facts = target_facts(target)
    plan = plan_clone(source, read_table(source), TargetShape(facts.size, 512), Wish(same_ids=True))
    cloned = ClonedDisk(source, plan)
    options = WriteOptions(delta=delta, leave_unused=True, check=True, threads=1, checkpoint=SMALL)
    job = Job("clone", "s", plan.size, 512, delta, keeps_record=True)
    out = make_renderer(quiet=True)
    write_target(
        out, facts, job, lambda to, record, known, _: write(cloned, to, options, record=record, known=known)
    )


def restored(folder: Path, target: str, *, delta: bool) -> None:
    repository = Repository(LocalStorage(folder / "repo"))
    (point,) = repository.image_set("s").points
    view = ImageView(repository.chain(point), repository.cache)
    job = Job("restore", "p", view.size, 512, delta, keeps_record=delta)
    facts = target_facts(target)
    write_target(
        make_renderer(quiet=True),
        facts,
        job,
        lambda to, record, known, _: restore(
            view, to, threads=1, check=True, delta=delta, record=record, known=known
        ),
    )


SCENARIOS: dict[str, tuple[Callable[..., None], bool, bool]] = {
    "restore": (restored, False, False),
    "delta restore": (restored, True, False),
    "clone": (clone, False, True),
    "delta clone": (clone, True, True),
}
"""What is run, whether as a delta, and whether onto a device."""


def kill_at(number: int) -> Iterator[int]:
    """Have this process killed before its n-th call of those that change something; what counts them."""
    count, lock = itertools.count(1), threading.Lock()
    for module, name in CALLS:
        original = getattr(module, name)

        def wrapped(*arguments: object, original: Callable[..., object] = original) -> object:
            with lock:
                if next(count) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)

        setattr(module, name, wrapped)
    return count


def forked(work: Callable[[], None], kill: int = 0) -> int:
    """Run something in a fork; its exit status, -9 when it was killed."""
    child = os.fork()
    if not child:
        code = 1
        try:
            if kill:
                kill_at(kill)
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(name: str, place: str, most: str) -> None:
    function, delta, to_device = SCENARIOS[name]
    folder = Path(place)
    target = (folder / "device").resolve() if to_device else folder / "target.img"
    before, wanted = (folder / "before").read_bytes(), (folder / "source").read_bytes()

    def prepare() -> None:
        shutil.rmtree(Path(os.environ["XDG_STATE_HOME"], "mountfs"), ignore_errors=True)
        if to_device:
            target.write_bytes(before)
        else:
            target.unlink(missing_ok=True)
            target.with_name(".target.img.part").unlink(missing_ok=True)
            if delta:
                target.write_bytes(before)

    def work() -> None:
        function(folder, str(target), delta=delta)

    killed = 0
    total = calls_of(folder, prepare, work)
    step = max(1, total // int(most))
    for number in range(1, total + 1, step):
        prepare()
        assert forked(work, number) == -signal.SIGKILL, f"call {number} of {total}"
        killed += 1
        if to_device or target.exists():
            found = target.read_bytes()[: len(wanted)]
            assert found in (before, wanted) or found.startswith(MARK), f"call {number} of {total}"
        assert forked(work) == 0, f"call {number} of {total}: it does not go on"
        assert target.read_bytes()[: len(wanted)] == wanted, f"call {number} of {total}: other bytes"
        assert not target.with_name(".target.img.part").exists()
    print(killed)


def calls_of(folder: Path, prepare: Callable[[], None], work: Callable[[], None]) -> int:
    """How many calls there are that change something."""
    told = folder / "calls"

    def counted() -> None:
        counter = kill_at(0)
        work()
        told.write_text(str(next(counter) - 1))

    prepare()
    assert forked(counted) == 0
    return int(told.read_text())


if __name__ == "__main__":
    main(*sys.argv[1:])
