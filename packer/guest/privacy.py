"""The privacy check: which of the files that are about to be published look private.

It knows places and forms. What it lists deserves a thought before a pack is handed out; what it
does not list is no proof that nothing is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase, translate

import numpy as np
from numpy.typing import NDArray

from packer.guest.privacy_looks import LOOK_BYTES
from packer.guest.privacy_rules import RULES, Place, Rule
from packer.text import format_bytes, format_table, printable

MAX_LOOKED_BYTES = 64 << 20
"""What is read of all files together; a guest of a desktop takes a tenth."""

NOT_LOOKED = "not looked into: too many such files"
_BELOW = "**"
_MAGIC = re.compile(r"[*?[]")
_SHOWN_CHARACTERS = 50

Read = Callable[[int, int], bytes]
"""(row of the files, most bytes) -> the first bytes of that file."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A file (or volume: "partition 2") that looks private. size_bytes: of it that are published.

    rule, what: see packer.guest.privacy_rules. detail: what a look into it told.
    """

    path: str
    rule: str
    what: str
    size_bytes: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Review:
    """What is about to be published: findings, those that the author allowed, idle patterns.

    idle: patterns that allowed nothing and are no rule's ID: perhaps mistyped.
    """

    findings: tuple[Finding, ...] = ()
    allowed: tuple[Finding, ...] = ()
    idle: tuple[str, ...] = ()


def find_private(paths: Sequence[str], sizes: NDArray[np.int64], read: Read) -> tuple[Finding, ...]:
    """Return what looks private among files, by rule and path; at most one finding a path.

    paths: n guest paths. sizes: int64[n], published bytes of each; a file of 0 bytes is nothing.
    """
    table, looks = _Table(RULES), _Looks(read)
    found: list[tuple[int, Finding]] = []
    for row in np.flatnonzero(sizes > 0).tolist():
        path, size = paths[row], int(sizes[row])
        for order, place in table.fitting(path):
            detail = looks.detail(place, row, size)
            if detail is not None:
                rule = RULES[order]
                found.append((order, Finding(path, rule.id, rule.what, size, detail)))
                break
    found.sort(key=lambda one: (one[0], one[1].path))
    return tuple(finding for _, finding in found)


class _Looks:
    """Looks into files, each read once, at most MAX_LOOKED_BYTES of all of them."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._left_bytes = MAX_LOOKED_BYTES
        self._row = -1
        self._data: bytes | None = None

    def detail(self, place: Place, row: int, size: int) -> str | None:
        """Return what a file at a place of a rule tells; None if it is harmless."""
        if place.look is None:
            return ""
        if place.small and size > LOOK_BYTES:
            return None
        data = self._first_bytes(row, size)
        return NOT_LOOKED if data is None else place.look(data)

    def _first_bytes(self, row: int, size: int) -> bytes | None:
        if row != self._row:
            enough = self._left_bytes <= 0
            self._row, self._data = row, None if enough else self._read(row, min(size, LOOK_BYTES))
            self._left_bytes -= len(self._data or b"")
        return self._data


def sift(findings: Sequence[Finding], patterns: Sequence[str]) -> Review:
    """Return the findings with those set apart that a pattern fits, by their path or rule.

    patterns: as of a shell; `*` reaches over slashes.
    """
    fits = {pattern: re.compile(translate(pattern)) for pattern in patterns}
    working = {
        pattern for pattern in patterns if any(fnmatchcase(rule.id, pattern) for rule in RULES)
    }
    left: list[Finding] = []
    allowed: list[Finding] = []
    for finding in findings:
        fitting = {
            pattern
            for pattern, fit in fits.items()
            if fit.match(finding.path) or fit.match(finding.rule)
        }
        working |= fitting
        (allowed if fitting else left).append(finding)
    idle = tuple(pattern for pattern in fits if pattern not in working)
    return Review(tuple(left), tuple(allowed), idle)


