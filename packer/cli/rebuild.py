"""What the verbs that rebuild a disk share: who may supply its bytes, and what came of that."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packer.artifact.opened import OpenedPack
from packer.artifact.trust import Verdict
from packer.cli.options import accept, own_store, print_json
from packer.cli.settings import load_settings
from packer.errors import MissingError
from packer.progress import note
from packer.sources.base import Source
from packer.sources.open import SourceOpener, open_pack
from packer.sources.store import Store
from packer.text import format_bytes, format_table, printable
from packer.unpack.dry_run import DryRun
from packer.unpack.gather import Supplied
from packer.unpack.unpack import MISSING_SHOWN


@dataclass(frozen=True, slots=True)
class Rebuild:
    """A pack that this host accepts, and who is asked for its contents, in that order.

    verdict: to be remembered when the disk is right. store: keeps what was fetched; None with
    --no-store.
    """

    pack: OpenedPack
    verdict: Verdict
    sources: list[Source]
    store: Store | None


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Add the options of a rebuild that say where contents may come from."""
    add_origins(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what would come from where")
    parser.add_argument("--no-store", action="store_true", help="neither use nor fill the store")


def add_origins(parser: argparse.ArgumentParser) -> None:
    """Add the options that say who has contents, and which store keeps them."""
    parser.add_argument(
        "--from",
        dest="sources",
        action="append",
        default=[],
        metavar="SOURCE",
        help="store: store://host dir:/usr disk:other.qcow2 pack:other.vmpack deb:/folder apt: "
        "medium:windows.iso symbols:https://… https://… ; repeatable, besides the store; default: "
        "this host's package-owned trees and what the pack names",
    )
    parser.add_argument("--offline", action="store_true", help="do not use the network by default")
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="another store")
    parser.set_defaults(no_store=False)


@contextmanager
def opened(options: argparse.Namespace) -> Iterator[Rebuild]:
    """Open the pack that is to be rebuilt, if it is trusted, and its sources."""
    settings = load_settings()
    store = own_store(options.store)
    with open_pack(options.pack) as pack, SourceOpener(store, pack) as opener:
        verdict = accept(pack, options)
        _ = pack.map  # sources share it: what is wrong with it must not be told of one of them
        named = options.sources or settings.sources
        if named:
            sources, notes = opener.open_all(named)
        else:
            sources, notes = opener.defaults(offline=options.offline)
        for text in notes:
            note(text)
        if not options.no_store and store not in sources:
            sources.insert(0, store)  # what was fetched once is not fetched again
        yield Rebuild(pack, verdict, sources, None if options.no_store else store)


def note_complaints(supplied: Sequence[Supplied], at_most: int | None = None) -> None:
    """Print what the sources did wrong, each thing once.

    at_most: how many things, where nobody can reach any server anyhow.
    """
    lines = list(dict.fromkeys(text for one in supplied for text in one.complaints))
    for line in lines[:at_most]:
        note(line)
    if at_most is not None and len(lines) > at_most:
        note(f"… and {len(lines) - at_most:,} more")


def supplied_as_json(supplied: Sequence[Supplied]) -> list[dict[str, object]]:
    """Return what each source gave, for machines."""
    return [
        {
            "source": one.uri,
            "content_bytes": one.proven_bytes,
            "fetched_bytes": one.fetched_bytes,
            "complaints": one.complaints,
        }
        for one in supplied
    ]


def print_supplied(supplied: Sequence[Supplied], resumed_bytes: int, resumed: str) -> None:
    """Print what each source gave, and first what was there already; `resumed` says why."""
    rows = [(one.uri, one.proven_bytes, one.fetched_bytes) for one in supplied]
    if resumed_bytes:
        rows.insert(0, (resumed, resumed_bytes, 0))
    _print_sources([(name, size, cost) for name, size, cost in rows if size or cost])


def show_plan(
    plan: DryRun,
    *,
    as_json: bool,
    what: str = "",
    more: Mapping[str, object] | None = None,
) -> int:
    """Print what a rebuild would do; return the exit code.

    what: would be rebuilt, if it is not the disk. more: to be said to machines as well.
    """
    for text in plan.complaints:
        note(text)
    if as_json:
        print_json(
            {
                "disk_bytes": plan.disk_bytes,
                "steps": [
                    {"source": uri, "contents": count, "content_bytes": size, "fetch_bytes": cost}
                    for uri, count, size, cost in plan.steps
                ],
                "missing": missing_as_json(plan.missing),
                **(more or {}),
            }
        )
    else:
        print(f"{what or f'a disk of {format_bytes(plan.disk_bytes)}'} would come from:")
        _print_sources([(uri, size, cost) for uri, _, size, cost in plan.steps])
        print_missing(plan.missing)
    return MissingError.exit_code if plan.missing else 0


def print_missing(missing: Sequence[tuple[str, int, str]]) -> None:
    """Print (content, bytes, guest path) of what nobody has; nothing where nothing is missing."""
    if missing:
        lacking = sum(size for _, size, _ in missing)
        print(f"nobody has {len(missing):,} contents, {format_bytes(lacking)}:")
    for name, size, path in missing[:MISSING_SHOWN]:
        print(f"  {name}  {size:>12,}  {printable(path)}")
    if len(missing) > MISSING_SHOWN:
        print(f"  … and {len(missing) - MISSING_SHOWN:,} more; --json lists them all")


def missing_as_json(missing: Sequence[tuple[str, int, str]]) -> list[dict[str, object]]:
    """Return what nobody has, for machines."""
    return [{"content": name, "bytes": size, "path": path} for name, size, path in missing]


def _print_sources(rows: Sequence[tuple[str, int, int]]) -> None:
    whole = sum(size for _, size, _ in rows) or 1
    print(
        format_table(
            [
                (
                    name,
                    format_bytes(size),
                    f"{100 * size / whole:.1f} %",
                    f"fetched {format_bytes(cost)}" if cost else "",
                )
                for name, size, cost in rows
            ],
            "<>><",
        )
    )
