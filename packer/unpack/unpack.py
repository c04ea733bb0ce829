"""unpack: a pack and whoever has the bytes become the disk again, bit for bit."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import Class, Contents
from packer.artifact.hints import Hints
from packer.artifact.opened import OpenedPack
from packer.environment import inherited
from packer.errors import Error, MissingError, UsageError
from packer.progress import Progress, Silent
from packer.sources.base import Source, SourceError
from packer.sources.delta import delta_sources
from packer.sources.pack import PackSource
from packer.sources.store import Store
from packer.unpack.assemble import Assembler
from packer.unpack.gather import Gathering, Supplied, gather
from packer.unpack.output import Output, Replaced, Target
from packer.unpack.part import Part, whole

FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx")
MISSING_SHOWN = 20
"""How many missing contents are listed for a person."""


class ContentsMissingError(MissingError):
    """Contents that no source has.

    rows: int64[k] of the contents, sorted. supplied: what each source gave of the others.
    """

    def __init__(
        self, message: str, *, hint: str, rows: NDArray[np.int64], supplied: Sequence[Supplied]
    ) -> None:
        super().__init__(message, hint=hint)
        self.rows = rows
        self.supplied = tuple(supplied)


@dataclass(frozen=True, slots=True)
class UnpackReport:
    """Where the bytes of the disk came from.

    supplied: by source, in the order of asking. resumed_bytes: proven in what an interrupted run
    had left.
    """

    output: Path
    disk_bytes: int
    content_bytes: int
    resumed_bytes: int
    supplied: tuple[Supplied, ...]


@dataclass(frozen=True, slots=True)
class Filled:
    """Where the bytes came from; see UnpackReport."""

    resumed_bytes: int
    supplied: tuple[Supplied, ...]


def unpack(
    pack: OpenedPack,
    output: str | Path,
    sources: Sequence[Source],
    *,
    store: Store | None = None,
    container: str = "raw",
    replace: bool = False,
    replaced: Replaced | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> UnpackReport:
    """Rebuild the pack's disk. Whom to trust was decided before.

    sources: in order of preference; the pack itself is always one. store: keeps what was fetched.
    replace: a file of that name may be replaced. replaced: what is known of that file.
    Raises ContentsMissingError when nobody has a content, Error when the output cannot be written.
    The final name appears only when every byte is proven; what was done stays in NAME.partial.
    """
    if container not in FORMATS:
        raise UsageError(f"--format {container}: expected one of {', '.join(FORMATS)}")
    progress = progress or Silent()
    jobs = jobs or os.cpu_count() or 1
    path = Path(output)
    with Output(path, pack.map.size, force=replace, replaced=replaced) as target:
        filled = fill(pack, target, sources, store=store, jobs=jobs, progress=progress)
        if container == "raw":
            target.commit()
        else:
            _convert(target, container)
    return UnpackReport(
        path,
        pack.map.size,
        int(pack.map.contents.size.sum()),
        filled.resumed_bytes,
        filled.supplied,
    )


def fill(
    pack: OpenedPack,
    target: Target,
    sources: Sequence[Source],
    *,
    store: Store | None = None,
    part: Part | None = None,
    jobs: int,
    progress: Progress,
) -> Filled:
    """Bring every content to its places in a target, and zeros to all other ranges.

    part: of the pack's disk; None: all of it. Raises ContentsMissingError when nobody has a
    content; what was found stays in place.
    """
    part = part or whole(pack)
    assembler = Assembler(part.map, target, jobs)
    resumed = resume(assembler, target, progress)
    sources = [*sources, *delta_sources(pack, sources)]
    gathering = gather(assembler, part.hints, carrier_of(pack), sources, progress)
    if store is not None:
        _keep_fetched(store, gathering, assembler)
    if len(gathering.missing):
        raise nobody_has(pack.layout.location, part.map.contents, part.hints(), gathering)
    return Filled(resumed, tuple(gathering.supplied.values()))


def resume(assembler: Assembler, target: Target, progress: Progress) -> int:
    """Take up what an interrupted run has left in a target; return its bytes that are proven.

    What must be zeros becomes so in any case: a device seems blank if both of its ends are.
    """
    assembler.clear_rest(progress)
    if not target.resumed:
        return 0
    total = int(assembler.map.contents.size.sum())
    with progress.stage("resuming", total) as advance:
        return assembler.take_up(advance)


def carrier_of(pack: OpenedPack) -> PackSource:
    """Return the pack itself as a source of its own contents."""
    return PackSource(f"pack:{pack.layout.location}", pack.layout, pack.map.contents, pack.index)


def path_of(hints: Hints, row: int) -> str:
    """Return a guest path where a content was found, or what it is when it has none."""
    places = hints.of(row)
    return hints.path[places[0]] if len(places) else "(file-system metadata)"


def _keep_fetched(store: Store, gathering: Gathering, assembler: Assembler) -> None:
    """Put what travelled over the network into the store, so that it travels once.

    A store that cannot be written costs the next fetch, not this disk: it is noted.
    """
    contents = assembler.map.contents
    rows = gathering.fetched[contents.classes[gathering.fetched] == Class.SHARED]
    try:
        for row in rows.tolist():
            assembler.keep(row, store)
    except SourceError as error:
        record = gathering.supplied.setdefault(store.uri, Supplied(store.uri))
        record.complaints.append(f"nothing more is kept: {error}")


def nobody_has(
    where: str, contents: Contents, hints: Hints, gathering: Gathering
) -> ContentsMissingError:
    """Return the error that says what is missing. where: what was to be made of the contents."""
    rows = gathering.missing.tolist()
    lines = [
        f"  {contents.name(row)}  {int(contents.size[row]):>12,}  {path_of(hints, row)}"
        for row in rows[:MISSING_SHOWN]
    ]
    if len(rows) > MISSING_SHOWN:
        lines.append(f"  … and {len(rows) - MISSING_SHOWN} more")
    asked = ", ".join(gathering.supplied)
    complaints = [text for one in gathering.supplied.values() for text in one.complaints]
    lines.extend(f"  {text}" for text in complaints[:MISSING_SHOWN])
    total = int(contents.size[gathering.missing].sum())
    return ContentsMissingError(
        f"{where}: nobody has {len(rows)} contents ({total:,} bytes); "
        f"asked: {asked}\n" + "\n".join(lines),
        hint="name another source with --from (a full copy of the pack has everything); "
        "what was found is kept, the same command goes on from there",
        rows=gathering.missing,
        supplied=tuple(gathering.supplied.values()),
    )


def _convert(target: Output, container: str) -> None:
    """Write the finished disk as another container, through a temporary name of its own."""
    program = shutil.which("qemu-img")
    if program is None:
        raise Error(
            f"--format {container} needs qemu-img, which is not installed",
            hint="apt install qemu-utils (or unpack as raw)",
        )
    # Absolute: qemu-img takes what stands before a colon for a protocol, and "-" for an option.
    finished = target.partial.absolute()
    temporary = finished.with_name(target.path.name + f".{container}.partial")
    # Of a killed run, whose qemu-img may still write to it and hold its lock.
    temporary.unlink(missing_ok=True)
    target.make_beside(temporary)
    command = [program, "convert", "-f", "raw", "-O", container, str(finished), str(temporary)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=inherited(), check=False)
        if done.returncode:
            raise Error(f"{target.path}: qemu-img could not write it: {done.stderr.strip()}")
        target.commit_other(temporary)
    except Error:
        temporary.unlink(missing_ok=True)
        raise
