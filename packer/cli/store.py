"""vmpack store: this host's verified contents."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from packer.cli.options import add_common, add_verb, own_store, print_json, progress_of
from packer.errors import MismatchError, UsageError
from packer.text import format_bytes

_SIZE = re.compile(r"(\d+)([kKMGT]?)")
_UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_DAY_SECONDS = 86_400


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs, "store", "look after this host's store", "vmpack store gc --max-size 20G"
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("list", help="list what it holds")
    check = actions.add_parser("verify", help="hash everything, remove what is damaged")
    collect = actions.add_parser("gc", help="remove what nobody needs")
    collect.add_argument("--max-size", metavar="SIZE", help="remove the least used until it fits")
    collect.add_argument("--older-than", type=float, metavar="DAYS", help="unused for so long")
    collect.add_argument("--all", action="store_true", help="remove everything that no VM uses")
    for action, run in ((show, run_list), (check, run_verify), (collect, run_gc)):
        action.add_argument("--store", type=Path, metavar="FOLDER", help="another store")
        add_common(action)
        action.set_defaults(run=run)


def run_list(options: argparse.Namespace) -> int:
    """List objects."""
    objects = list(own_store(options.store).list())
    total = sum(one.size for one in objects)
    if options.json:
        print_json(
            {
                "bytes": total,
                "contents": [
                    {"content": f"sha256:{one.digest.hex()}", "bytes": one.size} for one in objects
                ],
            }
        )
        return 0
    for one in objects:
        print(f"sha256:{one.digest.hex()}  {one.size:>14,}")
    print(f"{len(objects):,} contents, {format_bytes(total)}")
    return 0


def run_verify(options: argparse.Namespace) -> int:
    """Hash everything."""
    store = own_store(options.store)
    objects = list(store.list())
    total = sum(one.size for one in objects)
    with progress_of(options).stage("verifying", total) as advance:
        bad = store.verify(advance)
    if options.json:
        print_json(
            {"contents": len(objects), "removed": [f"sha256:{digest.hex()}" for digest in bad]}
        )
    else:
        print(f"{len(objects) - len(bad):,} of {len(objects):,} contents are right")
        for digest in bad:
            print(f"  removed sha256:{digest.hex()}: not what its name says")
    return MismatchError.exit_code if bad else 0


def run_gc(options: argparse.Namespace) -> int:
    """Collect."""
    removed = own_store(options.store).collect(
        max_bytes=None if options.max_size is None else _size(options.max_size),
        older_than_seconds=None
        if options.older_than is None
        else options.older_than * _DAY_SECONDS,
        everything=options.all,
    )
    if options.json:
        print_json(
            {
                "removed": len(removed.digests),
                "removed_bytes": removed.size_bytes,
                "kept": removed.kept,
                "kept_bytes": removed.kept_bytes,
            }
        )
    else:
        print(f"removed {len(removed.digests):,} contents, {format_bytes(removed.size_bytes)}")
        print(f"kept {removed.kept:,} contents, {format_bytes(removed.kept_bytes)}")
    return 0


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if not match:
        raise UsageError(f"--max-size {text}: expected a number and one of k, M, G, T")
    return int(match[1]) * _UNITS[match[2]]
