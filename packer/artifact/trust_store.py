"""Where a host keeps its trust: rules in the config folder, versions used in the state folder.

Both are JSON that a person can read. A file that cannot be read is an error and never means "no
rules": a damaged memory must not let an old version in. Writers take a lock beside the file,
read again, and replace the file by rename.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from packer import host
from packer.artifact import strict_json
from packer.artifact.config import MAX_VERSION, Text
from packer.artifact.keys import PublicKey, parse_public
from packer.artifact.layout.staging import temporary_name, writing
from packer.artifact.manifest import Digest
from packer.artifact.trust import Memory, Rule, Used, Verdict, remember
from packer.durable import sync_directory
from packer.errors import InputError, UsageError

MAX_STORE_BYTES = 16 << 20
MAX_THRESHOLD = 64

_PATTERN = re.compile(r"[a-z0-9._*?\[\]!-]{1,128}")


class _WireRule(msgspec.Struct, frozen=True):
    patterns: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    keys: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    threshold: Annotated[int, msgspec.Meta(ge=1, le=MAX_THRESHOLD)] = 1


class _WireRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1
    rules: tuple[_WireRule, ...] = ()


class _WireUsed(msgspec.Struct, frozen=True):
    authority: Text
    name: Text
    version: Annotated[int, msgspec.Meta(ge=1, le=MAX_VERSION)]
    config: Digest


class _WireMemory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1
    used: tuple[_WireUsed, ...] = ()


_Wire = TypeVar("_Wire", _WireRules, _WireMemory)


class TrustStore:
    """This host's rules and memory. Methods raise Error when a file cannot be read or written."""

    def __init__(self, rules_path: Path | None = None, memory_path: Path | None = None) -> None:
        self.rules_path = rules_path or host.config_dir() / "trust.json"
        self.memory_path = memory_path or host.state_dir() / "used.json"

    def rules(self) -> tuple[Rule, ...]:
        """Return the rules, none if there is no file."""
        path = self.rules_path
        wire = _load(path, _WireRules)
        rules = tuple(_rule(row, entry, str(path)) for row, entry in enumerate(wire.rules))
        if len({rule.patterns for rule in rules}) < len(rules):
            raise InputError(f"{path}: rules: expected each list of patterns once")
        return rules

    def memory(self) -> Memory:
        """Return what was used, nothing if there is no file."""
        wire = _load(self.memory_path, _WireMemory)
        return {(u.authority, u.name): Used(u.version, u.config) for u in wire.used}

    def add(self, key: PublicKey, pattern: str, *, threshold: int | None = None) -> Rule:
        """Trust a key for packs whose name fits a pattern; return the rule it is now part of.

        Keys with the same pattern share a rule. threshold: how many of them must sign; None
        leaves it as it is (1 for a new rule). Raises UsageError for an impossible pattern or
        threshold.
        """
        if not _PATTERN.fullmatch(pattern):
            raise UsageError(
                f"expected a pattern of pack names like 'demo*', found {pattern!r}",
                hint="names are lower-case letters, digits and . _ -; * ? [] stand for others",
            )
        if threshold is not None and not 1 <= threshold <= MAX_THRESHOLD:
            raise UsageError(f"expected a threshold of 1 to {MAX_THRESHOLD}, found {threshold}")
        with _locked(self.rules_path):
            rules = {rule.patterns: rule for rule in self.rules()}
            old = rules.get((pattern,), Rule((pattern,), ()))
            keys = (*(other for other in old.keys if other != key), key)
            rules[pattern,] = Rule((pattern,), keys, threshold or old.threshold)
            self._save_rules(rules.values())
        return rules[pattern,]

    def remove(self, fingerprint: str) -> tuple[str, ...]:
        """Trust a key no longer, wherever it stands; return the patterns it stood for.

        A rule without keys goes too; one whose threshold its keys can no longer reach stays and
        accepts nothing until a key is added. Raises UsageError when no rule has the key.
        """
        with _locked(self.rules_path):
            patterns: list[str] = []
            kept: list[Rule] = []
            for rule in self.rules():
                keys = tuple(key for key in rule.keys if key.fingerprint != fingerprint)
                if len(keys) < len(rule.keys):
                    patterns.extend(rule.patterns)
                if keys:
                    kept.append(Rule(rule.patterns, keys, rule.threshold))
            if not patterns:
                raise UsageError(
                    f"no rule has a key with the fingerprint {fingerprint}",
                    hint="vmpack trust list shows all of them",
                )
            self._save_rules(kept)
        return tuple(patterns)

    def remember(self, verdict: Verdict) -> None:
        """Record that the pack of this verdict was used."""
        if not verdict.authorities:
            return
        with _locked(self.memory_path):
            after = remember(verdict, self.memory())
            used = tuple(
                _WireUsed(authority, name, used.version, used.config_digest)
                for (authority, name), used in sorted(after.items(), key=lambda entry: entry[0])
            )
            _save(self.memory_path, _WireMemory(used=used))

    def _save_rules(self, rules: Iterable[Rule]) -> None:
        wire = tuple(
            _WireRule(
                rule.patterns,
                tuple(f"{key.line} {key.comment}".rstrip() for key in rule.keys),
                rule.threshold,
            )
            for rule in rules
        )
        _save(self.rules_path, _WireRules(rules=wire))


def _rule(row: int, wire: _WireRule, what: str) -> Rule:
    for number, pattern in enumerate(wire.patterns):
        if not _PATTERN.fullmatch(pattern):
            path = f"rules[{row}].patterns[{number}]"
            raise strict_json.invalid(what, path, "a pattern of pack names", pattern)
    keys = (
        parse_public(line, f"{what}: rules[{row}].keys[{number}]")
        for number, line in enumerate(wire.keys)
    )
    return Rule(wire.patterns, tuple(dict.fromkeys(keys)), wire.threshold)


def _load(path: Path, kind: type[_Wire]) -> _Wire:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_STORE_BYTES + 1)
    except FileNotFoundError:
        return kind()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return strict_json.decode(data, kind, str(path), MAX_STORE_BYTES)


def _save(path: Path, wire: msgspec.Struct) -> None:
    """Replace a file whole; whoever reads meanwhile sees the old one or the new one."""
    temporary = temporary_name(path)
    with writing(path):
        try:
            with temporary.open("xb") as file:
                file.write(strict_json.encode(wire))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_directory(path.parent)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


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
