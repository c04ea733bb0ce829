"""vmpack inspect: what is in a disk image or a pack."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import msgspec

from packer.cli.options import add_common, add_verb, jobs_of, print_json, progress_of, today
from packer.errors import UsageError
from packer.guest.privacy import Finding, summary
from packer.inspect.files import Group
from packer.inspect.image import ImageReport, inspect_image
from packer.inspect.pack import PackSummary, inspect_pack, stubs_of
from packer.sources.open import is_pack, open_packs
from packer.survey.model import Volume
from packer.text import format_bytes, format_table, printable

RULES_INDENT = " " * 30
RULES_WIDTH = 110
CARRIED_BY = {
    "boot": "every copy",
    "private": "thin and full copies",
    "shared": "full copies only",
}


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs, "inspect", "show what is in a disk image or a pack", "vmpack inspect guest.qcow2"
    )
    parser.add_argument("what", help="disk image, or file, folder or URL of a pack")
    parser.add_argument("--stubs", action="store_true", help="list every stub of a pack")
    parser.add_argument(
        "--files", action="store_true", help="list every file of an image's boot set"
    )
    parser.add_argument(
        "--privacy", action="store_true", help="list every file of an image that looks private"
    )
    parser.add_argument("--backing", type=Path, metavar="FILE", help="backing file of a qcow2")
    add_common(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Inspect."""
    if not is_pack(options.what):
        if options.stubs:
            raise UsageError(f"--stubs lists the stubs of a pack; {options.what} is a disk image")
        report = inspect_image(
            options.what,
            backing=options.backing,
            jobs=jobs_of(options),
            progress=progress_of(options),
        )
        if options.json:
            print_json(msgspec.to_builtins(report))
        else:
            _print_image(report, files=options.files, privacy=options.privacy)
        return 0
    if options.files or options.privacy or options.backing:
        raise UsageError(
            f"--files, --privacy and --backing are for disk images; {options.what} is a pack"
        )
    packs = open_packs(options.what)
    with packs[0]:
        found = [
            (inspect_pack(pack), list(stubs_of(pack)) if options.stubs else []) for pack in packs
        ]
    if options.json:
        each = [
            msgspec.to_builtins(summary)
            | ({"stubs": msgspec.to_builtins(stubs)} if options.stubs else {})
            for summary, stubs in found
        ]
        print_json(each[0] if len(each) == 1 else {"packs": each})
        return 0
    for number, (one, stubs) in enumerate(found):
        if not options.stubs:
            print("\n" * (number > 0), end="")
            _print_pack(one)
        for stub in stubs:
            place, where = printable(stub.path), printable(stub.where)
            print(f"{stub.content}  {stub.size_bytes:>12,}  {place}  <- {where}")
    return 0


def _print_image(report: ImageReport, *, files: bool, privacy: bool) -> None:
    print(
        f"{report.path}  {report.container}, disk of {format_bytes(report.size)}, "
        f"{_table_words(report.table)}"
    )
    print(f"  {report.guest.line}")
    _heading("volumes")
    print(format_table([_volume_row(one) for one in report.volumes], "><>><<"))
    _heading("boot set: travels in every copy")
    _print_boot_set(report.boot, files=files)
    _heading("classes")
    rows = [
        (name, f"{count:,} contents", format_bytes(size), CARRIED_BY[name])
        for name, (count, size) in report.totals.items()
    ]
    rows.append(("unused", "", format_bytes(report.unused_bytes), "never: free blocks, file tails"))
    rows.append(("zero", "", format_bytes(report.zero_bytes), "never"))
    rows.extend(
        ("dropped", what, format_bytes(size), f"never: {reason}")
        for what, size, reason in report.dropped
    )
    print(format_table(rows, "<>><"))
    if report.packages and not report.origins:
        print(f"  shared contents come from {report.packages:,} packages")
    for class_name in ("shared", "private"):
        _print_origins(report, class_name)
    _heading("private: the largest folders")
    print(
        format_table(
            [
                (format_bytes(size), f"{count:,}", printable(folder))
                for folder, count, size in report.private
            ],
            ">><",
        )
    )
    _print_privacy(report.privacy, each=privacy)
    print(f"\na thin pack would weigh about {format_bytes(report.thin_bytes)}")
    for error in report.errors:
        print(f"error: {error}")
    for warning in report.warnings:
        print(f"warning: {warning}")


