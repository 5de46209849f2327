"""Sources and targets against a plain bytearray."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from engine.devices.source import open_source
from engine.devices.target import open_target
from imageformat.extent import ExtentKind

SIZE = 1 << 18

_ranges = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE // 2)).map(
    lambda r: (r[0], min(r[1], SIZE - r[0]))
)
_writes = st.lists(st.tuples(st.sampled_from(("write", "zero")), _ranges, st.integers(1, 255)), max_size=12)


@given(_writes, st.lists(_ranges, max_size=6))
def test_a_file_is_what_was_written_and_reads_back_as_a_source(
    writes: list[tuple[str, tuple[int, int], int]], reads: list[tuple[int, int]]
) -> None:
    model = bytearray(SIZE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.img"
        target = open_target(str(path), SIZE)
        for verb, (offset, size), value in writes:
            data = bytes(size) if verb == "zero" else bytes([value]) * size
            if verb == "zero":
                target.zero(offset, size)
            else:
                target.pwrite(offset, data)
            model[offset : offset + size] = data
        for offset, size in reads:
            assert target.pread(offset, size) == model[offset : offset + size]
        target.commit()
        assert path.read_bytes() == model
        source = open_source(str(path))
        for offset, size in [*reads, (0, SIZE)]:
            assert source.pread(offset, size) == model[offset : offset + size]
            position = offset
            for extent in source.extents(offset, size):
                assert extent.offset == position
                assert extent.length > 0
                position = extent.end
                if extent.kind is ExtentKind.ZERO:
                    assert not any(model[extent.offset : extent.end])
            assert position == offset + size
        source.close()
