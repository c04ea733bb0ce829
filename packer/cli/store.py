"""vmpack store: this host's verified contents, and offering them to neighbours."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from packer import host
from packer.cli.listening import address_and_port, in_uri, is_loopback
from packer.cli.options import add_common, add_verb, own_store, print_json, progress_of
from packer.errors import MismatchError, UsageError
from packer.progress import note
from packer.sources.package_cache import PackageCache, RemovedPackages
from packer.sources.store import Removed
from packer.sources.store_protocol import DEFAULT_PORT
from packer.sources.store_token import default_token_path, make_token, read_token
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
    _add_token(actions.add_parser("token", help="show the token that neighbours need"))
    _add_serve(actions.add_parser("serve", help="offer what it holds to neighbours, read-only"))


def _add_token(parser: argparse.ArgumentParser) -> None:
    _add_token_file(parser)
    parser.add_argument("--new", action="store_true", help="make another one; the old one ends")
    parser.set_defaults(run=run_token)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--listen",
        type=address_and_port,
        default=address_and_port(f"127.0.0.1:{DEFAULT_PORT}"),
        metavar="ADDR:PORT",
        help=f"default: 127.0.0.1:{DEFAULT_PORT}, this host only; 0.0.0.0:{DEFAULT_PORT}: others",
    )
    _add_token_file(parser)
    parser.add_argument("--certificate", type=Path, metavar="PEM", help="serve over TLS with this")
    parser.add_argument("--key", type=Path, metavar="PEM", help="its key, if it is in another file")
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="another store")
    parser.set_defaults(run=run_serve, parser=parser)


def _add_token_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="default: store-token in the config folder"
    )


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


def run_token(options: argparse.Namespace) -> int:
    """Show the token, made when it is first asked for."""
    path = options.token_file or default_token_path()
    known = path.exists() and not options.new
    print(read_token(path) if known else make_token(path, replace=options.new))
    return 0


def run_serve(options: argparse.Namespace) -> int:
    """Offer the store to neighbours until interrupted."""
    from packer.sources.store_server import StoreHandler
    from packer.transport.http_server import serve, tls_context

    if options.key is not None and options.certificate is None:
        options.parser.error("--key needs --certificate")
    token = read_token(options.token_file or default_token_path())
    store = own_store(options.store)
    secure = options.certificate is not None
    context = tls_context(options.certificate, options.key) if secure else None
    address, port = options.listen
    held = [one.size for one in store.list()]

    def started(at_port: int) -> None:
        scheme = "store+https" if secure else "store"
        size, uri = format_bytes(sum(held)), f"{scheme}://{in_uri(address)}:{at_port}/"
        print(f"{len(held):,} contents, {size}, at {uri}", flush=True)
        if not secure and not is_loopback(address):
            note("without --certificate whoever sees the line can read the token and the contents")

    served = serve(StoreHandler(store, token), address, port, context, started)
    print(f"answered {served.requests:,} requests, sent {format_bytes(served.sent_bytes)}")
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
