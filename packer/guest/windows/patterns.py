"""Names by pattern, in any case."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from functools import lru_cache


@lru_cache(maxsize=256)
def one_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """Return what matches a whole relative path, in lower case, that fits one of the patterns.

    `*` and `?` stand for what is no slash. The patterns are our own.
    """
    return re.compile("|".join(f"(?:{_translated(one.casefold())})" for one in patterns) or "(?!)")


def any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    """Return what matches a whole text that fits one of the patterns, of which case counts.

    `*` stands for slashes too. The patterns may be a guest's: matching takes no longer than their
    lengths and the text's multiplied, because what `fnmatch` makes of a star is never retried.
    """
    parts = [fnmatch.translate(one.replace("[", "[[]")) for one in patterns]
    return re.compile("|".join(parts) or "(?!)")


def _translated(pattern: str) -> str:
    parts = {"*": "[^/]*", "?": "[^/]"}
    return "".join(parts.get(letter, re.escape(letter)) for letter in pattern)
