"""vmpack pack: an installed disk becomes a signed pack."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from packer.artifact.contents import Class
from packer.artifact.keys import PrivateKey
from packer.artifact.opened import OpenedPack
from packer.cli.options import (
    add_common,
    add_rotation,
    add_signing,
    add_verb,
    jobs_of,
    own_store,
    progress_of,
    signers,
    statements_of,
)
from packer.cli.packed import ask_apt, show_privacy, show_report
from packer.errors import UsageError
from packer.pack.against import open_against
from packer.pack.clean_rules import GROUPS
from packer.pack.pack import LEVELS, PackOptions, PackReport, pack
from packer.sources.open import SourceOpener, open_pack


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "pack",
        "pack an installed disk",
        "vmpack pack guest.qcow2 -o demo.vmpack --source https://mirror.example/demo/",
    )
    parser.add_argument("image", type=str, help="disk image of a guest that is shut down")
    parser.add_argument(
        "--output",
        "-o",
        required=True,
        metavar="PACK",
        help="file, .iso or folder/ (ends in /), to write",
    )
    parser.add_argument("--name", help="the pack's name (default: from the output's)")
    parser.add_argument(
        "--pack-version",
        type=int,
        default=None,
        metavar="N",
        help="the pack's version, a number that grows with each release (default: 1, or one more "
        "than the base's)",
    )
    parser.add_argument(
        "--expires",
        default="",
        metavar="YYYY-MM-DD",
        help="the last day on which it is good; later, users are advised to get a newer one",
    )
    parser.add_argument("--thin", action="store_true", help="leave shared contents out")
    parser.add_argument(
        "--base",
        metavar="PACK",
        help="carry this pack's bundles on, and add only what is new: the next version, or a "
        "sister under another --name",
    )
    parser.add_argument(
        "--delta",
        action="store_true",
        help="with --base: add patches, so that who has the base's files fetches only what changed "
        "inside them",
    )
    parser.add_argument(
        "--keep-free",
        action="store_true",
        help="keep free blocks, page and swap files too: trust no parser about what is unused",
    )
    parser.add_argument(
        "--drop-snapshots",
        action="store_true",
        help="leave volume shadow copies (restore points) of a Windows guest out",
    )
    parser.add_argument(
        "--incomplete",
        action="store_true",
        help="pack a Windows guest although a driver is missing without which it will not start",
    )
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="URI",
        help="where users can get what a thin copy lacks; repeatable",
    )
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="SOURCE",
        help="what this source holds is shared: a source's URI, or a .inv file; repeatable",
    )
    parser.add_argument(
        "--clean",
        nargs="?",
        const="default",
        default=None,
        metavar="=WHAT",
        help="first remove temporary files, caches, logs and the recycle bin from a guest, or what "
        f"is named after '=': {' '.join(GROUPS)} or paths such as /opt/demo/cache/*, with commas. "
        "In an overlay, the image stays as it is. Needs libguestfs; two such packs of one image "
        "are never the same",
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
    parser.add_argument("--backing", type=Path, metavar="FILE", help="backing file of a qcow2")
    parser.add_argument(
        "--no-packages",
        action="store_true",
        help="do not ask apt where its mirrors keep the guest's packages",
    )
    parser.add_argument(
        "--level",
        type=int,
        default=LEVELS[Class.SHARED],
        metavar="1..22",
        help="zstd level of shared contents (default: %(default)s)",
    )
    add_signing(parser)
    add_rotation(parser)
    parser.add_argument("--force", action="store_true", help="replace the output")
    add_common(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Pack."""
    if "://" in options.output:
        raise UsageError(
            f"{options.output}: expected a file, .iso or folder/, found an address",
            hint="pack into a file, and put that into a registry with 'vmpack push'",
        )
    if not 1 <= options.level <= 22:
        raise UsageError(f"--level {options.level}: expected 1 to 22")
    if options.delta and not options.base:
        raise UsageError("--delta makes patches against another pack: name it with --base")
    if options.delta and options.thin:
        raise UsageError("--delta and --thin contradict each other: patches go into full packs")
    if options.keep_free and options.drop_snapshots:
        raise UsageError("--keep-free and --drop-snapshots contradict each other")
    keys = signers(options)  # before any program is started
    with (
        SourceOpener(own_store(None)) as opener,
        open_pack(options.base) if options.base else nullcontext() as base,
    ):
        report = _pack(options, keys, opener, base)
    show_report(report, as_json=options.json)
    return 0


def _pack(
    options: argparse.Namespace,
    keys: Sequence[PrivateKey],
    opener: SourceOpener,
    base: OpenedPack | None,
) -> PackReport:
    name, version = _name_and_version(options, base)
    return pack(
        options.image,
        options.output,
        PackOptions(
            name=name,
            version=version,
            base=base,
            delta=options.delta,
            expires=options.expires,
            sources=options.source,
            rotations=statements_of(options),
            thin=options.thin,
            keep_free=options.keep_free,
            drop_snapshots=options.drop_snapshots,
            incomplete=options.incomplete,
            against=[
                open_against(uri, opener, progress=progress_of(options)) for uri in options.against
            ],
            resolve=None if options.no_packages else ask_apt,
            allow=options.allow,
            strict=options.strict,
            review=show_privacy,
            clean=options.clean,
            backing=options.backing,
            replace=options.force,
            levels={**LEVELS, Class.SHARED: options.level},
            jobs=jobs_of(options),
        ),
        keys,
        progress_of(options),
    )


def _name_and_version(options: argparse.Namespace, base: OpenedPack | None) -> tuple[str, int]:
    """Return what was asked for, else what follows on the base, else a beginning."""
    name, version = options.name, options.pack_version
    if name is None:
        name = base.config.name if base else _default_name(options.output)
    if version is None:
        version = base.config.version + 1 if base and name == base.config.name else 1
    return name, version


def _default_name(output: str) -> str:
    stem = Path(output.rstrip("/")).name.removesuffix(".vmpack").removesuffix(".iso")
    name = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")
    if not name:
        raise UsageError(f"no pack name can be made of {output!r}", hint="give one with --name")
    return name
