"""From a URI that the user names (or a trusted pack recommends) to a source."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from packer import host
from packer.artifact.layout.base import Layout
from packer.artifact.layout.open import open_layout
from packer.artifact.layout.web import WebLayout
from packer.artifact.opened import OpenedPack
from packer.errors import Error, UsageError
from packer.sources.apt import AptSource
from packer.sources.base import Source, SourceError
from packer.sources.deb import DebSource
from packer.sources.directory import DirectorySource, default_sources
from packer.sources.disk import DiskSource
from packer.sources.memory import Memory
from packer.sources.pack import PackSource
from packer.sources.store import Store

NETWORK_SCHEMES = ("https", "http", "apt")
"""What a pack may recommend by itself: nothing that names a path of this host."""

KINDS = "store:, dir:FOLDER, disk:IMAGE, pack:FILE, deb:FOLDER, apt:, https://…"


def open_pack(location: str) -> OpenedPack:
    """Return the pack at a path or URL. Nothing is believed yet; see packer.artifact.trust."""
    return OpenedPack(open_layout_at(location))


def open_layout_at(location: str) -> Layout:
    """Return the layout at a path or URL."""
    if location.startswith(("https://", "http://")):
        return WebLayout(location)
    return open_layout(location.removeprefix("pack:"))


class SourceOpener:
    """Opens sources that share one memory and one store, and closes them."""

    def __init__(self, pack: OpenedPack, store: Store, *, jobs: int | None = None) -> None:
        self._pack = pack
        self._store = store
        self._jobs = jobs or os.cpu_count() or 1
        self._memory = Memory(host.cache_dir() / "files.sqlite")

    def open_all(self, uris: Sequence[str]) -> list[Source]:
        """Return the sources that the user named, in that order.

        Raises UsageError for a URI of no known kind, Error for a source that is not there.
        """
        return [self._open(uri) for uri in uris]

    def defaults(self, *, offline: bool) -> tuple[list[Source], list[str]]:
        """Return (sources to use when the user named none, notes about those left out).

        The store, this host's package-owned trees, package files that apt has kept, and what the
        pack recommends.
        """
        sources: list[Source] = [self._store, *default_sources(self._memory)]
        archives = Path("/var/cache/apt/archives")
        if archives.is_dir():
            sources.append(DebSource(archives))
        notes: list[str] = []
        for uri in self._pack.config.sources:
            if uri.partition(":")[0] not in NETWORK_SCHEMES:
                notes.append(f"the pack recommends {uri}, which only a user may name; left out")
            elif not offline:
                try:
                    sources.append(self._open(uri))
                except Error as error:
                    notes.append(f"{uri}: {error}")
        return sources, notes

    def close(self) -> None:
        """Close the memory; sources are closed by who opened them."""
        self._memory.close()

    def _open(self, uri: str) -> Source:
        kind, colon, rest = uri.partition(":")
        if kind in ("https", "http"):
            return self._other_pack(uri)
        if not colon:
            raise UsageError(f"--from {uri}: expected one of {KINDS}")
        if kind == "store":
            return Store(Path(rest)) if rest else self._store
        if kind == "apt":
            return AptSource(host.cache_dir() / "packages")
        if not rest:
            raise UsageError(f"--from {uri}: names no place", hint=f"expected one of {KINDS}")
        if kind == "dir":
            return DirectorySource(Path(rest), self._memory)
        if kind == "disk":
            return DiskSource(rest)
        if kind == "pack":
            return self._other_pack(rest)
        if kind == "deb":
            return DebSource(Path(rest))
        raise UsageError(f"--from {uri}: expected one of {KINDS}")

    def _other_pack(self, location: str) -> Source:
        uri = location if "://" in location else f"pack:{location}"
        other = open_pack(location)
        try:
            if other.config_digest == self._pack.config_digest:
                # A copy of the same pack: only its bundles differ, its map need not be read.
                other.share_map(self._pack)
            return PackSource(uri, other.layout, other.map.contents, other.index)
        except Error as error:
            other.close()
            raise SourceError(f"{uri}: {error}", hint=error.hint) from error
