"""A source that is opened when it is first asked, once, and not before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from packer.errors import Error, InputError
from packer.sources.base import Bytes, SourceError
from packer.sources.on_demand import OnDemand
from tests.unpack.simulated import DATA, InBlocks, ask, sample_map


class Opening:
    """Opens a simulated source, or fails; counts how often."""

    def __init__(self, failure: Error | None = None) -> None:
        self.failure = failure
        self.source = InBlocks("far:", local=False)
        self.count = 0

    def __call__(self) -> InBlocks:
        self.count += 1
        if self.failure is not None:
            raise self.failure
        return self.source


def test_nothing_is_opened_until_it_is_asked_and_then_once() -> None:
    opening = Opening()
    source = OnDemand("far:", opening)
    assert not source.local
    source.close()
    assert opening.count == 0
    for deep in (False, True):
        assert len(source.find(ask(sample_map()), deep=deep).rows) == len(DATA)
    pieces = list(source.fetch(np.array([3, 4])))
    assert [one.data for one in pieces if isinstance(one, Bytes)] == [DATA[3], DATA[4]]
    assert opening.count == 1
    source.close()


def test_what_cannot_be_opened_is_said_each_time_and_not_tried_again() -> None:
    opening = Opening(InputError("far: no pack", hint="look elsewhere"))
    source = OnDemand("far:", opening)
    for deep in (False, True):
        with pytest.raises(SourceError, match="far: no pack; left out") as caught:
            source.find(ask(sample_map()), deep=deep)
        assert caught.value.hint == "look elsewhere"
    assert opening.count == 1
    source.close()


def test_after_renewal_it_is_tried_again() -> None:
    opening = Opening(InputError("far: no pack"))
    source = OnDemand("far:", opening)
    with pytest.raises(SourceError):
        source.find(ask(sample_map()), deep=False)
    opening.failure = None
    source.renew()
    assert len(source.find(ask(sample_map()), deep=False).rows) == len(DATA)
    source.renew()
    assert len(source.find(ask(sample_map()), deep=False).rows) == len(DATA)
    assert opening.count == 2  # what is open stays so
    source.close()


def test_single_pieces_are_those_of_the_source() -> None:
    source = OnDemand("far:", Opening())
    rows, blocks = np.array([5, 4]), np.array([1, 0])
    pieces = source.fetch_blocks(rows, blocks)
    assert [one.data for one in pieces] == [DATA[5][1 << 20 :], DATA[4]]
    assert source.cost_of_blocks(rows, blocks) == 2
    source.close()


def test_errors_that_nobody_foresaw_are_not_hidden(tmp_path: Path) -> None:
    def broken() -> InBlocks:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        OnDemand("far:", broken).find(ask(sample_map()), deep=False)