def _print_origins(report: ImageReport, class_name: str) -> None:
    rows = [one for one in report.origins if one.class_name == class_name]
    if rows:
        _heading(f"{class_name}: where it comes from")
        table = [
            (format_bytes(one.size_bytes), f"{one.contents:,}", printable(one.words))
            for one in rows
        ]
        print(format_table(table, ">><"))


def _print_boot_set(groups: tuple[Group, ...], *, files: bool) -> None:
    for group in groups:
        print(_boot_line(group.size_bytes, group.files, group.reason))
        if group.rules:
            told = ", ".join(
                f"{kind} ({count:,})" if count else kind for kind, count in group.rules
            )
            print(
                textwrap.fill(
                    told,
                    width=RULES_WIDTH,
                    initial_indent=RULES_INDENT,
                    subsequent_indent=RULES_INDENT,
                    break_on_hyphens=False,
                )
            )
        for one in group.paths if files else ():
            rule = f"  <- {printable(one.rule)}" if one.rule else ""
            print(f"{one.size_bytes:>20,}  {printable(one.path)}{rule}")
    total = sum(group.size_bytes for group in groups)
    print(_boot_line(total, sum(group.files for group in groups), "in all"))


def _boot_line(size_bytes: int, files: int, what: str) -> str:
    count = f"{files:,} file{'s' * (files > 1)}" if files else ""
    return f"  {format_bytes(size_bytes):>9}  {count:>13}  {what}"


def _print_privacy(findings: tuple[Finding, ...], *, each: bool) -> None:
    _heading("what looks private and would be published")
    if not each:
        print(summary(findings) if findings else "  nothing that a rule knows")
        return
    for one in findings:
        detail = f"  ({printable(one.detail)})" if one.detail else ""
        print(f"  {one.rule:<14}  {one.size_bytes:>12,}  {printable(one.path)}{detail}")


def _volume_row(one: Volume) -> tuple[str, ...]:
    state = one.state if one.state == "clean" else f"{one.state}: {one.state_reason}"
    kind = one.kind if one.kind != "raw" else "not parsed"
    said = one.note or (state if one.kind != "raw" else "")
    size = format_bytes(one.end - one.start)
    label = one.label or one.partition_label
    return (str(one.number), kind, size, f"at {one.start:,}", label, said)


def _table_words(table: str) -> str:
    return {"mbr": "MBR", "gpt": "GPT"}.get(table, "no partition table")


def _print_pack(summary: PackSummary) -> None:
    config = summary.config
    print(f"{summary.location}  {format_bytes(summary.stored_bytes)}")
    print(f"  {config.ref_name}  {summary.identity}")
    print(f"  {config.guest.line}, disk of {format_bytes(config.disks[0].size)}")
    signers = ", ".join(summary.signers)
    print(f"  signed by {signers}" if signers else "  not signed")
    for sentence in summary.rotations:
        print(f"  says that {sentence}")
    if config.expires:
        over = config.expired(today())
        print(f"  {'expired on' if over else 'good until'} {config.expires}, says its author")
    if summary.wanted is not None:
        asked, size, held = summary.wanted
        print(f"  asks for {asked:,} contents, {format_bytes(size)}; {held:,} of them are here")
    _heading("contents")
    rows = []
    for name, total in (
        ("boot", config.totals.boot),
        ("private", config.totals.private),
        ("shared", config.totals.shared),
    ):
        stored = sum(size for title, size in summary.bundles.items() if title.startswith(name))
        count, _ = summary.carried[name]
        here = "nothing to carry" if not total.count else "not carried: stubs"
        if count:
            part = "all" if count == total.count else f"{count:,} of them"
            here = f"{part} carried in {format_bytes(stored)}"
        rows.append((name, f"{total.count:,} contents", format_bytes(total.bytes), here))
    rows.append(("unused", "", format_bytes(summary.unused_bytes), ""))
    rows.append(("zero", "", format_bytes(summary.zero_bytes), ""))
    rows.extend(
        ("dropped", one.what, format_bytes(one.bytes), one.reason) for one in config.dropped
    )
    print(format_table(rows, "<>><"))
    if summary.packages:
        print(f"  {summary.packages:,} packages ship shared contents")
    for source in config.sources:
        print(f"  what a copy lacks can be had from {source}")
    for warning in config.warnings:
        print(f"  warning: {warning}")


def _heading(title: str) -> None:
    print(f"\n{title}")
