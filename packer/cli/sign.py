"""vmpack sign: add a signature to a pack, or to a statement that a key is replaced."""

from __future__ import annotations

import argparse
from pathlib import Path

from packer.artifact.countersign import SignReport, countersign_pack
from packer.artifact.layout.open import is_layout
from packer.artifact.rotation import countersign, load_statement, open_statement
from packer.artifact.small_files import write_small_file
from packer.cli.options import (
    add_common,
    add_rotation,
    add_verb,
    print_json,
    progress_of,
    signing_keys,
    statements_of,
)
from packer.errors import UsageError
from packer.sources.open import open_pack, split_location
from packer.text import format_table


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "sign",
        "add a signature to a pack",
        "vmpack sign demo.vmpack --key second.key -o signed.vmpack",
    )
    parser.add_argument("what", help="pack, or statement that 'vmpack key rotate' has written")
    parser.add_argument(
        "--key",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="sign with this key (default: this machine's)",
    )
    add_rotation(parser)
    parser.add_argument(
        "--output",
        "-o",
        metavar="PACK",
        help="file, or folder/ (ends in /), to write (default: the same, with --force)",
    )
    parser.add_argument("--force", action="store_true", help="replace the output")
    add_common(parser, jobs=False)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Sign."""
    place, _ = split_location(options.what)
    if Path(place).is_file() and not is_layout(place):
        return _sign_statement(options)
    if options.output is None and not Path(place).exists():
        raise UsageError(f"{place} cannot be replaced from here", hint="name a copy with -o")
    keys = signing_keys(options.key, required=True)
    with open_pack(options.what) as pack:
        report = countersign_pack(
            pack,
            keys,
            options.output or place,
            statements=statements_of(options),
            replace=options.force,
            progress=progress_of(options),
        )
    if options.json:
        print_json(_as_json(report))
    else:
        _print(report)
    return 0


def _sign_statement(options: argparse.Namespace) -> int:
    if options.rotation:
        raise UsageError(f"--rotation is for packs; {options.what} is none")
    _, data = load_statement(Path(options.what))
    signed = countersign(data, signing_keys(options.key, required=True), options.what)
    target = Path(options.output or options.what)
    write_small_file(target, signed, replace=options.force)
    statement = open_statement(signed)
    if options.json:
        print_json({"output": str(target), "lacking": list(statement.lacking)})
        return 0
    print(f"{target}: {statement.rotation.sentence}")
    for fingerprint in statement.lacking:
        print(f"  not signed by {fingerprint} yet")
    return 0


def _as_json(report: SignReport) -> dict[str, object]:
    return {
        "output": str(report.output),
        "identity": report.identity,
        "name": report.config.name,
        "version": report.config.version,
        "signers": list(report.signers),
        "signed_now": list(report.signed_now),
    }


def _print(report: SignReport) -> None:
    print(f"{report.output}  {report.config.ref_name}  {report.identity}")
    rows = [
        ("signed by", one, "now" if one in report.signed_now else "before")
        for one in report.signers
    ]
    print(format_table(rows, "<<<"))
