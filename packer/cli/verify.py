"""vmpack verify: prove a disk against a pack."""

from __future__ import annotations

import argparse

from formats.ranges import Ranges, total
from packer.cli.options import (
    accept,
    add_common,
    add_trust,
    add_verb,
    jobs_of,
    print_json,
    progress_of,
)
from packer.errors import MismatchError
from packer.sources.open import open_pack
from packer.text import format_bytes, format_table
from packer.unpack.verify import VerifyReport, verify

RANGES_SHOWN = 20


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs, "verify", "prove a disk against a pack", "vmpack verify demo.raw demo.vmpack"
    )
    parser.add_argument("disk", help="disk image, in any container")
    parser.add_argument("pack", help="file, folder or URL of the pack")
    parser.add_argument(
        "--exact",
        action="store_true",
        help="unused and dropped ranges must read as zeros too, as unpack leaves them",
    )
    parser.add_argument(
        "--ranges", action="store_true", help="list every unused and dropped range, in bytes"
    )
    add_trust(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Verify."""
    with open_pack(options.pack) as pack:
        accept(pack, options)
        report = verify(
            options.disk,
            pack.map,
            exact=options.exact,
            jobs=jobs_of(options),
            progress=progress_of(options),
        )
    if options.json:
        print_json(_as_json(report))
    else:
        _print(options.disk, options.pack, report, ranges=options.ranges, exact=options.exact)
    return 0 if report.right else MismatchError.exit_code


def _as_json(report: VerifyReport) -> dict[str, object]:
    return {
        "right": report.right,
        "disk_bytes": report.disk_bytes,
        "proven_bytes": report.proven_bytes,
        "zero_bytes": report.zero_bytes,
        "wrong": report.wrong.tolist(),
        "unused": report.unused.tolist(),
        "dropped": report.dropped.tolist(),
    }


def _print(disk: str, pack: str, report: VerifyReport, *, ranges: bool, exact: bool) -> None:
    print(f"{disk} {'is' if report.right else 'is NOT'} what {pack} says")
    said = "must read as zeros" if exact else "ignored"
    rows = [
        ("contents", format_bytes(report.proven_bytes), "proven by digest"),
        ("zero", format_bytes(report.zero_bytes), "read as zeros"),
        ("unused", format_bytes(total(report.unused)), f"{said}, {len(report.unused):,} ranges"),
        ("dropped", format_bytes(total(report.dropped)), f"{said}, {len(report.dropped):,} ranges"),
    ]
    if not report.right:
        rows.append(("wrong", format_bytes(total(report.wrong)), f"{len(report.wrong):,} ranges"))
    print(format_table(rows, "<><"))
    _print_ranges("wrong", report.wrong[: None if ranges else RANGES_SHOWN])
    if ranges:
        _print_ranges("unused", report.unused)
        _print_ranges("dropped", report.dropped)


def _print_ranges(title: str, ranges: Ranges) -> None:
    for start, end in ranges.tolist():
        print(f"  {title} [{start}, {end})")
