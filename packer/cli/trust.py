"""vmpack trust: whose packs this host accepts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from packer.artifact.keys import check_fingerprint, load_public
from packer.artifact.name_patterns import for_people
from packer.artifact.rotation import Statement, load_statement
from packer.artifact.trust import Rule
from packer.artifact.trust_store import Trusted, TrustStore
from packer.artifact.trust_view import Seen, Standing, seen, standing
from packer.cli.options import add_verb, confirm, print_json
from packer.errors import Error
from packer.text import format_table, printable


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "trust",
        "say whose packs this host accepts; alone, show it",
        "vmpack trust add author.pub --name 'demo*'",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run_list)
    actions = parser.add_subparsers(dest="action", metavar="[ACTION]")
    _add_add(actions.add_parser("add", help="accept packs signed by a key"))
    show = actions.add_parser(
        "list", help="show who is accepted, and which versions were used (default)"
    )
    show.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print the result as JSON"
    )
    show.set_defaults(run=run_list)
    remove = actions.add_parser("remove", help="accept a key, and those that follow it, no longer")
    remove.add_argument("fingerprint", metavar="SHA256:…")
    remove.set_defaults(run=run_remove)
    _add_rotate(actions.add_parser("rotate", help="accept a new key in place of an old one"))


def _add_add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", type=Path, help="public key file, as OpenSSH writes it")
    parser.add_argument("--name", default="*", metavar="PATTERN", help="pack names (default: all)")
    parser.add_argument(
        "--threshold",
        type=int,
        default=None,
        metavar="K",
        help="how many keys of this pattern must have signed",
    )
    parser.add_argument(
        "--again", action="store_true", help="also a key that was replaced on this host"
    )
    parser.set_defaults(run=run_add)


def _add_rotate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("statement", type=Path, help="what 'vmpack key rotate' has written")
    parser.add_argument(
        "--keep-old", action="store_true", help="go on to accept the old key as well"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.set_defaults(run=run_rotate)


def run_add(options: argparse.Namespace) -> int:
    """Trust a key."""
    key = load_public(options.key)
    rule = TrustStore().add(key, options.name, threshold=options.threshold, again=options.again)
    needed = f", {rule.threshold} of {len(rule.keys)} keys needed" if rule.threshold > 1 else ""
    print(f"{key.fingerprint} is trusted for packs called {options.name!r}{needed}")
    return 0


def run_list(options: argparse.Namespace) -> int:
    """Show rules and memory."""
    store = TrustStore()
    trusted = store.trusted()
    used = seen(store.memory(), trusted.replaced)
    if options.json:
        print_json(_as_json(trusted, used))
        return 0
    for line in [*_accepted(trusted), *_used(trusted, used)]:
        print(line)
    return 0


def run_remove(options: argparse.Namespace) -> int:
    """Trust a key no longer."""
    fingerprint = check_fingerprint(options.fingerprint)
    for rule in TrustStore().remove(fingerprint):
        for key in rule.keys:
            whose = "" if key.fingerprint == fingerprint else ", to which this key leads,"
            print(f"{key.fingerprint}{whose} is no longer trusted for {for_people(rule.patterns)}")
    return 0


def run_rotate(options: argparse.Namespace) -> int:
    """Trust a new key in place of an old one."""
    statement, _ = load_statement(options.statement)
    store = TrustStore()
    rules = store.rotate(statement, keep_old=options.keep_old, dry_run=True)
    _show_rotation(statement, rules, keep_old=options.keep_old)
    if not confirm("Accept it?", yes=options.yes):
        raise Error("not accepted: nothing was changed")
    store.rotate(statement, keep_old=options.keep_old)
    print(f"from now on {statement.rotation.sentence}")
    return 0


def _show_rotation(statement: Statement, rules: tuple[Rule, ...], *, keep_old: bool) -> None:
    rotation = statement.rotation
    rows = [
        ("old key", rotation.old + (", which stays accepted" if keep_old else "")),
        ("new key", rotation.new.fingerprint),
        ("for", for_people(rotation.names)),
        ("signed by", "both"),
        *(("rule", f"{for_people(rule.patterns)}, by {_needed(rule)}") for rule in rules),
    ]
    print(format_table(rows, "<<", indent=0), file=sys.stderr)


def _accepted(trusted: Trusted) -> Iterator[str]:
    if not trusted.rules:
        yield "no key is trusted on this host"
        yield "  trust an author's with: vmpack trust add author.pub --name 'demo*'"
        return
    yield "accepted on this host"
    for rule in trusted.rules:
        yield f"\n  {for_people(rule.patterns)}, signed by {_needed(rule)}"
        for one in standing(rule, trusted.replaced):
            yield f"    {one.key.fingerprint}  {printable(one.key.comment)}".rstrip()
            yield from (f"      {line}" for line in _story(one))


def _story(one: Standing) -> Iterator[str]:
    """Yield where a key came from, and where it counts no longer."""
    if one.came:
        rotation = one.came.rotation
        since = f" since {one.came.since}" if one.came.since else ""
        yield f"in place of {rotation.old} for {for_people(rotation.names)}{since}"
    if one.gone_for:
        yield f"replaced for {for_people(one.gone_for)}"


def _used(trusted: Trusted, used: tuple[Seen, ...]) -> Iterator[str]:
    if not used:
        return
    yield "\nhighest versions used; older ones are refused"
    comments = _comments(trusted)
    for one in used:
        yield f"\n  {one.name}:{one.version}  {one.config_digest}"
        for fingerprint in one.keys:
            comment = printable(comments.get(fingerprint, ""))
            yield f"    signed by {fingerprint}  {comment}".rstrip()


def _needed(rule: Rule) -> str:
    if len(rule.keys) == 1 and rule.threshold == 1:
        return "this key"
    lacking = ", which are not there yet" if rule.threshold > len(rule.keys) else ""
    return f"{rule.threshold} of {len(rule.keys)} keys{lacking}"


def _comments(trusted: Trusted) -> dict[str, str]:
    return {
        one.key.fingerprint: one.key.comment
        for rule in trusted.rules
        for one in standing(rule, trusted.replaced)
    }


def _as_json(trusted: Trusted, used: tuple[Seen, ...]) -> dict[str, object]:
    return {
        "rules": [
            {
                "patterns": list(rule.patterns),
                "threshold": rule.threshold,
                "places": len(rule.keys),
                "keys": [_key_as_json(one) for one in standing(rule, trusted.replaced)],
            }
            for rule in trusted.rules
        ],
        "replaced": [
            {
                "old": one.rotation.old,
                "new": one.rotation.new.fingerprint,
                "names": list(one.rotation.names),
                "since": one.since,
                "keep_old": one.keep_old,
            }
            for one in trusted.replaced
        ],
        "used": [
            {
                "name": one.name,
                "version": one.version,
                "config": one.config_digest,
                "rules": list(one.rules),
                "signers": list(one.keys),
            }
            for one in used
        ],
    }


def _key_as_json(one: Standing) -> dict[str, object]:
    return {
        "fingerprint": one.key.fingerprint,
        "key": one.key.line,
        "comment": one.key.comment,
        "in_place_of": one.came.rotation.old if one.came else None,
        "names": list(one.came.rotation.names) if one.came else None,
        "since": one.came.since if one.came else None,
        "gone_for": list(one.gone_for),
    }
