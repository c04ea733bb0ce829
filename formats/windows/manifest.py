"""Component manifests (WinSxS\\Manifests\\*.manifest): which files an assembly brings.

Sources: Microsoft, "Assembly Manifests" (learn.microsoft.com/windows/win32/sbscs) for
`assemblyIdentity` and `file`; "<file> Element (ClickOnce Application)" for `hash`; manifests of
Windows Vista to 7 as they lie in WinSxS for `destinationPath`.
"""

from __future__ import annotations

import base64
import binascii
import codecs
from dataclasses import dataclass, field
from xml.parsers import expat

from formats.errors import Corrupt, Unsupported
from formats.source import Readable
from formats.windows.pkcs7 import Digest

MAX_MANIFEST_BYTES = 16 << 20
MAX_FILES = 1 << 16
_MAX_TEXT = 4096

_COMPRESSED = b"DCM\x01"
_UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SEPARATOR = "}"  # between name space and name; no name space of a manifest holds it
_MAX_DIGEST_PIECES = 128  # what expat hands out at once; the text of a digest is mostly one
_ALGORITHMS = {"sha1": 20, "sha256": 32}
"""Bytes of a digest; the end of the URI of a DigestMethod, or `hashalg` in lower case."""


class CompressedManifest(Unsupported):
    """A manifest of Windows 8 or later: a delta (PA30) against one that the servicing stack has."""


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file of an assembly.

    name: as it lies in WinSxS. destination: the folder it is linked into, macros as they are
    ("$(runtime.system32)\\"), "" for none. digests: of the whole file. XP's Visual C++ runtimes
    state two SHA-1 digests, of which `hash` is that of the file.
    """

    name: str
    destination: str
    digests: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """identity: the attributes of the assembly's `assemblyIdentity` (name, version, …)."""

    identity: dict[str, str]
    files: tuple[ManifestFile, ...]


def read_manifest(source: Readable) -> Manifest:
    """Return what a manifest lists.

    Raises CompressedManifest, and FormatError for what is no XML, declares a document type (and
    with it entities), or is too large.
    """
    if source.size > MAX_MANIFEST_BYTES:
        raise Unsupported("manifest", 0, f"{source.size} bytes")
    data = source.pread(0, source.size)
    if data.startswith(_COMPRESSED):
        reason = "compressed (DCM), as Windows 8 and later keep manifests"
        raise CompressedManifest("manifest", 0, reason)
    # Stated here, the encoding that the text declares is not looked up among Python's codecs.
    reader = _Reader("UTF-16" if data.startswith(_UTF_16_MARKS) else "UTF-8")
    try:
        reader.parser.Parse(data, True)
    except expat.ExpatError as error:
        raise Corrupt("manifest", reader.parser.CurrentByteIndex, str(error)) from error
    return Manifest(reader.identity, tuple(reader.files))


@dataclass(slots=True)
class _File:
    name: str
    destination: str
    digests: list[Digest] = field(default_factory=list)


class _Reader:
    """Takes the few elements from the stream; no tree is built."""

    def __init__(self, encoding: str) -> None:
        self.identity: dict[str, str] = {}
        self.files: list[ManifestFile] = []
        self._depth = 0
        self._file: _File | None = None
        self._file_depth = 0
        self._algorithm = ""
        self._text: list[str] | None = None
        self.parser = expat.ParserCreate(encoding, namespace_separator=_SEPARATOR)
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters

    def _refuse(self, *_: object) -> None:
        at = self.parser.CurrentByteIndex
        raise Unsupported("manifest", at, "a document type declaration, which no manifest has")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        name = tag.rpartition(_SEPARATOR)[2]
        if name == "assemblyIdentity" and self._depth == 2:
            self.identity = {key: value[:_MAX_TEXT] for key, value in attributes.items()}
        elif name == "file" and self._depth == 2:
            self._begin_file(attributes)
        elif self._file is not None and name == "DigestMethod":
            self._algorithm = attributes.get("Algorithm", "").rpartition("#")[2]
        elif self._file is not None and name == "DigestValue":
            self._text = []

    def _begin_file(self, attributes: dict[str, str]) -> None:
        at = self.parser.CurrentByteIndex
        if len(self.files) == MAX_FILES:
            raise Unsupported("manifest", at, f"more than {MAX_FILES} files")
        name = attributes.get("name", "")
        destination = attributes.get("destinationPath", "")
        if not 0 < len(name) <= _MAX_TEXT or len(destination) > _MAX_TEXT:
            raise Corrupt("manifest", at, "a file without a name, or with too long a one")
        self._file = _File(name, destination)
        self._add(attributes.get("hashalg", "").lower(), _from_hex(attributes.get("hash", "")))

    def _end(self, _tag: str) -> None:
        self._depth -= 1
        if self._text is not None:
            self._add(self._algorithm, _from_base64("".join(self._text)))
            self._text = None
        if self._file is not None and self._depth == 1:
            one = self._file
            self.files.append(ManifestFile(one.name, one.destination, tuple(one.digests)))
            self._file, self._algorithm = None, ""

    def _characters(self, text: str) -> None:
        if self._text is not None and len(self._text) < _MAX_DIGEST_PIECES:
            self._text.append(text)

    def _add(self, algorithm: str, value: bytes) -> None:
        if self._file is not None and len(value) == _ALGORITHMS.get(algorithm):
            self._file.digests.append(Digest(algorithm, value))


def _from_hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""
