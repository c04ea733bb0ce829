"""diff of two packs: which contents only one of them has, and what those belong to.

Contents are compared by digest: a file that was moved or renamed is the same. Each content that
differs is counted once, under one owner, so that every table adds up to the same difference.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import Class, Contents, digest_keys
from packer.artifact.hints import DPKG, NO_PACKAGE, Hints, Package
from packer.artifact.index import Index, frame_counts
from packer.artifact.opened import OpenedPack

NO_PLACE = -1
METADATA = "(file-system metadata)"
UNPARSED = "(unparsed volumes)"
NO_PACKAGE_SHIPS = "(no package)"
UNOWNED = (NO_PACKAGE_SHIPS, METADATA, UNPARSED)
"""Rows of what has no owner; every table ends with them."""


@dataclass(frozen=True, slots=True)
class Amount:
    """Some contents of one pack. stored_bytes: compressed; None where the copy lacks any of them.

    What contents share a frame share its stored bytes by their sizes.
    """

    contents: int = 0
    size_bytes: int = 0
    stored_bytes: int | None = 0


@dataclass(frozen=True, slots=True)
class Row:
    """What two packs hold of one thing. change: for people, such as "5.2-1 -> 5.2-2".

    In the tables of what differs, old is what only the old pack has, new what only the new one has.
    """

    what: str
    change: str
    old: Amount
    new: Amount

    @property
    def difference_bytes(self) -> int:
        """Return how much more the new pack holds, before compression."""
        return self.new.size_bytes - self.old.size_bytes

    @property
    def stored_difference_bytes(self) -> int | None:
        """Return how much more the new copy stores; None where one of the two lacks something."""
        if self.new.stored_bytes is None or self.old.stored_bytes is None:
            return None
        return self.new.stored_bytes - self.old.stored_bytes


@dataclass(frozen=True, slots=True)
class Side:
    """One of the packs. stored_bytes: of the copy at hand, which are those of its contents, and:

    idle_bytes: parts of bundles that hold nothing of this pack (what it carries on from a
    predecessor). delta_bytes: deltas against a predecessor. table_bytes: map, hints, index and
    all the rest.
    """

    location: str
    ref_name: str
    identity: str
    whole: Amount
    stored_bytes: int
    idle_bytes: int
    delta_bytes: int
    table_bytes: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Two packs side by side, and what differs.

    classes: all contents by class. differing: what only one of them has, altogether; packages,
    folders, files: the same by owner. Largest difference first, but files by what is new or gone;
    what belongs to no package or file comes last. repacked_bytes: how much more the contents that
    both have take in the new copy; None where a copy lacks some.
    """

    old: Side
    new: Side
    classes: tuple[Row, ...]
    differing: Row
    packages: tuple[Row, ...]
    folders: tuple[Row, ...]
    files: tuple[Row, ...]
    repacked_bytes: int | None


def diff_packs(old: OpenedPack, new: OpenedPack, *, depth: int) -> Difference:
    """Return what differs between two packs; nothing is said about trust.

    depth: how many names of folders are kept. Raises InputError for packs that contradict
    themselves.
    """
    left, right = _Opened(old), _Opened(new)
    gone, fresh = left.only(right), right.only(left)
    tables = _Tables(left, right, gone, fresh)
    return Difference(
        left.side(),
        right.side(),
        tuple(
            Row(
                one.name.lower(),
                "",
                left.amount(left.of_class(one)),
                right.amount(right.of_class(one)),
            )
            for one in Class
        ),
        Row("", "", left.amount(gone), right.amount(fresh)),
        tables.packages(),
        tables.folders(depth),
        tables.files(),
        _repacked(left, right),
    )


