"""vmpack pack: an installed disk becomes a signed pack."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from packer import host
from packer.artifact.contents import Class
from packer.artifact.hints import Package
from packer.artifact.keys import PrivateKey
from packer.artifact.opened import OpenedPack
from packer.cli.options import (
    add_common,
    add_rotation,
    add_verb,
    jobs_of,
    own_store,
    print_json,
    progress_of,
    signing_keys,
    statements_of,
)
from packer.errors import UsageError
from packer.guest.privacy import Finding, Review, advice, count_of, summary
from packer.pack.against import open_against
from packer.pack.clean_rules import GROUPS
from packer.pack.pack import LEVELS, PackOptions, PackReport, pack
from packer.progress import note
from packer.sources.apt_index import resolve
from packer.sources.open import SourceOpener, open_pack
from packer.sources.package_cache import PackageCache
from packer.text import format_bytes, format_table


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
    parser.add_argument(
        "--key",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="sign with this key; env:NAME is a variable that holds one",
    )
    add_rotation(parser)
    parser.add_argument("--unsigned", action="store_true", help="do not sign")
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
    if options.unsigned and options.key:
        raise UsageError("--unsigned and --key contradict each other")
    keys = [] if options.unsigned else signing_keys(options.key)  # before any program is started
    with (
        SourceOpener(own_store(None)) as opener,
        open_pack(options.base) if options.base else nullcontext() as base,
    ):
        report = _pack(options, keys, opener, base)
    if report.nobody_named:
        lacking = (
            report.unlisted_bytes if report.config.sources else report.config.totals.shared.bytes
        )
        note(
            f"this pack leaves out {format_bytes(lacking)} and names nobody who has them; keep a "
            "full copy, and say with --source where it will be"
        )
    if options.json:
        print_json(_as_json(report))
    else:
        _print(report)
    return 0


def _pack(
    options: argparse.Namespace,
    keys: Sequence[PrivateKey],
    opener: SourceOpener,
    base: OpenedPack | None,
) -> PackReport:
    def ask_apt(packages: Sequence[Package]) -> Sequence[Package]:
        found = resolve(
            [(one.name, one.version, one.architecture) for one in packages],
            update_folder=PackageCache(host.packages_dir()).lists,
        )
        if found.note:
            note(found.note)
        return found.packages

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
            review=_show_privacy,
            clean=options.clean,
            backing=options.backing,
            replace=options.force,
            levels={**LEVELS, Class.SHARED: options.level},
            jobs=jobs_of(options),
        ),
        keys,
        progress_of(options),
    )


def _show_privacy(review: Review) -> None:
    """Say on standard error what is about to be published."""
    for pattern in review.idle:
        note(f"--allow {pattern}: nothing that is about to be published fits")
    if not review.findings:
        return
    note(f"{count_of(review.findings)} private and will be published:")
    print(summary(review.findings), file=sys.stderr)
    print(f"  {advice(review.findings)}", file=sys.stderr)


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


def _as_json(report: PackReport) -> dict[str, object]:
    return {
        "output": str(report.output),
        "identity": report.identity,
        "name": report.config.name,
        "version": report.config.version,
        "expires": report.config.expires,
        "bytes": report.stored_bytes,
        "bundles": report.bundles,
        "carried_bytes": report.carried_bytes,
        "deltas": {
            "contents": report.gain.contents,
            "stored_bytes": report.gain.stored_bytes,
            "delta_bytes": report.gain.delta_bytes,
        },
        "contents": {
            title: {"count": total.count, "bytes": total.bytes}
            for title, total in (
                ("boot", report.config.totals.boot),
                ("private", report.config.totals.private),
                ("shared", report.config.totals.shared),
            )
        },
        "unused_bytes": report.unused_bytes,
        "zero_bytes": report.zero_bytes,
        "dropped": [
            {"what": one.what, "bytes": one.bytes, "reason": one.reason}
            for one in report.config.dropped
        ],
        "signers": list(report.signers),
        "removed": list(report.removed),
        "warnings": list(report.warnings),
        "privacy": {
            "findings": _findings_as_json(report.privacy.findings),
            "allowed": _findings_as_json(report.privacy.allowed),
        },
    }


def _findings_as_json(findings: Sequence[Finding]) -> list[dict[str, object]]:
    return [
        {
            "rule": one.rule,
            "path": one.path,
            "bytes": one.size_bytes,
            "what": one.what,
            "detail": one.detail,
        }
        for one in findings
    ]


def _print(report: PackReport) -> None:
    totals = report.config.totals
    disk = report.config.disks[0]
    stored = dict.fromkeys(("boot", "private", "shared"), 0)
    for title, size in report.bundles.items():
        stored[title.partition("-")[0]] += size
    left_out = totals.shared.count and not stored["shared"]
    print(f"{report.output}  {format_bytes(report.stored_bytes)}")
    print(f"  {report.config.ref_name}  {report.identity}")
    print(f"  {report.config.guest.line}, disk of {format_bytes(disk.size)}")
    rows = [
        ("boot", totals.boot, format_bytes(stored["boot"])),
        ("private", totals.private, format_bytes(stored["private"])),
        ("shared", totals.shared, "not carried" if left_out else format_bytes(stored["shared"])),
    ]
    print(
        format_table(
            [
                (title, f"{total.count:,} contents", format_bytes(total.bytes), "->", now)
                for title, total, now in rows
            ]
            + [
                ("unused", "", format_bytes(report.unused_bytes), "->", "nothing"),
                *(
                    ("dropped", one.what, format_bytes(one.bytes), "->", "nothing")
                    for one in report.config.dropped
                ),
            ],
            "<>><>",
        )
    )
    if report.carried_bytes:
        new = sum(report.bundles.values()) - report.carried_bytes
        print(
            f"  bundles: {format_bytes(report.carried_bytes)} of the base, {format_bytes(new)} new"
        )
    if report.gain.contents:
        gain = report.gain
        print(
            f"  deltas: {gain.contents:,} contents in {format_bytes(gain.delta_bytes)} instead of "
            f"{format_bytes(gain.stored_bytes)}, for who has the base"
        )
    for signer in report.signers:
        print(f"  signed by {signer}")
    for line in report.removed:
        print(f"  removed first: {line}")
    for warning in report.warnings:
        print(f"  warning: {warning}")
