"""vmpack pull: a pack out of a registry, if this host accepts it."""

from __future__ import annotations

import argparse

from packer.artifact.copy import Extent, copy_packs
from packer.artifact.layout.open import create_layout
from packer.cli.copy import add_extent, as_json, print_report
from packer.cli.options import (
    accept,
    add_common,
    add_trust,
    add_verb,
    print_json,
    progress_of,
)
from packer.sources.open import open_pack


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "pull",
        "fetch a pack from a registry, if its signer is trusted",
        "vmpack pull oci://registry.example/team/demo:1 -o demo.vmpack --thin",
    )
    parser.add_argument("pack", help="oci://HOST/REPOSITORY:TAG or oci://HOST/REPOSITORY@sha256:…")
    parser.add_argument(
        "--output", "-o", required=True, metavar="FILE", help="file, or new folder/, to write"
    )
    add_extent(parser, fit=False)
    parser.add_argument("--force", action="store_true", help="replace the output")
    add_trust(parser)
    add_common(parser, jobs=False)
    parser.set_defaults(run=run, extent=Extent.FULL)


def run(options: argparse.Namespace) -> int:
    """Pull."""
    with open_pack(options.pack) as pack:
        accept(pack, options)
        with create_layout(options.output, replace=options.force) as writer:
            report = copy_packs([pack], writer, options.extent, progress=progress_of(options))
    if options.json:
        print_json(as_json(options.output, report))
    else:
        print_report(options.output, report, options.extent)
    return 0
