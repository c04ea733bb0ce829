"""Portable executables: what a program is, what it needs, and where its certificates lie.

Headers and three directories are read, in blocks of 4 KiB: a program of 100 MB costs kilobytes.

Sources: Microsoft, "PE Format" (learn.microsoft.com/windows/win32/debug/pe-format), sections
"Signature", "COFF File Header", "Optional Header", "Section Table", "Export Directory Table",
"Import Directory Table", "Delay-Load Import Tables", "The Attribute Certificate Table"; where the
specification is silent, what loaders do: Wine 8.0, dlls/ntdll/loader.c (import_dll,
find_forwarded_export).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from formats.errors import Corrupt, Truncated, Unsupported
from formats.source import Readable, check_bounds

MAX_MODULES = 1024
"""Imported modules of one program; the richest of Windows have about 100."""

MAX_MODULE_NAME = 260  # MAX_PATH: characters with the final zero
MAX_SECTIONS = 1024
MAX_EXPORTS = 1 << 16  # ordinals are 16 bits wide
MAX_READ_BYTES = 16 << 20
"""All blocks of one program together: many times what the largest export table takes."""

_BLOCK_BYTES = 4096
_MAX_FORWARDER = 4096 + MAX_MODULE_NAME  # a decorated name is at most 4096 characters long

_PE_OFFSET = struct.Struct("<I")  # e_lfanew, at byte 60 of the MS-DOS header
_PE_OFFSET_AT = 0x3C
_COFF = struct.Struct("<HHIIIHH")
# 0 Machine; 2 NumberOfSections; 4 TimeDateStamp; 8 PointerToSymbolTable; 12 NumberOfSymbols;
# 16 SizeOfOptionalHeader, bytes; 18 Characteristics
_MAGIC = struct.Struct("<H")
_PE32, _PE32_PLUS = 0x10B, 0x20B
_IMAGE_BASE = {_PE32: struct.Struct("<28xI"), _PE32_PLUS: struct.Struct("<24xQ")}
_WINDOWS = struct.Struct("<56xIIIH")
# Of both forms: 56 SizeOfImage, bytes; 60 SizeOfHeaders, bytes; 64 CheckSum; 68 Subsystem
_CHECKSUM_AT = 64
_DIRECTORY_COUNT_AT = {_PE32: 92, _PE32_PLUS: 108}  # NumberOfRvaAndSizes; the directories follow
_DIRECTORY = struct.Struct("<II")  # 0 RVA (of certificates: file offset); 4 size, bytes
_MAX_DIRECTORIES = 16
_EXPORTS, _IMPORTS, _CERTIFICATES, _DELAY_IMPORTS = 0, 1, 4, 13
_SECTION = struct.Struct("<8xIIII16x")
# 8 VirtualSize; 12 VirtualAddress, RVA; 16 SizeOfRawData; 20 PointerToRawData; all bytes
_RAW_ALIGNMENT = 0x200  # loaders round PointerToRawData down to it

_EXPORT = struct.Struct("<20xI4xI")  # 20 NumberOfFunctions; 28 AddressOfFunctions, RVA
_IMPORT = struct.Struct("<12xII")  # 12 Name, RVA; 16 FirstThunk, RVA; one of them 0: the last
_DELAY_IMPORT = struct.Struct("<II24x")  # 0 Attributes; 4 Name, RVA, 0: the last
_DELAY_BY_RVA = 1  # else the descriptor holds addresses, as Visual C++ 6 wrote them


@dataclass(frozen=True, slots=True)
class _Section:
    start: int  # RVA
    size: int  # bytes of it that the file holds
    offset: int  # in the file


class PortableExecutable:
    """The headers of a program; its directories are read when they are asked for.

    machine: IMAGE_FILE_MACHINE_* (0x14c x86, 0x8664 x64, 0xaa64 ARM64). timestamp: TimeDateStamp,
    which newer linkers fill with a hash. size_of_image: bytes in memory. subsystem:
    IMAGE_SUBSYSTEM_* (1 native: kernel and drivers; 10 to 12 EFI). checksum_at and certificates_at:
    where in the file CheckSum and the certificates' directory entry lie (-1: nowhere).

    Raises FormatError for what is no program.
    """

    def __init__(self, source: Readable) -> None:
        self._blocks = _Blocks(source)
        pe_at = self._pe_offset()
        coff_at = pe_at + 4
        coff = _COFF.unpack(self._blocks.read(coff_at, _COFF.size))
        self.machine, section_count, self.timestamp = coff[:3]
        optional_at, optional_size = coff_at + _COFF.size, coff[5]
        optional = self._blocks.read(optional_at, optional_size)
        magic = self._magic(optional, optional_at)
        self.image_base = int(_IMAGE_BASE[magic].unpack_from(optional)[0])
        self.size_of_image, self._header_size, _, self.subsystem = _WINDOWS.unpack_from(optional)
        self.checksum_at = optional_at + _CHECKSUM_AT
        directories_at = _DIRECTORY_COUNT_AT[magic] + 4
        self._directories = _directories(optional, directories_at)
        has_entry = len(self._directories) > _CERTIFICATES
        entry_at = optional_at + directories_at + _CERTIFICATES * _DIRECTORY.size
        self.certificates_at = entry_at if has_entry else -1
        self._file_size = source.size
        self._sections = self._read_sections(optional_at + optional_size, section_count)
        self._section_starts = [one.start for one in self._sections]

    def imports(self) -> tuple[str, ...]:
        """Return the modules that are loaded with the program, as it names them.

        Names of API sets (api-ms-win-…) are left as they are. Raises FormatError.
        """
        return tuple(dict.fromkeys(self._imported()))

    def delay_imports(self) -> tuple[str, ...]:
        """Return the modules that are loaded at the first call into them. Raises FormatError."""
        return tuple(dict.fromkeys(self._delayed()))

    def forwarders(self) -> tuple[str, ...]:
        """Return the modules that exports are forwarded to; ".dll" is added as loaders add it.

        Raises FormatError.
        """
        start, size = self._directory(_EXPORTS)
        if not size:
            return ()
        table = self._read(start, _EXPORT.size, "export directory")
        count, functions = _EXPORT.unpack(table)
        if count > MAX_EXPORTS:
            raise Corrupt("export directory", start, f"{count} functions")
        addresses = np.frombuffer(self._read(functions, count * 4, "export addresses"), "<u4")
        inside = addresses[(addresses >= start) & (addresses - start < size)]
        names = (self._text(int(rva), _MAX_FORWARDER) for rva in np.unique(inside))
        return tuple(dict.fromkeys(_forwarded_module(name) for name in names))

    def certificates(self) -> tuple[int, int] | None:
        """Return (start, end) of the attribute certificate table in the file, None without one.

        Raises Truncated when it leaves the file.
        """
        # The only directory that is a place in the file: certificates are not loaded.
        start, size = self._directory(_CERTIFICATES)
        if not size:
            return None
        check_bounds("attribute certificate table", self._file_size, start, size)
        return start, start + size

    def _pe_offset(self) -> int:
        if self._blocks.read(0, 2) != b"MZ":
            raise Corrupt("MS-DOS header", 0, "expected 'MZ': no program")
        (offset,) = _PE_OFFSET.unpack(self._blocks.read(_PE_OFFSET_AT, _PE_OFFSET.size))
        signature = self._blocks.read(offset, 4)
        if signature != b"PE\0\0":
            reason = f"expected the signature 'PE\\0\\0', found {signature!r}: a program of 16 bits"
            raise Unsupported("PE signature", offset, reason)
        return int(offset)

    def _magic(self, optional: bytes, offset: int) -> int:
        magic = int(_MAGIC.unpack_from(optional)[0]) if len(optional) >= _MAGIC.size else 0
        if magic not in (_PE32, _PE32_PLUS):
            raise Unsupported("PE optional header", offset, f"magic {magic:#x}")
        if len(optional) < _DIRECTORY_COUNT_AT[magic] + 4:
            raise Truncated("PE optional header", offset, f"{len(optional)} bytes")
        return magic

    def _read_sections(self, offset: int, count: int) -> list[_Section]:
        if count > MAX_SECTIONS:
            raise Unsupported("PE section table", offset, f"{count} sections")
        rows = _SECTION.iter_unpack(self._blocks.read(offset, count * _SECTION.size))
        sections = [
            _Section(start, min(virtual or raw, raw), at - at % _RAW_ALIGNMENT)
            for virtual, start, raw, at in rows
        ]
        return sorted(sections, key=lambda one: one.start)

    def _directory(self, number: int) -> tuple[int, int]:
        if number >= len(self._directories):
            return 0, 0
        return self._directories[number]

    def _imported(self) -> Iterator[str]:
        # The size that a directory states is not what loaders go by: the list ends with a zero.
        for name, thunks in self._descriptors(_IMPORTS, _IMPORT):
            if not name or not thunks:
                return
            yield _module_name(self._text(name, MAX_MODULE_NAME), name)

    def _delayed(self) -> Iterator[str]:
        for attributes, name in self._descriptors(_DELAY_IMPORTS, _DELAY_IMPORT):
            if not name:
                return
            rva = name if attributes & _DELAY_BY_RVA else name - self.image_base
            yield _module_name(self._text(rva, MAX_MODULE_NAME), rva)

    def _descriptors(self, directory: int, layout: struct.Struct) -> Iterator[tuple[int, ...]]:
        start, size = self._directory(directory)
        if not size:
            return
        for number in range(MAX_MODULES):
            rva = start + number * layout.size
            yield layout.unpack(self._read(rva, layout.size, "import descriptor"))
        raise Unsupported("import directory", start, f"more than {MAX_MODULES} modules")

    def _text(self, rva: int, most: int) -> str:
        """Return the zero-terminated ASCII text at an RVA."""
        offset, available = self._locate(rva)
        data = self._blocks.up_to_zero(offset, min(available, most))
        if data is None or not data.isascii():
            raise Corrupt("name in a PE", offset, f"no text of at most {most} ASCII characters")
        return data.decode("ascii")

    def _read(self, rva: int, length: int, what: str) -> bytes:
        if length == 0:
            return b""
        offset, available = self._locate(rva)
        if length > available:
            raise Truncated(what, offset, f"expected {length} bytes, its section has {available}")
        return self._blocks.read(offset, length)

    def _locate(self, rva: int) -> tuple[int, int]:
        """Return (offset in the file, bytes of the same section from there on)."""
        row = bisect_right(self._section_starts, rva) - 1
        if row >= 0:
            section = self._sections[row]
            inside = rva - section.start
            if inside < section.size:
                return section.offset + inside, section.size - inside
        elif 0 <= rva < self._header_size:
            return rva, self._header_size - rva
        raise Corrupt("PE address", max(rva, 0), "no section of the file holds this RVA")


def _directories(optional: bytes, offset: int) -> list[tuple[int, int]]:
    stated = int.from_bytes(optional[offset - 4 : offset], "little")
    room = (len(optional) - offset) // _DIRECTORY.size
    count = min(stated, room, _MAX_DIRECTORIES)
    return list(_DIRECTORY.iter_unpack(optional[offset : offset + count * _DIRECTORY.size]))


def _module_name(name: str, rva: int) -> str:
    if not 0 < len(name) < MAX_MODULE_NAME or not name.isprintable() or set(name) & set("/\\"):
        raise Corrupt("imported module", rva, f"its name is {name[:80]!r}")
    return name


def _forwarded_module(forwarder: str) -> str:
    module, dot, _ = forwarder.rpartition(".")
    if not dot:
        raise Corrupt("export forwarder", 0, f"expected MODULE.NAME, found {forwarder[:80]!r}")
    name = module if "." in module else f"{module}.dll"
    return _module_name(name, 0)


class _Blocks:
    """A file in blocks that are read once each: names lie close to each other."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._blocks: dict[int, bytes] = {}

    def read(self, offset: int, length: int) -> bytes:
        check_bounds("PE", self._source.size, offset, length)
        first = offset // _BLOCK_BYTES
        start = offset - first * _BLOCK_BYTES
        if start + length <= _BLOCK_BYTES:
            return self._block(first)[start : start + length]
        numbers = range(first, (offset + length - 1) // _BLOCK_BYTES + 1)
        return b"".join(map(self._block, numbers))[start : start + length]

    def up_to_zero(self, offset: int, most: int) -> bytes | None:
        """Return the bytes before the next zero, None if none of the next `most` is one."""
        most = min(most, self._source.size - offset)
        step = _BLOCK_BYTES - offset % _BLOCK_BYTES
        found = b""
        while len(found) < most:
            piece = self.read(offset + len(found), min(step, most - len(found)))
            text, zero, _ = piece.partition(b"\0")
            found += text
            if zero:
                return found
            step = _BLOCK_BYTES
        return None

    def _block(self, number: int) -> bytes:
        block = self._blocks.get(number)
        if block is None:
            if len(self._blocks) * _BLOCK_BYTES >= MAX_READ_BYTES:
                raise Unsupported("PE", number * _BLOCK_BYTES, "its tables lie too far apart")
            start = number * _BLOCK_BYTES
            length = min(_BLOCK_BYTES, self._source.size - start)
            block = self._blocks[number] = self._source.pread(start, length)
        return block
