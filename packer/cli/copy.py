"""vmpack copy: the same signed pack with fewer of its bundles."""

from __future__ import annotations

import argparse

from packer.artifact.copy import CopyReport, Extent, copy_pack
from packer.cli.options import add_common, add_verb, print_json, progress_of
from packer.sources.open import open_pack
from packer.text import format_bytes, format_table


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "copy",
        "copy a pack, whole or in part",
        "vmpack copy demo.vmpack --thin stick/demo.vmpack",
    )
    parser.add_argument("pack", help="file, folder or URL of the pack")
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument(
        "--boot", dest="extent", action="store_const", const=Extent.BOOT, help="boot set only"
    )
    extent.add_argument(
        "--thin", dest="extent", action="store_const", const=Extent.THIN, help="boot and private"
    )
    extent.add_argument(
        "--full",
        dest="extent",
        action="store_const",
        const=Extent.FULL,
        help="everything (default)",
    )
    parser.add_argument("destination", help="file, or new folder/ (ends in /), to write")
    parser.add_argument("--force", action="store_true", help="replace the destination")
    add_common(parser, jobs=False)
    parser.set_defaults(run=run, extent=Extent.FULL)


def run(options: argparse.Namespace) -> int:
    """Copy."""
    with open_pack(options.pack) as pack:
        report = copy_pack(
            pack,
            options.destination,
            options.extent,
            replace=options.force,
            progress=progress_of(options),
        )
    if options.json:
        print_json(
            {
                "output": str(report.output),
                "identity": report.identity,
                "bytes": report.stored_bytes,
                "lacking": {
                    name: {"count": count, "bytes": size}
                    for name, (count, size) in report.lacking.items()
                },
            }
        )
    else:
        _print(report)
    return 0


def _print(report: CopyReport) -> None:
    print(f"{report.output}  {format_bytes(report.stored_bytes)}")
    print(f"  {report.identity}")
    if not report.lacking:
        print("  complete: a host without network can unpack it")
        return
    print("  a host without network lacks, unless its own files have it:")
    rows = [
        (name, f"{count:,} contents", format_bytes(size))
        for name, (count, size) in report.lacking.items()
    ]
    print(format_table(rows, "<>>", indent=4))
