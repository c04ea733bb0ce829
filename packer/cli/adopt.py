"""vmpack adopt: make VMs of existing disks, which share what they have in common."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from packer.artifact.keys import PrivateKey
from packer.cli.options import (
    add_common,
    add_signing,
    add_verb,
    confirm,
    jobs_of,
    own_store,
    print_json,
    progress_of,
    signers,
)
from packer.cli.vms import add_state
from packer.density.adopt import AdoptOptions, AdoptReport, adopt
from packer.density.forecast import Forecast, forecast
from packer.errors import UsageError
from packer.progress import note
from packer.run.vm.record import MAX_VM_NAME
from packer.run.vm.vm import check_name
from packer.text import format_bytes, format_table

_SUFFIXES = re.compile(r"\.(raw|img|qcow2|vmdk|vhdx?|vdi|hdd)\Z", re.IGNORECASE)


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "adopt",
        "make VMs of existing disks, which share what they have in common",
        "vmpack adopt /srv/vms/mail.qcow2 /srv/vms/web.qcow2",
    )
    parser.add_argument(
        "disks", nargs="+", type=Path, metavar="DISK", help="image of a guest that is shut down"
    )
    parser.add_argument("--name", metavar="NAME", help="of the VM; default: the image's")
    parser.add_argument("--backing", type=Path, metavar="FILE", help="backing file of a qcow2")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--keep", action="store_true", help="keep the originals")
    what.add_argument(
        "--yes", action="store_true", help="remove each original, once proven, without asking"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be gained")
    add_signing(parser)
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="use this store")
    add_state(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Adopt."""
    _check(options)
    keys = signers(options, needed=not options.dry_run)
    store, known = own_store(options.store), set[bytes]()
    names = [_name_of(disk, options.name) for disk in options.disks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"several disks would be called {twice[0]}", hint="adopt them one by one, with --name"
        )
    wishes = [
        AdoptOptions(
            name,
            _pack_name_of(name),
            store,
            state=options.state,
            backing=options.backing,
            folders=sorted({one.absolute().parent for one in options.disks}),
            remove=None if options.keep else lambda report: _may_go(report, options),
            known=known,
            jobs=jobs_of(options),
        )
        for name in names
    ]
    if options.dry_run:
        _show_forecasts(options, wishes)
    else:
        _show_reports(options, wishes, keys)
    return 0


def _check(options: argparse.Namespace) -> None:
    if len(options.disks) > 1 and (options.name or options.backing):
        raise UsageError("--name and --backing are of one disk: adopt them one by one")
    if not (options.keep or options.yes or options.dry_run or sys.stdin.isatty()):
        raise UsageError(
            "there is nobody to ask whether the originals may be removed",
            hint="answer with --yes, or with --keep",
        )


def _name_of(disk: Path, given: str | None) -> str:
    """Return the name of the VM: what was asked for, else that of the image."""
    if given is not None:
        return check_name(given)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", _SUFFIXES.sub("", disk.name)).strip("-._")
    if not stem:
        raise UsageError(f"no name of a VM can be made of {disk}", hint="give one with --name")
    return stem[:MAX_VM_NAME]


def _pack_name_of(name: str) -> str:
    """Return the name of the pack of a VM; a pack's is of small letters."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _may_go(report: AdoptReport, options: argparse.Namespace) -> bool:
    question = (
        f"{report.path} ({format_bytes(report.before_bytes)}) is the VM {report.vm.name} now, "
        f"proven byte for byte; remove the original?"
    )
    return confirm(question, yes=options.yes)


def _show_forecasts(options: argparse.Namespace, wishes: Sequence[AdoptOptions]) -> None:
    found = [
        forecast(disk, wish, progress_of(options))
        for disk, wish in zip(options.disks, wishes, strict=True)
    ]
    if options.json:
        print_json({"disks": [_facts(one) for one in found], **_totals(found)})
        return
    _print_table("DISK", [(str(one.path), _figures(one)) for one in found])


def _show_reports(
    options: argparse.Namespace, wishes: Sequence[AdoptOptions], keys: Sequence[PrivateKey]
) -> None:
    done: list[AdoptReport] = []
    for disk, wish in zip(options.disks, wishes, strict=True):
        report = adopt(disk, wish, keys, progress_of(options))
        done.append(report)
        if not options.json and len(wishes) > 1:  # the next one may fail
            note(f"{disk} is the VM {report.vm.name}")
    if options.json:
        disks = [
            {**_facts(one), "vm": one.vm.name, "folder": str(one.vm.folder), "removed": one.removed}
            for one in done
        ]
        print_json({"disks": disks, **_totals(done)})
        return
    _print_table("VM", [(one.vm.name, _figures(one)) for one in done])
    kept = [str(one.path) for one in done if not one.removed]
    if kept:
        note(f"kept: {', '.join(kept)}")


def _figures(one: AdoptReport | Forecast) -> tuple[int, ...]:
    """Return the columns of the table, in bytes."""
    return one.before_bytes, one.after_bytes, one.own_bytes, one.stored_bytes, one.unique_bytes


def _facts(one: AdoptReport | Forecast) -> dict[str, object]:
    return {
        "disk": str(one.path),
        "before_bytes": one.before_bytes,
        "after_bytes": one.after_bytes,
        "own_bytes": one.own_bytes,
        "stored_bytes": one.stored_bytes,
        "unique_bytes": one.unique_bytes,
    }


def _totals(found: Sequence[AdoptReport | Forecast]) -> dict[str, object]:
    return {
        "before_bytes": sum(one.before_bytes for one in found),
        "after_bytes": sum(one.after_bytes for one in found),
        "unique_bytes": sum(one.unique_bytes for one in found),
    }


def _print_table(title: str, rows: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    shown = [*rows]
    if len(rows) > 1:
        columns = zip(*(figures for _, figures in rows), strict=True)
        shown.append(("all", tuple(map(sum, columns))))
    lines = [(name, *map(format_bytes, figures)) for name, figures in shown]
    head = (title, "before", "after", "own", "store", "unique")
    print(format_table([head, *lines], "<>>>>>"), flush=True)
