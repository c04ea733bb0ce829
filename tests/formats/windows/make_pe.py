"""Small programs from nothing: one section, with import, delay import and export directories.

Laid out after Microsoft, "PE Format"; pefile reads them back in the tests.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

PE_OFFSET = 0x80
SECTION_RVA = 0x1000
SECTION_OFFSET = 0x400
IMAGE_BASE = 0x400000
CODE_BYTES = 16
TIMESTAMP = 0x5D69A3D8
NATIVE = 1


@dataclass(frozen=True, slots=True)
class Form:
    """What to write. old_delay: addresses in place of RVAs, as Visual C++ 6 did."""

    imports: Sequence[str] = ()
    delay_imports: Sequence[str] = ()
    forwarders: Sequence[str] = ()
    exports: int = 1
    is_64_bit: bool = True
    old_delay: bool = False
    tail: bytes = b""


@dataclass(slots=True)
class _Section:
    data: bytearray = field(default_factory=bytearray)

    def put(self, data: bytes) -> int:
        """Append, aligned to 4 bytes; returns the RVA."""
        self.data += bytes(-len(self.data) % 4)
        rva = SECTION_RVA + len(self.data)
        self.data += data
        return rva

    def text(self, text: str) -> int:
        return self.put(text.encode("ascii") + b"\0")


def program(form: Form) -> bytes:
    section = _Section(bytearray(CODE_BYTES))
    directories = {1: _imports(section, form), 13: _delay_imports(section, form)}
    if form.forwarders:
        directories[0] = _exports(section, form)
    body = bytes(section.data) + bytes(-len(section.data) % 0x200)
    return _headers(form, directories, len(section.data), len(body)) + body + form.tail


def _imports(section: _Section, form: Form) -> tuple[int, int]:
    width = "<QQ" if form.is_64_bit else "<II"
    rows = b""
    for name in form.imports:
        by_name = section.put(b"\0\0Function\0")
        thunks = section.put(struct.pack(width, by_name, 0))
        rows += struct.pack("<IIIII", thunks, 0, 0, section.text(name), thunks)
    rows += bytes(20)
    return (section.put(rows), len(rows)) if form.imports else (0, 0)


def _delay_imports(section: _Section, form: Form) -> tuple[int, int]:
    base, attributes = (IMAGE_BASE, 0) if form.old_delay else (0, 1)
    width = "<QQ" if form.is_64_bit else "<II"
    rows = b""
    for name in form.delay_imports:
        by_name = section.put(b"\0\0Function\0")
        thunks = section.put(struct.pack(width, by_name + base, 0)) + base
        rows += struct.pack(
            "<8I", attributes, section.text(name) + base, 0, thunks, thunks, 0, 0, 0
        )
    rows += bytes(32)
    return (section.put(rows), len(rows)) if form.delay_imports else (0, 0)


def _exports(section: _Section, form: Form) -> tuple[int, int]:
    """The directory, its tables and its strings; a forwarder is a string inside of it."""
    count = len(form.forwarders) + form.exports
    start = section.put(bytes(40 + 4 * count))
    strings = [section.text(text) for text in form.forwarders]
    functions = [*strings, *(SECTION_RVA for _ in range(form.exports))]
    name = section.text("made.dll")
    end = SECTION_RVA + len(section.data)
    directory = struct.pack("<IIHHIIIIIII", 0, 0, 0, 0, name, 1, count, 0, start + 40, 0, 0)
    at = start - SECTION_RVA
    section.data[at : at + 40 + 4 * count] = directory + struct.pack(f"<{count}I", *functions)
    return start, end - start


def _headers(
    form: Form, directories: dict[int, tuple[int, int]], size: int, raw_size: int
) -> bytes:
    machine, magic, optional_size = (0x8664, 0x20B, 240) if form.is_64_bit else (0x14C, 0x10B, 224)
    image_size = SECTION_RVA + -(-size // 0x1000) * 0x1000
    coff = struct.pack("<HHIIIHH", machine, 1, TIMESTAMP, 0, 0, optional_size, 0x2022)
    optional = struct.pack("<HBBIIIII", magic, 14, 0, raw_size, 0, 0, 0, SECTION_RVA)
    bases = struct.pack("<Q", IMAGE_BASE) if form.is_64_bit else struct.pack("<II", 0, IMAGE_BASE)
    optional += bases
    optional += struct.pack("<IIHHHHHHI", 0x1000, 0x200, 6, 0, 0, 0, 6, 0, 0)
    optional += struct.pack("<IIIHH", image_size, SECTION_OFFSET, 0, NATIVE, 0)
    optional += struct.pack("<QQQQ" if form.is_64_bit else "<IIII", 1 << 20, 4096, 1 << 20, 4096)
    optional += struct.pack("<II", 0, 16)
    for number in range(16):
        optional += struct.pack("<II", *directories.get(number, (0, 0)))
    assert len(optional) == optional_size
    section = struct.pack("<8sIIII", b".rdata", size, SECTION_RVA, raw_size, SECTION_OFFSET)
    section += struct.pack("<IIHHI", 0, 0, 0, 0, 0x40000040)
    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", PE_OFFSET)
    headers = dos.ljust(PE_OFFSET, b"\0") + b"PE\0\0" + coff + optional + section
    return headers.ljust(SECTION_OFFSET, b"\0")
