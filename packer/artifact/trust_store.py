"""Where a host keeps its trust: in the config folder rules and the keys that were replaced, in the
state folder the versions that were used.

Both are JSON that a person can read. A file that cannot be read is an error and never means "no
rules": a damaged memory must not let an old version in. Writers take a lock beside the file,
read again, and replace the file by rename.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from packer import host
from packer.artifact import name_patterns, strict_json
from packer.artifact.config import MAX_VERSION, Day, Text
from packer.artifact.keys import PublicKey, is_fingerprint, parse_public
from packer.artifact.layout.staging import writing
from packer.artifact.manifest import Digest
from packer.artifact.rotation import Rotation, Statement
from packer.artifact.small_files import write_small_file
from packer.artifact.succession import Replacement, adopt, reachable
from packer.artifact.trust import Memory, Rule, Used, Verdict, remember
from packer.errors import Error, InputError, TrustError, UsageError

MAX_STORE_BYTES = 16 << 20
MAX_THRESHOLD = 64
MAX_REPLACEMENTS = 1024


class _WireRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    patterns: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    keys: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    threshold: Annotated[int, msgspec.Meta(ge=1, le=MAX_THRESHOLD)] = 1


class _WireReplacement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    old: str
    new: str
    names: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    since: Day = ""
    keep_old: bool = False


class _WireRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1
    rules: tuple[_WireRule, ...] = ()
    replaced: Annotated[
        tuple[_WireReplacement, ...], msgspec.Meta(max_length=MAX_REPLACEMENTS)
    ] = ()


class _WireUsed(msgspec.Struct, frozen=True):
    authority: str  # as long as the patterns of a rule are
    name: Text
    version: Annotated[int, msgspec.Meta(ge=1, le=MAX_VERSION)]
    config: Digest


class _WireMemory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1
    used: tuple[_WireUsed, ...] = ()


_Wire = TypeVar("_Wire", _WireRules, _WireMemory)


@dataclass(frozen=True, slots=True)
class Trusted:
    """Whom a host trusts: its rules, and the keys that were replaced since they were made."""

    rules: tuple[Rule, ...] = ()
    replaced: tuple[Replacement, ...] = ()


class TrustStore:
    """This host's rules and memory. Methods raise Error when a file cannot be read or written."""

    def __init__(self, rules_path: Path | None = None, memory_path: Path | None = None) -> None:
        self.rules_path = rules_path or host.config_dir() / "trust.json"
        self.memory_path = memory_path or host.state_dir() / "used.json"

    def trusted(self) -> Trusted:
        """Return rules and replaced keys, none if there is no file."""
        what = str(self.rules_path)
        wire = _load(self.rules_path, _WireRules)
        rules = tuple(_rule(row, entry, what) for row, entry in enumerate(wire.rules))
        if len({rule.authority for rule in rules}) < len(rules):
            raise InputError(f"{what}: rules: expected each list of patterns once")
        replaced = (_replacement(row, entry, what) for row, entry in enumerate(wire.replaced))
        return Trusted(rules, tuple(replaced))

    def rules(self) -> tuple[Rule, ...]:
        """Return the rules alone."""
        return self.trusted().rules

    def memory(self) -> Memory:
        """Return what was used, nothing if there is no file."""
        wire = _load(self.memory_path, _WireMemory)
        entries = sorted(wire.used, key=lambda entry: entry.version)  # the highest one stays
        return {(u.authority, u.name): Used(u.version, u.config) for u in entries}

    def add(
        self, key: PublicKey, pattern: str, *, threshold: int | None = None, again: bool = False
    ) -> Rule:
        """Trust a key for packs whose name fits a pattern; return the rule it is now part of.

        Keys with the same pattern share a rule. threshold: how many of them must sign; None
        leaves it as it is (1 for a new rule). again: forget that the key was replaced. Raises
        UsageError for an impossible pattern or threshold, and for a key that was replaced.
        """
        name_patterns.check_patterns([pattern])
        if threshold is not None and not 1 <= threshold <= MAX_THRESHOLD:
            raise UsageError(f"expected a threshold of 1 to {MAX_THRESHOLD}, found {threshold}")
        with self._changing() as trusted:
            kept = _without(trusted, key, pattern, again=again)
            rules = {rule.patterns: rule for rule in trusted.rules}
            old = rules.get((pattern,), Rule((pattern,), ()))
            keys = (*(other for other in old.keys if other != key), key)
            rules[pattern,] = Rule((pattern,), keys, threshold or old.threshold)
            self._save_trusted(Trusted(tuple(rules.values()), kept))
        return rules[pattern,]

    def remove(self, fingerprint: str) -> tuple[Rule, ...]:
        """Trust a key no longer, wherever it stands; return what was taken out of which rule.

        A key that has replaced another is taken out with it: removing the new one must not bring
        the old one back. A rule without keys goes too; one whose threshold its keys can no longer
        reach stays and accepts nothing until a key is added. That keys were replaced is not
        forgotten. Raises UsageError when no rule has the key.
        """
        with self._changing() as trusted:
            taken: list[Rule] = []
            kept: list[Rule] = []
            for rule in trusted.rules:
                gone = [key for key in rule.keys if _leads_to(key, fingerprint, trusted.replaced)]
                keys = tuple(key for key in rule.keys if key not in gone)
                if gone:
                    taken.append(Rule(rule.patterns, tuple(gone), rule.threshold))
                if keys:
                    kept.append(Rule(rule.patterns, keys, rule.threshold))
            if not taken:
                raise UsageError(
                    f"no rule has a key with the fingerprint {fingerprint}",
                    hint="vmpack trust shows all of them",
                )
            self._save_trusted(Trusted(tuple(kept), trusted.replaced))
        return tuple(taken)

    def rotate(
        self, statement: Statement, *, keep_old: bool = False, dry_run: bool = False
    ) -> tuple[Rule, ...]:
        """Go by a statement from now on; return the rules that trust its old key.

        keep_old: the old key goes on to count as well. dry_run: change nothing. Raises TrustError
        when no rule trusts the old key, when not both keys signed, or when the statement
        contradicts one that this host goes by.
        """
        rotation = statement.rotation
        with self._changing() as trusted:
            rules = _trusting(rotation, trusted)
            if not rules:
                raise TrustError(
                    f"no rule trusts the old key, {rotation.old}",
                    hint="get the new key from its owner and add it: vmpack trust add KEYFILE",
                )
            (old,) = (key for key in _family(rules, trusted) if key.fingerprint == rotation.old)
            if not statement.proven_by(old):
                raise _unproven(statement, old)
            replaced = adopt(trusted.replaced, rotation, since=_today(), keep_old=keep_old)
            if not dry_run:
                self._save_trusted(Trusted(trusted.rules, replaced))
        return rules

    def remember(self, verdict: Verdict) -> tuple[str, ...]:
        """Record that the pack of this verdict was used, and who signs in whose place.

        Returns notes about what could not be written, and what follows from it: the disk is
        finished and proven by then, and must not be called a failure. Raises InputError or
        TrustError when what lies there is damaged or contradicts the verdict.
        """
        notes: list[str] = []
        if verdict.authorities:
            name, version = verdict.config.name, verdict.config.version
            with _noting(notes, f"older versions of {name!r} than {version} will not be refused"):
                self._note_use(verdict)
        if verdict.rotations:
            old = " and ".join(one.old for one in verdict.rotations)
            with _noting(notes, f"on this host {old} will go on to be accepted"):
                self._adopt(verdict.rotations)
        return tuple(notes)

    def _note_use(self, verdict: Verdict) -> None:
        with _locked(self.memory_path):
            after = remember(verdict, self.memory())
            used = tuple(
                _WireUsed(authority, name, used.version, used.config_digest)
                for (authority, name), used in sorted(after.items(), key=lambda entry: entry[0])
            )
            write_small_file(
                self.memory_path, strict_json.encode(_WireMemory(used=used)), replace=True
            )

    def _adopt(self, rotations: Iterable[Rotation]) -> None:
        with self._changing() as trusted:
            replaced = trusted.replaced
            for rotation in rotations:
                if all(one.rotation != rotation for one in replaced):
                    replaced = adopt(replaced, rotation, since=_today())
            self._save_trusted(Trusted(trusted.rules, replaced))

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Trusted]:
        with _locked(self.rules_path):
            yield self.trusted()

    def _save_trusted(self, trusted: Trusted) -> None:
        if len(trusted.replaced) > MAX_REPLACEMENTS:
            raise UsageError(
                f"{self.rules_path}: expected at most {MAX_REPLACEMENTS} replaced keys",
                hint="remove those from the file that no rule needs any more",
            )
        rules = tuple(
            _WireRule(
                rule.patterns,
                tuple(f"{key.line} {key.comment}".rstrip() for key in rule.keys),
                rule.threshold,
            )
            for rule in trusted.rules
        )
        replaced = tuple(
            _WireReplacement(
                one.rotation.old, one.rotation.new.line, one.rotation.names, one.since, one.keep_old
            )
            for one in trusted.replaced
        )
        wire = _WireRules(rules=rules, replaced=replaced)
        write_small_file(self.rules_path, strict_json.encode(wire), replace=True)


