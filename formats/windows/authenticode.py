"""Authenticode: who a program says has signed it, and the digest that a signature covers.

The signer is a hint for classification and proves nothing: no signature, chain or date is
checked, and anybody can make a certificate with any name in it.

Source: Microsoft, "Windows Authenticode Portable Executable Signature Format", 21 March 2008,
sections "Authenticode Profile of PKCS #7 SignedData", "SpcIndirectDataContent", "Calculating the
PE Image Hash"; "PE Format", section "The Attribute Certificate Table".
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from formats.errors import Corrupt, Unsupported
from formats.source import Readable
from formats.windows import der
from formats.windows.der import Element, object_identifier
from formats.windows.pe import PortableExecutable
from formats.windows.pkcs7 import Digest, Signer, parse_digest_info, parse_signed_data

MAX_CERTIFICATE_BYTES = 4 << 20
"""A signature takes 5 to 40 kB; page hashes of the largest programs some hundred."""

MAX_CERTIFICATES = 64
"""Entries of a table; real ones have one, or two with a second algorithm."""

_HEADER = struct.Struct("<IHH")
# WIN_CERTIFICATE: 0 dwLength, bytes with this header; 4 wRevision; 6 wCertificateType
_SIGNED_DATA = 2  # WIN_CERT_TYPE_PKCS_SIGNED_DATA
_ALIGNMENT = 8  # of each entry
INDIRECT_DATA = object_identifier("1.3.6.1.4.1.311.2.1.4")  # SPC_INDIRECT_DATA_OBJID
_CHECKSUM_BYTES, _DIRECTORY_ENTRY_BYTES = 4, 8
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Signature:
    """signer: None if its certificate is not enclosed. digest: see `image_digest`; None when
    the algorithm is neither SHA-1 nor SHA-256.
    """

    signer: Signer | None
    digest: Digest | None


def read_signature(source: Readable, program: PortableExecutable) -> Signature | None:
    """Return the first signature that the program carries, None if it carries none.

    Programs of Windows itself are often signed by a catalog instead. Raises FormatError.
    """
    table = program.certificates()
    if table is None:
        return None
    at, end = table
    for _ in range(MAX_CERTIFICATES):
        if at + _HEADER.size > end:
            return None
        length, _, kind = _HEADER.unpack(source.pread(at, _HEADER.size))
        if not _HEADER.size <= length <= end - at:
            raise Corrupt("WIN_CERTIFICATE", at, f"{length} bytes")
        if kind == _SIGNED_DATA:
            return _parse(source, at + _HEADER.size, length - _HEADER.size)
        at += -(-length // _ALIGNMENT) * _ALIGNMENT
    raise Unsupported("WIN_CERTIFICATE", at, f"more than {MAX_CERTIFICATES} of them")


def image_digest(source: Readable, program: PortableExecutable, algorithm: str) -> bytes:
    """Return the digest that signatures and catalogs have of a program (the "authentihash").

    It covers the file without its checksum, its certificates and the entry that says where they
    are; a file that is not a multiple of 8 bytes long is taken as if zeros followed, as they do
    once it is signed. The whole file is read. algorithm: "sha1" or "sha256". Raises FormatError.
    """
    digest = hashlib.new(algorithm, usedforsecurity=False)
    at = 0
    for start, end in _left_out(program):
        _feed(digest, source, at, start)
        at = end
    _feed(digest, source, at, source.size)
    if program.certificates() is None:
        digest.update(bytes(-source.size % _ALIGNMENT))
    return digest.digest()


def parse_indirect_data(element: Element) -> Digest | None:
    """Return the digest of an SpcIndirectDataContent, None for an algorithm nobody here knows.

    Of a program it is the `image_digest`, of any other file that of all its bytes.
    Raises FormatError.
    """
    _, digest, *_ = element.expect(der.SEQUENCE).fields(2)
    return parse_digest_info(digest)


def _parse(source: Readable, start: int, length: int) -> Signature:
    if length > MAX_CERTIFICATE_BYTES:
        raise Unsupported("WIN_CERTIFICATE", start, f"{length} bytes")
    signed = parse_signed_data(source.pread(start, length))
    if signed.content_type != INDIRECT_DATA or signed.content is None:
        raise Corrupt("WIN_CERTIFICATE", start, "it signs something else than a file")
    return Signature(signed.signer, parse_indirect_data(signed.content))


def _left_out(program: PortableExecutable) -> list[tuple[int, int]]:
    parts = [(program.checksum_at, program.checksum_at + _CHECKSUM_BYTES)]
    if program.certificates_at >= 0:
        entry = program.certificates_at
        parts.append((entry, entry + _DIRECTORY_ENTRY_BYTES))
    table = program.certificates()
    if table is not None:
        if table[0] < parts[-1][1]:
            reason = "the certificates overlap the headers"
            raise Corrupt("attribute certificate table", table[0], reason)
        parts.append(table)
    return parts


def _feed(digest: hashlib._Hash, source: Readable, start: int, end: int) -> None:
    for at in range(start, end, _CHUNK_BYTES):
        digest.update(source.pread(at, min(_CHUNK_BYTES, end - at)))
