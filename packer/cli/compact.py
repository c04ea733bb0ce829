"""vmpack compact: give back what nobody can read of a disk image."""

from __future__ import annotations

import argparse
from pathlib import Path

from packer.cli.options import add_common, add_verb, print_json, progress_of
from packer.density.compact import CompactReport, compact
from packer.progress import note
from packer.text import format_bytes, format_table


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "compact",
        "give back what nobody can read of a disk image",
        "vmpack compact guest.qcow2",
    )
    parser.add_argument("disk", type=Path, help="raw or qcow2 image of a guest that is shut down")
    parser.add_argument("--dry-run", action="store_true", help="print what would go")
    add_common(parser, jobs=False)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compact."""
    report = compact(options.disk, dry_run=options.dry_run, progress=progress_of(options))
    for text in report.notes:
        note(text)
    if options.json:
        print_json(_as_json(report))
    else:
        _print(report, dry_run=options.dry_run)
    return 0


def _as_json(report: CompactReport) -> dict[str, object]:
    return {
        "disk": str(report.path),
        "disk_bytes": report.disk_bytes,
        "used_bytes": report.used_bytes,
        "before_bytes": report.before_bytes,
        "after_bytes": report.after_bytes,
        "given": [{"what": what, "bytes": size} for what, size in report.given],
        "notes": list(report.notes),
    }


def _print(report: CompactReport, *, dry_run: bool) -> None:
    before, after = format_bytes(report.before_bytes), format_bytes(report.after_bytes)
    print(f"{report.path}  {before} {'would become' if dry_run else '->'} {after}")
    rows = [(what, format_bytes(size)) for what, size in report.given]
    kept = ("kept", format_bytes(report.used_bytes), f"of {format_bytes(report.disk_bytes)}")
    print(format_table([*((*row, "") for row in rows), kept], "<><"))
