"""What retention and merge read from files and from people: odd input is told, and never more than that."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imageformat.errors import MountfsError, UsageError
from imageformat.retired import OLD_JOURNAL, encode_journal, hidden_keys, read_journal
from imageformat.storage.local import LocalStorage
from mountfs.quantities import parse_part, parse_size, parse_span

NAMES = st.lists(
    st.one_of(st.text(max_size=20), st.just("0001-full.mfi"), st.just("../0001.mfi")), max_size=5
)
MUTATIONS = st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), max_size=4)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["version", "names", "x"]), inner, max_size=3),
    ),
    max_leaves=8,
)


def check_journal(folder: Path, data: bytes) -> None:
    storage = LocalStorage(folder)
    (folder / "s").mkdir(exist_ok=True)
    (folder / "s" / OLD_JOURNAL).write_bytes(data)
    hidden = hidden_keys(storage, "s/", {f"s/{OLD_JOURNAL}"})
    try:
        named = read_journal(storage, "s/", OLD_JOURNAL)
    except MountfsError:
        assert not hidden
        return
    assert hidden == set(named)
    for key in named:
        assert Path(key).parent == Path("s"), "a journal names nothing outside of its set"
        assert key.endswith(".mfi")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(names=NAMES, mutations=MUTATIONS, odd=JSON)
def test_journals(tmp_path: Path, names: list[str], mutations: list[tuple[int, int]], odd: object) -> None:
    data = bytearray(encode_journal(names))
    for place, value in mutations:
        data[place % len(data)] = value
    check_journal(tmp_path, bytes(data))
    check_journal(tmp_path, msgspec.json.encode(odd))


@settings(max_examples=300, deadline=None)
@given(text=st.one_of(st.text(max_size=12), st.from_regex(r"[0-9]{0,25}[.]?[0-9]{0,4} ?[hdwyKMGTPiB%]{0,3}")))
def test_quantities(text: str) -> None:
    for parse in (parse_span, parse_size, lambda given: parse_part(given, 1 << 50)):
        with contextlib.suppress(UsageError):
            assert 0 <= parse(text) <= 1 << 60


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("4096", 4096), ("1K", 1024), ("1.5 GiB", 3 << 29), ("20gb", 20 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == parse_part(text, 7) == size


def test_shares_and_spans() -> None:
    assert parse_part("10%", 50) == 5
    assert [parse_span(text) for text in ("36h", "2d", "1w", "1y")] == [129_600, 172_800, 604_800, 31_536_000]
