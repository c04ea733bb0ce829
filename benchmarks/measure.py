"""Run commands side by side and keep what they took."""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Command = Sequence[str | Path] | Sequence[str]


@dataclass(frozen=True, slots=True)
class Run:
    """What one whole process took: wall seconds, peak resident bytes (of the largest process)."""

    seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. aim: "≤ 0.27", or "" when there is none."""

    what: str
    value: str
    ratio: float | None
    against: str
    aim: float | None
    command: str

    @property
    def met(self) -> str:
        """Return whether the aim was met, in a word."""
        if self.aim is None or self.ratio is None:
            return ""
        return "met" if self.ratio <= self.aim else "MISSED"


def run(command: Command, *, sync: Path | None = None) -> float:
    """Run a command to its end and return its wall seconds.

    sync: writing back what was written below this folder is part of the time. Raises
    CalledProcessError, with what it said, when it fails.
    """
    words = [str(word) for word in command]
    started = time.monotonic()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words, out, err)
    if sync is not None:
        subprocess.run(["sync", "-f", str(sync)], check=True)
    return time.monotonic() - started


def run_measured(command: Command) -> Run:
    """Run a command and take its peak memory from the kernel's own accounting."""
    words = [str(word) for word in command]
    started = time.monotonic()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)
    return Run(time.monotonic() - started, usage.ru_maxrss * 1024)


def side_by_side(
    ours: Callable[[], float], theirs: Callable[[], float], rounds: int
) -> tuple[float, float, float]:
    """Run two things in turn; return (median of ours, of theirs, median of the ratios)."""
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    return (
        statistics.median(mine for mine, _ in pairs),
        statistics.median(other for _, other in pairs),
        statistics.median(mine / other for mine, other in pairs),
    )


def words_of(command: Command) -> str:
    """Return a command as a person would type it."""
    return shlex.join(str(word) for word in command)


def as_markdown(title: str, rows: Sequence[Row]) -> str:
    """Return the table as Markdown."""
    lines = [
        f"## {title}",
        "",
        "| what | measured | ratio | against | aim | |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        aim = "" if row.aim is None else f"≤ {row.aim:g}"
        lines.append(f"| {row.what} | {row.value} | {ratio} | {row.against} | {aim} | {row.met} |")
    lines += ["", "Commands:", ""]
    lines += [f"- {row.what}: `{row.command}`" for row in rows if row.command]
    return "\n".join(lines) + "\n"
