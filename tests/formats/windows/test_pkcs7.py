"""Whose certificate a signature names, whatever its neighbours and the kind of its strings."""

from __future__ import annotations

import pytest

from fixtures.windows.der import (
    BMP_STRING,
    PRINTABLE,
    UTC_TIME,
    explicit,
    integer,
    null,
    octets,
    oid,
    sequence,
    set_of,
    tagged,
)
from formats.errors import Corrupt
from formats.windows.pkcs7 import Signer, parse_signed_data

UTF8, T61, UNIVERSAL = 0x0C, 0x14, 0x1C
ORGANIZATION, COMMON_NAME, COUNTRY = "2.5.4.10", "2.5.4.3", "2.5.4.6"
ALGORITHM = sequence(oid("1.2.840.113549.1.1.11"), null())


def name(*attributes: tuple[str, bytes]) -> bytes:
    return sequence(*(set_of(sequence(oid(kind), value)) for kind, value in attributes))


def printable(text: str) -> bytes:
    return tagged(PRINTABLE, text.encode("ascii"))


ISSUER = name((COMMON_NAME, printable("An Authority")))
EXAMPLE = name(
    (COUNTRY, printable("US")),
    (ORGANIZATION, printable("Example Corporation")),
    (COMMON_NAME, printable("Example Windows")),
)


def certificate(serial: int, subject: bytes, *, has_version: bool = True) -> bytes:
    """Enough of a certificate; nobody looks at its key or signature."""
    validity = sequence(*[tagged(UTC_TIME, b"201029102811Z")] * 2)
    version = [explicit(0, integer(2))] if has_version else []
    fields = (integer(serial), ALGORITHM, ISSUER, validity, subject, sequence())
    return sequence(sequence(*version, *fields), ALGORITHM, tagged(3, b"\0"))


def signed_data(*certificates: bytes, serial: int = 7) -> bytes:
    signer = sequence(integer(1), sequence(ISSUER, integer(serial)), ALGORITHM, octets(b""))
    fields = (
        integer(1),
        set_of(),
        sequence(oid("1.2.840.113549.1.7.1")),
        explicit(0, *certificates),
        set_of(signer),
    )
    return sequence(oid("1.2.840.113549.1.7.2"), explicit(0, sequence(*fields)))


OTHER = certificate(6, name((COMMON_NAME, printable("Somebody Else"))))


@pytest.mark.parametrize("has_version", [True, False])
def test_the_signer_is_the_one_whose_issuer_and_serial_number_are_named(has_version: bool) -> None:
    mine = certificate(7, EXAMPLE, has_version=has_version)
    found = parse_signed_data(signed_data(OTHER, mine))
    assert found.signer == Signer("Example Corporation", "Example Windows")


def test_without_the_signers_certificate_there_is_no_signer() -> None:
    assert parse_signed_data(signed_data(OTHER)).signer is None
    assert parse_signed_data(signed_data()).signer is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Fenster für alle", tagged(UTF8, "Fenster für alle".encode())),
        ("Fenster für alle", tagged(T61, "Fenster für alle".encode("latin-1"))),
        ("Окна 窓", tagged(BMP_STRING, "Окна 窓".encode("utf-16-be"))),
        ("Окна 🪟", tagged(UNIVERSAL, "Окна 🪟".encode("utf-32-be"))),
        ("\N{REPLACEMENT CHARACTER}", tagged(UTF8, b"\xff")),
        ("x" * 256, printable("x" * 5000)),
    ],
)
def test_names_are_read_in_every_kind_of_string(text: str, value: bytes) -> None:
    found = parse_signed_data(signed_data(certificate(7, name((COMMON_NAME, value)))))
    assert found.signer == Signer("", text)


def test_a_certificate_of_too_few_fields_is_refused() -> None:
    short = sequence(sequence(explicit(0, integer(2)), integer(7), ALGORITHM, ISSUER))
    with pytest.raises(Corrupt):
        parse_signed_data(signed_data(short))


def test_the_number_of_certificates_is_bounded() -> None:
    with pytest.raises(Corrupt, match="more than 64"):
        parse_signed_data(signed_data(*[OTHER] * 65))
