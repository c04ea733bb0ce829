"""Hints: where in the guest a content was found and which package ships it.

Hints help to find bytes; they prove nothing. They are a blob of their own, named by the config,
and loaded only when something has to be looked for or shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from packer.artifact.programs import (
    Programs,
    WirePrograms,
    decode_programs,
    encode_programs,
)
from packer.columns import PackedColumn, decode_column, decode_table, encode_column
from packer.errors import InputError

SCHEMA = 1
NO_PACKAGE = -1
DPKG, WINDOWS = "dpkg", "windows"
"""Managers of packages. Those of Windows say of which release a file is, and cannot be fetched."""


class Package(msgspec.Struct, frozen=True, omit_defaults=True):
    """What ships some contents: a distribution package, or a version of Windows' own components.

    manager: DPKG, WINDOWS. filename: path in the mirror's pool, "" when the mirror no longer
    lists it; sha256: lower-case hex of the package file, "" likewise; size_bytes: of the package
    file.
    """

    manager: str
    name: str
    version: str
    architecture: str
    filename: str = ""
    sha256: str = ""
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Hints:
    """k places where contents were found, as columns sorted by (content, path).

    content: int64[k], row in the pack's contents. path: k guest paths beginning with "/" (of the
    guest's root, not of the volume). file_size: int64[k], bytes of the whole file; file_offset:
    int64[k], where in the file the content begins (streams are cut at holes). package: int64[k],
    row in `packages` or NO_PACKAGE. A path below /var/lib/dpkg/info with a package is a member of
    that package's control archive. programs: which contents are Windows programs.
    """

    content: NDArray[np.int64]
    path: list[str]
    file_size: NDArray[np.int64]
    file_offset: NDArray[np.int64]
    package: NDArray[np.int64]
    packages: tuple[Package, ...]
    programs: Programs = field(default_factory=Programs)

    def of(self, row: int) -> range:
        """Return the rows of this table that speak of content `row`."""
        low, high = np.searchsorted(self.content, [row, row + 1])
        return range(int(low), int(high))

    def only(self, rows: NDArray[np.int64]) -> Hints:
        """Return what is said of some contents, renumbered to places in `rows` (sorted)."""
        places = np.flatnonzero(np.isin(self.content, rows))
        return Hints(
            np.searchsorted(rows, self.content[places]),
            [self.path[place] for place in places.tolist()],
            self.file_size[places],
            self.file_offset[places],
            self.package[places],
            self.packages,
            self.programs.only(rows),
        )


class _WireHints(msgspec.Struct, frozen=True, omit_defaults=True):
    schema: int
    content_step: PackedColumn
    file_size: PackedColumn
    file_offset: PackedColumn
    package: PackedColumn
    shared_prefix: PackedColumn
    path_tails: bytes
    packages: list[Package]
    programs: WirePrograms | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_WireHints)


def encode_hints(hints: Hints) -> bytes:
    """Return the hints' canonical bytes, uncompressed."""
    paths = [path.encode("utf-8", "surrogateescape") for path in hints.path]
    prefixes, tails = [], []
    before = b""
    for path in paths:
        shared = _shared_prefix(before, path)
        prefixes.append(shared)
        tails.append(path[shared:])
        before = path
    return _encoder.encode(
        _WireHints(
            schema=SCHEMA,
            content_step=encode_column(np.diff(hints.content, prepend=0)),
            file_size=encode_column(hints.file_size),
            file_offset=encode_column(hints.file_offset),
            package=encode_column(hints.package + 1),
            shared_prefix=encode_column(np.array(prefixes, dtype=np.int64)),
            path_tails=b"\0".join(tails),
            packages=list(hints.packages),
            programs=encode_programs(hints.programs),
        )
    )


def decode_hints(data: bytes, contents: int) -> Hints:
    """Return the hints that `data` encodes, for a pack of that many contents.

    Raises InputError naming the column that breaks a rule.
    """
    wire = decode_table(_decoder, data, "hints")
    if wire.schema != SCHEMA:
        raise InputError(f"hints: expected schema {SCHEMA}, found {wire.schema}")
    step = decode_column(wire.content_step, "hints: content_step")
    rows = len(step)
    _expect(bool((step <= contents).all()), "content_step: out of bounds")
    content = np.cumsum(step)
    _expect(rows == 0 or int(content[-1]) < contents, "content_step: past the last content")
    package = decode_column(wire.package, "hints: package", rows)
    _expect(bool((package <= len(wire.packages)).all()), "package: not in the list")
    shared = decode_column(wire.shared_prefix, "hints: shared_prefix", rows)
    return Hints(
        content,
        _join_paths(wire.path_tails, shared.tolist()),
        decode_column(wire.file_size, "hints: file_size", rows),
        decode_column(wire.file_offset, "hints: file_offset", rows),
        package - 1,
        tuple(wire.packages),
        decode_programs(wire.programs, contents),
    )


MAX_PATH_BYTES = 4096
"""PATH_MAX of Linux; a longer hint could never be looked up."""


MAX_PATHS_BYTES = 512 << 20
"""All paths together, spelled out; five million files have about that much."""


def _join_paths(tails: bytes, shared: list[int]) -> list[str]:
    spelled_out = len(tails) + sum(shared)
    _expect(
        spelled_out <= MAX_PATHS_BYTES,
        f"paths of {spelled_out} bytes, expected at most {MAX_PATHS_BYTES}",
    )
    # Counted before they are cut: half a gigabyte of NULs would become as many objects.
    _expect(not shared or tails.count(b"\0") + 1 == len(shared), "path_tails: not one path a row")
    pieces = tails.split(b"\0") if shared else []
    paths: list[str] = []
    before = b""
    for prefix, tail in zip(shared, pieces, strict=True):
        _expect(prefix <= len(before), "shared_prefix: longer than the path before")
        before = before[:prefix] + tail
        _expect(len(before) <= MAX_PATH_BYTES, f"path_tails: a path above {MAX_PATH_BYTES} bytes")
        _expect(before.startswith(b"/"), "path_tails: a path that does not begin with /")
        paths.append(before.decode("utf-8", "surrogateescape"))
    return paths


def _shared_prefix(left: bytes, right: bytes) -> int:
    """Return how many bytes two paths share, up to a folder's end.

    Whole folders are enough: what is gained beyond them, zstd finds by itself.
    """
    folder = left.rfind(b"/") + 1
    while folder and left[:folder] != right[:folder]:
        folder = left.rfind(b"/", 0, folder - 1) + 1
    return folder


def _expect(holds: bool, rule: str) -> None:
    if not holds:
        raise InputError(f"hints: {rule}")
