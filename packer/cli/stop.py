"""vmpack stop: shut VMs down."""

from __future__ import annotations

import argparse

from packer.cli.options import add_verb
from packer.cli.vms import add_names, add_state
from packer.run.manage.session import GRACE_SECONDS, stop_vm
from packer.run.vm.vm import the_vm

MOST_SECONDS = 86_400.0


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(verbs, "stop", "shut VMs down", "vmpack stop demo")
    add_names(parser)
    parser.add_argument("--now", action="store_true", help="pull the plug at once")
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=GRACE_SECONDS,
        metavar="SECONDS",
        help="how long a guest has before its plug is pulled; default: %(default)g",
    )
    add_state(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Stop."""
    said = {
        "guest": "has shut down",
        "stopped": "was stopped",
        "lost": "has ended",
        "not running": "was not running",
    }
    for vm in [the_vm(name, options.state) for name in dict.fromkeys(options.vms)]:
        ended = stop_vm(vm, 0.0 if options.now else options.grace)
        print(f"{vm.name} {said[ended.how]}", flush=True)
    return 0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"expected 0 to {MOST_SECONDS:g} seconds, found {text!r}")
    return seconds
