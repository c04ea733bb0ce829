"""Progress of long work: bars for a person at a terminal, silence for everybody else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from tqdm import tqdm

BAR_FORMAT = "{desc} {bar} {percentage:3.0f}%  {n_fmt}/{total_fmt}B  {rate_fmt}  {remaining} left"
Advance = Callable[[int], None]


class Progress(Protocol):
    """Something that can be told about stages of work."""

    def stage(self, title: str, total_bytes: int) -> AbstractContextManager[Advance]:
        """Enter a stage of that many bytes; call what comes back with the bytes done since."""


class Silent:
    """Progress that nobody watches."""

    @contextmanager
    def stage(self, title: str, total_bytes: int) -> Iterator[Advance]:  # noqa: ARG002
        """Enter a stage."""
        yield lambda _: None


class Bars:
    """One bar a stage on standard error, gone when the stage is done."""

    @contextmanager
    def stage(self, title: str, total_bytes: int) -> Iterator[Advance]:
        """Enter a stage."""
        with tqdm(
            total=total_bytes,
            desc=title,
            unit="B",
            unit_scale=True,
            leave=False,
            dynamic_ncols=True,
            file=sys.stderr,
            bar_format=BAR_FORMAT,
        ) as bar:

            def advance(done_bytes: int) -> None:
                bar.update(done_bytes)

            yield advance


def for_terminal(*, quiet: bool) -> Progress:
    """Return bars when standard error is a terminal and they are wanted."""
    return Bars() if not quiet and sys.stderr.isatty() else Silent()
