"""vmpack fill: collect what a want-list asks for."""

from __future__ import annotations

import argparse
import shlex
import time

from packer.artifact.want import wanted_rows
from packer.cli.options import add_common, add_trust, add_verb, jobs_of, print_json, progress_of
from packer.cli.rebuild import (
    add_sources,
    missing_as_json,
    note_complaints,
    opened,
    print_missing,
    print_supplied,
    show_plan,
    supplied_as_json,
)
from packer.errors import MissingError
from packer.media.fill import FillReport, fill_list
from packer.text import format_bytes
from packer.unpack.dry_run import dry_run


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "fill",
        "collect what a want-list asks for",
        "vmpack fill missing.want -o filled.vmpack --from https://mirror.example/demo/",
    )
    parser.add_argument("pack", metavar="list", help="what 'unpack --want' wrote")
    parser.add_argument(
        "--output", "-o", metavar="PACK", help="file, or folder/ (ends in /), to write"
    )
    add_sources(parser)
    parser.add_argument("--force", action="store_true", help="replace the output")
    add_trust(parser)
    add_common(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Fill."""
    if options.output is None and not options.dry_run:
        options.parser.error("the following arguments are required: --output/-o")
    started = time.monotonic()
    with opened(options) as rebuild:
        if options.dry_run:
            rows = wanted_rows(rebuild.pack)
            plan = dry_run(rebuild.pack, rebuild.sources, wanted=rows)
            return show_plan(plan, as_json=options.json, what=f"{len(rows):,} wanted contents")
        report = fill_list(
            rebuild.pack,
            options.output,
            rebuild.sources,
            replace=options.force,
            jobs=jobs_of(options),
            progress=progress_of(options),
        )
    note_complaints(report.supplied)
    if options.json:
        print_json(_as_json(report))
    else:
        _print(report, time.monotonic() - started)
    return MissingError.exit_code if report.missing else 0


def _as_json(report: FillReport) -> dict[str, object]:
    return {
        "output": str(report.output),
        "bytes": report.stored_bytes,
        "pack": report.ref_name,
        "identity": report.identity,
        "wanted": {"contents": report.wanted[0], "content_bytes": report.wanted[1]},
        "found": {"contents": report.found[0], "content_bytes": report.found[1]},
        "missing": missing_as_json(report.missing),
        "resumed_bytes": report.resumed_bytes,
        "supplied": supplied_as_json(report.supplied),
    }


def _print(report: FillReport, seconds: float) -> None:
    part = f"{report.found[0]:,} of" if report.missing else "all"
    print(
        f"{report.output}  {format_bytes(report.stored_bytes)}: {part} {report.wanted[0]:,} "
        f"contents wanted of {report.ref_name}, {format_bytes(report.found[1])}, {seconds:.1f} s"
    )
    print_supplied(report.supplied, report.resumed_bytes, "left by an interrupted run")
    print_missing(report.missing)
    if report.missing:
        further = shlex.join(["vmpack", "fill", str(report.output), "-o", "fuller.vmpack"])
        print(f"it can be used as it is, or filled further from other sources: {further}")
