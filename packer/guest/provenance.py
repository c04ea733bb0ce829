"""Which package ships a file, as the guest's own dpkg database has it.

All of this is hints: a wrong claim costs a look in the wrong place, because the bytes are hashed
before anybody believes that they are a package's. So a database that is damaged, or made to do
harm, means fewer claims and a warning, within the bounds below.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from formats.errors import FormatError
from formats.package import dpkg
from packer.artifact.hints import DPKG, NO_PACKAGE, Package
from packer.guest.expected import Expected
from packer.guest.model import Origin
from packer.guest.tree import Tree

STATUS = "/var/lib/dpkg/status"
DIVERSIONS = "/var/lib/dpkg/diversions"

MAX_STATUS_BYTES = 24 << 20  # 3,000 packages take 4 MB
MAX_DIVERSIONS_BYTES = 4 << 20
MAX_RECORD_BYTES = 16 << 20  # the longest md5sums of Debian, of kernel headers, takes 2 MB
MAX_RECORDS_BYTES = 256 << 20  # all of them together; 3,000 packages take 30 MB
MAX_LISTS_BYTES = 32 << 20  # lists of packages whose claims contradict each other: few

# Debian Policy 5.6.1, 5.6.12 and 5.6.8.
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{1,127}")
_VERSION = re.compile(r"[0-9A-Za-z.+:~-]{1,255}")
_ARCHITECTURE = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_MD5 = re.compile("[0-9a-fA-F]{32}")  # a conffile that dpkg has not looked at yet has a word


@dataclass(frozen=True, slots=True)
class Provenance:
    """package: int64[n], row in `packages` or -1. expected: what a record says the stream hashes
    to, or None. origin: int64[n], row in `origins` or -1. Columns have one row per stream.
    """

    package: NDArray[np.int64]
    expected: list[Expected | None]
    packages: tuple[Package, ...]
    origin: NDArray[np.int64]
    origins: tuple[Origin, ...] = ()


def no_provenance(streams: int) -> Provenance:
    """Return that nobody knows where any stream came from."""
    nothing = np.full(streams, -1, dtype=np.int64)
    return Provenance(nothing, [None] * streams, (), nothing)


def find_provenance(tree: Tree) -> Provenance:
    """Return the package of each stream that an installed package ships.

    What was generated on the guest (bytecode, caches, `*.list`) is nobody's. The members of
    control archives that lie below /var/lib/dpkg/info have a package and no MD5.
    """
    installed = _installed(tree)
    records = _Records(tree, {package.key: row for row, package in enumerate(installed)})
    claims = _Claims(tree, installed, _diversions(tree))
    for row in range(len(installed)):
        for path, md5 in records.md5sums(row).items():
            claims.add(row, path, md5)
        for conffile in installed[row].conffiles:
            # An obsolete one is of an older version than the package that could be fetched.
            if not conffile.obsolete:
                claims.add(row, conffile.path, conffile.md5)
    claims.settle(records)
    for row, stream in records.members:
        claims.own(row, stream)
    records.warn()
    packages = tuple(Package(DPKG, one.name, one.version, one.architecture) for one in installed)
    package = np.array(claims.package, dtype=np.int64)
    return Provenance(package, [*claims.md5], packages, np.full_like(package, -1))


def _installed(tree: Tree) -> list[dpkg.Package]:
    try:
        packages = dpkg.parse_status(tree.read(STATUS, MAX_STATUS_BYTES))
    except FormatError as error:
        tree.warn(f"{STATUS} cannot be used ({error}): every file counts as private")
        return []
    installed = [package for package in packages if package.installed]
    legal = [package for package in installed if _is_legal(package)]
    if len(legal) < len(installed):
        tree.warn(
            f"{len(installed) - len(legal)} packages in {STATUS} are not used: their names,"
            " versions or architectures are none that a distribution has"
        )
    return legal


def _is_legal(package: dpkg.Package) -> bool:
    """Return whether a mirror could be asked for the package; these words end up in requests."""
    return (
        _NAME.fullmatch(package.name) is not None
        and _VERSION.fullmatch(package.version) is not None
        and _ARCHITECTURE.fullmatch(package.architecture) is not None
    )


def _diversions(tree: Tree) -> tuple[dpkg.Diversion, ...]:
    try:
        return dpkg.parse_diversions(tree.read(DIVERSIONS, MAX_DIVERSIONS_BYTES))
    except FormatError as error:
        tree.warn(f"{DIVERSIONS} cannot be used ({error}): diverted files are not found")
        return ()


@dataclass(frozen=True, slots=True)
class _Claim:
    row: int
    path: str
    md5: bytes | None


class _Records:
    """dpkg's files about each package, read within a bound for all of them together.

    members: (package row, stream) of every member of a control archive.
    """

    def __init__(self, tree: Tree, row_of_key: dict[str, int]) -> None:
        self._tree = tree
        self._left_bytes = {"md5sums": MAX_RECORDS_BYTES, "list": MAX_LISTS_BYTES}
        self._damaged: list[str] = []
        self._md5sums: dict[int, str] = {}
        self._key = {row: key for key, row in row_of_key.items()}
        self._lists: dict[int, frozenset[bytes]] = {}
        self.members: list[tuple[int, int]] = []
        for path, stream in tree.below(dpkg.INFO):
            key, member = dpkg.control_member(path) or ("", "")
            row = row_of_key.get(key)
            if row is not None:
                self.members.append((row, stream))
                if member == "md5sums":
                    self._md5sums[row] = path

    def md5sums(self, row: int) -> dict[str, str]:
        """Return path -> MD5 of a package's files; nothing where it has no such record."""
        path = self._md5sums.get(row, "")
        try:
            return dpkg.parse_md5sums(self._read(path, "md5sums")) if path else {}
        except FormatError as error:
            self._damaged.append(f"{path}: {error}")
            return {}

    def lists(self, row: int, path: str) -> bool:
        """Return whether dpkg's list of the package's files names the path."""
        names = self._lists.get(row)
        if names is None:
            path_of_list = f"{dpkg.INFO}{self._key[row]}.list"
            names = frozenset(self._read(path_of_list, "list").split(b"\n"))
            self._lists[row] = names
        return path.encode("utf-8", "surrogateescape") in names

    def warn(self) -> None:
        """Tell the author what could not be used."""
        if self._damaged:
            self._tree.warn(
                f"{len(self._damaged)} records of dpkg cannot be used; the files of their packages"
                f" count as private ({self._damaged[0]})"
            )

    def _read(self, path: str, kind: str) -> bytes:
        data = self._tree.read(path, min(MAX_RECORD_BYTES, self._left_bytes[kind]))
        self._left_bytes[kind] -= len(data)
        return data


