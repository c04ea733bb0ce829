"""`--want LIST`: what a rebuild lacks, written down for a machine that has a network."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from packer.artifact.opened import OpenedPack
from packer.artifact.want import WantReport, refuse_other
from packer.errors import UsageError
from packer.text import format_bytes

FILLED = "filled.vmpack"
"""How a filled list is called where somebody is told what to do with it."""


def add_want(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    parser.add_argument(
        "--want",
        metavar="LIST",
        help="if contents are missing, write a list of them for 'vmpack fill'",
    )


def check_want(options: argparse.Namespace, pack: OpenedPack) -> None:
    """Raise UsageError, before the work, if the list cannot have its name."""
    if options.want is None:
        return
    refuse_other(options.want, pack)
    want = Path(options.want).absolute()
    if options.output is not None:
        disk = options.output.absolute()
        if want in (disk, disk.with_name(f"{disk.name}.partial")):
            raise UsageError(f"--want {options.want}: the disk is written under that name")
    if not want.parent.is_dir():
        raise UsageError(f"--want {options.want}: there is no folder {want.parent}")


def as_json(report: WantReport) -> dict[str, object]:
    """Return what was written, for machines."""
    return {
        "output": str(report.output),
        "bytes": report.stored_bytes,
        "pack": report.ref_name,
        "identity": report.identity,
        "contents": report.contents,
        "content_bytes": report.content_bytes,
    }


def print_want(report: WantReport, sources: list[str]) -> None:
    """Print what was written and what to do with it.

    sources: to be named besides the filled list, when what they have is not kept yet.
    """
    print(
        f"{report.output}  {format_bytes(report.stored_bytes)}, asks for "
        f"{report.contents:,} contents, {format_bytes(report.content_bytes)}"
    )
    print("  on a machine with a network, which must trust the pack's signer, too:")
    print(f"    {shlex.join(['vmpack', 'fill', report.output.name, '-o', FILLED])}")
    print("  then here, the same command with")
    named = [word for uri in (f"pack:{FILLED}", *sources) for word in ("--from", uri)]
    print(f"    {shlex.join(named)}")