def _today() -> str:
    """Return the day, or "" by a clock that was never set: no `Day` lies before the year 2000."""
    today = datetime.datetime.now(datetime.UTC).date()
    return today.isoformat() if today.year >= 2000 else ""


def _family(rules: Iterable[Rule], trusted: Trusted) -> frozenset[PublicKey]:
    """Return the keys of rules and those that followed them."""
    steps = (one.rotation for one in trusted.replaced)
    return reachable((key for rule in rules for key in rule.keys), steps)


def _leads_to(key: PublicKey, fingerprint: str, replaced: Iterable[Replacement]) -> bool:
    line = reachable((key,), (one.rotation for one in replaced))
    return any(one.fingerprint == fingerprint for one in line)


def _trusting(rotation: Rotation, trusted: Trusted) -> tuple[Rule, ...]:
    """Return the rules with a place in which the old key stands or stood."""
    return tuple(
        rule
        for rule in trusted.rules
        if name_patterns.may_share(rule.patterns, rotation.names)
        and any(_leads_to(key, rotation.old, trusted.replaced) for key in rule.keys)
    )


def _unproven(statement: Statement, old: PublicKey) -> TrustError:
    rotation = statement.rotation
    if not statement.envelope.signed_by((old,)):
        return TrustError(
            f"the statement that {rotation.sentence} is not signed by the old key",
            hint="anybody can write such a statement; ask the old key's owner",
        )
    return TrustError(
        f"the statement that {rotation.sentence} is not signed by the new key",
        hint="whoever holds it must agree: vmpack sign STATEMENT --key NEWKEY",
    )


