"""inspect of a pack: what it holds, what it leaves to others, where that can be had."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from packer.artifact.config import Config
from packer.artifact.contents import Class
from packer.artifact.hints import DPKG, NO_PACKAGE, WINDOWS, Package
from packer.artifact.map import Kind
from packer.artifact.opened import OpenedPack
from packer.artifact.rotation import open_statement
from packer.artifact.signature import open_envelope
from packer.artifact.want import wanted_rows
from packer.errors import InputError


@dataclass(frozen=True, slots=True)
class PackSummary:
    """What a copy of a pack holds.

    carried: {class name: (contents, bytes)} in this copy's bundles. bundles: {title: stored
    bytes}. signers: fingerprints of carried keys that fit their signatures; rotations: what the
    carried statements about replaced keys say. Whether to believe them is another question.
    wanted: of a want-list, or of what fills one: (contents that it asks for, bytes, contents of
    them that are here).
    """

    location: str
    identity: str
    config: Config
    stored_bytes: int
    carried: dict[str, tuple[int, int]]
    bundles: dict[str, int]
    unused_bytes: int
    zero_bytes: int
    packages: int
    signers: tuple[str, ...]
    rotations: tuple[str, ...]
    wanted: tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class Stub:
    """A content that a copy names but does not carry. where: who can supply it."""

    path: str
    content: str
    size_bytes: int
    where: str


def inspect_pack(pack: OpenedPack) -> PackSummary:
    """Return what a pack holds. Nothing is said about trust."""
    contents = pack.map.contents
    held = _held(pack)
    return PackSummary(
        pack.layout.location,
        pack.config_digest,
        pack.config,
        sum(blob.size for blob in pack.manifest.blobs()),
        {
            one.name.lower(): (
                int(((contents.classes == one) & held).sum()),
                int(contents.size[(contents.classes == one) & held].sum()),
            )
            for one in Class
        },
        {title: layer.size for title, layer in pack.manifest.bundles().items()},
        pack.map.bytes_of_kind(Kind.UNUSED),
        pack.map.bytes_of_kind(Kind.ZERO),
        sum(one.manager == DPKG for one in pack.hints.packages),
        _signers(pack),
        tuple(_sentence(data, pack.layout.location) for data in pack.rotations),
        _wanted(pack, held),
    )


def stubs_of(pack: OpenedPack) -> Iterator[Stub]:
    """Yield every stub of a copy, by path."""
    contents, hints = pack.map.contents, pack.hints
    rows = np.flatnonzero(~_held(pack))
    first = np.searchsorted(hints.content, rows)
    stubs = []
    for row, place in zip(rows.tolist(), first.tolist(), strict=True):
        named = place < len(hints.content) and hints.content[place] == row
        package = int(hints.package[place]) if named else NO_PACKAGE
        stubs.append(
            Stub(
                hints.path[place] if named else "(file-system metadata)",
                contents.name(row),
                int(contents.size[row]),
                _where(None if package == NO_PACKAGE else hints.packages[package]),
            )
        )
    yield from sorted(stubs, key=lambda stub: (stub.path, stub.content))


def _where(package: Package | None) -> str:
    if package is None:
        return "another copy of this pack"
    if package.manager == WINDOWS:
        return " ".join(filter(None, (package.name, package.version, package.architecture)))
    name = f"{package.name} {package.version} ({package.architecture})"
    return f"package {name}" + (f", {package.filename}" if package.filename else "")


def _held(pack: OpenedPack) -> np.ndarray:
    held = np.zeros(len(pack.map.contents), dtype=bool)
    held[pack.index.content] = True
    return held


def _wanted(pack: OpenedPack, held: np.ndarray) -> tuple[int, int, int] | None:
    if pack.manifest.want() is None:
        return None
    rows = wanted_rows(pack)
    return len(rows), int(pack.map.contents.size[rows].sum()), int(held[rows].sum())


def _sentence(data: bytes, where: str) -> str:
    try:
        statement = open_statement(data, f"{where}: statement")
    except InputError as error:
        return str(error)  # it is worth nothing, and changes nothing about the pack
    lacking = f" (not signed by {', '.join(statement.lacking)})" if statement.lacking else ""
    return statement.rotation.sentence + lacking


def _signers(pack: OpenedPack) -> tuple[str, ...]:
    if pack.envelope is None:
        return ()
    where = f"{pack.layout.location}: signature"
    envelope = open_envelope(pack.envelope, pack.config_digest, where)
    return tuple(sorted(key.fingerprint for key in envelope.claimed_signers()))