def summary(findings: Sequence[Finding]) -> str:
    """Return a table, safe to print: rule, what it is, how many findings, bytes, the first path."""
    by_rule: dict[str, list[Finding]] = {}
    for finding in findings:
        by_rule.setdefault(finding.rule, []).append(finding)
    return format_table(
        [
            (rule, some[0].what, f"{len(some):,}", _bytes_of(some), _places(some))
            for rule, some in by_rule.items()
        ],
        "<<>><",
    )


def count_of(findings: Sequence[Finding]) -> str:
    """Return how many there are, as the beginning of a sentence: "3 things look"."""
    return "1 thing looks" if len(findings) == 1 else f"{len(findings):,} things look"


def advice(findings: Sequence[Finding]) -> str:
    """Return what to do about findings, with the groups of `pack --clean` that take some out."""
    found = {finding.rule for finding in findings}
    groups = dict.fromkeys(rule.clean for rule in RULES if rule.clean and rule.id in found)
    clean = f" (--clean={','.join(groups)} takes some)" if groups else ""
    return f"take out of the guest what is not meant{clean}; name the rest: --allow RULE or PATH"


def _bytes_of(findings: Sequence[Finding]) -> str:
    size_bytes = sum(finding.size_bytes for finding in findings)
    return format_bytes(size_bytes) if size_bytes else ""


def _places(findings: Sequence[Finding]) -> str:
    path = findings[0].path
    if len(path) > _SHOWN_CHARACTERS:
        folders, slash, rest = path[-_SHOWN_CHARACTERS:].partition("/")
        path = "…" + (slash + rest if slash else folders)
    return printable(path) + (", …" if len(findings) > 1 else "")


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A place of a rule, ready to be compared. key: which of the names it is looked up by."""

    order: int
    place: Place
    names: tuple[str | re.Pattern[str], ...]
    key: int
    below: bool

    def fits(self, path: Sequence[str], at: int) -> bool:
        """Return whether it fits a path (as names) whose name `at` is this pattern's key."""
        start = at - self.key
        end = start + len(self.names)
        if start < 0 or (end >= len(path) if self.below else end != len(path)):
            return False
        return all(
            name == wanted if isinstance(wanted, str) else wanted.match(name)
            for name, wanted in zip(path[start:end], self.names, strict=True)
        )


class _Table:
    """All patterns, by a name that a path must have to fit: most paths cost a few lookups.

    Upper and lower case are the same, as they are on FAT and NTFS.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._by_name: dict[str, list[_Pattern]] = {}
        for order, rule in enumerate(rules):
            for place in rule.places:
                name, pattern = _compiled(order, place)
                self._by_name.setdefault(name, []).append(pattern)

    def fitting(self, path: str) -> Iterator[tuple[int, Place]]:
        """Yield (row of the rule, place) of all that fit a path, in the order of rules."""
        names = path.lower().split("/")
        found = [
            pattern
            for at, name in enumerate(names)
            for pattern in self._by_name.get(name, ())
            if pattern.fits(names, at)
        ]
        _, dot, extension = names[-1].rpartition(".")
        if dot:
            last = len(names) - 1
            found += (
                pattern
                for pattern in self._by_name.get(f"*.{extension}", ())
                if pattern.fits(names, last)
            )
        for pattern in sorted(found, key=lambda one: one.order):
            yield pattern.order, pattern.place


def _compiled(order: int, place: Place) -> tuple[str, _Pattern]:
    """Return the name by which a pattern is found, and the pattern.

    That is its last name without magic, or "*.ext" of its last name. Raises ValueError where
    there is neither: every path would have to be compared.
    """
    names = place.pattern.lower().split("/")
    below = names[-1] == _BELOW
    if below:
        names.pop()
    plain = [row for row, name in enumerate(names) if not _MAGIC.search(name)]
    extension = names[-1].startswith("*.") and not _MAGIC.search(names[-1][2:])
    if not plain and not (extension and not below):
        raise ValueError(f"{place.pattern}: no name or extension to find it by")
    key = plain[-1] if plain else len(names) - 1
    compiled = tuple(re.compile(translate(name)) if _MAGIC.search(name) else name for name in names)
    return names[key], _Pattern(order, place, compiled, key, below)
