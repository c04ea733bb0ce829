"""What several verbs share: options, the signing key, opening packs under the rules of trust."""

from __future__ import annotations

import argparse
import datetime
import getpass
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packer import host
from packer.artifact.config import Config
from packer.artifact.keys import (
    PrivateKey,
    check_fingerprint,
    default_key_path,
    load_private,
    parse_private,
)
from packer.artifact.opened import OpenedPack
from packer.artifact.rotation import load_statement
from packer.artifact.trust import Verdict, judge
from packer.artifact.trust_store import TrustStore
from packer.cli.settings import MAX_JOBS, load_settings
from packer.environment import KEY_PASSPHRASE
from packer.errors import TrustError, UsageError
from packer.progress import Progress, for_terminal, note
from packer.sources.store import Store

_IN_ENVIRONMENT = "env"
_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]{0,99}")
_A_KEY_ITSELF = re.compile("PRIVATE KEY|b3BlbnNzaC1rZXktdjE|\n")
"""What a private key in OpenSSH's format holds: its label, its magic in base64, lines."""


class VerbParser(argparse.ArgumentParser):
    """The parser of the command and of its verbs.

    A verb that hands arguments on to another program has a default for `passed`: what follows "--"
    stands there. (argparse gives such arguments to positional ones, if they are not taken by then.)
    """

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str], namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse what stands before "--"."""
        if self.get_default("passed") is None or "--" not in args:
            return super().parse_known_args(args, namespace)
        end = args.index("--")
        found, unknown = super().parse_known_args(args[:end], namespace)
        found.passed = list(args[end + 1 :])
        return found, unknown


def add_verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    example: str,
) -> argparse.ArgumentParser:
    """Return the parser of a verb, with an example in its help."""
    return verbs.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_common(parser: argparse.ArgumentParser, *, jobs: bool = True) -> None:
    """Add the options of every verb that works for a while.

    jobs: whether the verb works in threads.
    """
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress bars")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    if jobs:
        parser.add_argument(
            "--jobs", "-j", type=_jobs, default=None, metavar="N", help="threads (default: cores)"
        )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the options that say whose packs are accepted."""
    parser.add_argument(
        "--signer",
        action="append",
        default=[],
        metavar="SHA256:…",
        help="accept this fingerprint for this run",
    )
    parser.add_argument(
        "--allow-older",
        action="store_true",
        help="accept an older version than this host has used",
    )
    parser.add_argument(
        "--allow-unsigned", action="store_true", help="accept a pack that nobody signed"
    )
    parser.set_defaults(identity=None)


def add_signing(parser: argparse.ArgumentParser) -> None:
    """Add the options that say who signs; `signers` understands them."""
    parser.add_argument(
        "--key",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="sign with this key; env:NAME is a variable that holds one",
    )
    parser.add_argument("--unsigned", action="store_true", help="do not sign")


def add_rotation(parser: argparse.ArgumentParser) -> None:
    """Add the option that lets statements about replaced keys travel with a pack."""
    parser.add_argument(
        "--rotation",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="let this statement of 'vmpack key rotate' travel with the pack; repeatable",
    )


def statements_of(options: argparse.Namespace) -> list[bytes]:
    """Return the statements that were named. Raises InputError for a file that is none."""
    return [load_statement(path)[1] for path in options.rotation]


def confirm(question: str, *, yes: bool) -> bool:
    """Return whether the person at the terminal agrees; yes: they have said so before."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError(f"there is nobody to ask: {question}", hint="answer with --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def progress_of(options: argparse.Namespace) -> Progress:
    """Return bars or silence, as asked for."""
    return for_terminal(quiet=options.quiet or options.json)


def print_json(value: dict[str, Any]) -> None:
    """Print a result for machines."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def signing_keys(paths: list[Path], *, required: bool = False) -> list[PrivateKey]:
    """Return the keys to sign with: those named, or this machine's default key.

    What the environment holds of them is taken out of it: no program that is started later sees
    it. required: whether the verb does nothing but sign.
    """
    chosen = paths or [default_key_path()]
    if not paths and not chosen[0].exists():
        raise UsageError(
            f"no signing key at {chosen[0]}",
            hint="run 'vmpack key generate' or name one with --key"
            + ("" if required else ", or pass --unsigned"),
        )
    variables = {path: _variable(path) for path in chosen}
    keys = [_load_key(path, name) for path, name in variables.items()]
    for name in (KEY_PASSPHRASE, *filter(None, variables.values())):
        os.environ.pop(name, None)
    return keys


