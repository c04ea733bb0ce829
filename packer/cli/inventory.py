"""vmpack inventory: write down what a target host has, for `pack --against`."""

from __future__ import annotations

import argparse
from pathlib import Path

from packer.cli.options import add_common, add_verb, print_json, progress_of
from packer.errors import UsageError
from packer.sources.inventory import take_inventory
from packer.text import format_bytes


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "inventory",
        "write down the digests of what a host has",
        "vmpack inventory / -o host.inv",
    )
    parser.add_argument("root", type=Path, help="folder to look at")
    parser.add_argument(
        "--output", "-o", type=Path, required=True, metavar="FILE", help="inventory to write"
    )
    parser.add_argument("--names", action="store_true", help="write the paths down, too")
    parser.add_argument("--force", action="store_true", help="replace the output")
    add_common(parser, jobs=False)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Take an inventory."""
    if options.output.exists() and not options.force:
        raise UsageError(f"{options.output} exists already", hint="--force replaces it")
    inventory = take_inventory(
        [(options.root, ())], with_names=options.names, progress=progress_of(options)
    )
    inventory.save(options.output)
    total = int(inventory.size.sum())
    if options.json:
        print_json({"output": str(options.output), "contents": len(inventory), "bytes": total})
    else:
        print(f"{options.output}: {len(inventory):,} contents, {format_bytes(total)}")
    return 0
