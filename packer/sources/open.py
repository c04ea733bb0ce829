"""From a URI that the user names (or a trusted pack recommends) to a source."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from packer import host
from packer.artifact.layout.base import Layout
from packer.artifact.layout.open import is_layout, open_layout
from packer.artifact.opened import OpenedPack, packs_of
from packer.errors import Error, InputError, UsageError
from packer.sources.apt import AptSource
from packer.sources.base import Source, SourceError
from packer.sources.deb import DebSource
from packer.sources.directory import DirectorySource, default_sources
from packer.sources.disk import DiskSource
from packer.sources.medium import MediumSource
from packer.sources.memory import Memory
from packer.sources.neighbour import NeighbourSource, is_neighbour
from packer.sources.on_demand import OnDemand
from packer.sources.pack import PackSource
from packer.sources.store import Store
from packer.sources.symbols import SymbolFolder
from packer.transport.registry_reference import is_reference, parse_reference

NETWORK_SCHEMES = ("https", "http", "oci", "apt")

RECOMMENDED_SCHEMES = ("https", "oci", "apt")
"""What a pack may recommend by itself: nothing that names a path of this host or a neighbour, no
server to which anything would go in clear."""

APT_ARCHIVES = Path("/var/cache/apt/archives")
"""Where apt keeps the package files that it has fetched."""

KINDS = (
    "store:, store://HOST, dir:FOLDER, disk:IMAGE, medium:IMAGE, pack:FILE, deb:FOLDER, apt:, "
    "symbols:FOLDER, symbols:https://…, https://…, oci://…"
)


def open_pack(location: str) -> OpenedPack:
    """Return the pack at a path or URL. Nothing is believed yet; see packer.artifact.trust.

    location: "demos.iso#demo:3" names one of several packs, "demos.iso#demo" its highest version.
    """
    place, ref_name = split_location(location)
    return OpenedPack(open_layout_at(place), ref_name)


def open_packs(location: str) -> list[OpenedPack]:
    """Return every pack at a path or URL, or the one that is named after "#".

    They share a layout, so that closing one of them closes it for all.
    """
    place, ref_name = split_location(location)
    layout = open_layout_at(place)
    try:
        return [OpenedPack(layout, ref_name)] if ref_name else packs_of(layout)
    except Error:
        layout.close()
        raise


def nearest(pack: OpenedPack, others: Sequence[OpenedPack]) -> OpenedPack:
    """Return the copy of a pack among others, else the highest version of its name, else any."""
    for one in others:
        if one.config_digest == pack.config_digest:
            return one
    named = [one for one in others if one.config.name == pack.config.name]
    return max(named, key=lambda one: one.config.version, default=others[0])


def is_pack(location: str) -> bool:
    """Return whether a path or URL looks like a pack, not like a disk image."""
    place, _ = split_location(location)
    there = place.partition(":")[0] in NETWORK_SCHEMES or is_reference(place)
    return there or is_layout(place.removeprefix("pack:"))


def split_location(location: str) -> tuple[str, str | None]:
    """Return (path or URL of a layout, name of the pack in it or None)."""
    place, mark, ref_name = location.rpartition("#")
    # A file may have such a name; of what cannot be looked at (too long a name) nobody knows.
    if not mark or os.path.exists(location.removeprefix("pack:")):  # noqa: PTH110 - never raises
        return location, None
    if not ref_name:
        raise UsageError(f"{location}: expected the name of a pack after '#', found nothing")
    return place, ref_name


def open_layout_at(location: str) -> Layout:
    """Return the layout at a path or URL."""
    if location.startswith(("https://", "http://")):
        # Here, because the HTTP libraries take as long to load as all the rest.
        from packer.artifact.layout.web import WebLayout

        return WebLayout(location)
    if is_reference(location):
        from packer.artifact.layout.registry import RegistryLayout

        return RegistryLayout(location)
    return open_layout(location.removeprefix("pack:"))


def _symbols(location: str) -> Source:
    """Return the symbol server at an address, or the folder in the layout of one."""
    if location.startswith(("https:", "http:")):
        from packer.sources.symbol_server import SymbolServer  # here, as above

        return SymbolServer(location)
    return SymbolFolder(Path(location))


class SourceOpener:
    """Opens sources that share one memory and one store.

    pack: what is to be rebuilt; None for a source that is asked about something else.
    """

    def __init__(self, store: Store, pack: OpenedPack | None = None) -> None:
        self._pack = pack
        self._store = store
        self._opened: list[Source] = []
        self._memory = Memory(host.cache_dir() / "files.sqlite")

    def open_all(self, uris: Sequence[str]) -> tuple[list[Source], list[str]]:
        """Return (the sources that the user named, in that order; notes about those left out).

        A server is asked only if something is missing; one that does not answer then is left out.
        Raises UsageError for a URI of no known kind, Error for a source on this host that is not
        there, InputError for one that is damaged.
        """
        sources: list[Source] = []
        notes: list[str] = []
        for uri in dict.fromkeys(uris):
            try:
                sources.append(self.open(uri))
            except UsageError:
                raise
            except Error as error:
                if uri.partition(":")[0] not in NETWORK_SCHEMES:
                    if isinstance(error.__cause__, InputError):
                        raise InputError(error.message, hint=error.hint) from error
                    raise
                notes.append(f"{error}; left out")
        return sources, notes

    def defaults(self, *, offline: bool) -> tuple[list[Source], list[str]]:
        """Return (sources to use when the user named none, notes about those left out).

        This host's package-owned trees, package files that apt has kept, and what the pack
        recommends.
        """
        sources: list[Source] = self._keep(default_sources(self._memory))
        if APT_ARCHIVES.is_dir():
            sources += self._keep([DebSource(APT_ARCHIVES)])
        notes: list[str] = []
        for uri in self._pack.config.sources if self._pack else ():
            if uri.partition(":")[0] not in RECOMMENDED_SCHEMES:
                notes.append(f"the pack recommends {uri}, which only a user may name; left out")
            elif not offline:
                try:
                    sources.append(self.open(uri))
                except Error as error:
                    notes.append(str(error))
        return sources, notes

    def open(self, uri: str) -> Source:
        """Return one source.

        Raises UsageError for a URI of no known kind, Error for a source that is not there.
        """
        kind, colon, rest = uri.partition(":")
        if kind == "pack" and (rest.startswith(("https:", "http:")) or is_reference(rest)):
            return self.open(rest)
        if kind in ("https", "http"):
            from packer.transport.response import is_address, visible

            shown = visible(uri)
            if not is_address(uri):
                raise UsageError(f"{shown}: expected an address like https://host/directory/")
            return self._keep([OnDemand(shown, lambda: self._other_pack(shown, uri))])[0]
        if is_reference(uri):
            parse_reference(split_location(uri)[0])
            return self._keep([OnDemand(uri, lambda: self._other_pack(uri, uri))])[0]
        if is_neighbour(uri):
            return self._keep([NeighbourSource(uri)])[0]
        makers: dict[str, Callable[[str], Source]] = {
            "store": lambda folder: Store(Path(folder)) if folder else self._store,
            "apt": lambda _: AptSource(host.packages_dir()),
            "dir": lambda folder: DirectorySource(Path(folder), self._memory),
            "disk": DiskSource,
            "medium": lambda path: MediumSource(Path(path), host.media_dir(), self._memory),
            "symbols": _symbols,
            "pack": lambda location: self._other_pack(f"pack:{location}", location),
            "deb": lambda folder: DebSource(Path(folder)),
        }
        if not colon or kind not in makers or not (rest or kind in ("store", "apt")):
            raise UsageError(f"{uri}: not a source; expected one of {KINDS}")
        return self._keep([makers[kind](rest)])[0]

    def close(self) -> None:
        """Close every source that was opened here, and their memory."""
        for source in self._opened:
            source.close()
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keep(self, sources: Sequence[Source]) -> list[Source]:
        self._opened.extend(sources)
        return list(sources)

    def _other_pack(self, uri: str, location: str) -> PackSource:
        packs = open_packs(location)
        try:
            other = packs[0] if self._pack is None else nearest(self._pack, packs)
            if self._pack is not None and other.config_digest == self._pack.config_digest:
                # A copy of the same pack: only its bundles differ, its map need not be read.
                other.share_map(self._pack)
            return PackSource(uri, other.layout, other.map.contents, other.index)
        except Error as error:
            packs[0].close()
            raise SourceError(f"{uri}: {error}", hint=error.hint) from error
