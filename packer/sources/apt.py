"""Source: the distribution's mirrors as apt is configured on this host (apt:).

apt fetches whole package files, their digest is compared, then they are searched like any other
package file. Only the newest version of a package stays on a mirror: older ones are not found, and
nobody is blamed for that more than once.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from packer.artifact.hints import Package
from packer.sources.apt_host import Apt, Download, find_apt, package_uri
from packer.sources.apt_index import PackageKey, checked, key_of, resolve
from packer.sources.base import Offers, Piece, SourceError, Wanted
from packer.sources.deb import PackageFileError, Rows, Search, read_package, rows_by_package
from packer.sources.package_cache import PackageCache
from packer.text import printable

BATCH_FILES = 32
BATCH_BYTES = 32 << 20
"""What one run of apt fetches: enough that its start (20 ms) does not count, little enough that
reading the packages of one batch overlaps with fetching the next one."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Parcel:
    """A package file that is to be fetched, where it will lie, and what it is opened for."""

    package: Package
    base_uri: str
    path: Path
    rows: Rows

    @property
    def partial(self) -> Path:
        return self.path.with_suffix(".partial")


class AptSource:
    """Packages of the host's mirrors.

    folder: where fetched packages and lists are kept; created when needed.
    """

    uri = "apt:"
    local = False

    def __init__(self, folder: Path) -> None:
        self._cache = PackageCache(folder)
        self._apt = find_apt()
        self._lock = threading.Lock()
        self._stops: set[threading.Event] = set()
        self._wanted: Wanted | None = None
        self._owner: dict[int, _Parcel] = {}
        self._resolved: dict[PackageKey, tuple[Package, str]] = {}
        self._absent: set[Path] = set()
        self._bases: list[str] | None = None
        self._downloading: set[Path] = set()
        self._downloaded_bytes = 0

    @property
    def received_bytes(self) -> int:
        """How many bytes of packages came so far; see Receiving."""
        with self._lock:
            return self._downloaded_bytes + sum(map(_size_of, self._downloading))

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:
        """Return the wanted contents of packages that a mirror has, grouped by package.

        deep: the mirrors' lists may be fetched when this host has none.
        Raises SourceError when there is no apt.
        """
        self._usable()
        groups = rows_by_package(wanted)
        packages = [wanted.hints.packages[number] for number in groups]
        taken: set[int] = set()
        parcels: list[_Parcel] = []
        owner: dict[int, int] = {}
        for (package, base), rows in zip(
            self._resolve(packages, deep), groups.values(), strict=True
        ):
            mine = np.array([row for row in rows.tolist() if row not in taken], dtype=np.int64)
            parcel = _Parcel(package, base, self._cache.path_of(package), mine)
            if len(mine) and package.filename and parcel.path not in self._absent:
                taken.update(mine.tolist())
                owner.update(dict.fromkeys(mine.tolist(), len(parcels)))
                parcels.append(parcel)
        with self._lock:
            self._wanted = wanted
            self._owner.update({row: parcels[number] for row, number in owner.items()})
        with self._cache.errors():
            return _offers(owner, parcels, wanted)

    def fetch(self, rows: Rows) -> Iterator[Piece]:
        """Yield the pieces found in packages; the next packages are fetched meanwhile.

        Raises SourceError when no mirror can be reached, or packages cannot be kept on this host.
        """
        apt = self._usable()
        with self._lock:
            wanted = self._wanted
            asked: dict[Path, tuple[_Parcel, list[int]]] = {}
            for row in rows.tolist():
                if parcel := self._owner.get(row):
                    asked.setdefault(parcel.path, (parcel, []))[1].append(row)
        if wanted is None:
            return
        search = Search(wanted, rows)
        with (
            self._cache.errors(),
            self._cache.reading(),
            closing(self._fetched(apt, [parcel for parcel, _ in asked.values()])) as parcels,
        ):
            for parcel in parcels:
                expected = asked[parcel.path][1]
                if not search.lacks(expected):
                    continue
                try:
                    yield from read_package(parcel.path, search, expected)
                except PackageFileError as error:
                    parcel.path.unlink(missing_ok=True)
                    _log.warning("%s: left out: %s", self.uri, error)

    def close(self) -> None:
        """End what apt does in other threads."""
        with self._lock:
            for stop in self._stops:
                stop.set()

    def _usable(self) -> Apt:
        if self._apt is None:
            raise SourceError(
                "apt: this host has no apt", hint="leave this source out, or use deb:FOLDER"
            )
        return self._apt

    def _resolve(self, packages: Sequence[Package], deep: bool) -> list[tuple[Package, str]]:
        """Return each package with its file and base address, as far as they are known."""
        unknown = [key_of(one) for one in packages if not one.filename]
        unknown = [key for key in unknown if key not in self._resolved]
        if unknown:
            if deep:
                # Nobody removes the lists meanwhile.
                with self._cache.errors(), self._cache.reading():
                    found = resolve(unknown, update_folder=self._cache.lists)
            else:
                found = resolve(unknown)
            if found.note:
                _log.warning("%s: %s", self.uri, found.note)
            for key, package, base in zip(unknown, found.packages, found.base_uris, strict=True):
                if package.filename:
                    self._resolved[key] = (package, base)
        return [
            (checked(one), "") if one.filename else self._resolved.get(key_of(one), (one, ""))
            for one in packages
        ]

    def _fetched(self, apt: Apt, parcels: Sequence[_Parcel]) -> Generator[_Parcel, None, None]:
        """Yield packages as they are there, one batch being fetched ahead."""
        stop = threading.Event()
        with self._lock:
            self._stops.add(stop)
        with ThreadPoolExecutor(1) as pool:
            try:
                batches = _batches(parcels)
                coming: deque[Future[list[_Parcel]]] = deque()
                while batches or coming:
                    while batches and len(coming) < 2:
                        coming.append(pool.submit(self._obtain, apt, batches.pop(0), stop))
                    yield from coming.popleft().result()
            finally:
                stop.set()
                with self._lock:
                    self._stops.discard(stop)

    def _obtain(self, apt: Apt, batch: Sequence[_Parcel], stop: threading.Event) -> list[_Parcel]:
        """Fetch what is not there yet, from one mirror after the other; return what is there."""
        with self._cache.fetching():
            missing = [parcel for parcel in batch if not parcel.path.exists()]
            bases = self._base_uris(apt) if missing else []
            reasons: dict[Path, str] = {}
            for turn in range(len(bases)):
                if missing and not stop.is_set():
                    missing = self._try_mirror(apt, missing, bases, turn, stop, reasons)
        self._report(missing, reasons, stop)
        there = [parcel for parcel in batch if parcel.path.exists()]
        for parcel in there:
            with suppress(OSError):  # noted for the collection, which goes by the last use
                os.utime(parcel.path)
        if missing and not there and not all(map(_says_absent, reasons.values())):
            raise SourceError(
                f"apt: no mirror can be reached: {next(iter(reasons.values()), 'none is set up')}",
                hint="does `apt-get update` work on this host?",
            )
        return there

    def _try_mirror(
        self,
        apt: Apt,
        missing: Sequence[_Parcel],
        bases: Sequence[str],
        turn: int,
        stop: threading.Event,
        reasons: dict[Path, str],
    ) -> list[_Parcel]:
        """Ask each package's next mirror for it and return the packages that are still missing."""
        downloads: dict[Path, Download] = {}
        for parcel in missing:
            order = [parcel.base_uri, *(one for one in bases if one != parcel.base_uri)]
            base = [one for one in order if one in bases][turn : turn + 1]
            uri = package_uri(base[0], parcel.package.filename) if base else None
            if uri is not None:
                downloads[parcel.path] = Download(
                    uri, parcel.partial, parcel.package.sha256, parcel.package.size_bytes
                )
        with self._counted([one.target for one in downloads.values()]):
            failed = apt.download(list(downloads.values()), stop) if downloads else {}
        for path, one in downloads.items():
            if one.uri in failed:
                reasons[path] = failed[one.uri]
            else:
                one.target.replace(path)
        return [parcel for parcel in missing if not parcel.path.exists()]

    @contextmanager
    def _counted(self, targets: Sequence[Path]) -> Iterator[None]:
        """Count what comes to files, also while they grow."""
        with self._lock:
            self._downloading.update(targets)
            self._downloaded_bytes -= sum(map(_size_of, targets))  # came earlier
        try:
            yield
        finally:
            with self._lock:
                self._downloading.difference_update(targets)
                self._downloaded_bytes += sum(map(_size_of, targets))

    def _report(
        self, missing: Sequence[_Parcel], reasons: dict[Path, str], stop: threading.Event
    ) -> None:
        """Say once what could not be had; what no mirror lists any more is not offered again."""
        gone = [one for one in missing if _says_absent(reasons.get(one.path, ""))]
        with self._lock:
            gone = [one for one in gone if one.path not in self._absent]
            self._absent.update(one.path for one in gone)
        if gone:
            names = ", ".join(f"{one.package.name} {one.package.version}" for one in gone[:5])
            more = f" and {len(gone) - 5} more" if len(gone) > 5 else ""
            _log.warning(
                "%s: not on the mirrors (any more): %s%s", self.uri, printable(names), more
            )
        for one in missing:
            if not stop.is_set() and not _says_absent(reasons.get(one.path, "")):
                reason = reasons.get(one.path, "no address")
                name = printable(one.package.name)
                _log.warning("%s: %s: %s", self.uri, name, printable(reason))

    def _base_uris(self, apt: Apt) -> list[str]:
        if self._bases is None:
            self._bases = apt.base_uris()
        return self._bases


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _offers(owner: dict[int, int], parcels: Sequence[_Parcel], wanted: Wanted) -> Offers:
    rows = np.array(sorted(owner), dtype=np.int64)
    group = np.array([owner[row] for row in rows.tolist()], dtype=np.int64)
    sizes = [
        # Of unknown size: what is wanted of it, as if it compressed to nothing less.
        0
        if one.path.exists()
        else one.package.size_bytes or int(wanted.contents.size[one.rows].sum())
        for one in parcels
    ]
    return Offers(rows, np.zeros_like(rows), group, np.array(sizes, dtype=np.int64))


def _batches(parcels: Sequence[_Parcel]) -> list[list[_Parcel]]:
    batches: list[list[_Parcel]] = []
    filled = BATCH_BYTES
    for parcel in parcels:
        if filled >= BATCH_BYTES or len(batches[-1]) >= BATCH_FILES:
            batches.append([])
            filled = 0
        batches[-1].append(parcel)
        filled += parcel.package.size_bytes
    return batches


def _says_absent(reason: str) -> bool:
    """Return whether apt's words mean that the mirror does not have a file."""
    return reason.startswith(("404 ", "410 ", "File not found"))