def signers(options: argparse.Namespace, *, needed: bool = True) -> list[PrivateKey]:
    """Return the keys to sign with, none with --unsigned; to be called before any program starts.

    needed: whether anything will be signed.
    """
    if options.unsigned and options.key:
        raise UsageError("--unsigned and --key contradict each other")
    return signing_keys(options.key) if needed and not options.unsigned else []


def _variable(path: Path) -> str | None:
    """Return NAME of "env:NAME", None for a file. What may be a key itself is not shown."""
    kind, colon, name = str(path).partition(":")
    named = kind == _IN_ENVIRONMENT and colon
    if _A_KEY_ITSELF.search(str(path)) or (named and not _VARIABLE.fullmatch(name)):
        raise UsageError(
            "--key: expected a file, or env: and the name of a variable, found something else",
            hint="the name alone, without $: --key env:SIGNING_KEY",
        )
    return name if named else None


def _load_key(path: Path, variable: str | None) -> PrivateKey:
    if variable is None:
        return load_private(path, ask_passphrase)
    data = os.environ.get(variable)
    if not data:
        raise UsageError(f"--key {path}: the environment has no variable {variable}")
    # A file ends with a line feed, which variables tend to lose.
    return parse_private(data.rstrip("\n").encode() + b"\n", path, ask_passphrase)


def ask_passphrase(path: Path) -> str:
    """Return the passphrase of a key: from the environment, or from the person at the terminal."""
    given = os.environ.get(KEY_PASSPHRASE)
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise UsageError(
            f"{path} is encrypted, and there is nobody to ask for the passphrase",
            hint=f"set {KEY_PASSPHRASE}",
        )
    return getpass.getpass(f"passphrase of {path}: ")


def ask_new_passphrase() -> str:
    """Return a new passphrase: from the environment, or typed twice at the terminal."""
    given = os.environ.get(KEY_PASSPHRASE)
    if given is None:
        if not sys.stdin.isatty():
            raise UsageError(
                "there is nobody to ask for a new passphrase", hint=f"set {KEY_PASSPHRASE}"
            )
        given = getpass.getpass("new passphrase: ")
        if given != getpass.getpass("again: "):
            raise UsageError("the two passphrases differ")
    if not given:
        raise UsageError("an empty passphrase would encrypt nothing")
    return given


def jobs_of(options: argparse.Namespace) -> int:
    """Return how many threads to use: as asked for, as the settings say, or one a core."""
    return int(options.jobs or load_settings().jobs or os.cpu_count() or 1)


def own_store(folder: Path | None) -> Store:
    """Return this host's store: at a folder that was named, where the settings say, or as usual."""
    return Store(folder or load_settings().store or host.data_dir() / "store")


def accept(pack: OpenedPack, options: argparse.Namespace, *, allow_older: bool = False) -> Verdict:
    """Return the word of this host's trust rules about a pack; raise TrustError against it.

    allow_older: whatever the options say.
    """
    if options.identity is not None:
        return _decided_before(pack, options.identity)
    store = TrustStore()
    trusted = store.trusted()
    verdict = judge(
        pack.config_bytes,
        pack.envelope,
        trusted.rules,
        store.memory(),
        known=trusted.replaced,
        statements=pack.rotations,
        signers=[check_fingerprint(one) for one in options.signer],
        allow_older=allow_older or options.allow_older,
        allow_unsigned=options.allow_unsigned,
        what=pack.layout.location,
    )
    for text in verdict.notes:
        note(text)
    note_expiry(verdict.config)
    return verdict


def _decided_before(pack: OpenedPack, identity: str) -> Verdict:
    """Return the word about a pack whose identity the user names: there is no other such pack."""
    if pack.config_digest != identity:
        raise TrustError(
            f"{pack.layout.location}: expected the pack {identity}, found {pack.config_digest}",
            hint="another version lies there now",
        )
    return Verdict(pack.config, pack.config_digest, frozenset(), (), ())


def remember_use(verdict: Verdict) -> None:
    """Remember that a pack was used; say what follows where that cannot be written down."""
    for text in TrustStore().remember(verdict):
        note(text)


def note_expiry(config: Config) -> None:
    """Say so when a pack's last day is over, by this host's clock. That is advice, no more."""
    if config.expired(today()):
        note(f"{config.ref_name} expired on {config.expires}; ask its author for a newer one")


def today() -> datetime.date:
    """Return the day by this host's clock, which may be wrong: good for advice only."""
    return datetime.datetime.now(datetime.UTC).date()


def _jobs(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= MAX_JOBS:
        raise argparse.ArgumentTypeError(f"expected 1 to {MAX_JOBS}, found {text!r}")
    return int(text)
