"""vmpack copy: the same signed packs with fewer of their bundles."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from packer.artifact.copy import Copied, CopyReport, Extent, Fit, copy_packs
from packer.artifact.layout.open import check_takes_extras, create_layout
from packer.cli.options import (
    add_common,
    add_verb,
    note_expiry,
    own_store,
    print_json,
    progress_of,
)
from packer.errors import UsageError
from packer.media.capacity import KINDS, capacity_bytes
from packer.media.chances import chances
from packer.media.unpacker import DEFAULT_KIND as UNPACKER_BY_DEFAULT
from packer.media.unpacker import KINDS as UNPACKERS
from packer.media.unpacker import Unpacker, find_unpacker
from packer.pack.against import Against, open_against
from packer.sources.open import SourceOpener, open_pack
from packer.text import format_bytes, format_table, printable
from packer.transport.registry_reference import is_reference


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "copy",
        "copy packs, whole or in part",
        "vmpack copy demo.vmpack --thin stick/demo.vmpack\n"
        "  vmpack copy demo.vmpack lab.vmpack demos.iso --fit dvd --against trainee.inv",
    )
    parser.add_argument(
        "pack",
        nargs="+",
        help="file, folder or URL of a pack, PACK#NAME:VERSION for one of several",
    )
    add_extent(parser)
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="SOURCE",
        help="with --fit: a host of the audience has what this source holds: a .inv file, or a "
        "source's URI; repeatable",
    )
    parser.add_argument(
        "--with-unpacker",
        nargs="?",
        const=UNPACKER_BY_DEFAULT,
        metavar="=WHAT",
        help="on an .iso or in a folder: carry what a host without vmpack and network unpacks "
        f"with; after '=': {', '.join(UNPACKERS)} (default: {UNPACKER_BY_DEFAULT}), or a folder "
        "that has it",
    )
    parser.add_argument("destination", help="file, .iso, folder/ (ends in /) or oci://…, to write")
    parser.add_argument("--force", action="store_true", help="replace the destination")
    add_common(parser, jobs=False)
    parser.set_defaults(run=run, extent=Extent.FULL)


def add_extent(parser: argparse.ArgumentParser, *, fit: bool = True) -> None:
    """Add the options that say how much of a pack a copy carries."""
    extent = parser.add_mutually_exclusive_group()
    for one, what in (
        (Extent.BOOT, "boot set only"),
        (Extent.THIN, "boot and private"),
        (Extent.FULL, "everything (default)"),
    ):
        extent.add_argument(
            f"--{one.value}", dest="extent", action="store_const", const=one, help=what
        )
    if fit:
        extent.add_argument(
            "--fit",
            metavar="SIZE",
            help="boot and private, then what the audience most likely lacks, until a medium is "
            f"full: {', '.join(KINDS)}, or a size such as 700M or 4G",
        )


def run(options: argparse.Namespace) -> int:
    """Copy."""
    if options.against and options.fit is None:
        raise UsageError("--against says what a medium need not hold: it goes with --fit")
    capacity = None if options.fit is None else capacity_bytes(options.fit)
    unpacker = _unpacker(options)
    with ExitStack() as stack:
        packs = [stack.enter_context(open_pack(one)) for one in options.pack]
        for pack in packs:
            note_expiry(pack.config)
        extent: Extent | Fit = options.extent
        if capacity is not None:
            opener = stack.enter_context(SourceOpener(own_store(None)))
            against: list[Against] = [
                open_against(one, opener, progress=progress_of(options)) for one in options.against
            ]
            extent = Fit(capacity, [chances(pack, against) for pack in packs])
        extras = unpacker.extras if unpacker else ()
        layout = create_layout(options.destination, replace=options.force, extras=extras)
        writer = stack.enter_context(layout)
        report = copy_packs(packs, writer, extent, progress=progress_of(options))
    if options.json:
        print_json({**as_json(options.destination, report), "unpacker": _as_json(unpacker)})
    else:
        print_report(options.destination, report, extent)
        _print_unpacker(unpacker)
    return 0


def _unpacker(options: argparse.Namespace) -> Unpacker | None:
    if options.with_unpacker is None:
        return None
    check_takes_extras(options.destination)  # before what may take a minute
    return find_unpacker(options.with_unpacker, progress_of(options))


def _as_json(unpacker: Unpacker | None) -> dict[str, object] | None:
    if unpacker is None:
        return None
    return {
        "program": unpacker.program,
        "digest": unpacker.digest,
        "needs": unpacker.needs,
        "files": len(unpacker.extras),
        "bytes": unpacker.size,
    }


def _print_unpacker(unpacker: Unpacker | None) -> None:
    if unpacker is not None:
        print(f"  {unpacker.program}  {unpacker.digest}")
        print(f"    for {printable(unpacker.needs)}; nobody signs it: hand its digest over, too")


def as_json(destination: str, report: CopyReport) -> dict[str, object]:
    """Return a report for machines: a list of packs; of one alone, its fields besides."""
    packs: list[dict[str, object]] = [
        {
            "name": one.ref_name,
            "identity": one.identity,
            "manifest": one.manifest,
            "lacking": {
                name: {"count": count, "bytes": size} for name, (count, size) in one.lacking.items()
            },
        }
        for one in report.packs
    ]
    return {
        "output": destination if is_reference(destination) else str(Path(destination)),
        "bytes": report.medium_bytes,
        "packs": packs,
        **(packs[0] if len(packs) == 1 else {}),
    }


def print_report(destination: str, report: CopyReport, extent: Extent | Fit) -> None:
    """Print a report for people."""
    full = ""
    if isinstance(extent, Fit):
        part = 100 * report.medium_bytes / extent.capacity_bytes
        full = f" of {format_bytes(extent.capacity_bytes)}, {part:.1f} %"
    print(f"{destination}  {format_bytes(report.medium_bytes)}{full}")
    for one in report.packs:
        print(f"  {one.ref_name}  {one.identity}")
        _print_lacking(one)


def _print_lacking(one: Copied) -> None:
    if not one.lacking:
        print("    complete: a host without network can unpack it")
        return
    print("    a host without network lacks, unless its own files have it:")
    rows = [
        (name, f"{count:,} contents", format_bytes(size))
        for name, (count, size) in one.lacking.items()
    ]
    print(format_table(rows, "<>>", indent=6))
