"""One guest under measurement: its image, a working folder, the rows that collect."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import Command, Row, run
from fixtures.guests import build

FOLDER = Path("build/bench")
FREE_SECONDS = 3
"""How long XFS may need to give the blocks of a removed file back."""


class Bench:
    """One guest, one working folder, rows that collect. folder: another name for that folder."""

    def __init__(self, name: str, *, slow: bool, folder: str = "") -> None:
        self.name = name
        self.slow = slow
        self.image = build(name)
        self.work = (FOLDER / (folder or name)).absolute()
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        os.environ["VMPACK_HOME"] = str(self.work / "home")
        self.rows: list[Row] = []
        self.pack = self.work / "full.vmpack"
        self.thin = self.work / "thin.vmpack"

    def add(
        self,
        what: str,
        value: str,
        command: str,
        *,
        ratio: float | None = None,
        against: str = "",
        aim: float | None = None,
    ) -> None:
        """Keep a row and show it at once."""
        row = Row(what, value, ratio, against, aim, command)
        self.rows.append(row)
        shown = "" if ratio is None else f"  {ratio:.3f} × {against}"
        print(f"{what}: {value}{shown} {row.met}", flush=True)

    def vmpack(self, *arguments: str | Path) -> list[str]:
        """Return the command line of a verb."""
        return [sys.executable, "-m", "packer.cli.main", *map(str, arguments)]


def timed(command: Command, folder: Path, fresh: Path | None = None) -> Callable[[], float]:
    """Return what runs a command and tells its wall seconds, writing back below `folder` included.

    fresh: an output that is removed before each run, so that every run writes it anew; the file
    system gets time to take its blocks back, which XFS does afterwards and in the background.
    """

    def once() -> float:
        if fresh is not None:
            fresh.unlink(missing_ok=True)
            subprocess.run(["sync", "-f", str(folder)], check=True)
            time.sleep(FREE_SECONDS)
        return run(command, sync=folder)

    return once
