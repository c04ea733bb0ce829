"""Run lists: what an encoder wrote comes back, and nothing that cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.filesystem.ntfs.gather import padded
from formats.filesystem.ntfs.runs import HOLE, Decoded, Runs, clashing, decode_runs

CLUSTERS = 1 << 32
MAX_VCN = 1 << 40


def number(value: int) -> bytes:
    """A signed number in as few bytes as it needs."""
    length = next(size for size in range(1, 9) if -(1 << 8 * size - 1) <= value < 1 << 8 * size - 1)
    return value.to_bytes(length, "little", signed=True)


def encode(runs: list[tuple[int | None, int]]) -> bytes:
    """Write (first cluster or None for a hole, clusters) as NTFS does."""
    result, before = b"", 0
    for lcn, clusters in runs:
        length, distance = number(clusters), b""
        if lcn is not None:
            distance, before = number(lcn - before), lcn
        result += bytes([len(distance) << 4 | len(length)]) + length + distance
    return result + b"\0"


def decode(
    lists: list[bytes], lowest: list[int] | None = None, clusters: int = CLUSTERS
) -> Decoded:
    lengths = np.array([len(one) for one in lists], dtype=np.int64)
    ends = np.cumsum(lengths)
    first = np.array(lowest or [0] * len(lists), dtype=np.int64)
    return decode_runs(padded(b"".join(lists)), ends - lengths, ends, first, clusters, MAX_VCN)


_RUN = st.tuples(
    st.one_of(st.none(), st.integers(0, CLUSTERS - 1)), st.integers(1, 1 << 30)
).filter(lambda run: run[0] is None or run[0] + run[1] <= CLUSTERS)


@given(st.lists(st.tuples(st.integers(0, 1 << 30), st.lists(_RUN, max_size=30)), max_size=8))
def test_many_lists_are_decoded_at_once(
    lists: list[tuple[int, list[tuple[int | None, int]]]],
) -> None:
    found = decode([encode(runs) for _, runs in lists], [lowest for lowest, _ in lists])
    expected = []
    for row, (lowest, runs) in enumerate(lists):
        vcn = lowest
        for lcn, clusters in runs:
            expected.append((row, vcn, HOLE if lcn is None else lcn, clusters))
            vcn += clusters
        assert found.end[row] == vcn
    columns = (found.runs.attribute, found.runs.vcn, found.runs.lcn, found.runs.clusters)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected
    assert not found.broken.any()


GOOD = encode([(100, 5), (None, 3), (50, 2)])


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(b"\x10\x05\0", id="no length"),
        pytest.param(b"\x11\x00\x05\0", id="an empty run"),
        pytest.param(b"\x11\xff\x05\0", id="a negative length"),
        pytest.param(b"\x19" + b"\1" * 10, id="a length of nine bytes"),
        pytest.param(b"\x91" + b"\1" * 10, id="a distance of nine bytes"),
        pytest.param(b"\x21\x05\x05", id="cut in a distance"),
        pytest.param(b"\x18\x05", id="cut in a length"),
        pytest.param(encode([(5, 1), (-1, 1)]), id="before the volume"),
        pytest.param(encode([(CLUSTERS - 1, 2)]), id="behind the volume"),
        pytest.param(b"\x18" + b"\xff" * 7 + b"\x7f\x05\0", id="longer than any file"),
        pytest.param(b"\x81\x01" + b"\xff" * 7 + b"\x7f\0", id="farther than any disk"),
        pytest.param(encode([(None, MAX_VCN), (None, 1)]), id="holes longer than any file"),
    ],
)
def test_a_broken_list_gives_no_runs_and_leaves_others_alone(broken: bytes) -> None:
    found = decode([GOOD, broken, GOOD])
    assert found.broken.tolist() == [False, True, False]
    assert found.runs.attribute.tolist() == [0, 0, 0, 2, 2, 2]
    assert found.runs.lcn.tolist() == [100, HOLE, 50] * 2


def test_a_list_may_end_with_its_attribute() -> None:
    found = decode([GOOD.rstrip(b"\0"), GOOD])
    assert not found.broken.any()
    assert found.end.tolist() == [10, 10]


@pytest.mark.parametrize("lowest", [-1, -(1 << 62), MAX_VCN + 1, (1 << 63) - 1])
def test_a_list_begins_at_a_cluster_of_its_stream(lowest: int) -> None:
    assert decode([GOOD], [lowest]).broken.tolist() == [True]


@given(st.lists(st.tuples(st.integers(-1, 60), st.integers(1, 12)), max_size=30))
def test_runs_that_share_a_cluster_are_found(pairs: list[tuple[int, int]]) -> None:
    lcn, clusters = (np.array([one[i] for one in pairs], dtype=np.int64) for i in (0, 1))
    zeros = np.zeros(len(pairs), dtype=np.int64)
    owners: dict[int, list[int]] = {}
    for row, (start, length) in enumerate(pairs):
        for cluster in range(start, start + length) if start != HOLE else ():
            owners.setdefault(cluster, []).append(row)
    expected = {row for rows in owners.values() if len(rows) > 1 for row in rows}
    found = clashing(Runs(zeros, zeros, lcn, clusters))
    assert set(np.flatnonzero(found).tolist()) == expected
