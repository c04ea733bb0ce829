"""vmpack commit: what a VM has written becomes the next version of its pack."""

from __future__ import annotations

import argparse

from packer.artifact.opened import OpenedPack
from packer.cli.options import (
    add_common,
    add_rotation,
    add_signing,
    add_verb,
    jobs_of,
    progress_of,
    signers,
    statements_of,
)
from packer.cli.packed import ask_apt, show_privacy, show_report
from packer.cli.vms import add_state
from packer.pack.pack import PackOptions
from packer.progress import note
from packer.run.manage.commit import commit, commit_in_place
from packer.run.vm.vm import the_vm
from packer.sources.open import open_pack


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "commit",
        "pack what a VM has written as the next version of its pack",
        "vmpack commit demo -o demo-2.vmpack",
    )
    parser.add_argument("vm", metavar="VM", help="name of a VM that is shut down")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--output", "-o", metavar="PACK", help="file, .iso or folder/ (ends in /), to write"
    )
    where.add_argument(
        "--in-place",
        action="store_true",
        help="replace the pack where it lies; the VM begins anew on it",
    )
    parser.add_argument("--name", help="the pack's name (default: as it was)")
    parser.add_argument(
        "--pack-version",
        type=int,
        metavar="N",
        help="default: one more than it was, or 1 under another name",
    )
    parser.add_argument(
        "--expires", default="", metavar="YYYY-MM-DD", help="the last day on which it is good"
    )
    parser.add_argument(
        "--thin",
        action="store_true",
        help="leave shared contents out (default: carry those that the VM's pack carries)",
    )
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="URI",
        help="where users can get what a thin copy lacks, besides where the VM's pack says; "
        "repeatable",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="write no pack of a guest that holds what looks private (exit code 8)",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="PATTERN",
        help="a shell pattern of guest paths, or a rule, that may be published; repeatable",
    )
    parser.add_argument(
        "--no-packages",
        action="store_true",
        help="do not ask apt where its mirrors keep new packages of the guest",
    )
    add_signing(parser)
    add_rotation(parser)
    parser.add_argument("--force", action="store_true", help="replace the output")
    add_state(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Commit."""
    keys = signers(options)  # before any program is started
    vm = the_vm(options.vm, options.state)
    with open_pack(vm.record.pack) as base:
        wanted, progress = _options(options, base), progress_of(options)
        if options.in_place:
            report, _ = commit_in_place(vm, base, keys, wanted, progress, state=options.state)
        else:
            report = commit(vm, base, options.output, keys, wanted, progress)
    show_report(report, as_json=options.json)
    if options.in_place:
        note(f"{vm.name} stands on {report.config.ref_name} now")
    return 0


def _options(options: argparse.Namespace, base: OpenedPack) -> PackOptions:
    name, version = options.name or base.config.name, options.pack_version
    if version is None:
        version = base.config.version + 1 if name == base.config.name else 1
    return PackOptions(
        name=name,
        version=version,
        expires=options.expires,
        sources=options.source,
        rotations=statements_of(options),
        thin=options.thin,
        incomplete=True,
        resolve=None if options.no_packages else ask_apt,
        allow=options.allow,
        strict=options.strict,
        review=show_privacy,
        replace=options.force,
        jobs=jobs_of(options),
    )
