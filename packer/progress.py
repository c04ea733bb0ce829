"""Progress of long work: bars for a person at a terminal, silence for everybody else."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from packer.text import printable

BAR_FORMAT = "{desc} {bar} {percentage:3.0f}%  {n_fmt}/{total_fmt}B  {rate_fmt}  {remaining} left"
ENDLESS_FORMAT = "{desc} …"
USUAL_SIZE = (80, 24)
"""Columns and rows of a terminal that does not tell: a serial console says 0 and 0."""

Advance = Callable[[int], None]


class Progress(Protocol):
    """Something that can be told about stages of work."""

    def stage(self, title: str, total_bytes: int) -> AbstractContextManager[Advance]:
        """Enter a stage of that many bytes; call what comes back with the bytes done since.

        total_bytes: 0 where nobody can tell. Any thread may call.
        """


def ignore(done_bytes: int) -> None:
    """Tell nobody what is done."""


class Silent:
    """Progress that nobody watches."""

    @contextmanager
    def stage(self, title: str, total_bytes: int) -> Iterator[Advance]:  # noqa: ARG002
        """Enter a stage."""
        yield ignore


class Bars:
    """One bar a stage on standard error, gone when the stage is done."""

    @contextmanager
    def stage(self, title: str, total_bytes: int) -> Iterator[Advance]:
        """Enter a stage."""
        from tqdm import tqdm  # here: a run without bars does without its time to load

        lock = threading.Lock()  # tqdm adds without one
        told = all(os.get_terminal_size(sys.stderr.fileno()))
        columns, rows = (None, None) if told else USUAL_SIZE
        with tqdm(
            total=total_bytes,
            desc=title,
            unit="B",
            unit_scale=True,
            leave=False,
            dynamic_ncols=told,
            ncols=columns,
            nrows=rows,
            file=sys.stderr,
            bar_format=BAR_FORMAT if total_bytes else ENDLESS_FORMAT,
        ) as bar:

            def advance(done_bytes: int) -> None:
                with lock:
                    bar.update(done_bytes)

            yield advance


def note(text: str) -> None:
    """Print a note on standard error, above the bar if there is one; no name in it breaks it."""
    line = f"vmpack: note: {printable(text)}"
    bars = sys.modules.get("tqdm")
    if bars is None:
        print(line, file=sys.stderr)
    else:
        bars.tqdm.write(line, file=sys.stderr)


def for_terminal(*, quiet: bool) -> Progress:
    """Return bars when standard error is a terminal and they are wanted."""
    return Bars() if not quiet and sys.stderr.isatty() else Silent()
