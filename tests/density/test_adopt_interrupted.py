"""A kill or an interrupt while a disk becomes a VM loses nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from packer.density.adopt import AdoptOptions, AdoptReport, adopt
from packer.run.vm.vm import all_vms
from tests.density.adopting import (
    SHIPPED,
    At,
    comes_back,
    disk,
    names_in_state,
    nothing_happens_to,
    objects,
    options,
    original,
)
from tests.density.places import digest

__all__ = ["disk", "options", "original"]


STAGES = ("hashing", "compressing", "putting into the store", "verifying")


def in_a_child(work: Callable[[], object]) -> int:
    """The status of a child of ours that does something, as of wait(2)."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(9)
    return os.waitpid(child, 0)[1]


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_loses_nothing(
    stage: str, disk: Path, original: Path, options: AdoptOptions
) -> None:
    before = digest(disk)
    status = in_a_child(lambda: adopt(disk, options, [], At(stage, kill_self)))
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert digest(disk) == before
    assert list(all_vms(options.state)) == []
    report = adopt(disk, options, [])
    assert comes_back(report, original, options)
    assert names_in_state(options) == ["mail"]  # what was left behind is gone


def test_what_a_killed_one_put_into_the_store_can_be_collected(
    disk: Path, options: AdoptOptions
) -> None:
    in_a_child(lambda: adopt(disk, options, [], At("verifying", kill_self)))
    assert objects(options) == SHIPPED
    assert len(options.store.collect(everything=True).digests) == SHIPPED


def test_a_kill_before_the_original_goes_leaves_both(
    disk: Path, original: Path, options: AdoptOptions
) -> None:
    def kill(_: AdoptReport) -> bool:
        kill_self()
        return True

    status = in_a_child(lambda: adopt(disk, replace(options, remove=kill), []))
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert digest(disk) == digest(original)
    assert options.store.collect(everything=True).digests == ()
    assert comes_back(adopt(disk, options, []), original, options)


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupt_leaves_nothing(stage: str, disk: Path, options: AdoptOptions) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with nothing_happens_to(disk, options), pytest.raises(KeyboardInterrupt):
        adopt(disk, options, [], At(stage, interrupt))
