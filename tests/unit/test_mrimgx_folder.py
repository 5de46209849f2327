"""Which files of a folder make up a Macrium point, and what is said when they are not there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from imageformat.errors import (
    IncompleteImageError,
    LockedError,
    ParentMismatchError,
    ParentMissingError,
    PartOfImageError,
    UnsupportedFeatureError,
)
from imageformat.formats.mrimgx import unlock
from imageformat.repository import Repository
from imageformat.secrets import NO_SECRETS, Secrets
from imageformat.siblings import NamedFile
from imageformat.storage.memory import MemoryStorage
from support.macrium_sets import KIB, grow, info, opened, read, small_disk
from support.mrimgx import MacriumSet, Part


@pytest.fixture
def made() -> MacriumSet:
    """A full and three increments."""
    return grow(MacriumSet((small_disk(),)), 3)


def names(made: MacriumSet) -> list[str]:
    return [point.name for point in made.points]


def test_names_do_not_matter(made: MacriumSet) -> None:
    renamed = {
        f"{number}.{'MRIMGX' if number % 2 else 'mrimg'}": made.files[name]
        for number, name in enumerate(names(made))
    }
    for number, point in enumerate(made.points):
        assert read(renamed, sorted(renamed)[number]) == list(point.truth)


def test_what_lies_beside_them_does_not_matter(made: MacriumSet) -> None:
    other = grow(MacriumSet((small_disk(seed=9),), seed=2), 2)
    files = made.files | other.files
    files |= {"noise.mrimgx": b"noise" * 99, "empty.mrimgx": b"", "old.mrimg": b"\3" * 999}
    files[f"{names(made)[1]}.metadata"] = made.files[names(made)[2]]
    for point in (*made.points, *other.points):
        assert read(files, point.name) == list(point.truth)


def test_a_copied_file_is_one_file(made: MacriumSet) -> None:
    files = {**made.files, "copy of it.mrimgx": made.files[names(made)[1]]}
    assert read(files, names(made)[3]) == list(made.points[3].truth)
    assert read(files, "copy of it.mrimgx") == list(made.points[1].truth)


def test_newer_files_are_not_looked_at(made: MacriumSet) -> None:
    early = {name: made.files[name] for name in names(made)[:2]}
    assert info(early, names(made)[1]) == info(made.files, names(made)[1])


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_missing_file_is_named(made: MacriumSet, lost: int) -> None:
    name = names(made)[lost]
    del made.files[name]
    with pytest.raises(ParentMissingError, match=f"file number {lost} of its set.*{name}") as refused:
        opened(made.files, names(made)[3])
    assert str(refused.value).startswith(f"{names(made)[3]}: ")
    assert "put it back" in str(refused.value)


def test_a_damaged_file_is_named(made: MacriumSet) -> None:
    content = bytearray(made.files[names(made)[1]])
    content[-100] ^= 1
    made.files[names(made)[1]] = bytes(content)
    with pytest.raises(ParentMissingError, match=f"cannot be read: {names(made)[1]}"):
        opened(made.files, names(made)[2])


def test_a_file_elsewhere_that_the_user_named(made: MacriumSet) -> None:
    elsewhere = MemoryStorage()
    elsewhere.publish(f"far/{names(made)[1]}", made.files.pop(names(made)[1]))
    named = (NamedFile(f"/far/{names(made)[1]}", elsewhere, f"far/{names(made)[1]}"),)
    assert read(made.files, names(made)[3], named) == list(made.points[3].truth)


def test_two_files_that_claim_one_number(made: MacriumSet) -> None:
    """A set that was restored from elsewhere and went on twice."""
    twin = grow(MacriumSet((small_disk(seed=5),)), 3)
    assert twin.image_id == made.image_id
    made.files["twin.mrimgx"] = twin.files[names(twin)[1]]
    with pytest.raises(ParentMismatchError, match=r"number 1 .*twin\.mrimgx") as refused:
        opened(made.files, names(made)[2])
    assert names(made)[1] in str(refused.value)
    assert read(made.files, names(made)[1]) == list(made.points[1].truth), "the opened file itself is meant"


@pytest.mark.parametrize(
    "other",
    [
        Part(64 * KIB, 256 * KIB, 1, 16 * KIB),
        Part(68 * KIB, 252 * KIB, 0, 16 * KIB),
        Part(64 * KIB, 256 * KIB, 0, 8 * KIB),
        Part(64 * KIB, 256 * KIB, 0, 16 * KIB, reserved=512),
    ],
)
def test_another_layout_is_refused(made: MacriumSet, other: Part) -> None:
    strange = MacriumSet((small_disk(other),))
    strange.full()
    made.files[names(made)[0]] = strange.files[strange.points[0].name]
    with pytest.raises(ParentMismatchError, match=f"stands on {names(made)[0]}"):
        opened(made.files, names(made)[1])


def test_a_disk_or_a_partition_more_is_refused(made: MacriumSet) -> None:
    part = Part(64 * KIB, 256 * KIB, 0, 16 * KIB)
    for disks in (
        (small_disk(part, Part(400 * KIB, 64 * KIB, 1, 16 * KIB)),),
        (small_disk(), small_disk(seed=3)),
    ):
        strange = MacriumSet(disks)
        strange.full()
        files = {**made.files, names(made)[0]: strange.files[strange.points[0].name]}
        with pytest.raises(ParentMismatchError):
            opened(files, names(made)[1])


def test_a_file_that_was_merged_with_newer_ones(made: MacriumSet) -> None:
    """File 2 is still there, though file 1 now holds what changed up to 3: there is no point 2 any more."""
    second = names(made)[2]
    stale = made.files[second]
    made.merge_deltas(1, 3, keep_first=True)
    with pytest.raises(ParentMismatchError, match="merged into"):
        opened({**made.files, second: stale}, second)


def test_gaps_below_the_last_differential_are_fine() -> None:
    made = grow(MacriumSet((small_disk(),)), 2)
    made.differential()
    made.disks[0].content[90 * KIB] ^= 1
    made.incremental()
    for name in names(made)[1:3]:
        del made.files[name]
    assert read(made.files, names(made)[4]) == list(made.points[4].truth)
    assert read(made.files, names(made)[3]) == list(made.points[3].truth)
    del made.files[names(made)[0]]
    with pytest.raises(ParentMissingError, match="file number 0"):
        opened(made.files, names(made)[4])


def test_parts_of_a_split_image() -> None:
    made = MacriumSet((small_disk(),))
    point = made.full(parts=3)
    first, second, last = sorted(made.files)
    assert last == point.name
    for part in (first, second):
        with pytest.raises(PartOfImageError, match=f"^{part}: .*last part, {last}"):
            opened(made.files, part)
    alone = {first: made.files[first]}
    with pytest.raises(PartOfImageError, match="highest number"):
        opened(alone, first)
    del made.files[second]
    with pytest.raises(ParentMissingError, match=f"file number 1 of its set.*{second}"):
        opened(made.files, last)


def test_a_set_lists_in_order(made: MacriumSet) -> None:
    made.differential()
    infos = [info(made.files, name) for name in names(made)]
    assert [found.number for found in infos] == [1, 2, 3, 4, 5]
    assert [found.type.value for found in infos] == ["full", "inc", "inc", "inc", "diff"]
    assert sorted(infos, key=lambda found: found.created_ns) == infos
    assert len({found.set_id for found in infos}) == 1
    assert len({found.id for found in infos}) == 5
    assert [found.details.get("parent") for found in infos[:3]] == [None, names(made)[0], names(made)[1]]


def test_reflect_8_is_told_from_a_file_that_was_cut(made: MacriumSet) -> None:
    with pytest.raises(UnsupportedFeatureError, match="Reflect 8 or older"):
        opened({"a.mrimg": b"\3" + bytes(5000)}, "a.mrimg")
    name = names(made)[0]
    for length in (0, 1, 19, 20, 5000, len(made.files[name]) - 1):
        with pytest.raises(IncompleteImageError, match="never finished, or cut short"):
            opened({"a.mrimgx": made.files[name][:length]}, "a.mrimgx")


@pytest.mark.parametrize("aes", ["aes-128", "aes-192", "aes-256"])
def test_passwords(aes: str) -> None:
    made = grow(MacriumSet((small_disk(),), aes=aes, password="pässwört".encode()), 2)
    name = names(made)[2]
    with pytest.raises(LockedError, match="give its password"):
        opened(made.files, name, NO_SECRETS)
    with pytest.raises(LockedError, match="no password that was given is right"):
        opened(made.files, name, Secrets((b"a", b"passwort"), (b"a key file",)))
    layer = opened(made.files, name, Secrets((b"a", "pässwört".encode() + b"\0after")))
    assert layer.info.details["encryption"] == aes
    layer.close()


def test_a_member_with_another_password() -> None:
    one = grow(MacriumSet((small_disk(),), aes="aes-256", password=b"one"), 1)
    two = grow(MacriumSet((small_disk(),), aes="aes-256", password=b"two"), 1)
    files = {names(one)[0]: one.files[names(one)[0]], names(two)[1]: two.files[names(two)[1]]}
    with pytest.raises(LockedError, match=names(one)[0]):
        opened(files, names(two)[1], Secrets((b"two",)))


def test_a_derivation_that_never_ends_is_refused() -> None:
    made = MacriumSet((small_disk(),), aes="aes-256")
    made.iterations = 4_000_000_000
    made.full()
    with pytest.raises(UnsupportedFeatureError, match="4000000000 rounds"):
        opened(made.files, names(made)[0])


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(unlock.importlib, "import_module", missing)
    made = MacriumSet((small_disk(),), aes="aes-256")
    made.full()
    with pytest.raises(UnsupportedFeatureError, match=r"install mountfs\[foreign\]"):
        opened(made.files, names(made)[0])


def test_the_library_is_loaded_for_encrypted_images_only() -> None:
    code = "import sys; sys.modules['cryptography'] = None; from imageformat.formats import image_formats;"
    code += "assert 'mrimgx' in [record.name for record in image_formats()]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_lists_as_the_points_of_one_set(made: MacriumSet) -> None:
    """Parts of a split image are no points, unless one is what the user named."""
    made.differential(parts=3)
    storage = MemoryStorage()
    for name, content in made.files.items():
        storage.publish(f"set/{name}", content)
    (found,) = Repository(storage).sets()
    assert [point.file_name for point in found.points] == names(made)
    assert [point.state for point in found.points] == ["ok"] * 5
    part = next(f"set/{name}" for name in sorted(made.files) if name not in names(made))
    named = Repository(storage, only_set="set", also=part).image_set("set")
    assert [point.key for point in named.points if point.problem] == [part]


def test_numbers_of_files_above_255() -> None:
    made = MacriumSet((small_disk(),))
    made.names = ["gone"] * 300
    grow(made, 2)
    made.differential()
    assert [point.file_number for point in made.points] == [300, 301, 302, 303]
    for point in made.points:
        assert read(made.files, point.name) == list(point.truth)