def stored_shares(contents: Contents, index: Index) -> NDArray[np.int64]:
    """Return int64[n]: the stored bytes of each content, 0 for those that lie in no bundle.

    A frame's bytes are shared out without a remainder among the contents that fill it.
    """
    shares = np.zeros(len(contents), dtype=np.int64)
    size = contents.size[index.content]
    count = frame_counts(size)
    ends = np.concatenate([[0], np.cumsum(index.stored_bytes)])
    whole = ends[index.first_frame + count] - ends[index.first_frame]
    if len(size):
        stored = index.stored_bytes[index.first_frame]
        frame = index.frame_bytes[index.first_frame]
        end = index.offset + np.where(count == 1, size, 0)
        part = end * stored // frame - index.offset * stored // frame
        shares[index.content] = np.where(count == 1, part, whole)
    return shares


class _Opened:
    """What is needed of one pack, as columns with a row for each content.

    place: the row of the hints that says whose a content is, or NO_PLACE.
    """

    def __init__(self, pack: OpenedPack) -> None:
        self.pack = pack
        self.contents = pack.map.contents
        self.hints = pack.hints
        self.stored = stored_shares(self.contents, pack.index)
        self.carried = np.zeros(len(self.contents), dtype=bool)
        self.carried[pack.index.content] = True
        self.place = _owners(self.hints, len(self.contents))

    def side(self) -> Side:
        manifest, config = self.pack.manifest, self.pack.config
        stored = sum(blob.size for blob in manifest.blobs())
        bundles = sum(layer.size for layer in manifest.bundles().values())
        deltas = sum(layer.size for layer in manifest.deltas() or ())
        return Side(
            self.pack.layout.location,
            config.ref_name,
            self.pack.config_digest,
            self.amount(np.ones(len(self.contents), dtype=bool)),
            stored,
            bundles - int(self.stored.sum()),
            deltas,
            stored - bundles - deltas,
        )

    def of_class(self, one: Class) -> NDArray[np.bool_]:
        return np.asarray(self.contents.classes == one, dtype=np.bool_)

    def only(self, other: _Opened) -> NDArray[np.bool_]:
        """Return bool[n]: contents that the other pack does not have."""
        mine, others = digest_keys(self.contents.digest), digest_keys(other.contents.digest)
        return np.isin(mine, others, invert=True)

    def amount(self, rows: NDArray[np.bool_]) -> Amount:
        whole = bool(self.carried[rows].all())
        return Amount(
            int(rows.sum()),
            int(self.contents.size[rows].sum()),
            int(self.stored[rows].sum()) if whole else None,
        )

    def nobodys(self, row: int) -> str:
        """Return what to call a content that no file owns."""
        return METADATA if self.contents.classes[row] == Class.BOOT else UNPARSED


def _owners(hints: Hints, contents: int) -> NDArray[np.int64]:
    """Return int64[n]: a row of the hints for each content, of a package where there is one."""
    owner = np.full(contents, NO_PLACE, dtype=np.int64)
    packaged = np.flatnonzero(hints.package != NO_PACKAGE)
    for rows in (np.arange(len(hints.content)), packaged):
        content, first = np.unique(hints.content[rows], return_index=True)
        owner[content] = rows[first]
    return owner


def _repacked(left: _Opened, right: _Opened) -> int | None:
    both_left, both_right = ~left.only(right), ~right.only(left)
    if not (left.carried[both_left].all() and right.carried[both_right].all()):
        return None
    return int(right.stored[both_right].sum() - left.stored[both_left].sum())


_Key = Callable[[_Opened, int], Hashable]
_PackageKey = tuple[str, str, str]


@dataclass(slots=True)
class _Sum:
    contents: int = 0
    size_bytes: int = 0
    stored_bytes: int | None = 0

    def add(self, size: int, stored: int, carried: bool) -> None:
        self.contents += 1
        self.size_bytes += size
        lacking = self.stored_bytes is None or not carried
        self.stored_bytes = None if lacking else (self.stored_bytes or 0) + stored

    def amount(self) -> Amount:
        return Amount(self.contents, self.size_bytes, self.stored_bytes)


