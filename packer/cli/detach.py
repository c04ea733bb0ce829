"""vmpack detach: VMs become independent of their packs."""

from __future__ import annotations

import argparse
import time

from packer.cli.options import add_common, add_verb, jobs_of, print_json, progress_of
from packer.cli.rebuild import note_complaints, print_supplied, supplied_as_json
from packer.cli.vms import add_names, add_state
from packer.run.manage.detach import DetachReport, detach
from packer.run.vm.vm import the_vm
from packer.text import format_bytes


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "detach",
        "make VMs independent of their packs, while they run or not",
        "vmpack detach demo",
    )
    add_names(parser)
    add_state(parser)
    add_common(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Detach."""
    vms = [the_vm(name, options.state) for name in dict.fromkeys(options.vms)]
    done = []
    for vm in vms:
        started = time.monotonic()
        report = detach(vm, jobs=jobs_of(options), progress=progress_of(options))
        done.append(report)
        if not options.json:
            print_detached(report, time.monotonic() - started)
    if options.json:
        print_json({"vms": [_as_json(one) for one in done]})
    return 0


def print_detached(report: DetachReport, seconds: float) -> None:
    """Print what became of a VM."""
    note_complaints(report.supplied)
    name, record = report.vm.name, report.vm.record
    if report.was:
        print(f"{name} is detached already", flush=True)
        return
    goes_on = " and goes on" if report.running else ""
    size = format_bytes(record.disk_bytes)
    print(f"{name} is detached{goes_on}: {size} of its own, {seconds:.1f} s", flush=True)
    print_supplied(report.supplied, report.resumed_bytes, "left by an interrupted run")


def _as_json(report: DetachReport) -> dict[str, object]:
    return {
        "vm": report.vm.name,
        "was_detached": report.was,
        "running": report.running,
        "base": str(report.vm.base),
        "disk_bytes": report.vm.record.disk_bytes,
        "resumed_bytes": report.resumed_bytes,
        "supplied": supplied_as_json(report.supplied),
    }
