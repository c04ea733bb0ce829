"""What adopting a disk would gain, without writing anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from packer.artifact.contents import Class
from packer.density.adopt import AdoptOptions, count_new
from packer.density.original import Original
from packer.density.stock import BLOCK_BYTES
from packer.pack.bundle import estimate_bytes
from packer.pack.prepare import prepare
from packer.progress import Progress, Silent
from packer.sources.base import Wanted
from packer.survey.disk import open_disk


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a disk takes now, and would take, in bytes. See AdoptReport for the fields."""

    path: Path
    before_bytes: int
    own_bytes: int
    stored_bytes: int
    unique_bytes: int

    @property
    def after_bytes(self) -> int:
        """Return what the disk would take, the original aside."""
        return self.own_bytes + self.stored_bytes


def forecast(disk: Path, options: AdoptOptions, progress: Progress | None = None) -> Forecast:
    """Return what adopting a disk would gain; about, as far as compression goes.

    Raises what `adopt` raises before it writes anything.
    """
    progress = progress or Silent()
    original = Original.of(disk, options.folders)
    original.demand_unused()
    with open_disk(original.real, backing=options.backing) as opened:
        if options.remove is not None:
            original.demand_expendable(opened)
        prepared = prepare(opened, jobs=options.jobs, progress=progress)
        contents = prepared.map.contents
        travelling = int(contents.size[contents.classes != Class.SHARED].sum())
        with progress.stage("compressing", travelling) as advance:
            own_bytes = estimate_bytes(
                contents, prepared.hints, prepared.read_block, jobs=options.jobs, progress=advance
            )
        shared = np.flatnonzero(contents.classes == Class.SHARED)
        wanted = Wanted(contents, shared, prepared.hints)
        new = np.setdiff1d(shared, options.store.find(wanted, deep=False).rows)
        new = np.array(
            [row for row in new.tolist() if contents.digest[row].tobytes() not in options.known],
            dtype=np.int64,
        )
        blocks = -(-contents.size[new] // BLOCK_BYTES)
        opened.check_unchanged()
        return Forecast(
            disk,
            original.taken_bytes(),
            own_bytes,
            int(blocks.sum()) * BLOCK_BYTES,
            count_new(contents, options.known),
        )
