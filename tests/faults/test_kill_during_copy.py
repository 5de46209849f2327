"""A copy that is killed at any system call holds whole points only, and the next run completes it."""

from __future__ import annotations

import shutil
import sys
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from engine.copying import copy_set
from engine.verify import verify
from imageformat.errors import NotFoundError
from imageformat.layer import ImageType
from imageformat.repository import Repository
from imageformat.storage.places import open_storage
from support import s3, sshd
from support.content import noise
from support.points import Kept, digest_of_point
from support.tracing import Call, calls_in, run_traced, spread, touching

ENGINE = (sys.executable, str(Path(__file__).with_name("one_copy.py")))
NETWORK = ("sendto", "write", "sendmsg")


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    """A full and two increments."""
    source = tmp_path / "disk.img"
    source.write_bytes(noise(1, 300_000))
    found = Kept(source, tmp_path / "repo")
    for number, kind in enumerate((ImageType.FULL, ImageType.INCREMENTAL, ImageType.INCREMENTAL)):
        with source.open("r+b") as disk:
            disk.seek(number * 40_000)
            disk.write(noise(number + 7, 9000))
        found.back_up(kind)
    return found


def command(kept: Kept, address: str) -> list[str]:
    return [*ENGINE, str(kept.place), address, kept.set_name]


def check(kept: Kept, address: str, *, complete: bool) -> int:
    """Whatever is there is a whole point with all that it stands on; how many there are."""
    with closing(Repository(open_storage(address))) as copy:
        points = copy.image_set(kept.set_name).points
        for point in points:
            assert point.problem is None, f"{point.key}: {point.problem}"
            assert point.info is not None
            assert digest_of_point(copy, point) == kept.digests[point.info.number]
        assert not any(report.damages or report.unread for report in verify(copy, points, threads=1))
        numbers = [point.number for point in points]
    assert numbers == sorted(kept.digests)[: len(numbers)], "oldest first, and none twice"
    if complete:
        assert len(numbers) == len(kept.digests)
    return len(numbers)


def go_on(kept: Kept, address: str) -> None:
    """No lock stands in the way, and the next run does what is left."""
    with closing(kept.repository()) as source, closing(Repository(open_storage(address))) as copy:
        copy_set(source, copy, kept.set_name)
    check(kept, address, complete=True)


def killed(kept: Kept, address: str, call: Call) -> bool:
    inject = [f"{call.name}:signal=KILL:when={call.number}"]
    ended = run_traced(command(kept, address), inject=inject, trace=(call.name,))
    if ended.returncode == 0:  # how much is sent in one call differs a little
        return False
    assert ended.returncode == -9, f"{call}: {ended}"
    return True


@pytest.mark.parametrize(
    "most", [8, pytest.param(70, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)])]
)
def test_a_killed_copy_to_a_folder(kept: Kept, tmp_path: Path, most: int) -> None:
    recorded = tmp_path / "recorded"
    ended = run_traced(command(kept, str(recorded)), log=tmp_path / "log")
    assert ended.stdout == b"done\n", ended
    calls = touching(calls_in(tmp_path / "log"), recorded)
    steps = [call for call in calls if call.name == "renameat2"]
    assert len(steps) == 3
    others = [call for call in calls if call.name != "renameat2"]
    seen = set()
    for number, call in enumerate([*steps, *spread(others, most - len(steps))]):
        place = tmp_path / f"copy{number}"
        assert killed(kept, str(place), call), call
        seen.add(check(kept, str(place), complete=False))
        go_on(kept, str(place))
        assert sorted(path.name for path in (place / "disk").glob(".*.part")) == []
        assert {path.name: path.read_bytes() for path in (place / "disk").glob("*.mfi")} == {
            path.name: path.read_bytes() for path in kept.folder.glob("*.mfi")
        }
        shutil.rmtree(place)
    assert {0, 1, 2} <= seen, "the kills came before, between and after the points"


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        ("s3", 1),
        pytest.param("s3", 65, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)]),
        pytest.param("sftp", 65, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)]),
    ],
)
def test_a_killed_copy_to_a_server(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, most: int
) -> None:
    {"s3": s3, "sftp": sshd}[kind].use(monkeypatch)

    def address() -> str:
        name = uuid4().hex
        return f"{s3.bucket().url}/{name}" if kind == "s3" else sshd.server().url(tmp_path / name)

    ended = run_traced(command(kept, address()), log=tmp_path / "log", trace=NETWORK)
    assert ended.stdout == b"done\n", ended
    sent = [call for call in calls_in(tmp_path / "log") if "TCP" in call.text or "socket:" in call.text]
    by_thread: dict[int, list[Call]] = {}
    for call in sent:
        by_thread.setdefault(call.thread, []).append(call)
    busiest = max(by_thread.values(), key=len)
    assert len(busiest) > 20
    reached = 0
    chosen = spread(busiest[len(busiest) // 10 :], most) if most > 1 else [busiest[len(busiest) // 2]]
    for call in chosen:
        place = address()
        if killed(kept, place, call):
            reached += 1
            check(kept, place, complete=False)
        go_on(kept, place)
        names = hidden(place)
        assert {name for name in names if not name.startswith((".lock", ".catalog.json"))} == set(), names
    assert most == 1 or reached > most // 2, (
        "which thread sends, and in how many calls, differs from run to run"
    )


def hidden(address: str) -> list[str]:
    """Names in the folder of the set that a listing does not show."""
    if address.startswith("s3://"):
        prefix = f"{address.rpartition('/')[2]}/disk/"
        assert s3.bucket().uploads(prefix) == []
        found = [key.removeprefix(prefix) for key in s3.bucket().keys(prefix)]
    else:
        found = [path.name for path in Path("/" + address.split("/", 3)[3], "disk").iterdir()]
    return [name for name in found if name.startswith(".")]


def test_the_source_goes_away_in_the_middle(kept: Kept, tmp_path: Path) -> None:
    """What was copied stays, and is whole; the error names the file."""
    place = tmp_path / "copy"
    gone = kept.file_of(2)

    with closing(kept.repository()) as source, closing(Repository(open_storage(str(place)))) as copy:
        with pytest.raises(NotFoundError, match=gone.name):
            copy_set(source, copy, kept.set_name, planned=lambda _plan: gone.rename(tmp_path / "elsewhere"))
        (tmp_path / "elsewhere").rename(gone)
    assert check(kept, str(place), complete=False) == 1
    go_on(kept, str(place))
