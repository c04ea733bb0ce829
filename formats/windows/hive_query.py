"""Ask a hive for keys by pattern: bytes in, plain records out.

This is what a child process runs that reads a hive of a guest: all that comes back are names,
types and bytes, and no more of them than is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TypeVar

from formats.errors import Corrupt, Unsupported
from formats.windows.hive import Hive, Key, StoredValue, Value
from formats.windows.hive_log import replay
from formats.windows.names import fold

ANY = "*"
MAX_DEPTH = 32
"""Levels below the root that are looked at; Windows itself allows 512."""

MAX_WARNINGS = 100
MAX_DAMAGED = 20
"""Keys and values that cannot be read; a hive with more is refused."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which keys are wanted, and what of them.

    path: names joined by backslashes, from the root, which is ""; a name that ends in "*" stands
    for any name with this beginning; case does not matter. depth: how many levels below such keys
    are wanted too. values: names of values, "" for the default one; None: all of them.
    """

    path: str
    depth: int = 0
    values: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one query may look at, and what it may return: values of so many bytes each and all.

    keys: that are loaded. entries: of the lists of subkeys and values of all these keys.
    total_bytes: names count as well, a byte for a character.
    """

    keys: int = 200_000
    entries: int = 2_000_000
    value_bytes: int = 1 << 20
    total_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key that was found. path: from the root, as it is written in the hive."""

    path: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class View:
    """What a query found. keys: each once, in the order of the hive.

    state, done, warnings: see hive_log.Replay. Damaged keys and values, and values that are too
    big, are left out and named in `warnings` too.
    """

    keys: tuple[KeyRecord, ...]
    state: str
    done: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def key(self, path: str) -> KeyRecord | None:
        """Return a key by its path; case does not matter."""
        return self._by_path.get(fold(path))

    def subkeys(self, path: str) -> tuple[str, ...]:
        """Return the names of the keys directly below a path, of those that were found."""
        return tuple(self._names_below.get(fold(path), ()))

    def value(self, path: str, name: str) -> Value | None:
        """Return a value of a key; case does not matter."""
        record = self.key(path)
        values = record.values if record is not None else ()
        return next((one for one in values if fold(one.name) == fold(name)), None)

    @cached_property
    def _by_path(self) -> dict[str, KeyRecord]:
        return {fold(record.path): record for record in self.keys}

    @cached_property
    def _names_below(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for record in self.keys:
            above, _, name = record.path.rpartition("\\")
            if name:
                names.setdefault(fold(above), []).append(name)
        return names


def query(
    primary: bytes, logs: Sequence[bytes], wanted: Iterable[Wanted], bounds: Bounds | None = None
) -> View:
    """Return the wanted keys of a hive, after a replay of its logs.

    primary, logs: see hive_log.replay. A path that does not exist is no error.

    Raises Truncated, Corrupt or Unsupported when there is no hive in the bytes, when its root key
    is damaged, or when more has to be looked at than the bounds allow.
    """
    replayed = replay(primary, logs)
    root = Hive(replayed.data).root
    walk = _Walk(bounds or Bounds(), list(replayed.warnings))
    if root.count_subkeys() + root.count_values():  # a damaged root raises
        for one in wanted:
            names = one.path.split("\\") if one.path else []
            values = None if one.values is None else frozenset(map(fold, one.values))
            walk.visit(root, names, one.depth, values)
    return View(tuple(walk.records()), replayed.state, replayed.done, tuple(walk.warnings))


@dataclass(slots=True)
class _Walk:
    """Keys as they are found, by folded path; counts everything that is looked at."""

    bounds: Bounds
    warnings: list[str]
    found: dict[str, tuple[str, dict[str, Value]]] = field(default_factory=dict)
    keys: int = 0
    entries: int = 0
    total_bytes: int = 0
    damaged: int = 0

    def records(self) -> Iterator[KeyRecord]:
        return (KeyRecord(path, tuple(values.values())) for path, values in self.found.values())

    def visit(
        self, key: Key, names: Sequence[str], depth: int, wanted: frozenset[str] | None
    ) -> None:
        """Follow the names below a key, take what they lead to, and `depth` levels below that."""
        if key.path.count("\\") >= MAX_DEPTH:
            raise Unsupported("registry hive", 0, f"more than {MAX_DEPTH} levels of keys")
        if not names:
            self._take(key, wanted)
            if depth > 0:
                for child in self._children(key, ANY):
                    self.visit(child, (), depth - 1, wanted)
            return
        for child in self._children(key, names[0]):
            self.visit(child, names[1:], depth, wanted)

    def _children(self, key: Key, pattern: str) -> Iterator[Key]:
        if not pattern.endswith(ANY):
            found = self._loaded(partial(key.subkey, pattern))
            if found is not None:
                yield found
            return
        beginning = fold(pattern.removesuffix(ANY))
        for index in range(self._sound(key.count_subkeys) or 0):
            child = self._loaded(partial(key.subkey_at, index))
            if child is not None and fold(child.name).startswith(beginning):
                yield child

    def _loaded(self, load: Callable[[], Key | None]) -> Key | None:
        key = self._sound(load)
        self.keys += 1
        self.entries += key.entries if key is not None else 0
        if self.keys > self.bounds.keys:
            raise _too_much(f"{self.bounds.keys} keys")
        if self.entries > self.bounds.entries:
            raise _too_much(f"{self.bounds.entries} entries of lists")
        return key

    def _take(self, key: Key, wanted: frozenset[str] | None) -> None:
        self._count_bytes(len(key.path))
        _, values = self.found.setdefault(fold(key.path), (key.path, {}))
        for index in range(self._sound(key.count_values) or 0):
            stored = self._sound(partial(key.value_at, index))
            if stored is None or (wanted is not None and fold(stored.name) not in wanted):
                continue
            value = self._sound(partial(self._read, stored, key))
            if value is not None:
                values[fold(value.name)] = value

    def _read(self, stored: StoredValue, key: Key) -> Value | None:
        if stored.size > self.bounds.value_bytes:
            self._warn(f"value {stored.name!r} of key {key.path!r} has {stored.size} bytes")
            return None
        self._count_bytes(len(stored.name) + stored.size)
        return stored.read()

    def _count_bytes(self, size: int) -> None:
        self.total_bytes += size
        if self.total_bytes > self.bounds.total_bytes:
            raise _too_much(f"{self.bounds.total_bytes} bytes")

    def _sound(self, read: Callable[[], _T]) -> _T | None:
        """Return what can be read; what is damaged is left out with a warning."""
        try:
            return read()
        except Corrupt as error:
            self.damaged += 1
            if self.damaged > MAX_DAMAGED:
                raise
            self._warn(str(error))
            return None

    def _warn(self, warning: str) -> None:
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(f"{warning}; it is left out")


def _too_much(limit: str) -> Unsupported:
    return Unsupported("registry hive", 0, f"more than {limit} would have to be looked at")
