from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packer.artifact.name_patterns import (
    check_patterns,
    covers,
    fits,
    for_people,
    is_pattern,
    may_share,
)
from packer.errors import UsageError

patterns = st.text(alphabet="ab*?", min_size=1, max_size=5)
names = st.text(alphabet="ab", min_size=1, max_size=5)


def test_patterns_are_those_of_a_shell() -> None:
    for name, pattern in (
        ("demo", "demo"),
        ("demo-b", "demo*"),
        ("demo1", "demo?"),
        ("demo1", "demo[0-9]"),
        ("x", "*"),
    ):
        assert fits(name, [pattern])
        assert fits(name, ["none", pattern])
    for name, pattern in (("demo", "dem"), ("xdemo", "demo"), ("demoa", "demo[!a]")):
        assert not fits(name, [pattern])


@pytest.mark.parametrize("text", ["", "Demo", "a/b", "x" * 129, "a\n", "é"])
def test_what_fits_no_name_is_no_pattern(text: str) -> None:
    assert not is_pattern(text)
    with pytest.raises(UsageError, match="expected a pattern"):
        check_patterns(["demo", text])


@given(patterns, patterns, names)
def test_what_a_name_shows_is_never_denied(one: str, other: str, name: str) -> None:
    if fits(name, [one]) and fits(name, [other]):
        assert may_share([one], [other])
    if covers([one], [other]) and fits(name, [other]):
        assert fits(name, [one])


def test_patterns_that_cannot_meet_are_told_apart() -> None:
    assert not may_share(["demo*"], ["lab*", "other"])
    assert not may_share(["demo"], ["demo?"])
    assert may_share(["demo*"], ["*-b"])
    assert may_share(["lab", "demo"], ["d*"])


def test_no_pattern_takes_long() -> None:
    started = time.monotonic()
    assert not fits("a" * 127 + "b", ["a*" * 63 + "c"])
    assert time.monotonic() - started < 1


def test_every_name_is_said_in_words() -> None:
    assert for_people(["demo", "*"]) == "every name"
    assert for_people(["demo*", "lab"]) == "demo* lab"
