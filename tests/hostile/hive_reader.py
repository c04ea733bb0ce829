"""Read many damaged hives under the limits of a reader's child process, and say what came of it.

Run as `python -m tests.hostile.hive_reader`, with a pickled Task on standard input: it is our own.
Answers a line for each attempt: its number, seconds, outcome.
"""

from __future__ import annotations

import pickle
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from formats.errors import FormatError
from formats.windows.bcd import WANTED as BCD_WANTED
from formats.windows.bcd import read_bcd
from formats.windows.hive_log import replay
from formats.windows.hive_query import View, Wanted, query
from packer.survey.limits import GIB, Limits, limit_this_process
from tests.formats.damage import PAGE_BYTES

SECONDS = 10
"""What one hive may take; then the process is ended by SIGALRM, in whatever code it is."""

Case = tuple[bytes, tuple[bytes, ...]]
"""A hive and its logs."""


@dataclass(frozen=True)
class Task:
    """What to read. ends: the hive bins that a replay may lead to; empty: any."""

    cases: list[Case]
    ends: tuple[bytes, ...] = ()


def main() -> None:
    task = pickle.load(sys.stdin.buffer)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE_BYTES
    limit_this_process(Limits(memory_bytes=mapped + GIB, cpu_seconds=300))
    for number, (hive, logs) in enumerate(task.cases):
        signal.alarm(SECONDS)
        started = time.monotonic()
        outcome = attempt(hive, logs, task.ends)
        signal.alarm(0)
        print(number, f"{time.monotonic() - started:.3f}", outcome, flush=True)


def attempt(hive: bytes, logs: tuple[bytes, ...], ends: tuple[bytes, ...]) -> str:
    try:
        if ends:
            found = replay(hive, logs)
            assert found.data[4096:] in ends, "the replay led to what no log says"
        view = query(hive, logs, [Wanted("", depth=30), *BCD_WANTED])
    except FormatError as error:
        check_sentences([str(error)])
        return f"refused:{type(error).__name__}"
    check(view)
    read_bcd(view)
    return f"{view.state}:{'warned' if view.warnings else 'silent'}"


def check(view: View) -> None:
    """What every answer keeps to."""
    assert len({key.path for key in view.keys}) == len(view.keys)
    for key in view.keys:
        assert key.path == "" or all(key.path.split("\\"))
        assert view.key(key.path) is not None
        for value in key.values:
            assert len(value.data) <= 1 << 20
            assert value.text is None or value.texts == (value.text,)
            assert value.number is None or value.number >= 0
    check_sentences(view.warnings)


def check_sentences(sentences: Iterable[str]) -> None:
    assert all(one and "\n" not in one for one in sentences)


if __name__ == "__main__":
    main()
