"""vmpack unpack: rebuild a disk from a pack and whoever has the bytes."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from packer.artifact.want import write_want
from packer.cli.options import (
    add_common,
    add_trust,
    add_verb,
    jobs_of,
    print_json,
    progress_of,
    remember_use,
)
from packer.cli.rebuild import (
    Rebuild,
    add_sources,
    note_complaints,
    opened,
    print_supplied,
    show_plan,
    supplied_as_json,
)
from packer.cli.want import add_want, check_want, print_want
from packer.cli.want import as_json as want_as_json
from packer.errors import MissingError
from packer.progress import note
from packer.text import format_bytes
from packer.unpack.dry_run import dry_run
from packer.unpack.record import DiskRecords
from packer.unpack.unpack import (
    FORMATS,
    MISSING_SHOWN,
    ContentsMissingError,
    UnpackReport,
    unpack,
)


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
    parser.add_argument("--format", choices=FORMATS, default="raw", help="default: %(default)s")
    add_sources(parser)
    add_want(parser)
    parser.add_argument("--force", action="store_true", help="replace the output")
    add_trust(parser)
    add_common(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Unpack."""
    if options.output is None and not options.dry_run:
        options.parser.error("the following arguments are required: --output/-o")
    started = time.monotonic()
    with opened(options) as rebuild:
        check_want(options, rebuild.pack)
        if options.dry_run:
            return _plan(options, rebuild)
        try:
            report = unpack(
                rebuild.pack,
                options.output,
                rebuild.sources,
                store=rebuild.store,
                container=options.format,
                replace=options.force,
                jobs=jobs_of(options),
                progress=progress_of(options),
            )
        except ContentsMissingError as error:
            if options.want is None:
                raise
            return _want(options, rebuild, error)
        forgotten = DiskRecords().remember(report.output, options.format, rebuild.pack)
    remember_use(rebuild.verdict)
    note_complaints(report.supplied)
    if forgotten:
        note(forgotten)
    if options.want is not None:
        note("nothing is missing: no want-list was needed")
    if options.json:
        print_json(_as_json(report))
    else:
        _print(report, time.monotonic() - started)
    return 0


def _plan(options: argparse.Namespace, rebuild: Rebuild) -> int:
    """Print what would come from where; write down what nobody has, if that is asked for."""
    plan = dry_run(rebuild.pack, rebuild.sources)
    if options.want is None:
        return show_plan(plan, as_json=options.json)
    if not plan.missing:
        note("nothing is missing: no want-list is needed")
        return show_plan(plan, as_json=options.json, more={"want": None})
    report = write_want(rebuild.pack, plan.missing_rows, options.want)
    code = show_plan(plan, as_json=options.json, more={"want": want_as_json(report)})
    if not options.json:
        asked = {source.uri for source in rebuild.sources} - {"store:"}
        print_want(report, [uri for uri, *_ in plan.steps if uri in asked])
    return code


def _want(options: argparse.Namespace, rebuild: Rebuild, error: ContentsMissingError) -> int:
    """Write down what nobody has; what was found is kept."""
    report = write_want(rebuild.pack, error.rows, options.want)
    note_complaints(error.supplied, MISSING_SHOWN)
    if options.json:
        print_json({"want": want_as_json(report), "supplied": supplied_as_json(error.supplied)})
    else:
        print_want(report, [])
    return MissingError.exit_code


def _as_json(report: UnpackReport) -> dict[str, object]:
    return {
        "output": str(report.output),
        "disk_bytes": report.disk_bytes,
        "content_bytes": report.content_bytes,
        "resumed_bytes": report.resumed_bytes,
        "supplied": supplied_as_json(report.supplied),
    }


def _print(report: UnpackReport, seconds: float) -> None:
    print(
        f"{report.output}  {format_bytes(report.disk_bytes)}, every content proven, {seconds:.1f} s"
    )
    print_supplied(report.supplied, report.resumed_bytes, "left by an interrupted run")
