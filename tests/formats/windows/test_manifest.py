"""Component manifests of XP, Vista to 7, and what must not be read."""

from __future__ import annotations

import base64
import hashlib

import pytest

from formats.errors import Corrupt, FormatError, Unsupported
from formats.source import Memory
from formats.windows.manifest import (
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    CompressedManifest,
    ManifestFile,
    read_manifest,
)
from formats.windows.pkcs7 import Digest
from tests.formats.damage import at_most_one_gib, damaged

SHA256 = hashlib.sha256(b"ntdll").digest()
SHA1 = hashlib.sha1(b"ntdll", usedforsecurity=False).digest()


def hash_element(algorithm: str, value: bytes) -> str:
    return f"""<asmv2:hash xmlns:asmv2="urn:schemas-microsoft-com:asm.v2"
        xmlns:dsig="http://www.w3.org/2000/09/xmldsig#"><dsig:Transforms><dsig:Transform
        Algorithm="urn:schemas-microsoft-com:HashTransforms.Identity" /></dsig:Transforms>
      <dsig:DigestMethod Algorithm="http://www.w3.org/2000/09/xmldsig#{algorithm}" />
      <dsig:DigestValue>{base64.b64encode(value).decode()}</dsig:DigestValue></asmv2:hash>"""


VISTA = f"""<?xml version="1.0" encoding="utf-8" standalone="yes"?>
<assembly xmlns="urn:schemas-microsoft-com:asm.v3" manifestVersion="1.0" copyright="none">
  <assemblyIdentity name="Microsoft-Windows-Ntdll" version="6.1.7600.16385"
      processorArchitecture="amd64" language="neutral" buildType="release"
      publicKeyToken="31bf3856ad364e35" versionScope="nonSxS" />
  <dependency>
    <dependentAssembly><assemblyIdentity name="Another" /></dependentAssembly>
  </dependency>
  <file name="ntdll.dll" destinationPath="$(runtime.system32)\\" sourceName="ntdll.dll"
      importPath="$(build.nttree)\\" sourcePath=".\\">
    <securityDescriptor name="WRP_FILE_DEFAULT_SDDL" />
    {hash_element("sha256", SHA256)}
  </file>
  <file name="second.sys" destinationPath="$(runtime.drivers)\\">{hash_element("sha1", SHA1)}</file>
  <file name="third.txt" />
</assembly>
""".encode()

XP = f"""<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<assembly xmlns="urn:schemas-microsoft-com:asm.v1" manifestVersion="1.0">
  <assemblyIdentity type="win32" name="Microsoft.VC90.CRT" version="9.0.21022.8" />
  <file name="msvcr90.dll" hashalg="SHA1" hash="{SHA1.hex()}">
    {hash_element("sha1", bytes(20))}
  </file>
</assembly>
""".encode()


def test_the_files_of_a_component() -> None:
    found = read_manifest(Memory(VISTA))
    assert found.identity["name"] == "Microsoft-Windows-Ntdll"
    assert found.identity["version"] == "6.1.7600.16385"
    system32, drivers = "$(runtime.system32)\\", "$(runtime.drivers)\\"
    assert found.files == (
        ManifestFile("ntdll.dll", system32, (Digest("sha256", SHA256),)),
        ManifestFile("second.sys", drivers, (Digest("sha1", SHA1),)),
        ManifestFile("third.txt", "", ()),
    )


def test_a_manifest_of_xp_states_digests_in_two_ways() -> None:
    (only,) = read_manifest(Memory(XP)).files
    assert only.digests == (Digest("sha1", SHA1), Digest("sha1", bytes(20)))


def test_a_manifest_in_utf_16_is_read() -> None:
    text = VISTA.decode().replace("utf-8", "utf-16")
    assert len(read_manifest(Memory(text.encode("utf-16"))).files) == 3


def test_a_declared_encoding_chooses_no_codec_of_python() -> None:
    declared = VISTA.replace(b'encoding="utf-8"', b'encoding="cp037"')
    assert len(read_manifest(Memory(declared)).files) == 3


@pytest.mark.parametrize("value", [b"AAAA", b"not base64!", b""])
def test_a_digest_that_is_none_is_left_out(value: bytes) -> None:
    broken = VISTA.replace(base64.b64encode(SHA256), value)
    assert read_manifest(Memory(broken)).files[0].digests == ()


def test_a_compressed_manifest_is_recognised() -> None:
    with pytest.raises(CompressedManifest, match="Windows 8"):
        read_manifest(Memory(b"DCM\x01PA30" + bytes(100)))


BOMB = (
    '<!DOCTYPE a [<!ENTITY l0 "lol">'
    + "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    + "]><assembly><file name='&l11;'/></assembly>"
).encode()
OUTSIDE = b"<!DOCTYPE a SYSTEM 'file:///etc/passwd'><assembly/>"


@pytest.mark.parametrize("broken", [BOMB, OUTSIDE])
def test_document_types_and_entities_are_refused(broken: bytes) -> None:
    with at_most_one_gib(), pytest.raises(Unsupported, match="document type"):
        read_manifest(Memory(broken))


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"hello",
        VISTA[:-20],
        VISTA.replace(b'name="third.txt"', b'name=""'),
        VISTA.replace(b"third.txt", b"x" * 5000),
        VISTA.replace(b"third.txt", b"&unknown;"),
    ],
)
def test_what_is_no_manifest_is_refused(broken: bytes) -> None:
    with pytest.raises(Corrupt):
        read_manifest(Memory(broken))


def test_a_file_that_is_larger_than_any_manifest_is_not_read() -> None:
    with pytest.raises(Unsupported, match="bytes"):
        read_manifest(Memory(bytes(MAX_MANIFEST_BYTES + 1)))


def test_the_number_of_files_is_bounded() -> None:
    many = b"<assembly>" + b'<file name="a"/>' * (MAX_FILES + 1) + b"</assembly>"
    with pytest.raises(Unsupported, match="files"):
        read_manifest(Memory(many))


def test_depth_costs_no_stack() -> None:
    deep = b"<assembly>" + b"<a>" * 200_000 + b"</a>" * 200_000 + b"</assembly>"
    with at_most_one_gib():
        assert read_manifest(Memory(deep)).files == ()


def test_damaged_manifests_are_refused_or_read() -> None:
    refused = 0
    with at_most_one_gib():
        for broken in damaged(VISTA, [(0, len(VISTA))], 2000):
            try:
                read_manifest(Memory(broken))
            except FormatError:
                refused += 1
    assert 100 < refused < 1900
