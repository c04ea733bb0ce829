"""What a person wants to see of a host's trust: who counts today and why, what was used. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from packer.artifact.keys import PublicKey
from packer.artifact.name_patterns import EVERY_NAME
from packer.artifact.succession import Replacement
from packer.artifact.trust import Memory, Rule


@dataclass(frozen=True, slots=True)
class Standing:
    """A key whose signature counts for a rule.

    came: by which replacement, None for a key of the rule itself. gone_for: patterns of names for
    which it was replaced and counts no longer.
    """

    key: PublicKey
    came: Replacement | None
    gone_for: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """The highest version of a pack that was used, and who answers for it.

    rules: the patterns of the rules that accepted it, as one text each. keys: fingerprints.
    """

    name: str
    version: int
    config_digest: str
    rules: tuple[str, ...]
    keys: tuple[str, ...]


def standing(rule: Rule, replaced: Sequence[Replacement]) -> tuple[Standing, ...]:
    """Return the keys that count for a rule, in the order of its places."""
    return tuple(one for key in rule.keys for one in _line(key, None, replaced, ()))


def seen(memory: Memory, replaced: Sequence[Replacement]) -> tuple[Seen, ...]:
    """Return what was used, by name and version; each version once, with all who answer for it."""
    grouped: dict[tuple[str, int, str], list[str]] = {}
    for (authority, name), used in memory.items():
        grouped.setdefault((name, used.version, used.config_digest), []).append(authority)
    return tuple(
        Seen(*what, _named("rule ", found), _newest(_named("key ", found), replaced))
        for what, found in sorted(grouped.items())
    )


def _line(
    key: PublicKey,
    came: Replacement | None,
    replaced: Sequence[Replacement],
    before: tuple[PublicKey, ...],
) -> Iterator[Standing]:
    after = [one for one in replaced if one.rotation.old == key.fingerprint]
    gone = tuple(name for one in after if not one.keep_old for name in one.rotation.names)
    if EVERY_NAME not in gone:
        yield Standing(key, came, gone)
    for one in after:
        new = one.rotation.new
        if new not in (*before, key):
            named = PublicKey(new.algorithm, new.blob, key.comment)
            yield from _line(named, one, replaced, (*before, key))


def _named(kind: str, authorities: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(one.removeprefix(kind) for one in authorities if one.startswith(kind)))


def _newest(keys: tuple[str, ...], replaced: Iterable[Replacement]) -> tuple[str, ...]:
    """Leave out those in whose place another one signed: the memory holds them as well."""
    heirs = [(one.rotation.old, one.rotation.new.fingerprint) for one in replaced]
    return tuple(key for key in keys if not any(old == key and new in keys for old, new in heirs))