class _Tables:
    """The contents that differ, summed up by owner.

    gone, fresh: bool[n], what only the old pack has, and only the new one.
    """

    def __init__(
        self,
        left: _Opened,
        right: _Opened,
        gone: NDArray[np.bool_],
        fresh: NDArray[np.bool_],
    ) -> None:
        self._sides = (
            (left, np.flatnonzero(gone).tolist()),
            (right, np.flatnonzero(fresh).tolist()),
        )

    def packages(self) -> tuple[Row, ...]:
        sums = self._sum(_package_key)
        before, after = (_versions(side.hints.packages) for side, _ in self._sides)
        for package in before.keys() | after.keys():
            if before.get(package) != after.get(package):
                sums.setdefault(package, (_Sum(), _Sum()))
        rows = []
        for key, (old, new) in sums.items():
            if isinstance(key, tuple):  # others are words for what has no package
                change = _version_change(before.get(key), after.get(key))
                rows.append(Row(_package_name(key), change, old.amount(), new.amount()))
            else:
                rows.append(Row(str(key), "", old.amount(), new.amount()))
        return tuple(sorted(rows, key=_by_difference))

    def folders(self, depth: int) -> tuple[Row, ...]:
        def folder(side: _Opened, row: int) -> str:
            path = _path(side, row)
            return "/" + "/".join(path.split("/")[1:-1][:depth]) if path else side.nobodys(row)

        rows = (replace(row, change="") for row in self._rows(folder))
        return tuple(sorted(rows, key=_by_difference))

    def files(self) -> tuple[Row, ...]:
        rows = self._rows(lambda side, row: _path(side, row) or side.nobodys(row))
        return tuple(sorted(rows, key=_by_size))

    def _rows(self, key: _Key) -> Iterator[Row]:
        for what, (old, new) in self._sum(key).items():
            yield Row(str(what), _change(old, new), old.amount(), new.amount())

    def _sum(self, key: _Key) -> dict[Hashable, tuple[_Sum, _Sum]]:
        sums: dict[Hashable, tuple[_Sum, _Sum]] = {}
        for number, (side, rows) in enumerate(self._sides):
            size = side.contents.size[rows].tolist()
            stored = side.stored[rows].tolist()
            carried = side.carried[rows].tolist()
            for place, row in enumerate(rows):
                both = sums.setdefault(key(side, row), (_Sum(), _Sum()))
                both[number].add(size[place], stored[place], carried[place])
        return sums


def _path(side: _Opened, row: int) -> str:
    place = int(side.place[row])
    return "" if place == NO_PLACE else side.hints.path[place]


def _package_key(side: _Opened, row: int) -> Hashable:
    place = int(side.place[row])
    if place == NO_PLACE:
        return side.nobodys(row)
    package = int(side.hints.package[place])
    return NO_PACKAGE_SHIPS if package == NO_PACKAGE else _key_of(side.hints.packages[package])


def _key_of(package: Package) -> _PackageKey:
    # A Windows has files of many releases at once.
    name = package.name if package.manager == DPKG else f"{package.name} {package.version}".strip()
    return (package.manager, name, package.architecture)


def _package_name(key: _PackageKey) -> str:
    _, name, architecture = key
    return f"{name}:{architecture}" if architecture else name


def _versions(packages: Sequence[Package]) -> dict[_PackageKey, str]:
    return {_key_of(package): package.version for package in packages}


def _version_change(old: str | None, new: str | None) -> str:
    if old is None:
        return f"added {new}"
    if new is None:
        return f"removed {old}"
    return old if old == new else f"{old} -> {new}"


def _change(old: _Sum, new: _Sum) -> str:
    if old.contents and new.contents:
        return "changed"
    return "new" if new.contents else "gone"


def _by_difference(row: Row) -> tuple[bool, int, int, str]:
    both = row.new.size_bytes + row.old.size_bytes
    return (row.what in UNOWNED, -abs(row.difference_bytes), -both, row.what)


def _by_size(row: Row) -> tuple[bool, int, str]:
    return (row.what in UNOWNED, -max(row.new.size_bytes, row.old.size_bytes), row.what)