def _without(
    trusted: Trusted, key: PublicKey, pattern: str, *, again: bool
) -> tuple[Replacement, ...]:
    """Return what stays when a key is to be trusted; raise UsageError if it was replaced.

    For some of the names is enough: its heir, which may have been removed, would count for them.
    """
    stands = any(key in rule.keys for rule in trusted.rules)
    of_key = [
        one
        for one in trusted.replaced
        if one.rotation.old == key.fingerprint and not (one.keep_old and stands)
    ]
    if again:
        return tuple(one for one in trusted.replaced if one not in of_key)
    for one in of_key:
        if name_patterns.may_share(one.rotation.names, [pattern]):
            raise UsageError(
                f"{one.rotation.sentence} on this host since {one.since or 'an unknown day'}",
                hint="to trust the old key all the same, and the new one no longer: --again",
            )
    return trusted.replaced


def _replacement(row: int, wire: _WireReplacement, what: str) -> Replacement:
    path = f"replaced[{row}]"
    if not is_fingerprint(wire.old):
        raise strict_json.invalid(what, f"{path}.old", "a fingerprint SHA256:…", wire.old)
    names = _patterns(wire.names, f"{path}.names", what)
    new = parse_public(wire.new, f"{what}: {path}.new")
    return Replacement(Rotation(wire.old, new, names), wire.since, wire.keep_old)


def _patterns(patterns: tuple[str, ...], path: str, what: str) -> tuple[str, ...]:
    for number, pattern in enumerate(patterns):
        if not name_patterns.is_pattern(pattern):
            raise strict_json.invalid(what, f"{path}[{number}]", "a pattern of pack names", pattern)
    return patterns


def _rule(row: int, wire: _WireRule, what: str) -> Rule:
    patterns = _patterns(wire.patterns, f"rules[{row}].patterns", what)
    keys = (
        parse_public(line, f"{what}: rules[{row}].keys[{number}]")
        for number, line in enumerate(wire.keys)
    )
    return Rule(patterns, tuple(dict.fromkeys(keys)), wire.threshold)


def _load(path: Path, kind: type[_Wire]) -> _Wire:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_STORE_BYTES + 1)
    except FileNotFoundError:
        return kind()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return strict_json.decode(data, kind, str(path), MAX_STORE_BYTES)


@contextlib.contextmanager
def _noting(notes: list[str], consequence: str) -> Iterator[None]:
    """Turn an Error of the file system into a note; what is wrong in the files stays an error."""
    try:
        yield
    except (InputError, TrustError):
        raise
    except Error as error:
        notes.append(f"{consequence}: {error}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock beside a file, so that two writers do not undo each other's work."""
    with writing(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(
            path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
    try:
        with writing(path):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
