"""fill: what a want-list asks for, collected on a machine that has a network.

The wanted contents are gathered like those of a disk: into one file, one after the other, each
proven as it is put there. An interrupted run is taken up again by hashing what that file has. Then
they are compressed into bundles of a copy of the pack which holds these contents and no others.
Nothing of a virtual machine is needed for that.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import Contents
from packer.artifact.hints import Hints
from packer.artifact.index import Index
from packer.artifact.layout.base import LayoutWriter
from packer.artifact.layout.open import create_layout
from packer.artifact.manifest import Blob
from packer.artifact.map import Kind, Map
from packer.artifact.opened import OpenedPack
from packer.artifact.want import wanted_rows, write_tables
from packer.clone import CLONE_UNIT_BYTES
from packer.pack.bundle import ReadBlock, write_bundles
from packer.pack.pack import LEVELS
from packer.progress import Progress, Silent
from packer.sources.base import Source
from packer.unpack.assemble import Assembler
from packer.unpack.gather import Supplied, gather
from packer.unpack.output import Output
from packer.unpack.unpack import carrier_of, nobody_has, path_of, resume

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FillReport:
    """What was collected. stored_bytes: of the pack that was written.

    wanted, found: (contents, bytes). missing: (content, bytes, guest path) of the others.
    resumed_bytes, supplied: see UnpackReport.
    """

    output: Path
    ref_name: str
    identity: str
    stored_bytes: int
    wanted: tuple[int, int]
    found: tuple[int, int]
    missing: tuple[tuple[str, int, str], ...]
    resumed_bytes: int
    supplied: tuple[Supplied, ...]


def fill_list(
    pack: OpenedPack,
    output: str | Path,
    sources: Sequence[Source],
    *,
    replace: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> FillReport:
    """Write a copy of the pack that holds what a want-list asks for, as far as it is found.

    pack: the want-list, or a copy that fills one in part: what it holds is used. Whom to trust was
    decided before. sources: in order of preference. replace: a file of that name may be replaced.
    Raises InputError when it is no want-list, ContentsMissingError when nothing was found, Error
    when the output cannot be written. What an interrupted run found stays in
    NAME.contents.partial beside it, or in filled.contents.partial in a folder that exists.
    """
    progress = progress or Silent()
    jobs = jobs or os.cpu_count() or 1
    rows = wanted_rows(pack)
    contents, hints = pack.map.contents.only(rows), pack.hints.only(rows)
    carrier = carrier_of(pack)
    in_a_row = one_after_the_other(contents)
    path = Path(output)
    with (
        create_layout(output, replace=replace) as writer,
        Output(_collection(path), in_a_row.size, force=True) as target,
    ):
        assembler = Assembler(in_a_row, target, jobs)
        resumed = resume(assembler, target, progress)
        gathering = gather(assembler, hints, carrier, sources, progress)
        found = np.ones(len(rows), dtype=bool)
        found[gathering.missing] = False
        if not found.any():
            target.discard()
            raise nobody_has(pack.layout.location, contents, hints, gathering)
        titled, index = _write_found(
            writer, contents, hints, _reader(assembler), found, jobs, progress
        )
        index = index.renumbered(contents, pack.map.contents)
        entry = write_tables(pack, rows, index, titled, writer)
        writer.finish([entry])
        target.discard()
    return FillReport(
        path,
        pack.config.ref_name,
        pack.config_digest,
        sum(blob.size for blob in entry.manifest.blobs()),
        (len(rows), int(contents.size.sum())),
        (int(found.sum()), int(contents.size[found].sum())),
        tuple(
            (contents.name(row), int(contents.size[row]), path_of(hints, row))
            for row in gathering.missing.tolist()
        ),
        resumed,
        tuple(gathering.supplied.values()),
    )


def _collection(output: Path) -> Path:
    """Return under which name contents are collected: on the medium that they are meant for."""
    if output.is_dir():  # perhaps a mount point, beside which another medium lies
        return output / "filled.contents"
    whole = output.absolute()
    return whole.with_name(f"{whole.name}.contents")


def one_after_the_other(contents: Contents) -> Map:
    """Return the map of a disk that holds each content once, in whole units of 4 KiB.

    So files whose blocks can be shared are not copied.
    """
    space = -(-contents.size // CLONE_UNIT_BYTES) * CLONE_UNIT_BYTES
    ends = np.cumsum(space)
    count = len(contents)
    end = np.stack([ends - space + contents.size, ends], axis=1).ravel()
    kind = np.tile(np.array([Kind.CONTENT, Kind.ZERO], dtype=np.uint8), count)
    content = np.stack([np.arange(count), np.full(count, -1)], axis=1).ravel()
    there = np.diff(end, prepend=0) > 0
    return Map(
        int(end[-1]),
        end[there],
        kind[there],
        content[there],
        np.zeros(int(there.sum()), dtype=np.int64),
        contents,
    )


def _reader(assembler: Assembler) -> ReadBlock:
    """Return what reads a block of a content that was put in place."""
    start, contents = assembler.places.first_offset, assembler.map.contents

    def read(row: int, block: int) -> bytes:
        low, high = contents.block_bounds(row, block)
        return assembler.output.pread(int(start[row]) + low, high - low)

    return read


def _write_found(
    writer: LayoutWriter,
    contents: Contents,
    hints: Hints,
    read: ReadBlock,
    found: NDArray[np.bool_],
    jobs: int,
    progress: Progress,
) -> tuple[dict[str, Blob], Index]:
    with progress.stage("compressing", int(contents.size[found].sum())) as advance:
        return write_bundles(
            writer,
            contents,
            hints,
            read,
            wanted=found,
            levels=LEVELS,
            jobs=jobs,
            progress=advance,
        )