class _Claims:
    """Which package claims which stream, with the MD5 of what it shipped."""

    def __init__(
        self, tree: Tree, installed: list[dpkg.Package], diversions: Iterable[dpkg.Diversion]
    ) -> None:
        streams = len(tree.survey.inode)
        self._tree = tree
        self._installed = installed
        self._moved = {tree.canonical(one.path): one for one in diversions}
        self._contested: dict[int, list[_Claim]] = {}
        self.package: list[int] = [NO_PACKAGE] * streams
        self.md5: list[bytes | None] = [None] * streams

    def add(self, row: int, path: str, md5: str) -> None:
        """Note that package `row` ships a file; nothing if the guest has none there."""
        stream = self._stream(row, path)
        if stream is None or _MD5.fullmatch(md5) is None:
            return
        claim = _Claim(row, path, bytes.fromhex(md5))
        before = self.package[stream]
        if before == NO_PACKAGE:
            self._set(stream, claim)
        elif before != row and self.md5[stream] != claim.md5:
            first = _Claim(before, path, self.md5[stream])
            self._contested.setdefault(stream, [first]).append(claim)

    def own(self, row: int, stream: int) -> None:
        """Note that a stream comes from package `row`, without an MD5 to prove it."""
        if self.package[stream] == NO_PACKAGE:
            self.package[stream] = row

    def settle(self, records: _Records) -> None:
        """Decide between packages that claim different bytes under the same path.

        Where one package replaced a file of another, md5sums still has both claims, and only the
        list of the package that owns the file names it (dpkg, src/main/unpack.c).
        """
        for stream, claims in self._contested.items():
            owner = next((one for one in claims if records.lists(one.row, one.path)), claims[0])
            self._set(stream, owner)

    def _set(self, stream: int, claim: _Claim) -> None:
        self.package[stream] = claim.row
        self.md5[stream] = claim.md5

    def _stream(self, row: int, path: str) -> int | None:
        """Return the stream that a package's path means, after links of folders and diversions."""
        tree = self._tree
        found = tree.stream_at(path)
        if found is not None and not self._moved:
            return found
        place = path if found is not None else tree.canonical(path)
        moved = self._moved.get(place)
        if moved is not None and moved.package != self._installed[row].name:
            place = tree.canonical(moved.diverted)
        return None if place is None else tree.stream_at(place)
