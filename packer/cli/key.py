"""vmpack key: make and show signing keys."""

from __future__ import annotations

import argparse
from pathlib import Path

from packer.artifact.keys import default_key_path, generate, load_public
from packer.artifact.trust_store import TrustStore
from packer.cli.options import add_verb, ask_new_passphrase
from packer.text import format_table


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(verbs, "key", "make and show signing keys", "vmpack key generate")
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
