from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packer.columns import PackedColumn, decode_column, decode_table, encode_column
from packer.errors import InputError


@given(st.lists(st.integers(min_value=0, max_value=(1 << 63) - 1)))
def test_a_column_comes_back_as_it_was(values: list[int]) -> None:
    column = np.array(values, dtype=np.int64)
    assert decode_column(encode_column(column), "test").tolist() == values


def test_a_column_takes_no_more_bytes_than_its_largest_value_needs() -> None:
    assert encode_column(np.array([0, 0, 0])).width == 0
    assert encode_column(np.array([255])).width == 1
    assert encode_column(np.array([256])).width == 2
    assert encode_column(np.array([1, 1 << 40])).planes == bytes([1, 0]) + bytes(8) + bytes([0, 1])


def test_a_negative_value_cannot_be_stored() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        encode_column(np.array([-1]))


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        (PackedColumn(1, 3, b"ab"), "expected 3 bytes, found 2"),
        (PackedColumn(9, 1, bytes(9)), "not between 0 and 8"),
        (PackedColumn(-1, 1, b""), "not between 0 and 8"),
        (PackedColumn(1, -1, b""), "not between 0 and 8"),
        (PackedColumn(8, 1, b"\xff" * 8), "2\\^63 or more"),
    ],
)
def test_a_column_that_contradicts_itself_is_an_error(packed: PackedColumn, words: str) -> None:
    with pytest.raises(InputError, match=words):
        decode_column(packed, "test")


def test_a_column_with_another_number_of_rows_than_expected_is_an_error() -> None:
    with pytest.raises(InputError, match="test: expected 2 rows, found 1"):
        decode_column(PackedColumn(1, 1, b"a"), "test", 2)


def test_a_column_of_zeros_may_not_claim_more_rows_than_fit_in_memory() -> None:
    """No bytes stand behind the rows of a column of width 0: their number is only a claim."""
    with pytest.raises(InputError, match="rows"):
        decode_column(PackedColumn(0, 1 << 50, b""), "test")


class Table(msgspec.Struct):
    column: PackedColumn


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\x81\xa1\xff\x01", b"\x81\xa1x" + b"\x91" * 200_000 + b"\xc0"],
    ids=["empty", "no type", "no text", "nested"],
)
def test_what_is_no_table_is_one_clear_error(data: bytes) -> None:
    decoder = msgspec.msgpack.Decoder(Table)
    with pytest.raises(InputError, match="test: not the MessagePack it should be"):
        decode_table(decoder, data, "test")
