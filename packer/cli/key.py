"""vmpack key: make, show and replace signing keys."""

from __future__ import annotations

import argparse
from pathlib import Path

from packer.artifact.keys import (
    PrivateKey,
    PublicKey,
    default_key_path,
    generate,
    load_private,
    load_public,
)
from packer.artifact.name_patterns import EVERY_NAME, for_people
from packer.artifact.rotation import Rotation, make_statement
from packer.artifact.small_files import write_small_file
from packer.artifact.trust_store import TrustStore
from packer.cli.options import add_verb, ask_new_passphrase, ask_passphrase
from packer.progress import note
from packer.text import format_table


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(verbs, "key", "make, show and replace signing keys", "vmpack key generate")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    make = actions.add_parser(
        "generate", help="make this machine's signing key and trust it on this machine"
    )
    make.add_argument("--output", "-o", type=Path, default=None, help="another file")
    make.add_argument("--passphrase", action="store_true", help="encrypt it; asks for the words")
    make.set_defaults(run=run_generate)
    show = actions.add_parser("show", help="show the public key and its fingerprint")
    show.add_argument("file", type=Path, nargs="?", default=None)
    show.set_defaults(run=run_show)
    _add_rotate(
        actions.add_parser("rotate", help="state that a new key takes the place of an old one")
    )


def _add_rotate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "new",
        type=Path,
        metavar="NEW",
        help="the new key: its .pub file; signed by it too where its private half lies beside",
    )
    parser.add_argument(
        "--old", type=Path, metavar="FILE", help="the old private key (default: this machine's)"
    )
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only for packs with such names; repeatable (default: all)",
    )
    parser.add_argument(
        "--output", "-o", type=Path, required=True, metavar="FILE", help="statement to write"
    )
    parser.add_argument("--force", action="store_true", help="replace the output")
    parser.set_defaults(run=run_rotate)


def run_generate(options: argparse.Namespace) -> int:
    """Make a key; the default one is trusted on this machine for every name."""
    path = options.output or default_key_path()
    passphrase = ask_new_passphrase() if options.passphrase else ""
    public = generate(path, passphrase=passphrase).public
    rows = [
        ("private key", str(path)),
        ("public key", f"{path}.pub"),
        ("fingerprint", public.fingerprint),
    ]
    if options.output is None:
        TrustStore().add(public, "*")
        rows.append(("trusted", "on this machine, for every pack name"))
    print(format_table(rows, align="<<", indent=0))
    return 0


def run_show(options: argparse.Namespace) -> int:
    """Print a public key and its fingerprint."""
    path = options.file or default_key_path().with_name(default_key_path().name + ".pub")
    key = load_public(path)
    print(key.line)
    print(key.fingerprint)
    return 0


def run_rotate(options: argparse.Namespace) -> int:
    """Write the statement that a key is replaced."""
    old = load_private(options.old or default_key_path(), ask_passphrase)
    new, private = _both_halves(options.new)
    rotation = Rotation(old.public.fingerprint, new, tuple(options.name) or (EVERY_NAME,))
    statement = make_statement(rotation, [old, private] if private else [old])
    write_small_file(options.output, statement, replace=options.force)
    rows = [
        ("statement", str(options.output)),
        ("old key", rotation.old),
        ("new key", new.fingerprint),
        ("for", for_people(rotation.names)),
        ("signed by", "both" if private else "the old key"),
    ]
    print(format_table(rows, align="<<", indent=0))
    if private is None:
        note(f"the new key must sign it too: vmpack sign {options.output} --key NEWKEY --force")
    return 0


def _both_halves(path: Path) -> tuple[PublicKey, PrivateKey | None]:
    """Return a key and, where that lies beside its .pub file, its private half."""
    if path.suffix != ".pub":
        private = load_private(path, ask_passphrase)
        return private.public, private
    public = load_public(path)
    beside = path.with_suffix("")
    if not beside.is_file():
        return public, None
    private = load_private(beside, ask_passphrase)
    return public, private if private.public == public else None
