"""Catalogs from nothing, in DER; osslsigncode signs them and checks programs against them.

Layout after osslsigncode 2.5 (MsCtlContent, CatalogInfo) and its own test catalogs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fixtures.windows.der import (
    BIT_STRING,
    UTC_TIME,
    bmp_string,
    explicit,
    integer,
    null,
    octets,
    oid,
    sequence,
    set_of,
    tagged,
)

SHA1, SHA256 = "1.3.14.3.2.26", "2.16.840.1.101.3.4.2.1"
PE_IMAGE, FLAT_FILE = "1.3.6.1.4.1.311.2.1.15", "1.3.6.1.4.1.311.2.1.25"
VERSION_1, VERSION_2 = "1.3.6.1.4.1.311.12.1.2", "1.3.6.1.4.1.311.12.1.3"


@dataclass(frozen=True, slots=True)
class Member:
    """identifier: what the member is called by. digest: (algorithm, value), None for none."""

    identifier: bytes
    digest: tuple[str, bytes] | None
    kind: str = PE_IMAGE


def catalog(members: Sequence[Member], version: str = VERSION_1) -> bytes:
    """An unsigned catalog, as makecat writes it."""
    trust_list = sequence(
        sequence(oid("1.3.6.1.4.1.311.12.1.1")),
        octets(bytes(range(16))),
        tagged(UTC_TIME, b"201029102811Z"),
        sequence(oid(version), null()),
        sequence(*map(_member, members)),
        explicit(0, sequence()),
    )
    content = sequence(oid("1.3.6.1.4.1.311.10.1"), explicit(0, trust_list))
    signed = sequence(integer(1), set_of(), content, set_of())
    return sequence(oid("1.2.840.113549.1.7.2"), explicit(0, signed))


def _member(member: Member) -> bytes:
    information = sequence(bmp_string("{DE351A42-8E59}"), integer(0x200))
    attributes = [sequence(oid("1.3.6.1.4.1.311.12.2.2"), set_of(information))]
    if member.digest is not None:
        algorithm, value = member.digest
        link = explicit(2, tagged(0x80))
        image = sequence(tagged(BIT_STRING, b"\0"), explicit(0, link))
        data = sequence(
            sequence(oid(member.kind), image if member.kind == PE_IMAGE else link),
            sequence(sequence(oid(algorithm), null()), octets(value)),
        )
        attributes.append(sequence(oid("1.3.6.1.4.1.311.2.1.4"), set_of(data)))
    return sequence(octets(member.identifier), set_of(*attributes))
