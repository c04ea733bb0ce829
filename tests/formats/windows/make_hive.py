"""Hives as Windows leaves them: at rest, and in the middle of a write with their logs.

Written after the same specification as the reader, but by other code: hives by
`fixtures.windows.hive` and hivex, hashes by `fixtures.windows.hive_log`.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from itertools import pairwise

from fixtures.windows.hive import Form, Key, dword, expand_sz, hive, multi_sz, sz, with_checksum
from fixtures.windows.hive_log import marvin32
from tests.formats.windows import hivex

BASE_BLOCK_BYTES = 4096
OLD, NEW = 1, 6
WRITTEN = 131_000_000_000_000_000
SEQUENCE = 21


def service(root: Key, name: str, start: int) -> None:
    path = f"ControlSet001\\Services\\{name}"
    root.put(path, Start=dword(start), Type=dword(1), ImagePath=expand_sz(f"drivers\\{name}.sys"))


@functools.cache
def at_rest() -> bytes:
    """A small SYSTEM hive with ten boot-start services and ten others."""
    root = Key()
    root.put("Select", Current=dword(1), Default=dword(1))
    root.put("ControlSet001\\Control\\ServiceGroupOrder", List=multi_sz(["SCSI", "Filter"]))
    root.put("Setup", SystemPartition=sz("\\Device\\HarddiskVolume1"))
    for number in range(20):
        service(root, f"driver{number}", 0 if number < 10 else 3)
    return hive("ROOT", root, Form(5, "SYSTEM", WRITTEN, SEQUENCE))


@functools.cache
def with_services(*names: str) -> bytes:
    """The same hive after further boot-start services were registered, one after the other."""
    if not names:
        return at_rest()
    key = f"[\\ControlSet001\\Services\\{names[-1]}]"
    # The filling makes the hive grow by whole bins.
    filling = ",".join(["7f"] * 6000)
    text = f'{key}\n"Start"=dword:00000000\n"Type"=dword:00000001\n"Filling"=hex:{filling}'
    return hivex.merged(with_services(*names[:-1]), text)


def in_the_middle(hive: bytes, primary: int, secondary: int, written: int = WRITTEN) -> bytes:
    """The hive with these sequence numbers and this time in its base block."""
    head = hive[:4] + struct.pack("<IIQ", primary, secondary, written) + hive[20:BASE_BLOCK_BYTES]
    return with_checksum(head) + hive[BASE_BLOCK_BYTES:]


def log_head(
    hive: bytes, kind: int, sequence: int, written: int = WRITTEN, sectors: int = 1
) -> bytes:
    """The base block that begins a log: `sectors` is the clustering factor."""
    middle = struct.pack("<II", kind, 1) + hive[36:44] + struct.pack("<I", sectors)
    head = hive[:4] + struct.pack("<IIQ", sequence, sequence, written) + hive[20:28] + middle
    return with_checksum((head + hive[48:]).ljust(512 * sectors, b"\0")[: 512 * sectors])


def entry(before: bytes, after: bytes, sequence: int) -> bytes:
    """The log entry of one write."""
    pages = _changed(before, after, 4096)
    body = b"".join(struct.pack("<II", page, 4096) for page in pages)
    body += b"".join(_piece(after, page, 4096) for page in pages)
    body += bytes(-(40 + len(body)) % 512)
    size = len(after) - BASE_BLOCK_BYTES
    head = struct.pack("<4sIIIII", b"HvLE", 40 + len(body), 0, sequence, size, len(pages))
    head += struct.pack("<Q", marvin32(body))
    return head + struct.pack("<Q", marvin32(head)) + body


def new_log(states: Sequence[bytes], first: int) -> bytes:
    """A log that leads from the first state to the last, an entry for each step."""
    steps = enumerate(pairwise(states), first)
    entries = [entry(old, new, number) for number, (old, new) in steps]
    return log_head(states[1], NEW, first) + b"".join(entries)


def old_log(
    before: bytes, after: bytes, sequence: int, written: int = WRITTEN, sectors: int = 1
) -> bytes:
    """A log that leads from one state to the other, with a bit for each 512 bytes."""
    sector = 512 * sectors
    pages = _changed(before, after, 4096)
    size = len(after) - BASE_BLOCK_BYTES
    bits = bytearray(size // 4096)
    for page in pages:  # Windows marks whole pages, so a byte of the vector is 0 or 255
        bits[page // 4096] = 0xFF
    vector = b"DIRT" + bytes(bits)
    vector += bytes(-len(vector) % sector)
    data = b"".join(_piece(after, page, 4096) for page in pages)
    return log_head(after, OLD, sequence, written, sectors) + vector + data


def _changed(before: bytes, after: bytes, size: int) -> list[int]:
    places = range(0, len(after) - BASE_BLOCK_BYTES, size)
    return [at for at in places if _piece(before, at, size) != _piece(after, at, size)]


def _piece(hive: bytes, at: int, size: int) -> bytes:
    return hive[BASE_BLOCK_BYTES + at : BASE_BLOCK_BYTES + at + size]
