"""Security catalogs (.cat): digests of files that somebody has signed together.

What a catalog says of its signer is a hint, see `formats.windows.pkcs7`.

Sources: Microsoft, "Catalog Files and Digital Signatures"
(learn.microsoft.com/windows-hardware/drivers/install/catalog-files); wintrust.h and mscat.h of the
Windows SDK (CAT_*, szOID_CATALOG_*); osslsigncode 2.5, osslsigncode.c (MsCtlContent,
CatalogInfo) for the layout of the certificate trust list.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from formats.errors import Corrupt, Truncated, Unsupported
from formats.source import Readable
from formats.windows import der
from formats.windows.authenticode import INDIRECT_DATA, parse_indirect_data
from formats.windows.der import Element, object_identifier
from formats.windows.pkcs7 import Digest, Signer, parse_signed_data

MAX_CATALOG_BYTES = 16 << 20
"""The largest catalogs of Windows hold some ten thousand members in a few megabytes."""
MAX_MEMBERS = 1 << 18

_TRUST_LIST = object_identifier("1.3.6.1.4.1.311.10.1")  # szOID_CTL
_CATALOG_LIST = object_identifier("1.3.6.1.4.1.311.12.1.1")  # szOID_CATALOG_LIST
_MEMBERS_2 = object_identifier("1.3.6.1.4.1.311.12.1.3")  # szOID_CATALOG_LIST_MEMBER2
_RAW_IDENTIFIERS = {20: "sha1", 32: "sha256"}


@dataclass(frozen=True, slots=True)
class Catalog:
    """signer: None if nobody signed it, or the certificate is not enclosed.

    digests: of its members; of programs the `authenticode.image_digest`, of other files that of
    all their bytes.
    """

    signer: Signer | None
    digests: frozenset[Digest]


def read_catalog(source: Readable) -> Catalog:
    """Return the members and the signer of a catalog. Raises FormatError."""
    if source.size > MAX_CATALOG_BYTES:
        raise Unsupported("catalog", 0, f"{source.size} bytes")
    signed = parse_signed_data(source.pread(0, source.size))
    if signed.content_type != _TRUST_LIST or signed.content is None:
        raise Corrupt("catalog", 0, "expected a certificate trust list")
    return Catalog(signed.signer, frozenset(_digests(signed.content)))


def _digests(trust_list: Element) -> Iterator[Digest]:
    """Yield the digests of all members.

    CertificateTrustList: usage; list identifier; time; algorithm; members; extensions. The
    identifier and further times are optional, so what follows the usage goes by its tag.
    """
    usage, *fields = trust_list.expect(der.SEQUENCE).fields(1)
    if [one.content for one in usage.children()] != [_CATALOG_LIST]:
        raise Corrupt("certificate trust list", trust_list.start, "it is no list of files")
    sequences = [one for one in fields if one.tag == der.SEQUENCE]
    if not sequences:
        raise Truncated("certificate trust list", trust_list.start, "expected an algorithm")
    algorithm = next(sequences[0].children(), None)
    is_version_2 = algorithm is not None and algorithm.content == _MEMBERS_2
    for members in sequences[1:2]:  # none: an empty catalog
        for number, member in enumerate(members.children()):
            if number == MAX_MEMBERS:
                raise Unsupported("catalog", member.start, f"more than {MAX_MEMBERS} members")
            yield from _of_member(member, is_version_2)


def _of_member(member: Element, is_version_2: bool) -> Iterator[Digest]:
    """Yield the digests of a member: its identifier, and its attributes.

    Identifiers of version 1 are text of any kind, those of version 2 a digest.
    """
    identifier, *rest = member.expect(der.SEQUENCE).fields(1)
    value = identifier.expect(der.OCTET_STRING).content
    if is_version_2 and len(value) in _RAW_IDENTIFIERS:
        yield Digest(_RAW_IDENTIFIERS[len(value)], value)
    for attributes in rest[:1]:
        for attribute in attributes.expect(der.SET).fields(0):
            yield from _of_attribute(attribute)


def _of_attribute(attribute: Element) -> Iterator[Digest]:
    kind, *values = attribute.expect(der.SEQUENCE).fields(1)
    if kind.content != INDIRECT_DATA:
        return
    for value in values[0].expect(der.SET).fields(0) if values else ():
        digest = parse_indirect_data(value)
        if digest is not None:
            yield digest
