"""vmpack upgrade: VMs that never wrote go on with a newer version of their pack."""

from __future__ import annotations

import argparse

from packer.cli.options import accept, add_trust, add_verb, print_json, remember_use
from packer.cli.vms import add_names, add_state
from packer.progress import note
from packer.run.manage.upgrade import Upgraded, upgrade_vms
from packer.run.vm.vm import the_vm
from packer.sources.open import open_pack
from packer.text import format_bytes, format_table


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "upgrade",
        "give VMs that never wrote a newer version of their pack",
        "vmpack upgrade demo demo-2 stick/demo-v2.vmpack",
    )
    add_names(parser)
    parser.add_argument("pack", help="file, folder or URL of the newer version")
    add_state(parser)
    add_trust(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Upgrade."""
    vms = [the_vm(name, options.state) for name in dict.fromkeys(options.vms)]
    with open_pack(options.pack) as pack:
        verdict = accept(pack, options)
        done = upgrade_vms(vms, pack, options.pack, allow_older=options.allow_older)
    if any(one.moved for one in done):
        remember_use(verdict)
    if options.json:
        print_json({"vms": [_as_json(one) for one in done]})
        return 0
    print(format_table([_row(one) for one in done], "<<<", indent=0))
    if any(one.moved for one in done):
        note("what libvirt and systemd know of a VM that was moved: vmpack define says it anew")
    return 0


def _row(one: Upgraded) -> tuple[str, str, str]:
    if one.moved:
        return one.vm.name, f"{one.before} -> {one.after}", ""
    if not one.why:
        return one.vm.name, one.after, "already"
    written = f" ({format_bytes(one.written_bytes)})" if one.written_bytes else ""
    return one.vm.name, one.after, f"stays: {one.why}{written}"


def _as_json(one: Upgraded) -> dict[str, object]:
    return {
        "vm": one.vm.name,
        "before": one.before,
        "after": one.after,
        "moved": one.moved,
        "written_bytes": one.written_bytes,
        "why": one.why,
    }
