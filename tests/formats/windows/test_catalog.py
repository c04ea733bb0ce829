"""Catalogs: what is read of them, and what osslsigncode makes of the same ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from fixtures.windows.der import explicit, oid, sequence
from formats.errors import Corrupt, FormatError, Truncated, Unsupported
from formats.source import Memory
from formats.windows import der
from formats.windows.authenticode import image_digest
from formats.windows.catalog import MAX_CATALOG_BYTES, MAX_MEMBERS, read_catalog
from formats.windows.pe import PortableExecutable
from formats.windows.pkcs7 import Digest, Signer
from tests.formats.damage import at_most_one_gib, damaged
from tests.formats.windows.make_catalog import (
    FLAT_FILE,
    SHA1,
    SHA256,
    VERSION_2,
    Member,
    catalog,
)
from tests.formats.windows.make_pe import Form, program
from tests.formats.windows.signing import COMMON_NAME, ORGANIZATION, make_author

FLAT = hashlib.sha256(b"a font").digest()
SHORT = hashlib.sha1(b"a font", usedforsecurity=False).digest()


def tag(digest: bytes) -> bytes:
    """The identifier of a member in version 1: the digest as text."""
    return (digest.hex().upper() + "\0").encode("utf-16-le")


def test_the_members_of_a_catalog_of_version_1() -> None:
    made = catalog([Member(b"a name\0", (SHA1, SHORT)), Member(tag(FLAT), (SHA256, FLAT))])
    found = read_catalog(Memory(made))
    assert found.digests == {Digest("sha1", SHORT), Digest("sha256", FLAT)}
    assert found.signer is None


def test_in_version_2_the_identifier_is_a_digest_of_its_own() -> None:
    members = [Member(SHORT, None), Member(FLAT, (SHA256, FLAT), FLAT_FILE)]
    found = read_catalog(Memory(catalog(members, VERSION_2)))
    assert found.digests == {Digest("sha1", SHORT), Digest("sha256", FLAT)}


def test_in_version_1_a_name_of_20_letters_is_no_digest() -> None:
    assert read_catalog(Memory(catalog([Member(b"x" * 20, None)]))).digests == frozenset()


def test_an_algorithm_that_nobody_knows_is_left_out() -> None:
    md5 = "1.2.840.113549.2.5"
    found = read_catalog(Memory(catalog([Member(b"x", (md5, bytes(16)))])))
    assert found.digests == frozenset()


def test_an_empty_catalog_has_no_members() -> None:
    assert read_catalog(Memory(catalog([]))).digests == frozenset()


@pytest.mark.parametrize("is_64_bit", [True, False])
def test_osslsigncode_finds_a_program_in_a_catalog_by_our_digest(
    tmp_path: Path, is_64_bit: bool
) -> None:
    author = make_author(tmp_path)
    data = program(Form(imports=("ntdll.dll",), is_64_bit=is_64_bit, tail=b"abc"))
    digest = image_digest(Memory(data), PortableExecutable(Memory(data)), "sha256")
    (tmp_path / "driver.sys").write_bytes(data)
    (tmp_path / "unsigned.cat").write_bytes(catalog([Member(tag(digest), (SHA256, digest))]))
    signed = author.sign(tmp_path / "unsigned.cat", tmp_path / "signed.cat")
    found = read_catalog(Memory(signed.read_bytes()))
    assert found.signer == Signer(ORGANIZATION, COMMON_NAME)
    assert found.digests == {Digest("sha256", digest)}
    assert "Succeeded" in author.check(tmp_path / "driver.sys", "-catalog", signed)
    (tmp_path / "driver.sys").write_bytes(data.replace(b"ntdll.dll", b"other.dll"))
    with pytest.raises(AssertionError):
        author.check(tmp_path / "driver.sys", "-catalog", signed)


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        (b"", Truncated),
        (b"MZ", Truncated),
        (sequence(), Corrupt),
        (sequence(oid("1.2.840.113549.1.7.1"), explicit(0, sequence())), Corrupt),
        (catalog([Member(b"x", (SHA1, FLAT))]), Corrupt),  # a digest of another length
        (
            catalog([]).replace(oid("1.3.6.1.4.1.311.12.1.1"), oid("1.3.6.1.4.1.311.12.1.9")),
            Corrupt,
        ),
    ],
)
def test_what_is_no_catalog_is_refused(broken: bytes, error: type[FormatError]) -> None:
    with pytest.raises(error):
        read_catalog(Memory(broken))


@pytest.mark.parametrize(
    "broken",
    [
        b"\x30",
        b"\x30\x80\0\0",  # an indefinite length
        b"\x30\x85\1\0\0\0\0",  # more than four octets of length
        b"\x30\x84\xff\xff\xff\xff",
        b"\x1f\x81\x01\x00",  # a tag of several octets
    ],
)
def test_lengths_and_tags_are_bounded(broken: bytes) -> None:
    with pytest.raises(FormatError):
        der.parse(broken)


def test_object_identifiers_are_encoded_as_openssl_does() -> None:
    # `openssl asn1parse -genstr OID:1.3.6.1.4.1.311.12.1.2` writes these octets
    assert der.object_identifier("1.3.6.1.4.1.311.12.1.2").hex() == "2b060104018237" + "0c0102"


def test_the_number_of_members_is_bounded() -> None:
    with at_most_one_gib(), pytest.raises(Unsupported, match="members"):
        read_catalog(Memory(catalog([Member(b"", None)] * (MAX_MEMBERS + 1))))


def test_a_file_that_is_larger_than_any_catalog_is_not_read() -> None:
    with pytest.raises(Unsupported, match="bytes"):
        read_catalog(Memory(bytes(MAX_CATALOG_BYTES + 1)))


def test_damaged_catalogs_are_refused_or_read(tmp_path: Path) -> None:
    author = make_author(tmp_path)
    members = [Member(tag(FLAT), (SHA256, FLAT)), Member(b"x", (SHA1, SHORT))] * 4
    (tmp_path / "unsigned.cat").write_bytes(catalog(members))
    data = author.sign(tmp_path / "unsigned.cat", tmp_path / "signed.cat").read_bytes()
    refused = 0
    with at_most_one_gib():
        for broken in damaged(data, [(0, len(data))], 2000):
            try:
                read_catalog(Memory(broken))
            except FormatError:
                refused += 1
    assert 100 < refused < 1900
