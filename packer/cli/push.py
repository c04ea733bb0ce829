"""vmpack push: packs into a registry."""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from packer.artifact.copy import Extent, copy_packs
from packer.cli.copy import add_extent, as_json, print_report
from packer.cli.options import add_common, add_verb, print_json, progress_of
from packer.sources.open import open_pack
from packer.text import format_bytes
from packer.transport.registry_reference import parse_reference


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "push",
        "put packs into a registry, whole or in part",
        "vmpack push demo.vmpack oci://registry.example/team/demo:1 --thin",
    )
    parser.add_argument(
        "pack",
        nargs="+",
        help="file, folder or URL of a pack, PACK#NAME:VERSION for one of several",
    )
    parser.add_argument(
        "destination",
        help="oci://HOST/REPOSITORY[:TAG]; without a tag the pack's version, or NAME-VERSION "
        "of each of several packs",
    )
    add_extent(parser, fit=False)
    parser.add_argument(
        "--mount-from",
        action="append",
        default=[],
        metavar="REPOSITORY",
        help="use what this repository of the same registry has; repeatable",
    )
    parser.add_argument("--force", action="store_true", help="move tags that exist already")
    add_common(parser, jobs=False)
    parser.set_defaults(run=run, extent=Extent.FULL)


def run(options: argparse.Namespace) -> int:
    """Push."""
    from packer.artifact.layout.registry import RegistryWriter

    reference = parse_reference(options.destination)
    with ExitStack() as stack:
        packs = [stack.enter_context(open_pack(one)) for one in options.pack]
        if len(packs) == 1 and not reference.target:
            # Said before anything is sent, a tag that is taken costs nothing.
            reference = reference.with_tag(str(packs[0].config.version))
        writer = stack.enter_context(
            RegistryWriter(str(reference), replace=options.force, mount_from=options.mount_from)
        )
        report = copy_packs(packs, writer, options.extent, progress=progress_of(options))
        places = [str(writer.reference.with_tag(tag)) for tag in writer.tags]
    if options.json:
        print_json(
            as_json(options.destination, report)
            | {"references": places, "sent_bytes": writer.sent_bytes}
        )
    else:
        print_report(", ".join(places), report, options.extent)
        there = report.medium_bytes - writer.sent_bytes
        print(f"  sent {format_bytes(writer.sent_bytes)}, {format_bytes(there)} were there")
    return 0
