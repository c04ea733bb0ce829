"""What is asked and said when a pack is made, whichever verb makes it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from packer import host
from packer.artifact.hints import Package
from packer.cli.options import print_json
from packer.guest.privacy import Finding, Review, advice, count_of, summary
from packer.pack.pack import PackReport
from packer.progress import note
from packer.sources.apt_index import resolve
from packer.sources.package_cache import PackageCache
from packer.text import format_bytes, format_table


def ask_apt(packages: Sequence[Package]) -> Sequence[Package]:
    """Return packages with where apt's mirrors keep them."""
    found = resolve(
        [(one.name, one.version, one.architecture) for one in packages],
        update_folder=PackageCache(host.packages_dir()).lists,
    )
    if found.note:
        note(found.note)
    return found.packages


def show_privacy(review: Review) -> None:
    """Say on standard error what is about to be published."""
    for pattern in review.idle:
        note(f"--allow {pattern}: nothing that is about to be published fits")
    if not review.findings:
        return
    note(f"{count_of(review.findings)} private and will be published:")
    print(summary(review.findings), file=sys.stderr)
    print(f"  {advice(review.findings)}", file=sys.stderr)


def show_report(report: PackReport, *, as_json: bool) -> None:
    """Print what was written; on standard error, what its users will look for in vain."""
    if report.nobody_named:
        lacking = (
            report.unlisted_bytes if report.config.sources else report.config.totals.shared.bytes
        )
        note(
            f"this pack leaves out {format_bytes(lacking)} and names nobody who has them; keep a "
            "full copy, and say with --source where it will be"
        )
    if as_json:
        print_json(_as_json(report))
    else:
        _print(report)


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
