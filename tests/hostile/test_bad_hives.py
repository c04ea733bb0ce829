"""Damaged and harmful registry hives end in an error or an answer, and never take long or much."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.formats.damage import damaged
from tests.formats.windows.corpus import corpus, dirty_logs, needs_corpus
from tests.formats.windows.make_hive import (
    SEQUENCE,
    at_rest,
    in_the_middle,
    new_log,
    old_log,
    with_services,
)
from tests.hostile.harmful_hives import HARMFUL
from tests.hostile.hive_reader import SECONDS, Case, Task

NEXT = SEQUENCE + 1
ROOT = Path(__file__).resolve().parents[2]


def torn() -> bytes:
    return in_the_middle(at_rest(), NEXT, SEQUENCE)


def states() -> list[bytes]:
    return [with_services(*"abc"[:count]) for count in range(4)]


def old_logs() -> tuple[bytes, ...]:
    return (old_log(at_rest(), states()[-1], NEXT),)


def new_logs() -> tuple[bytes, ...]:
    return new_log(states()[:2], NEXT), new_log(states()[1:], NEXT + 1)


def hives(hive: bytes, logs: tuple[bytes, ...], count: int, seed: int) -> Task:
    """The hive, damaged so many times, with sound logs."""
    return Task([(data, logs) for data in damaged(hive, [(0, len(hive))], count, seed)])


def logs(hive: bytes, sound: tuple[bytes, ...], broken: int, count: int, seed: int) -> list[Case]:
    """The sound hive with one of its logs damaged so many times."""
    cases: list[Case] = []
    for data in damaged(sound[broken], [(0, len(sound[broken]))], count, seed):
        cases.append((hive, (*sound[:broken], data, *sound[broken + 1 :])))
    return cases


def steps() -> tuple[bytes, ...]:
    """What entries with sound hashes can lead to."""
    return tuple(state[4096:] for state in states())


TASKS: dict[str, Callable[[], Task]] = {
    "a hive at rest": lambda: hives(at_rest(), (), 900, 1),
    "a larger hive": lambda: hives(states()[-1], (), 400, 2),
    "a hive with entries to replay": lambda: hives(torn(), new_logs(), 300, 3),
    "the first log": lambda: Task(logs(torn(), new_logs(), 0, 300, 4), steps()),
    "the second log": lambda: Task(logs(torn(), new_logs(), 1, 300, 5), steps()),
    "a log of sectors": lambda: Task(logs(torn(), old_logs(), 0, 300, 6)),
}

USUAL = {"the first log": ("stale:warned", 250), "the second log": ("replayed:warned", 250)}
"""Hashes tell damaged entries: nothing is left of a log but what precedes the damage."""


def real_hive() -> tuple[bytes, tuple[bytes, ...]]:
    return corpus("SYSTEM_win10_dirty"), tuple(dirty_logs())


REAL_TASKS: dict[str, Callable[[], Task]] = {
    "a BCD": lambda: hives(corpus("BCD"), (), 300, 7),
    "a SYSTEM hive": lambda: hives(*real_hive(), 2, 8),
    "a log of it": lambda: Task(logs(*real_hive(), 1, 2, 9)),
}


def outcomes(task: Task) -> Counter[str]:
    """Run the task in a process of its own, which must live to the end."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.hive_reader"],
        input=pickle.dumps(task),
        capture_output=True,
        cwd=ROOT,
        check=False,
        timeout=300,
    )
    lines = [line.split() for line in done.stdout.decode().splitlines()]
    assert done.returncode == 0, f"attempt {len(lines)}: {done.returncode}\n{done.stderr.decode()}"
    assert len(lines) == len(task.cases)
    assert max(float(seconds) for _, seconds, _ in lines) < SECONDS
    return Counter(outcome for _, _, outcome in lines)


def test_there_are_at_least_2000() -> None:
    assert sum(len(make().cases) for make in TASKS.values()) >= 2000


@pytest.mark.parametrize("name", TASKS)
def test_damage_is_refused_or_survived(name: str) -> None:
    found = outcomes(TASKS[name]())
    assert len(found) > 1  # not everything is refused, and not everything passes
    usual, least = USUAL.get(name, ("", 0))
    assert found[usual] >= least


@needs_corpus
@pytest.mark.parametrize("name", REAL_TASKS)
def test_damage_to_real_hives_is_refused_or_survived(name: str) -> None:
    assert outcomes(REAL_TASKS[name]()).total() > 0


@pytest.mark.parametrize("make", HARMFUL, ids=lambda make: make.__name__)
def test_what_is_made_to_do_harm_is_refused_or_survived(make: Callable[[], bytes]) -> None:
    (outcome,) = outcomes(Task([(make(), ())]))
    assert outcome.startswith(("refused", "clean"))
