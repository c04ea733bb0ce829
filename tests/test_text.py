from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packer.text import format_bytes, format_table


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_400, "99.4 kB"),
        (99_500, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (3_200_000_000, "3.2 GB"),
        (999_499_999_999, "999 GB"),
        (999_500_000_000, "1.0 TB"),
        (580_000_000_000_000, "580.0 TB"),
    ],
)
def test_bytes_are_written_as_people_read_them(count: int, words: str) -> None:
    assert format_bytes(count) == words


@given(st.integers(0, 1 << 62))
def test_what_is_written_is_within_a_twentieth_of_what_is_meant(count: int) -> None:
    value, unit = format_bytes(count).split()
    factor = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}[unit]
    assert abs(float(value) * factor - count) <= count / 20
    assert float(value) < 1000 or unit == "TB"


def test_columns_are_aligned_and_nothing_trails() -> None:
    table = format_table([("a", "1", ""), ("long name", "1000", "note")], "<><")
    assert table.split("\n") == ["  a             1", "  long name  1000  note"]


def test_a_table_without_rows_is_empty() -> None:
    assert format_table([], "<>") == ""


def test_the_indent_can_be_left_out() -> None:
    assert format_table([("a", "b")], "<<", indent=0) == "a  b"


def test_a_row_of_another_length_is_an_error_of_the_caller() -> None:
    with pytest.raises((ValueError, IndexError)):
        format_table([("a", "b", "c")], "<<")
