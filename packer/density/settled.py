"""What was compared before and has not changed since: a run that is repeated need not look again.

Nothing is believed that matters: what is forgotten is compared once more, and what is remembered
wrongly is not shared. A disk that changes without a trace in its time stamps is looked at when
another one changes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from packer import host
from packer.sources.memory import RACY_NS

MOST_RUNS = 64
MAX_FILE_BYTES = 4 << 20

Stamp = tuple[int, int, int, int, int]
"""See packer.sources.memory.stamp_of."""

_log = logging.getLogger(__name__)


class _Runs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """runs: the last ones, the newest first; the stamps of the disks that each has compared."""

    schema: Literal[1]
    runs: list[list[Stamp]]


class Settled:
    """Remembers which states of disks were compared with each other."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or host.state_dir() / "dedupe.json"

    def among(self, stamps: Sequence[Stamp]) -> list[bool]:
        """Return which disks, as they are now, were compared with all others that are true."""
        wanted = set(stamps)
        known = max((wanted & set(run) for run in self._read()), key=len, default=set())
        return [stamp in known for stamp in stamps]

    def remember(self, stamps: Iterable[Stamp]) -> None:
        """Note that disks were compared with each other and have these stamps since.

        What changed so recently that it may change again without a new stamp is left out.
        """
        now = time.time_ns()
        run = [stamp for stamp in stamps if max(stamp[3:]) < now - RACY_NS]
        others = [one for one in self._read() if not set(one) <= set(run)]
        data = msgspec.json.encode(_Runs(1, [run, *others][:MOST_RUNS]))
        try:
            _replace(self._path, data)
        except OSError as error:
            _log.warning("%s: what was compared is not remembered: %s", self._path, error)

    def _read(self) -> list[list[Stamp]]:
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES)
            return msgspec.json.decode(data, type=_Runs).runs
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return []


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
