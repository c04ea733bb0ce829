"""vmpack trust: whose packs this host accepts."""

from __future__ import annotations

import argparse
from pathlib import Path

from packer.artifact.keys import load_public
from packer.artifact.trust_store import TrustStore
from packer.cli.options import add_verb
from packer.text import format_table, printable


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "trust",
        "say whose packs this host accepts",
        "vmpack trust add author.pub --name 'demo*'",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="accept packs signed by a key")
    add.add_argument("key", type=Path, help="public key file, as OpenSSH writes it")
    add.add_argument("--name", default="*", metavar="PATTERN", help="pack names (default: all)")
    add.add_argument(
        "--threshold",
        type=int,
        default=None,
        metavar="K",
        help="how many keys of this pattern must have signed",
    )
    add.set_defaults(run=run_add)
    show = actions.add_parser("list", help="show what is accepted and what versions were used")
    show.set_defaults(run=run_list)
    remove = actions.add_parser("remove", help="accept a key no longer")
    remove.add_argument("fingerprint", metavar="SHA256:…")
    remove.set_defaults(run=run_remove)


def run_add(options: argparse.Namespace) -> int:
    """Trust a key."""
    key = load_public(options.key)
    rule = TrustStore().add(key, options.name, threshold=options.threshold)
    needed = f", {rule.threshold} of {len(rule.keys)} keys needed" if rule.threshold > 1 else ""
    print(f"{key.fingerprint} is trusted for packs called {options.name!r}{needed}")
    return 0


def run_list(options: argparse.Namespace) -> int:  # noqa: ARG001
    """List rules and memory."""
    trust = TrustStore()
    rules = trust.rules()
    if not rules:
        print("no key is trusted on this host")
    for rule in rules:
        print(f"packs called {' '.join(rule.patterns)}: {rule.threshold} of")
        print(format_table([(key.fingerprint, printable(key.comment)) for key in rule.keys], "<<"))
    used = {(name, one.version, one.config_digest) for (_, name), one in trust.memory().items()}
    if used:
        print("highest versions used:")
        rows = [(f"{name}:{version}", digest) for name, version, digest in sorted(used)]
        print(format_table(rows, "<<"))
    return 0


def run_remove(options: argparse.Namespace) -> int:
    """Trust a key no longer."""
    patterns = TrustStore().remove(options.fingerprint)
    print(f"{options.fingerprint} is no longer trusted for {', '.join(patterns)}")
    return 0
