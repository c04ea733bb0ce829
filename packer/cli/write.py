"""vmpack write: a pack becomes the disk on a device, proven by reading it back."""

from __future__ import annotations

import argparse
import os
import sys
import time

from packer.cli.options import (
    add_common,
    add_trust,
    add_verb,
    jobs_of,
    own_store,
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
from packer.errors import Error, UsageError
from packer.media.device import Device, look_at
from packer.media.found import Found, look_into
from packer.media.write import WriteReport, refuse, write
from packer.progress import note
from packer.text import format_bytes, format_table, printable
from packer.unpack.dry_run import dry_run

VOLUMES_SHOWN = 20
"""How many partitions are listed."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs, "write", "write a pack's disk to a device", "vmpack write demo.vmpack /dev/sdX"
    )
    parser.add_argument("pack", help="file, folder or URL of the pack")
    parser.add_argument(
        "device", help="block device, or disk image: an existing one keeps its size"
    )
    parser.add_argument(
        "--yes", action="store_true", help="do not ask before what is on the device is lost"
    )
    add_sources(parser)
    add_trust(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write."""
    started = time.monotonic()
    with opened(options) as rebuild:
        device = look_at(options.device)
        refuse(rebuild.pack, device, rebuild.sources, own_store(options.store))
        if options.dry_run:
            return show_plan(dry_run(rebuild.pack, rebuild.sources), as_json=options.json)
        if not device.is_new and not options.yes:
            ask_before_overwriting(device, rebuild.pack.map.size)
        report = write(
            rebuild.pack,
            device,
            rebuild.sources,
            store=rebuild.store,
            jobs=jobs_of(options),
            progress=progress_of(options),
        )
    remember_use(rebuild.verdict)
    note_complaints(report.supplied)
    for text in report.notes:
        note(text)
    if options.json:
        print_json(_as_json(report))
    else:
        _print(report, time.monotonic() - started)
    return 0


def ask_before_overwriting(device: Device, disk_bytes: int) -> None:
    """Return if what lies on the device may be lost: it is empty, or its name was typed."""
    found = look_into(device)
    if found.empty:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            f"{device.path}: is not empty ({_in_a_line(found)}), and there is nobody to ask",
            hint="--yes overwrites it without asking",
        )
    _show(device, found, disk_bytes)
    print(f"Type {printable(device.name)} to overwrite it: ", end="", file=sys.stderr, flush=True)
    # As bytes: what is no text in the terminal's encoding is a wrong answer, too.
    answer = os.fsdecode(sys.stdin.buffer.readline()).strip()
    if answer not in (device.name, str(device.path)):
        raise Error(f"{device.path}: expected {device.name!r}, found {answer!r}: nothing written")


def _show(device: Device, found: Found, disk_bytes: int) -> None:
    """Print what lies on a device, for people who must recognise it."""
    words = (
        f"a partition of {device.part_of}" if device.part_of else "",
        device.model,
        "USB" if device.usb else "",
        "removable" if device.removable else "",
        format_bytes(device.size),
    )
    lines = [f"{device.path}: {', '.join(filter(None, words))}"]
    if found.note:
        lines.append(f"  {found.note}")
    if found.table != "none":
        count = len(found.volumes)
        lines.append(f"  {found.table.upper()}, {count} partition{'s' if count != 1 else ''}")
    rows = [
        (
            str(one.number) if one.number else "",
            printable(one.kind),
            printable(f'"{one.label}"' if one.label else ""),
            format_bytes(one.size),
        )
        for one in found.volumes[:VOLUMES_SHOWN]
    ]
    lost = format_bytes(disk_bytes) if device.size > disk_bytes else ""
    print("\n".join(map(printable, lines)), file=sys.stderr)
    if rows:
        print(format_table(rows, "><<>", indent=4), file=sys.stderr)
    print(f"{f'Its first {lost}' if lost else 'All of it'} will be lost.", file=sys.stderr)


def _in_a_line(found: Found) -> str:
    if found.note:
        return found.note
    words = [f'{one.kind} "{one.label}"' if one.label else one.kind for one in found.volumes]
    table = [] if found.table == "none" else [found.table.upper()]
    return ", ".join([*table, *words[:VOLUMES_SHOWN]])


def _as_json(report: WriteReport) -> dict[str, object]:
    return {
        "output": str(report.device.path),
        "device_bytes": report.device.size,
        "disk_bytes": report.disk_bytes,
        "content_bytes": report.content_bytes,
        "resumed_bytes": report.resumed_bytes,
        "supplied": supplied_as_json(report.supplied),
        "notes": list(report.notes),
    }


def _print(report: WriteReport, seconds: float) -> None:
    print(
        f"{printable(str(report.device.path))}  {format_bytes(report.disk_bytes)}, "
        f"every byte read back, {seconds:.1f} s"
    )
    print_supplied(report.supplied, report.resumed_bytes, "on the device already")
