"""PKCS #7 signed data as Windows uses it: what is signed, and who the certificate names.

Nothing here checks a signature, a chain or a date. Anybody can make a certificate that says
"Microsoft Corporation": what comes out is a hint where bytes come from, and proves nothing.

Sources: RFC 2315, sections 7 (ContentInfo), 9.1 (SignedData), 9.2 (SignerInfo); RFC 5280, sections
4.1 (TBSCertificate), 4.1.2.4 (Name); X.690, section 8.23 (restricted character strings).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from formats.errors import Corrupt
from formats.windows import der
from formats.windows.der import Element, object_identifier

_SIGNED_DATA = object_identifier("1.2.840.113549.1.7.2")
_ORGANIZATION = object_identifier("2.5.4.10")
_COMMON_NAME = object_identifier("2.5.4.3")
_TEXTS = {0x0C: "utf-8", 0x1E: "utf-16-be", 0x1C: "utf-32-be"}
"""UTF8String, BMPString, UniversalString; the other kinds have one octet a character."""

_MAX_NAME_CHARACTERS = 256
_MAX_CERTIFICATES = 64

_DIGESTS = {
    object_identifier("1.3.14.3.2.26"): ("sha1", 20),
    object_identifier("2.16.840.1.101.3.4.2.1"): ("sha256", 32),
}
"""What Windows signs files with: algorithm as hashlib calls it, bytes of a digest."""


@dataclass(frozen=True, slots=True)
class Signer:
    """What the subject of the signer's certificate says; "" where it says nothing."""

    organization: str
    common_name: str


class Digest(NamedTuple):
    """algorithm: as hashlib calls it ("sha1", "sha256")."""

    algorithm: str
    value: bytes


@dataclass(frozen=True, slots=True)
class SignedData:
    """content_type: octets of an object identifier. content: None for a detached signature.

    signer: None when nobody signed, or when the signer's certificate is not enclosed.
    """

    content_type: bytes
    content: Element | None
    signer: Signer | None


def parse_signed_data(data: bytes) -> SignedData:
    """Return what a ContentInfo of signed data holds. Raises FormatError."""
    info = der.parse(data).expect(der.SEQUENCE).fields(2)
    if info[0].content != _SIGNED_DATA:
        raise Corrupt("PKCS #7", 0, "expected signed data")
    signed = info[1].expect(der.CONTEXT_0).fields(1)[0].expect(der.SEQUENCE)
    # version, digest algorithms, content, certificates and revocations if any, signer infos
    _, _, encapsulated, *enclosed, infos = signed.fields(4)
    content = encapsulated.expect(der.SEQUENCE).fields(1)
    content_type = content[0].expect(der.OBJECT_IDENTIFIER).content
    inner = content[1].expect(der.CONTEXT_0).fields(1)[0] if len(content) > 1 else None
    certificates = next((one for one in enclosed if one.tag == der.CONTEXT_0), None)
    return SignedData(content_type, inner, _signer(infos.expect(der.SET), certificates))


def parse_digest_info(element: Element) -> Digest | None:
    """Return the digest of a DigestInfo, None for an algorithm nobody here knows.

    Source: RFC 2315, section 9.4. Raises FormatError.
    """
    algorithm, digest, *_ = element.expect(der.SEQUENCE).fields(2)
    kind = algorithm.expect(der.SEQUENCE).fields(1)[0].content
    if kind not in _DIGESTS:
        return None
    name, size = _DIGESTS[kind]
    value = digest.expect(der.OCTET_STRING).content
    if len(value) != size:
        raise Corrupt("DigestInfo", element.start, f"a {name} digest of {len(value)} bytes")
    return Digest(name, value)


def _signer(infos: Element, certificates: Element | None) -> Signer | None:
    """Return the subject of the certificate that the first SignerInfo names."""
    first = next(infos.children(), None)
    if first is None or certificates is None:
        return None
    _, issuer_and_serial, *_ = first.expect(der.SEQUENCE).fields(2)
    wanted = [one.encoded for one in issuer_and_serial.expect(der.SEQUENCE).fields(2)]
    for number, certificate in enumerate(certificates.children()):
        if number == _MAX_CERTIFICATES:
            raise Corrupt("PKCS #7", certificates.start, f"more than {number} certificates")
        if certificate.tag != der.SEQUENCE:
            continue
        serial, issuer, subject = _names(certificate)
        if [issuer.encoded, serial.encoded] == wanted:
            return _signer_called(subject)
    return None


def _names(certificate: Element) -> tuple[Element, Element, Element]:
    """Return serial number, issuer and subject of a certificate."""
    fields = certificate.fields(1)[0].expect(der.SEQUENCE).fields(6)
    first = 1 if fields[0].tag == der.CONTEXT_0 else 0  # the version
    serial, _, issuer, _, subject = fields[first : first + 5]
    return serial, issuer, subject


def _signer_called(subject: Element) -> Signer:
    attributes: dict[bytes, str] = {}
    for relative_name in subject.expect(der.SEQUENCE).fields(0):
        for attribute in relative_name.expect(der.SET).fields(0):
            kind, value, *_ = attribute.expect(der.SEQUENCE).fields(2)
            attributes.setdefault(kind.content, _text(value))
    return Signer(attributes.get(_ORGANIZATION, ""), attributes.get(_COMMON_NAME, ""))


def _text(value: Element) -> str:
    encoding = _TEXTS.get(value.tag, "latin-1")
    return value.content.decode(encoding, "replace")[:_MAX_NAME_CHARACTERS]
