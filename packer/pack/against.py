"""What somebody else already has: `pack --against` makes it shared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import Contents
from packer.artifact.hints import Hints
from packer.progress import Progress, Silent
from packer.sources.against import holds
from packer.sources.base import Source, Wanted
from packer.sources.inventory import Inventory
from packer.sources.open import SourceOpener

Rows = NDArray[np.int64]
Against = Callable[[Contents, Hints, Rows], Rows]
"""(contents, hints, rows) -> those rows that some other place is known to hold."""


def open_against(named: str, opener: SourceOpener, *, progress: Progress | None = None) -> Against:
    """Return the judge that a user names: an inventory file, or a source's URI.

    progress: a source is read through whenever it is asked. Raises UsageError for neither,
    InputError for a file that is no inventory.
    """
    path = Path(named)
    if path.is_file():
        return inventory_holds(path)
    return source_holds(opener.open(named), progress=progress)


def inventory_holds(path: Path) -> Against:
    """Return a judge by an inventory file: digests that a target is known to have."""
    inventory = Inventory.load(path)

    def held(contents: Contents, hints: Hints, rows: Rows) -> Rows:  # noqa: ARG001
        return rows[inventory.contains(contents.digest[rows])]

    return held


def source_holds(source: Source, *, progress: Progress | None = None) -> Against:
    """Return a judge by a source. What it offers is read and hashed: a stub that nobody can fill
    is a hole in somebody's disk.
    """

    def held(contents: Contents, hints: Hints, rows: Rows) -> Rows:
        size_bytes = int(contents.size[rows].sum())
        with (progress or Silent()).stage(f"looking at {source.uri}", size_bytes) as advance:
            near = holds(source, Wanted(contents, rows, hints), deep=False, progress=advance)
            rest = Wanted(contents, np.setdiff1d(rows, near), hints)
            return np.union1d(near, holds(source, rest, deep=True, progress=advance))

    return held
