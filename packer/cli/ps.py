"""vmpack ps: the VMs of this host, and what each of them holds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from packer.cli.options import add_verb, print_json
from packer.cli.vms import add_state
from packer.run.manage.overview import VmReport, look_at_vms
from packer.run.manage.remove import remove_left_behind
from packer.run.vm.own_base import finish_left_behind
from packer.run.vm.vm import DamagedVm, all_vms
from packer.text import format_bytes, format_table, printable

HEAD = ("VM", "pack", "state", "memory", "to spare", "own", "shared", "by")
ALIGN = "<<<>>>>>"


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(verbs, "ps", "list the VMs and what each of them holds", "vmpack ps --json")
    add_state(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """List."""
    remove_left_behind(options.state)
    damaged: list[DamagedVm] = []
    vms = list(all_vms(options.state, damaged=damaged))
    finish_left_behind(vms)
    reports = look_at_vms(vms)
    if options.json:
        broken = [{"folder": str(one.folder), "why": str(one.error)} for one in damaged]
        print_json({"vms": [_as_json(one) for one in reports], "damaged": broken})
    else:
        _print(reports, damaged)
    troubles = [one.error for one in damaged] + [one.trouble for one in reports if one.trouble]
    return max((one.exit_code for one in troubles), default=0)


def _print(reports: Sequence[VmReport], damaged: Sequence[DamagedVm]) -> None:
    rows = [*map(_row, reports), *((one.folder.name, "", "damaged", *[""] * 5) for one in damaged)]
    if rows:
        print(format_table([HEAD, *rows], ALIGN, indent=0))
    for one in reports:
        if one.why:
            print(f"{one.vm.name} is paused: {printable(one.why)}")
        if one.trouble is not None:
            print(f"{one.vm.name}: {printable(str(one.trouble))}")
    for broken in damaged:
        print(f"{broken.folder.name} is damaged: {printable(str(broken.error))}")


def _row(one: VmReport) -> tuple[str, ...]:
    runs = one.pid != 0
    return (
        one.vm.name,
        one.vm.record.ref_name,
        f"{one.state}, detached" if one.detached else one.state,
        format_bytes(one.memory.proportional) if runs else "",
        format_bytes(one.spare_bytes) if one.spare_bytes >= 0 else "",
        format_bytes(one.own_bytes),
        "" if one.detached or one.trouble else format_bytes(one.shared_bytes),
        "" if one.detached else f"{one.sharers:,}",
    )


def _as_json(one: VmReport) -> dict[str, object]:
    record = one.vm.record
    return {
        "name": one.vm.name,
        "pack": record.ref_name,
        "config": record.config,
        "location": record.pack,
        "folder": str(one.vm.folder),
        "uuid": record.uuid,
        "mac": record.mac,
        "machine": record.hardware.machine,
        "ephemeral": record.ephemeral,
        "state": one.state,
        "detached": one.detached,
        "why": one.why,
        "pid": one.pid,
        "accelerator": one.accelerator,
        "memory_bytes": one.memory.proportional,
        "private_memory_bytes": one.memory.private,
        "merged_memory_bytes": one.memory.merged,
        "spare_memory_bytes": one.spare_bytes if one.spare_bytes >= 0 else None,
        "own_bytes": one.own_bytes,
        "shared_bytes": None if one.trouble else one.shared_bytes,
        "sharers": one.sharers,
    }
