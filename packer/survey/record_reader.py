"""The child's side of `packer.survey.records`: read catalogs and manifests, answer in columns."""

from __future__ import annotations

from dataclasses import dataclass, field

from formats.errors import FormatError
from formats.source import Runs, Source
from formats.windows.catalog import read_catalog
from formats.windows.manifest import read_manifest
from packer.survey import wire
from packer.survey.opening import open_files

MAX_DIGESTS = 1 << 21
"""Of all files of a request together; all catalogs of a Windows 10 list about a million."""


def answer_catalogs(request: wire.ReadCatalogs, disk: Source) -> wire.CatalogsReply:
    """Return a row for each catalog, also for those that are none."""
    found = _Catalogs()
    for file in open_files(request.files, disk):
        found.add(file)
    return wire.CatalogsReply(
        wire.pack_rows(found.numbers, 3),
        bytes(found.sha1),
        bytes(found.sha256),
        list(found.signers),
        found.errors,
    )


def answer_manifests(request: wire.ReadManifests, disk: Source) -> wire.ManifestsReply:
    """Return the files of each manifest; one that is none has no files, and an error."""
    found = _Manifests()
    for file in open_files(request.files, disk):
        found.add(file)
    return wire.ManifestsReply(
        wire.pack_rows(found.numbers, 2),
        wire.pack_texts(found.names),
        bytes(found.digests),
        found.errors,
    )


@dataclass(slots=True)
class _Catalogs:
    numbers: list[tuple[int, ...]] = field(default_factory=list)
    sha1: bytearray = field(default_factory=bytearray)
    sha256: bytearray = field(default_factory=bytearray)
    signers: dict[tuple[str, str], int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    digests: int = 0

    def add(self, file: Runs) -> None:
        if self.digests > MAX_DIGESTS:
            self._add_nothing(f"not read: more than {MAX_DIGESTS} digests before it")
            return
        try:
            catalog = read_catalog(file)
        except FormatError as error:
            self._add_nothing(str(error))
            return
        by_algorithm = {
            algorithm: sorted(one.value for one in catalog.digests if one.algorithm == algorithm)
            for algorithm in ("sha1", "sha256")
        }
        self.sha1 += b"".join(by_algorithm["sha1"])
        self.sha256 += b"".join(by_algorithm["sha256"])
        self.digests += len(catalog.digests)
        signer = 0
        if catalog.signer is not None:
            names = (catalog.signer.organization, catalog.signer.common_name)
            signer = 1 + self.signers.setdefault(names, len(self.signers))
        self.numbers.append((signer, *map(len, by_algorithm.values())))
        self.errors.append("")

    def _add_nothing(self, error: str) -> None:
        self.numbers.append((0, 0, 0))
        self.errors.append(error[: wire.MAX_TEXT_CHARACTERS])


@dataclass(slots=True)
class _Manifests:
    numbers: list[tuple[int, ...]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    digests: bytearray = field(default_factory=bytearray)
    errors: list[str] = field(default_factory=list)

    def add(self, file: Runs) -> None:
        number = len(self.errors)
        self.errors.append("")
        if len(self.names) > MAX_DIGESTS:
            self.errors[number] = f"not read: more than {MAX_DIGESTS} digests before it"
            return
        try:
            manifest = read_manifest(file)
        except FormatError as error:
            self.errors[number] = str(error)[: wire.MAX_TEXT_CHARACTERS]
            return
        for one in manifest.files:
            if "\0" in one.name:
                continue
            for digest in one.digests:
                self.numbers.append((number, len(digest.value)))
                self.names.append(one.name)
                self.digests += digest.value
