"""Write down in the config what a prepared disk is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import UNSET

from formats.ranges import total
from packer.artifact.config import (
    Boots,
    Config,
    Disk,
    Dropped,
    Guest,
    HintsRef,
    Total,
    Totals,
    digest,
    printable,
    printable_warnings,
)
from packer.artifact.contents import Class
from packer.artifact.hints import NO_PACKAGE
from packer.pack.prepare import Prepared

APT = "apt:"
"""The distribution's mirrors as the user's host has them configured."""


def describe(
    prepared: Prepared,
    name: str,
    version: int,
    sources: Sequence[str],
    map_bytes: bytes,
    hint_bytes: bytes,
    *,
    expires: str = "",
    boots: Boots | None = None,
) -> Config:
    """Return the config of a pack; the same disk and options give the same one."""
    guest = prepared.judgement.guest
    contents = prepared.map.contents

    def of(one: Class) -> Total:
        rows = contents.classes == one
        return Total(int(rows.sum()), int(contents.size[rows].sum()))

    return Config(
        name=name,
        version=version,
        expires=expires,
        guest=Guest(
            *(
                printable(text)
                for text in (
                    guest.family,
                    guest.id,
                    guest.release,
                    guest.name,
                    guest.architecture,
                    guest.firmware,
                )
            )
        ),
        disks=(
            Disk(
                prepared.survey.size,
                prepared.survey.sector_size,
                digest(map_bytes),
                len(map_bytes),
            ),
        ),
        hints=HintsRef(digest(hint_bytes), len(hint_bytes)),
        sources=(*sources, *_mirrors(prepared, sources)),
        dropped=tuple(
            Dropped(printable(one.what), total(one.ranges), printable(one.reason))
            for one in prepared.judgement.dropped
        ),
        totals=Totals(of(Class.BOOT), of(Class.PRIVATE), of(Class.SHARED)),
        warnings=printable_warnings((*prepared.judgement.errors, *prepared.judgement.warnings)),
        boots=UNSET if boots is None else boots,
    )


def unlisted_bytes(prepared: Prepared) -> int:
    """Return the bytes of shared contents that no mirror was found to list.

    Of a package from elsewhere, of a version that mirrors no longer have, or what only the host
    has that `--against` named: a full copy has those.
    """
    contents, hints = prepared.map.contents, prepared.hints
    listed = np.array([bool(package.filename) for package in hints.packages], dtype=bool)
    shipped = hints.package != NO_PACKAGE
    found = np.zeros(len(contents), dtype=bool)
    found[hints.content[shipped][listed[hints.package[shipped]]]] = True
    return int(contents.size[(contents.classes == Class.SHARED) & ~found].sum())


def _mirrors(prepared: Prepared, sources: Sequence[str]) -> tuple[str, ...]:
    """Return APT if a mirror of the distribution was found to have packages of this guest."""
    listed = any(package.filename for package in prepared.hints.packages)
    return (APT,) if listed and APT not in sources else ()
