"""Who a program says has signed it; signatures are made and checked by osslsigncode."""

from __future__ import annotations

import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fixtures.guests.workshop import guests_folder
from fixtures.windows import signing as fixture_signing
from fixtures.windows.parts import windows_parts
from formats.errors import Corrupt, FormatError, Unsupported
from formats.source import Memory, Source
from formats.windows.authenticode import Signature, image_digest, read_signature
from formats.windows.pe import PortableExecutable
from formats.windows.pkcs7 import Signer
from tests.formats.damage import at_most_one_gib, damaged
from tests.formats.windows.make_pe import Form, program
from tests.formats.windows.signing import COMMON_NAME, ORGANIZATION, Author, make_author

EXAMPLE = Signer(ORGANIZATION, COMMON_NAME)
TAILS = [b"", b"abc", bytes(7), b"x" * 8]


@pytest.fixture(scope="module")
def author(tmp_path_factory: pytest.TempPathFactory) -> Author:
    return make_author(tmp_path_factory.mktemp("author"))


def read(source: Source) -> Signature | None:
    return read_signature(source, PortableExecutable(source))


def signed(author: Author, folder: Path, data: bytes, algorithm: str = "sha256") -> bytes:
    original = folder / "unsigned.exe"
    original.write_bytes(data)
    return author.sign(original, folder / f"signed-{algorithm}.exe", algorithm).read_bytes()


@pytest.mark.parametrize("is_64_bit", [True, False])
@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_the_signer_and_the_digest_are_read(
    author: Author, tmp_path: Path, algorithm: str, is_64_bit: bool
) -> None:
    form = Form(imports=("ntdll.dll",), is_64_bit=is_64_bit)
    source = Memory(signed(author, tmp_path, program(form), algorithm))
    found = read(source)
    assert found is not None
    assert found.signer == EXAMPLE
    assert found.digest is not None
    assert found.digest.algorithm == algorithm
    assert found.digest.value == image_digest(source, PortableExecutable(source), algorithm)


@pytest.mark.parametrize("tail", TAILS, ids=len)
def test_a_program_has_the_same_digest_before_and_after_it_is_signed(
    author: Author, tmp_path: Path, tail: bytes
) -> None:
    data = program(Form(imports=("ntdll.dll",), tail=tail))
    found = read(Memory(signed(author, tmp_path, data)))
    assert found is not None
    assert found.digest is not None
    before = image_digest(Memory(data), PortableExecutable(Memory(data)), "sha256")
    assert found.digest.value == before


def test_another_byte_is_another_digest() -> None:
    data = program(Form(imports=("ntdll.dll",)))
    changed = data[:-1] + b"x"
    digests = {
        image_digest(Memory(one), PortableExecutable(Memory(one)), "sha256")
        for one in (data, changed)
    }
    assert len(digests) == 2


def test_a_program_without_a_signature_has_no_signer() -> None:
    assert read(Memory(program(Form()))) is None


@pytest.mark.guest
@pytest.mark.parametrize("architecture", ["amd64", "i386"])
def test_a_signed_program_of_wine_is_read(
    author: Author, tmp_path: Path, architecture: str
) -> None:
    data = windows_parts(guests_folder()).modules(architecture)["ntdll.dll"]
    source = Memory(signed(author, tmp_path, data))
    found = read(source)
    assert found is not None
    assert found.signer == EXAMPLE
    assert found.digest is not None
    assert found.digest.value == image_digest(source, PortableExecutable(source), "sha256")


def test_signatures_of_the_windows_shaped_disks_are_read() -> None:
    data = fixture_signing.signed(program(Form(imports=("ntdll.dll",))))
    found = read(Memory(data))
    assert found is not None
    assert found.signer == Signer("Microsoft Corporation", "Microsoft Windows")
    assert found.digest is not None
    whole = Memory(data)
    assert found.digest.value == image_digest(whole, PortableExecutable(whole), "sha256")


@pytest.mark.network
def test_the_signatures_of_microsofts_own_files_are_read(tmp_path: Path) -> None:
    package = ["--only-binary=:all:", "--platform=win_amd64", "--python-version=3.11"]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *package]
    subprocess.run([*command, "-d", tmp_path, "msvc-runtime==14.44.35112"], check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        programs = [name for name in wheel.namelist() if name.endswith("/vcruntime140.dll")]
        contents = {wheel.read(name) for name in programs}
    assert contents
    for data in contents:
        found = read(Memory(data))
        assert found is not None
        assert found.signer is not None
        assert found.signer.organization == "Microsoft Corporation"
        assert found.signer.common_name.startswith("Microsoft Windows")
        assert found.digest is not None
        whole = Memory(data)
        assert found.digest.value == image_digest(whole, PortableExecutable(whole), "sha256")


def test_a_table_that_overlaps_the_headers_has_no_digest(author: Author, tmp_path: Path) -> None:
    data = bytearray(signed(author, tmp_path, program(Form(imports=("ntdll.dll",)))))
    entry = PortableExecutable(Memory(bytes(data))).certificates_at
    data[entry : entry + 4] = (entry).to_bytes(4, "little")
    source = Memory(bytes(data))
    with pytest.raises(Corrupt, match="overlap"):
        image_digest(source, PortableExecutable(source), "sha256")


def test_a_table_of_countless_certificates_is_not_read_to_its_end() -> None:
    data = bytearray(program(Form(imports=("ntdll.dll",))))
    entry = PortableExecutable(Memory(bytes(data))).certificates_at
    empty = struct.pack("<IHH", 8, 0x200, 1)  # of a kind that nobody reads
    data[entry : entry + 8] = struct.pack("<II", len(data), 1_000_000 * len(empty))
    with pytest.raises(Unsupported, match="more than 64"):
        read(Memory(bytes(data + 1_000_000 * empty)))


def test_damaged_signatures_are_refused_or_read(author: Author, tmp_path: Path) -> None:
    data = signed(author, tmp_path, program(Form(imports=("ntdll.dll",))))
    certificates = PortableExecutable(Memory(data)).certificates()
    assert certificates is not None
    refused = 0
    with at_most_one_gib():
        for broken in damaged(data, [certificates], 2000):
            try:
                read(Memory(broken))
            except FormatError:
                refused += 1
    assert 100 < refused < 1900
