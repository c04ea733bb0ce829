"""vmpack unpack: rebuild a disk from a pack and whoever has the bytes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from packer.artifact.trust_store import TrustStore
from packer.cli.options import (
    accept,
    add_common,
    add_trust,
    add_verb,
    jobs_of,
    own_store,
    print_json,
    progress_of,
)
from packer.cli.settings import load_settings
from packer.errors import MissingError
from packer.progress import note
from packer.sources.open import SourceOpener, open_pack
from packer.text import format_bytes, format_table, printable
from packer.unpack.dry_run import DryRun, dry_run
from packer.unpack.unpack import FORMATS, MISSING_SHOWN, UnpackReport, unpack


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "unpack",
        "rebuild a disk from a pack",
        "vmpack unpack stick/demo.vmpack -o demo.raw --from dir:/ --from https://mirror.example/demo/",
    )
    parser.add_argument("pack", help="file, folder or URL of the pack")
    parser.add_argument("--output", "-o", type=Path, metavar="DISK", help="disk image to write")
    parser.add_argument(
        "--from",
        dest="sources",
        action="append",
        default=[],
        metavar="SOURCE",
        help="store: dir:/usr disk:other.qcow2 pack:other.vmpack deb:/folder apt: https://… ; "
        "repeatable, besides the store; default: this host's package-owned trees and what the "
        "pack names",
    )
    parser.add_argument("--format", choices=FORMATS, default="raw", help="default: %(default)s")
    parser.add_argument("--offline", action="store_true", help="do not use the network by default")
    parser.add_argument("--dry-run", action="store_true", help="print what would come from where")
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="another store")
    parser.add_argument("--no-store", action="store_true", help="neither use nor fill the store")
    parser.add_argument("--force", action="store_true", help="replace the output")
    add_trust(parser)
    add_common(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Unpack."""
    if options.output is None and not options.dry_run:
        options.parser.error("the following arguments are required: --output/-o")
    started = time.monotonic()
    settings = load_settings()
    store = own_store(options.store)
    with open_pack(options.pack) as pack, SourceOpener(store, pack) as opener:
        verdict = accept(pack, options)
        named = options.sources or settings.sources
        if named:
            sources, notes = opener.open_all(named)
        else:
            sources, notes = opener.defaults(offline=options.offline)
        for text in notes:
            note(text)
        if not options.no_store and store not in sources:
            sources.insert(0, store)  # what was fetched once is not fetched again
        if options.dry_run:
            return _show_plan(dry_run(pack, sources), as_json=options.json)
        report = unpack(
            pack,
            options.output,
            sources,
            store=None if options.no_store else store,
            container=options.format,
            replace=options.force,
            jobs=jobs_of(options),
            progress=progress_of(options),
        )
    TrustStore().remember(verdict)
    for line in [text for one in report.supplied for text in one.complaints]:
        note(line)
    if options.json:
        print_json(_as_json(report))
    else:
        _print(report, time.monotonic() - started)
    return 0


def _as_json(report: UnpackReport) -> dict[str, object]:
    return {
        "output": str(report.output),
        "disk_bytes": report.disk_bytes,
        "content_bytes": report.content_bytes,
        "resumed_bytes": report.resumed_bytes,
        "supplied": [
            {
                "source": one.uri,
                "content_bytes": one.proven_bytes,
                "fetched_bytes": one.fetched_bytes,
                "complaints": one.complaints,
            }
            for one in report.supplied
        ],
    }


def _print(report: UnpackReport, seconds: float) -> None:
    print(
        f"{report.output}  {format_bytes(report.disk_bytes)}, every content proven, {seconds:.1f} s"
    )
    rows = [(one.uri, one.proven_bytes, one.fetched_bytes) for one in report.supplied]
    if report.resumed_bytes:
        rows.insert(0, ("left by an interrupted run", report.resumed_bytes, 0))
    _print_sources([(name, size, cost) for name, size, cost in rows if size or cost])


def _print_sources(rows: Sequence[tuple[str, int, int]]) -> None:
    whole = sum(size for _, size, _ in rows) or 1
    print(
        format_table(
            [
                (
                    name,
                    format_bytes(size),
                    f"{100 * size / whole:.1f} %",
                    f"fetched {format_bytes(cost)}" if cost else "",
                )
                for name, size, cost in rows
            ],
            "<>><",
        )
    )


def _show_plan(plan: DryRun, *, as_json: bool) -> int:
    if as_json:
        print_json(
            {
                "disk_bytes": plan.disk_bytes,
                "steps": [
                    {"source": uri, "contents": count, "content_bytes": size, "fetch_bytes": cost}
                    for uri, count, size, cost in plan.steps
                ],
                "missing": [
                    {"content": name, "bytes": size, "path": path}
                    for name, size, path in plan.missing
                ],
            }
        )
    else:
        print(f"a disk of {format_bytes(plan.disk_bytes)} would come from:")
        _print_sources([(uri, size, cost) for uri, _, size, cost in plan.steps])
        if plan.missing:
            lacking = sum(size for _, size, _ in plan.missing)
            print(f"nobody has {len(plan.missing):,} contents, {format_bytes(lacking)}:")
        for name, size, path in plan.missing[:MISSING_SHOWN]:
            print(f"  {name}  {size:>12,}  {printable(path)}")
        if len(plan.missing) > MISSING_SHOWN:
            print(f"  … and {len(plan.missing) - MISSING_SHOWN:,} more; --json lists them all")
    return MissingError.exit_code if plan.missing else 0
