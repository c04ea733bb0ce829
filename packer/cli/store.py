"""vmpack store: this host's verified contents."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from packer import host
from packer.cli.options import add_common, add_verb, own_store, print_json, progress_of
from packer.errors import MismatchError, UsageError
from packer.sources.package_cache import PackageCache, RemovedPackages
from packer.sources.store import Removed
from packer.text import format_bytes

_SIZE = re.compile(r"([0-9]{1,15})([kKMGT]?)")
_UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_DAY_SECONDS = 86_400
_MAX_DAYS = 100_000


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs, "store", "look after this host's store", "vmpack store gc --max-size 20G"
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("list", help="list what it holds")
    check = actions.add_parser("verify", help="hash everything, remove what is damaged")
    collect = actions.add_parser(
        "gc", help="remove what nobody needs, also of the packages that apt fetched"
    )
    collect.add_argument("--max-size", metavar="SIZE", help="remove the least used until it fits")
    collect.add_argument("--older-than", type=_days, metavar="DAYS", help="unused for so long")
    collect.add_argument("--all", action="store_true", help="remove everything that no VM uses")
    for action, run in ((show, run_list), (check, run_verify), (collect, run_gc)):
        action.add_argument("--store", type=Path, metavar="FOLDER", help="another store")
        add_common(action, jobs=False)
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
    """Collect in the store; in the host's own one also the packages that apt fetched."""
    max_bytes = None if options.max_size is None else _size(options.max_size)
    seconds = None if options.older_than is None else options.older_than * _DAY_SECONDS
    removed = own_store(options.store).collect(
        max_bytes=max_bytes, older_than_seconds=seconds, everything=options.all
    )
    packages = None
    if options.store is None:
        left = None if max_bytes is None else max(0, max_bytes - removed.kept_bytes)
        packages = PackageCache(host.packages_dir()).collect(
            max_bytes=left, older_than_seconds=seconds, everything=options.all
        )
    if options.json:
        print_json(_as_json(removed, packages))
        return 0
    print(f"removed {len(removed.digests):,} contents, {format_bytes(removed.size_bytes)}")
    print(f"kept {removed.kept:,} contents, {format_bytes(removed.kept_bytes)}")
    if packages is not None:
        why = ": an unpack uses them" if packages.in_use else ""
        print(f"removed {packages.count:,} packages, {format_bytes(packages.size_bytes)}")
        print(f"kept {packages.kept:,} packages, {format_bytes(packages.kept_bytes)}{why}")
    return 0


def _as_json(removed: Removed, packages: RemovedPackages | None) -> dict[str, object]:
    result: dict[str, object] = {
        "removed": len(removed.digests),
        "removed_bytes": removed.size_bytes,
        "kept": removed.kept,
        "kept_bytes": removed.kept_bytes,
    }
    if packages is not None:
        result["packages"] = {
            "removed": packages.count,
            "removed_bytes": packages.size_bytes,
            "kept": packages.kept,
            "kept_bytes": packages.kept_bytes,
            "in_use": packages.in_use,
        }
    return result


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if not match:
        raise UsageError(f"--max-size {text}: expected a number and one of k, M, G, T")
    return int(match[1]) * _UNITS[match[2]]


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days <= _MAX_DAYS:  # "nan" and "inf" are numbers to Python
        raise argparse.ArgumentTypeError(f"expected 0 to {_MAX_DAYS} days, found {text!r}")
    return days
