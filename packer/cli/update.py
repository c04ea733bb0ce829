"""vmpack update: make a disk that vmpack wrote another version of its pack."""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack, closing
from pathlib import Path

from packer.cli.options import (
    accept,
    add_common,
    add_trust,
    add_verb,
    jobs_of,
    print_json,
    progress_of,
    remember_use,
)
from packer.cli.rebuild import (
    add_sources,
    note_complaints,
    opened,
    print_supplied,
    show_plan,
    supplied_as_json,
)
from packer.progress import note
from packer.sources.open import open_pack
from packer.text import format_bytes
from packer.unpack.dry_run import dry_run
from packer.unpack.unpack import FORMATS
from packer.unpack.update import UpdateReport, identify, old_disk, source_of, update


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "update",
        "make a disk another version of its pack",
        "vmpack update demo.raw https://mirror.example/demo-v2/",
    )
    parser.add_argument("disk", type=Path, help="disk image that vmpack wrote")
    parser.add_argument("pack", help="file, folder or URL of the other version")
    parser.add_argument(
        "--was", metavar="PACK", help="what the disk is, if this host has forgotten"
    )
    parser.add_argument(
        "--overlays",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="also look here for overlays that stand on the disk; repeatable",
    )
    parser.add_argument("--format", choices=FORMATS, help="default: as the disk is")
    add_sources(parser)
    parser.add_argument(
        "--force",
        action="store_true",
        help="throw away what was written to the disk since; accept another pack's disk, and "
        "files beside it that cannot be read",
    )
    add_trust(parser)
    add_common(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Update."""
    started = time.monotonic()
    jobs, progress = jobs_of(options), progress_of(options)
    with ExitStack() as stack:
        old = stack.enter_context(
            old_disk(options.disk, overlays=options.overlays, force=options.force)
        )
        for text in old.notes:
            note(text)
        rebuild = stack.enter_context(opened(options))
        was = None
        if options.was:
            was = stack.enter_context(open_pack(options.was))
            accept(was, options, allow_older=True)  # a stranger's could call all of it unused
        held = identify(
            old,
            rebuild.pack,
            was=was,
            force=options.force,
            allow_older=options.allow_older,
            jobs=jobs,
            progress=progress,
        )
        if options.dry_run:
            first = stack.enter_context(closing(source_of(old, held)))
            plan = dry_run(rebuild.pack, [first, *rebuild.sources])
            return show_plan(plan, as_json=options.json)
        report = update(
            old,
            held,
            rebuild.pack,
            rebuild.sources,
            store=rebuild.store,
            container=options.format,
            jobs=jobs,
            progress=progress,
        )
    remember_use(rebuild.verdict)
    if report.unpacked is not None:
        note_complaints(report.unpacked.supplied)
    if report.note:
        note(report.note)
    if options.json:
        print_json(_as_json(report))
    else:
        _print(report, time.monotonic() - started)
    return 0


def _as_json(report: UpdateReport) -> dict[str, object]:
    found: dict[str, object] = {
        "disk": str(report.disk),
        "before": report.before or None,
        "after": report.after,
        "written": report.unpacked is not None,
    }
    if report.unpacked is not None:
        found |= {
            "disk_bytes": report.unpacked.disk_bytes,
            "content_bytes": report.unpacked.content_bytes,
            "resumed_bytes": report.unpacked.resumed_bytes,
            "supplied": supplied_as_json(report.unpacked.supplied),
        }
    return found


def _print(report: UpdateReport, seconds: float) -> None:
    unpacked = report.unpacked
    if unpacked is None:
        print(f"{report.disk} is {report.after} already")
        return
    print(
        f"{report.disk}  {report.before or 'unknown'} -> {report.after}  "
        f"{format_bytes(unpacked.disk_bytes)}, every content proven, {seconds:.1f} s"
    )
    print_supplied(unpacked.supplied, unpacked.resumed_bytes, "left by an interrupted run")
