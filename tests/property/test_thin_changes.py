"""A pool of thin devices in memory against the real tools: all that is shared, and only that, is unchanged.

The model is the content of a volume, byte for byte; the pool writes a block that a snapshot shares elsewhere.
`thin_restore` makes real metadata of it, and `thin_delta` reads them. Reports that are bent at random are
refused, or claim nothing more.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.changes import ChangesUnknownError
from engine.changes._told import lines_of
from engine.changes.lvm_thin import check_tied, delta_command, keep_command, metadata_number, same_blocks
from imageformat.errors import SnapshotError
from support.requirements import require_tool, run

BLOCK = 64 << 10
BLOCKS = 40
SIZE = (BLOCKS - 1) * BLOCK + 4096
RECORDED = """\
<superblock uuid="" time="2" transaction="3" data_block_size="128" nr_data_blocks="100">
  <diff left="1" right="2">
    <same begin="0" length="3"/>
    <different begin="3" length="2"/>
    <left_only begin="10" length="2"/>
    <same begin="12" length="3"/>
    <right_only begin="40" length="1"/>
  </diff>
</superblock>
"""


class Pool:
    """A volume and its thin snapshots: where their blocks lie, and what they hold."""

    def __init__(self) -> None:
        self.content = bytearray(SIZE)
        self.mapping: dict[int, int] = {}
        self.kept: list[tuple[dict[int, int], bytes]] = []
        self._next = 0

    def keep(self) -> None:
        self.kept.append((dict(self.mapping), bytes(self.content)))

    def write(self, offset: int, data: bytes) -> None:
        end = min(offset + len(data), SIZE)
        self.content[offset:end] = data[: end - offset]
        for block in range(offset // BLOCK, -(-end // BLOCK)):
            pinned = {place for mapping, _ in self.kept for place in mapping.values()}
            if self.mapping.get(block) in pinned | {None}:
                self.mapping[block], self._next = self._next, self._next + 1

    def discard(self, block: int) -> None:
        self.mapping.pop(block, None)
        self.content[block * BLOCK : (block + 1) * BLOCK] = bytes(min(BLOCK, SIZE - block * BLOCK))

    def metadata(self) -> str:
        places = BLOCKS**2
        text = [
            f'<superblock uuid="" time="9" transaction="9" data_block_size="128" nr_data_blocks="{places}">'
        ]
        for number, (mapping, _) in enumerate(self.kept, 1):
            text.append(
                f'<device dev_id="{number}" mapped_blocks="{len(mapping)}" transaction="{number}" '
                f'creation_time="{number}" snap_time="{number}">'
            )
            text += [
                f'<single_mapping origin_block="{block}" data_block="{place}" time="0"/>'
                for block, place in sorted(mapping.items())
            ]
            text.append("</device>")
        return "\n".join([*text, "</superblock>"])


OPERATIONS = st.one_of(
    st.tuples(
        st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=8), st.sampled_from([1, 5000, 9 * BLOCK])
    ),
    st.integers(0, BLOCKS - 1),
)


@settings(max_examples=25, deadline=None)
@given(first=st.lists(OPERATIONS, max_size=12), second=st.lists(OPERATIONS, max_size=12))
def test_what_two_snapshots_share_is_what_is_called_unchanged(
    first: list[tuple[int, bytes, int] | int], second: list[tuple[int, bytes, int] | int]
) -> None:
    require_tool("thin_restore", "thin_delta")
    pool = Pool()
    for operations in (first, second):
        for operation in operations:
            if isinstance(operation, int):
                pool.discard(operation)
            else:
                pool.write(operation[0], operation[1] * operation[2])
        pool.keep()
    with tempfile.TemporaryDirectory() as folder:
        text, metadata = Path(folder, "xml"), Path(folder, "metadata")
        text.write_text(pool.metadata())
        with metadata.open("wb") as file:
            file.truncate(1 << 20)
        run("thin_restore", "-i", text, "-o", metadata)
        # Only the kernel makes the snapshot of metadata that is asked for there.
        command = [word for word in delta_command(str(metadata), "1", "2") if word != "-m"]
        claimed = list(same_blocks(lines_of(*command), 1, 2, SIZE))
        with pytest.raises(ChangesUnknownError, match="failed"):
            list(lines_of(*delta_command(str(metadata), "1", "7")))
    (before, old), (now, new) = pool.kept
    position = 0
    for offset, end in claimed:
        assert position <= offset < end <= SIZE
        assert old[offset:end] == new[offset:end]
        position = end
    shared = {block for block in before.keys() & now.keys() if before[block] == now[block]}
    assert {block for offset, end in claimed for block in range(offset // BLOCK, -(-end // BLOCK))} == shared


def test_a_recorded_report_is_read() -> None:
    lines = RECORDED.splitlines()
    assert list(same_blocks(lines, 1, 2, 100 * BLOCK)) == [(0, 3 * BLOCK), (12 * BLOCK, 15 * BLOCK)]
    assert list(same_blocks(lines, 1, 2, 13 * BLOCK + 1)) == [(0, 3 * BLOCK), (12 * BLOCK, 13 * BLOCK + 1)]
    for size in ("0", "100", "4194304", "", "x"):
        with pytest.raises(ChangesUnknownError):
            list(same_blocks(RECORDED.replace('"128"', f'"{size}"').splitlines(), 1, 2, SIZE))
    for left, right in ((2, 1), (1, 3)):
        with pytest.raises(ChangesUnknownError):
            list(same_blocks(lines, left, right, SIZE))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_report_that_is_bent_is_refused_or_claims_no_more(data: st.DataObject) -> None:
    lines = RECORDED.splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    kind = data.draw(st.sampled_from(["cut", "drop", "twice", "byte"]))
    if kind == "cut":
        lines = lines[:at]
    elif kind == "drop":
        del lines[at]
    elif kind == "twice":
        lines.insert(at, lines[at])
    else:
        column = data.draw(st.integers(0, len(lines[at]) - 1))
        lines[at] = lines[at][:column] + data.draw(st.characters()) + lines[at][column + 1 :]
    try:
        claimed = list(same_blocks(lines, 1, 2, 100 * BLOCK))
    except ChangesUnknownError:
        return
    assert kind in {"drop", "byte"}  # one range less, or other figures: nothing can tell that
    assert all(0 <= offset < end <= 100 * BLOCK for offset, end in claimed)
    if kind == "drop":
        assert set(claimed) <= {(0, 3 * BLOCK), (12 * BLOCK, 15 * BLOCK)}


def test_a_snapshot_that_is_not_the_one_of_the_mark_is_refused() -> None:
    found = {
        "lv_uuid": "a-b",
        "thin_id": "2",
        "transaction_id": "7",
        "pool_lv_uuid": "c-d",
        "segtype": "thin",
    }
    kept = {**found, "lv_uuid": "e-f", "thin_id": "3", "transaction_id": "8"}
    check_tied(found, kept, found)
    for tie in ("lv_uuid", "thin_id", "transaction_id", "pool_lv_uuid"):
        for lie in ("9", "", 2, None, ["2"]):
            with pytest.raises(ChangesUnknownError):
                check_tied(found, kept, {**found, tie: lie})
        with pytest.raises(ChangesUnknownError):
            check_tied({**found, tie: ""}, kept, {**found, tie: ""})
    with pytest.raises(ChangesUnknownError, match="pool"):
        check_tied(found, {**kept, "pool_lv_uuid": "x"}, found)
    with pytest.raises(ChangesUnknownError):
        check_tied({**found, "segtype": "linear"}, kept, found)


def test_commands_and_tables_of_the_tools() -> None:
    volume = {"vg_name": "vg", "lv_name": "data", "segtype": "thin"}
    assert keep_command(volume, "name", "tag")[-3:] == ["--addtag", "tag", "vg/data"]
    with pytest.raises(SnapshotError):
        keep_command({**volume, "segtype": "linear"}, "name", "tag")
    # Recorded with lvm2 2.03 on Linux 6.1.
    assert metadata_number("0 327680 thin-pool 254:1 254:2 128 0 0 \n") == "254:1"
    for table in (
        "",
        "0 8 linear 98:0 0\n",
        "0 8 thin-pool\n",
        "0 8 thin-pool 1:1 1:2 128 0\n8 8 linear 9:0 0",
    ):
        with pytest.raises(SnapshotError):
            metadata_number(table)
