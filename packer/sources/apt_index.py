"""Which file of the mirror is a package: what dpkg does not note and a pack wants to name.

dpkg's status has name, version and architecture of what is installed, and neither the path of the
package file nor its digest; the mirror's Packages has all of them, for the newest version only.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packer.artifact.hints import Package
from packer.sources.apt_host import MAX_PACKAGE_BYTES, Apt, IndexFile, find_apt, package_uri
from packer.sources.base import SourceError

PackageKey = tuple[str, str, str]
"""name, version, architecture, as dpkg has them."""

MAX_ARCHITECTURES = 8
"""Of the packages of one guest; each costs the mirrors' lists of it."""

_ARCHITECTURE = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)  # Debian policy 5.6.8
_SHA256 = re.compile(r"[0-9a-f]{64}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resolution:
    """What the mirrors say of packages, in the order they were asked for.

    packages: filename, sha256 and size_bytes stay empty where no mirror lists this version.
    base_uris: where each one lies, "" likewise. note: why nothing could be asked, or "".
    """

    packages: tuple[Package, ...]
    base_uris: tuple[str, ...]
    note: str = ""


def resolve(packages: Sequence[PackageKey], *, update_folder: Path | None = None) -> Resolution:
    """Return the package files of the given packages as apt's lists of this host have them.

    update_folder: where lists may be fetched to when this host has none for what is asked
    (network, some 10 MB); None: no network. Never raises: both fields are optional.
    """
    apt = find_apt()
    if apt is None:
        return _unresolved(packages, "this host has no apt, so no mirror could be asked")
    try:
        files = apt.index_files()
        missing = _architectures(packages) - {file.architecture for file in files}
        if update_folder is not None and (not files or missing):
            files = _merged(files, _update(apt, update_folder, packages))
        if not files:
            return _unresolved(packages, "apt has no lists on this host; run apt-get update")
        return _looked_up(apt, files, packages)
    except SourceError as error:
        return _unresolved(packages, str(error))


def find_packages(
    text: bytes, wanted: dict[bytes, set[tuple[bytes, bytes]]]
) -> Iterator[tuple[PackageKey, Package]]:
    """Yield the wanted packages of a Packages file with what it says of their files.

    wanted: {name: {(version, architecture)}}. Debian policy 5.1, deb-control(5).
    """
    for stanza in text.split(b"\n\n"):
        # Every writer of Packages begins a stanza with its name, so most are passed by at once.
        start = len(stanza) - len(stanza.lstrip(b"\n"))
        end = stanza.find(b"\n", start)
        if not stanza.startswith(b"Package: ", start):
            continue
        versions = wanted.get(stanza[start + 9 : end].strip())
        if versions is None:
            continue
        fields = _fields(stanza)
        if (fields.get(b"version", b""), fields.get(b"architecture", b"")) in versions:
            package = _package(fields)
            yield (package.name, package.version, package.architecture), package


def _fields(stanza: bytes) -> dict[bytes, bytes]:
    lines = [line.partition(b":") for line in stanza.splitlines() if line[:1] not in (b" ", b"\t")]
    return {name.lower(): value.strip() for name, _, value in lines}


def _package(fields: dict[bytes, bytes]) -> Package:
    def text(name: bytes) -> str:
        return fields.get(name, b"").decode("utf-8", "replace")

    size = text(b"size")
    return checked(
        Package(
            "dpkg",
            text(b"package"),
            text(b"version"),
            text(b"architecture"),
            text(b"filename"),
            text(b"sha256").lower(),
            int(size) if size.isascii() and size.isdigit() and len(size) < 19 else 0,
        )
    )


def checked(package: Package) -> Package:
    """Return a package with what is not well-formed about its file left empty.

    Without a usable file name or size nothing is left; without a digest the contents' own digests
    are the proof.
    """
    size = package.size_bytes
    if package_uri("", package.filename) is None or not 0 <= size <= MAX_PACKAGE_BYTES:
        return Package(package.manager, *key_of(package))
    if package.sha256 and not _SHA256.fullmatch(package.sha256):
        return Package(package.manager, *key_of(package), package.filename, "", size)
    return package


def key_of(package: Package) -> PackageKey:
    """Return what dpkg knows of a package."""
    return package.name, package.version, package.architecture


def _looked_up(apt: Apt, files: Sequence[IndexFile], packages: Sequence[PackageKey]) -> Resolution:
    wanted: dict[bytes, set[tuple[bytes, bytes]]] = {}
    for name, version, architecture in packages:
        wanted.setdefault(name.encode(), set()).add((version.encode(), architecture.encode()))
    found: dict[PackageKey, tuple[Package, str]] = {}
    for file in files:
        try:
            text = apt.read_index(file)
        except (SourceError, OSError) as error:
            _log.warning("%s", error)
            continue
        for key, package in find_packages(text, wanted):
            if package.filename:
                found.setdefault(key, (package, file.base_uri))
    rows = [found.get(key, (Package("dpkg", *key), "")) for key in packages]
    return Resolution(tuple(row[0] for row in rows), tuple(row[1] for row in rows))


def _update(apt: Apt, folder: Path, packages: Sequence[PackageKey]) -> list[IndexFile]:
    try:
        return apt.update(folder, sorted(_architectures(packages)))
    except (SourceError, OSError) as error:
        _log.warning("the mirrors' lists could not be fetched: %s", error)
        return []


def _merged(first: Sequence[IndexFile], second: Sequence[IndexFile]) -> list[IndexFile]:
    known = {(file.base_uri, Path(file.path).name) for file in first}
    return [*first, *(f for f in second if (f.base_uri, Path(f.path).name) not in known)]


def _architectures(packages: Sequence[PackageKey]) -> set[str]:
    """Return the architectures that apt can be asked for; what else a pack names is passed over."""
    named = {key[2] for key in packages if _ARCHITECTURE.fullmatch(key[2])} - {"all"}
    return set(sorted(named)[:MAX_ARCHITECTURES])


def _unresolved(packages: Sequence[PackageKey], note: str) -> Resolution:
    return Resolution(tuple(Package("dpkg", *key) for key in packages), ("",) * len(packages), note)
