"""unpack: a pack and whoever has the bytes become the disk again, bit for bit."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packer.artifact.contents import Class
from packer.artifact.hints import Hints
from packer.artifact.map import Map
from packer.artifact.opened import OpenedPack
from packer.errors import Error, MissingError, UsageError
from packer.progress import Progress, Silent
from packer.sources.base import Source, SourceError
from packer.sources.pack import PackSource
from packer.sources.store import Store
from packer.unpack.assemble import Assembler
from packer.unpack.gather import Gathering, Supplied, gather
from packer.unpack.output import Output

FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx")
MISSING_SHOWN = 20
"""How many missing contents are listed for a person."""


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


def unpack(
    pack: OpenedPack,
    output: str | Path,
    sources: Sequence[Source],
    *,
    store: Store | None = None,
    container: str = "raw",
    replace: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> UnpackReport:
    """Rebuild the pack's disk. Whom to trust was decided before.

    sources: in order of preference; the pack itself is always one. store: keeps what was fetched.
    Raises MissingError when nobody has a content, Error when the output cannot be written. The
    final name appears only when every byte is proven; what was done stays in NAME.partial.
    """
    if container not in FORMATS:
        raise UsageError(f"--format {container}: expected one of {', '.join(FORMATS)}")
    progress = progress or Silent()
    jobs = jobs or os.cpu_count() or 1
    path = Path(output)
    disk_map, hints = pack.map, pack.hints
    carrier = carrier_of(pack)
    with Output(path, disk_map.size, force=replace) as target:
        assembler = Assembler(disk_map, target, jobs)
        resumed = 0
        if target.resumed:
            total = int(disk_map.contents.size.sum())
            with progress.stage("resuming", total) as advance:
                resumed = assembler.take_up(advance)
        gathering = gather(assembler, hints, carrier, sources, progress)
        if store is not None:
            _keep_fetched(store, gathering, assembler)
        if len(gathering.missing):
            raise _nobody_has(pack, gathering, disk_map, hints)
        if container == "raw":
            target.commit()
        else:
            _convert(target, container)
    return UnpackReport(
        path,
        disk_map.size,
        int(disk_map.contents.size.sum()),
        resumed,
        tuple(gathering.supplied.values()),
    )


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


def _nobody_has(
    pack: OpenedPack, gathering: Gathering, disk_map: Map, hints: Hints
) -> MissingError:
    rows = gathering.missing.tolist()
    contents = disk_map.contents
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
    return MissingError(
        f"{pack.layout.location}: nobody has {len(rows)} contents ({total:,} bytes); "
        f"asked: {asked}\n" + "\n".join(lines),
        hint="name another source with --from (a full copy of the pack has everything); "
        "what was found is kept, the same command goes on from there",
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
    command = [program, "convert", "-f", "raw", "-O", container, str(finished), str(temporary)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        temporary.unlink(missing_ok=True)
        raise Error(f"{target.path}: qemu-img could not write it: {done.stderr.strip()}")
    target.commit_other(temporary)
