"""vmpack dedupe: let equal files in existing disks share their blocks."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from packer.cli.options import add_common, add_verb, jobs_of, print_json, progress_of
from packer.density.dedupe import DedupeReport, dedupe
from packer.density.idle import stand_back
from packer.errors import InputError, UsageError
from packer.progress import note
from packer.text import format_bytes, format_table

SUFFIXES = (".raw", ".img", ".qcow2")
"""Of the files that a folder stands for."""

MAX_MINUTES = 60 * 24 * 366


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "dedupe",
        "let equal files in several disks share their blocks",
        "vmpack dedupe /srv/vms/one.raw /srv/vms/two.qcow2",
    )
    parser.add_argument(
        "disks",
        nargs="+",
        type=Path,
        metavar="DISK",
        help="raw or qcow2 image, in use or not, on XFS or btrfs; a folder stands for those in it",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what could be gained")
    parser.add_argument(
        "--again", action="store_true", help="compare also what has not changed since the last run"
    )
    parser.add_argument(
        "--watch",
        type=_minutes,
        metavar="MINUTES",
        help="stay in the background and repeat; --watch alone: every 60 minutes",
    )
    add_common(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Share, once or for ever."""
    if options.watch is None:
        _once(options)
        return 0
    stand_back()
    _once(options)
    while True:
        time.sleep(60 * options.watch)
        try:
            _once(options)
        except (InputError, UsageError) as error:  # it may be there again the next time
            note(str(error))


def _once(options: argparse.Namespace) -> None:
    started = time.monotonic()
    report = dedupe(
        _images(options.disks),
        dry_run=options.dry_run,
        again=options.again,
        eager=options.watch is None,
        jobs=jobs_of(options),
        progress=progress_of(options),
    )
    for text in report.notes:
        note(text)
    if options.json:
        print_json(_as_json(report))
    else:
        _print(report, time.monotonic() - started, dry_run=options.dry_run)


def _images(paths: Sequence[Path]) -> list[Path]:
    """Return the images that are named, or lie in folders that are."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        try:
            inside = [one for one in sorted(path.iterdir()) if one.suffix in SUFFIXES]
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        found += [one for one in inside if one.is_file() and not one.is_symlink()]
    if not found:
        raise UsageError(f"no disk image ({', '.join(SUFFIXES)}) lies in the folders named")
    return found


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes <= MAX_MINUTES:
        raise argparse.ArgumentTypeError(f"expected minutes, found {text!r}")
    return minutes


def _as_json(report: DedupeReport) -> dict[str, object]:
    return {
        "gained_bytes": report.gained_bytes,
        "shared_before_bytes": report.shared_bytes,
        "differing": report.differing,
        "unchanged": report.unchanged,
        "disks": [
            {
                "disk": str(disk.path),
                "gained_bytes": disk.gained_bytes,
                "shared_before_bytes": disk.shared_bytes,
            }
            for disk in report.disks
        ],
        "notes": list(report.notes),
    }


def _print(report: DedupeReport, seconds: float, *, dry_run: bool) -> None:
    if report.unchanged:
        print("nothing has changed since these disks were compared", flush=True)
        return
    gained = f"{format_bytes(report.gained_bytes)} {'could be gained' if dry_run else 'gained'}"
    before = f"{format_bytes(report.shared_bytes)} shared before"
    print(f"{gained}, {before}, {seconds:.1f} s")
    rows = [
        (str(disk.path), format_bytes(disk.gained_bytes), format_bytes(disk.shared_bytes))
        for disk in report.disks
    ]
    print(format_table([("", "gained", "before"), *rows], "<>>"), flush=True)
