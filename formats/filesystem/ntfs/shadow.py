"""Volume shadow copies: snapshots that read clusters which the file system calls free.

Source: libyal's libvshadow, `documentation/Volume Shadow Snapshot (VSS) format.asciidoc`, section
"Volume header": it lies in $Boot, and a catalogue offset of 0 says that there are no snapshots.
"""

from __future__ import annotations

import uuid

from formats.ranges import Ranges, as_ranges, empty_ranges
from formats.source import Source

IDENTIFIER = uuid.UUID("3808876b-c176-4e48-b7ae-04046e6cc752")
HEADER_OFFSET = 0x1E00
CATALOGUE_OFFSET = 48  # u64 in the header, bytes from the start of the volume
CATALOGUE_BYTES = 8
VOLUME_OFFSET, STORAGE_OFFSET = 64, 80  # GUIDs: of this volume, and of the one with the stores


def read_catalogue_pointer(source: Source) -> Ranges:
    """Return the bytes that point to the catalogue of snapshots; none if there is no snapshot."""
    if not any(_header(source)[CATALOGUE_OFFSET : CATALOGUE_OFFSET + CATALOGUE_BYTES]):
        return empty_ranges()
    start = HEADER_OFFSET + CATALOGUE_OFFSET
    return as_ranges([(start, start + CATALOGUE_BYTES)])


def may_be_elsewhere(source: Source) -> bool:
    """Say whether snapshots of the volume are stored on another one, if there are any."""
    header = _header(source)
    own, storage = header[VOLUME_OFFSET:STORAGE_OFFSET], header[STORAGE_OFFSET:]
    return any(storage) and storage != own


def _header(source: Source) -> bytes:
    """Return the header up to its last GUID; b"" where there is none."""
    end = STORAGE_OFFSET + 16
    header = source.pread(HEADER_OFFSET, end) if HEADER_OFFSET + end <= source.size else b""
    return header if header[:16] == IDENTIFIER.bytes_le else b""


def is_store(path: str) -> bool:
    """Say whether a file holds the blocks of a snapshot, wherever its catalogue may be."""
    folder, _, name = path.rpartition("/")
    in_folder = folder.casefold() == "/system volume information"
    return in_folder and name.casefold().endswith(f"{{{IDENTIFIER}}}")
