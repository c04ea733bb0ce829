"""Shell-style patterns of pack names ("demo*"), for which a key or a statement speaks."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

from packer.errors import UsageError

EVERY_NAME = "*"

_WILD = re.compile(r"[*?\[]")

_PATTERN = re.compile(r"[a-z0-9._*?\[\]!-]{1,128}")


def is_pattern(text: str) -> bool:
    """Return whether a text can be a pattern of pack names."""
    return _PATTERN.fullmatch(text) is not None


def check_patterns(patterns: Iterable[str]) -> tuple[str, ...]:
    """Return patterns as the user gave them. Raises UsageError for one that fits no name."""
    given = tuple(patterns)
    for pattern in given:
        if not is_pattern(pattern):
            raise UsageError(
                f"expected a pattern of pack names like 'demo*', found {pattern!r}",
                hint="names are lower-case letters, digits and . _ -; * ? [] stand for others",
            )
    return given


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a pack of this name is meant by one of the patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def covers(wide: Iterable[str], narrow: Iterable[str]) -> bool:
    """Return whether every name of `narrow` is surely one of `wide`.

    Patterns are compared as texts: "*" covers all, and each covers itself.
    """
    known = set(wide)
    return EVERY_NAME in known or known.issuperset(narrow)


def may_share(some: Iterable[str], others: Iterable[str]) -> bool:
    """Return whether there may be a name that is meant by both; False is certain.

    Of two patterns with wildcards only what stands before those is compared.
    """
    known = tuple(others)
    return any(_may_meet(one, other) for one in some for other in known)


def for_people(patterns: Iterable[str]) -> str:
    """Return patterns in words: "every name" or "demo* other"."""
    shown = tuple(patterns)
    return "every name" if EVERY_NAME in shown else " ".join(shown)


def _may_meet(one: str, other: str) -> bool:
    if not _WILD.search(one):
        return fits(one, [other])
    if not _WILD.search(other):
        return fits(other, [one])
    starts = [_WILD.split(pattern, maxsplit=1)[0] for pattern in (one, other)]
    return starts[0].startswith(starts[1]) or starts[1].startswith(starts[0])
