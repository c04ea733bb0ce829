"""Ask a child what component manifests and security catalogs on a Windows disk list.

What it answers is checked here, and is no more than a hint: digests, names, and who says to have
signed. Nothing of it is proven.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from packer.survey import wire
from packer.survey.answers import ask, demand, demand_signers, demand_texts
from packer.survey.disk import Disk
from packer.survey.limits import Limits
from packer.survey.opening import pack_files

MAX_RECORDS = 1 << 17
"""Of one request; Windows 11 has some 30,000 manifests and 15,000 catalogs."""

SHA1_BYTES, SHA256_BYTES = 20, 32
_MAX_LIST_DIGESTS = 1 << 22
"""Twice what the child begins with: it reads every file that it begins to its end."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """organization, common_name: of the signer's certificate, "" for none. sha1, sha256: digests,
    20 and 32 bytes each, one after the other; see formats.windows.catalog.
    error: why there is nothing, "" otherwise.
    """

    organization: str = ""
    common_name: str = ""
    sha1: bytes = b""
    sha256: bytes = b""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """files: (name as it lies in WinSxS, digest of 20 or 32 bytes); error: as of Catalog."""

    files: tuple[tuple[str, bytes], ...] = ()
    error: str = ""


def read_catalogs(
    disk: Disk, files: Sequence[NDArray[np.int64]], *, limits: Limits | None = None
) -> list[Catalog]:
    """Return a Catalog for each file.

    files: each as int64[n, 3], the runs of formats.source.Runs with offsets of the disk.
    Raises InputError when the disk cannot be read, or when the child does not answer as it should.
    """
    if not files:
        return []
    request = wire.ReadCatalogs(disk.opening, pack_files(_bounded(files)))
    return ask(
        disk,
        "catalog",
        request,
        wire.CatalogsReply,
        partial(believe_catalogs, count=len(files)),
        what="the catalogs on",
        limits=limits or Limits(),
    )


def read_manifests(
    disk: Disk, files: Sequence[NDArray[np.int64]], *, limits: Limits | None = None
) -> list[Manifest]:
    """Return a Manifest for each file; see `read_catalogs`."""
    if not files:
        return []
    request = wire.ReadManifests(disk.opening, pack_files(_bounded(files)))
    return ask(
        disk,
        "manifest",
        request,
        wire.ManifestsReply,
        partial(believe_manifests, count=len(files)),
        what="the manifests on",
        limits=limits or Limits(),
    )


def believe_catalogs(reply: wire.CatalogsReply, count: int) -> list[Catalog]:
    """Return the rows of a reply about `count` catalogs.

    Raises MalformedError when it contradicts the question or itself.
    """
    numbers = wire.unpack_table(reply.numbers, "catalogs", 3)
    demand(len(numbers) == count and len(reply.errors) == count, "not a row for each catalog")
    demand(not (numbers[:, 0] > len(reply.signers)).any(), "a signer that is not listed")
    demand(not (numbers[:, 1:] > _MAX_LIST_DIGESTS).any(), "too many digests")
    sha1 = _cut(reply.sha1, (numbers[:, 1] * SHA1_BYTES).tolist())
    sha256 = _cut(reply.sha256, (numbers[:, 2] * SHA256_BYTES).tolist())
    signers = [("", ""), *demand_signers(reply.signers, count)]
    errors = demand_texts(reply.errors, wire.MAX_TEXT_CHARACTERS)
    found: list[Catalog] = []
    for row, signer in enumerate(numbers[:, 0].tolist()):
        organization, common_name = signers[signer]
        found.append(Catalog(organization, common_name, sha1[row], sha256[row], errors[row]))
    return found


def believe_manifests(reply: wire.ManifestsReply, count: int) -> list[Manifest]:
    """Return the rows of a reply about `count` manifests.

    Raises MalformedError when it contradicts the question or itself.
    """
    numbers = wire.unpack_table(reply.numbers, "manifests", 2)
    demand(len(reply.errors) == count, "not a row for each manifest")
    demand(len(numbers) <= _MAX_LIST_DIGESTS, "too many digests")
    demand(not (numbers[:, 0] >= count).any(), "a file of no manifest")
    demand(bool(np.isin(numbers[:, 1], (SHA1_BYTES, SHA256_BYTES)).all()), "an odd digest")
    digests = _cut(reply.digests, numbers[:, 1].tolist())
    names = wire.unpack_texts(reply.names, len(numbers), "files of manifests")
    errors = demand_texts(reply.errors, wire.MAX_TEXT_CHARACTERS)
    files: list[list[tuple[str, bytes]]] = [[] for _ in range(count)]
    for number, name, digest in zip(numbers[:, 0].tolist(), names, digests, strict=True):
        files[number].append((name, digest))
    return [Manifest(tuple(some), error) for some, error in zip(files, errors, strict=True)]


def _cut(data: bytes, lengths: list[int]) -> list[bytes]:
    ends = list(accumulate(lengths))
    demand(len(data) == (ends[-1] if ends else 0), "not as many bytes as there are digests")
    return [data[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _bounded(files: Sequence[NDArray[np.int64]]) -> Sequence[NDArray[np.int64]]:
    if len(files) > MAX_RECORDS:
        raise ValueError(f"{len(files)} records, at most {MAX_RECORDS} at once")
    return files
