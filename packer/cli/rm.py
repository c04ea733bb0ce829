"""vmpack rm: remove VMs with all they wrote."""

from __future__ import annotations

import argparse

from packer.cli.options import add_verb
from packer.cli.vms import add_names, add_state
from packer.run.manage.remove import remove_vm
from packer.run.vm.vm import the_vm


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(verbs, "rm", "remove VMs with all they wrote", "vmpack rm demo-2")
    add_names(parser)
    parser.add_argument("--force", action="store_true", help="pull the plug of one that runs")
    add_state(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Remove."""
    for vm in [the_vm(name, options.state) for name in dict.fromkeys(options.vms)]:
        remove_vm(vm, force=options.force)
    return 0
