"""dpkg's database: what is installed, and which digests its packages gave for their files.

Sources: deb822(5), deb-md5sums(5), dpkg-divert(1) and dpkg lib/dpkg/{parse,db-ctrl-access}.c.
Text that is no UTF-8 is kept with surrogate escapes. MD5 sums choose candidates and prove nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from formats.errors import Corrupt, Unsupported

INFO = "/var/lib/dpkg/info/"
MAX_BYTES = 256 << 20
"""Largest database file that is read; 600 packages have a status file of 0.7 MB."""
_FIELD_NAME = re.compile(rb"[!-9;-~]+")  # deb822(5): no control characters, spaces, colons
_INFO_FILE = re.compile(r"([a-z0-9][a-z0-9+.-]*(?::[a-z0-9-]+)?)\.([a-z][a-z0-9-]*)")
_MD5_LINE = re.compile(rb"(\\?)([0-9a-fA-F]{32}) [ *](.+)")
_GENERATED = frozenset({"list", "control"})
"""`list` is written by dpkg from the files it unpacked; `control` is merged into `status`."""


@dataclass(frozen=True, slots=True)
class Conffile:
    """A configuration file: its path in the guest and the MD5 of the version that was shipped."""

    path: str
    md5: str
    obsolete: bool


@dataclass(frozen=True, slots=True)
class Package:
    """One stanza of the status file.

    status: three words: what is wanted, the flag, the state ("install ok installed").
    version: empty for a package of which nothing is known but its name.
    """

    name: str
    version: str
    architecture: str
    status: str
    multi_arch: str
    conffiles: tuple[Conffile, ...]

    @property
    def installed(self) -> bool:
        """Whether the files of the package are there."""
        return self.status.endswith(" installed")

    @property
    def key(self) -> str:
        """The name under which dpkg keeps the files of its info folder."""
        return f"{self.name}:{self.architecture}" if self.multi_arch == "same" else self.name


@dataclass(frozen=True, slots=True)
class Diversion:
    """A path that packages other than `package` (":" = none) get renamed to `diverted`."""

    path: str
    diverted: str
    package: str


def parse_status(data: bytes) -> tuple[Package, ...]:
    """Return the packages of /var/lib/dpkg/status; raises Corrupt, Unsupported."""
    return tuple(_package(fields, offset) for offset, fields in _stanzas(data))


def parse_md5sums(data: bytes) -> dict[str, str]:
    """Return path -> MD5 (lower-case hexadecimal) of one .md5sums file; raises Corrupt.

    Paths begin with "/" and are the package's own: merged /usr and diversions may move them.
    """
    sums: dict[str, str] = {}
    for offset, number, line in _lines(data, "dpkg md5sums"):
        if not line.strip():
            continue
        match = _MD5_LINE.fullmatch(line)
        if match is None:
            raise Corrupt("dpkg md5sums", offset, f"line {number}: no MD5 and path")
        path = match[3]
        if match[1]:  # md5sum(1) escapes newlines and backslashes, and says so in front
            path = re.sub(rb"\\(.)", lambda m: b"\n" if m[1] == b"n" else m[1], path)
        sums["/" + _text(path).removeprefix("./").lstrip("/")] = match[2].decode().lower()
    return sums


def parse_diversions(data: bytes) -> tuple[Diversion, ...]:
    """Return the diversions of /var/lib/dpkg/diversions; raises Corrupt."""
    lines = list(_lines(data, "dpkg diversions"))
    if len(lines) % 3:
        offset, number, _ = lines[-1]
        reason = f"line {number}: expected three lines for each diversion, found {len(lines)} lines"
        raise Corrupt("dpkg diversions", offset, reason)
    for offset, number, line in lines:
        if number % 3 and not line.startswith(b"/"):
            raise Corrupt("dpkg diversions", offset, f"line {number}: expected an absolute path")
    texts = [_text(line) for _, _, line in lines]
    return tuple(
        Diversion(*three) for three in zip(texts[::3], texts[1::3], texts[2::3], strict=True)
    )


def control_member(path: str) -> tuple[str, str] | None:
    """Return (package key, member) when the path is a member of a package's control archive.

    `/var/lib/dpkg/info/libc6:amd64.md5sums` is `md5sums` of `libc6:amd64`: dpkg unpacks each
    member of the archive but `control` under such a name. None for every other path.
    """
    if not path.startswith(INFO):
        return None
    match = _INFO_FILE.fullmatch(path[len(INFO) :])
    if match is None or match[2] in _GENERATED:
        return None
    return match[1], match[2]


def _lines(data: bytes, structure: str) -> Iterator[tuple[int, int, bytes]]:
    """Yield (offset, line number from 1, line without its newline)."""
    if len(data) > MAX_BYTES:
        raise Unsupported(structure, 0, f"{len(data)} bytes, more than {MAX_BYTES}")
    offset = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        if line or offset + len(line) < len(data):
            yield offset, number, line
        offset += len(line) + 1


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _stanzas(data: bytes) -> Iterator[tuple[int, dict[str, bytes]]]:
    """Yield (offset, lower-case field name -> value with its continuation lines)."""
    fields: dict[str, list[bytes]] = {}
    start, last = 0, ""
    for offset, number, line in _lines(data, "dpkg status"):
        if not line.strip():
            if fields:
                yield start, {name: b"\n".join(value) for name, value in fields.items()}
            fields, last = {}, ""
            continue
        if line[:1] in b" \t":
            if not last:
                reason = f"line {number}: a continuation without a field"
                raise Corrupt("dpkg status", offset, reason)
            fields[last].append(line)
            continue
        name, colon, value = line.partition(b":")
        if not colon or not _FIELD_NAME.fullmatch(name):
            raise Corrupt("dpkg status", offset, f"line {number}: expected `Field: value`")
        if not fields:
            start = offset
        last = name.decode("ascii").lower()
        if last in fields:
            reason = f"line {number}: a second {name.decode('ascii')} in one stanza"
            raise Corrupt("dpkg status", offset, reason)
        fields[last] = [value.strip()]
    if fields:
        yield start, {name: b"\n".join(value) for name, value in fields.items()}


def _package(fields: dict[str, bytes], offset: int) -> Package:
    name = _text(fields.get("package", b""))
    if not name:
        raise Corrupt("dpkg status", offset, "a stanza without Package")
    return Package(
        name=name,
        version=_text(fields.get("version", b"")),
        architecture=_text(fields.get("architecture", b"")),
        status=" ".join(_text(fields.get("status", b"")).split()),
        multi_arch=_text(fields.get("multi-arch", b"")),
        conffiles=tuple(_conffiles(fields.get("conffiles", b""), offset)),
    )


def _conffiles(value: bytes, offset: int) -> Iterator[Conffile]:
    """Yield ` PATH MD5 [obsolete] [remove-on-upgrade]`; paths may hold spaces."""
    for line in value.split(b"\n"):
        words = _text(line).strip().split(" ")
        if words == [""]:
            continue
        flags = set()
        while words[-1] in ("obsolete", "remove-on-upgrade"):
            flags.add(words.pop())
            if not words:
                break
        if len(words) < 2 or not words[0].startswith("/"):
            raise Corrupt("dpkg status", offset, f"Conffiles has {_text(line)!r}")
        yield Conffile(" ".join(words[:-1]), words[-1], "obsolete" in flags)
