"""What a target has, as a list of digests: `vmpack inventory ROOT -o host.inv`.

A pack made with `--against host.inv` leaves out what the target has. The list holds digests and
sizes of files that every user of the target can read, and their names only if asked for; it still
tells whoever reads it which known files are there.

A file is "vmpackinv1\\n", the size in bytes of what follows unpacked (u64, little-endian), and one
zstd frame of MessagePack: an Inventory's columns, sorted by digest.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from packer.artifact import zstd
from packer.artifact.contents import DIGEST_BYTES
from packer.columns import PackedColumn, decode_column, encode_column
from packer.errors import Error, InputError
from packer.progress import Progress, Silent
from packer.sources.memory import Memory, find_rows
from packer.sources.tree import Tree, hash_files

MAGIC = b"vmpackinv1\n"
MAX_FILE_BYTES = 1 << 30
MAX_ROWS = 8_000_000
MAX_UNPACKED_BYTES = 2 << 30
LEVEL = 9  # digests do not shrink, names do

_SIZE = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Inventory:
    """Contents that a target has: digest uint8[n, 32], sorted and distinct; size int64[n], bytes.

    name: n paths on the target, or none at all.
    """

    digest: NDArray[np.uint8]
    size: NDArray[np.int64]
    name: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.size)

    def contains(self, digests: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return for each of the digests (uint8[n, 32]) whether the target has it: bool[n]."""
        return find_rows(self.digest, digests) >= 0

    def save(self, path: Path) -> None:
        """Write the list; it has its name only when it is complete. Raises Error."""
        data = encode(self)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            try:
                temporary.write_bytes(data)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise Error(f"{path}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a list. Raises InputError when it is not one, or too large to be one."""
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from error
        if len(data) > MAX_FILE_BYTES:
            raise InputError(f"{path}: expected at most {MAX_FILE_BYTES} bytes")
        found = decode(data, str(path))
        return cls(found.digest, found.size, found.name)


class _WireInventory(msgspec.Struct, frozen=True):
    digest: bytes
    size: PackedColumn
    names: bytes | None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_WireInventory)


def encode(inventory: Inventory) -> bytes:
    """Return the bytes of an inventory file; the same for the same inventory."""
    names = "\0".join(inventory.name).encode("utf-8", "surrogateescape")
    plain = _encoder.encode(
        _WireInventory(
            digest=np.ascontiguousarray(inventory.digest).tobytes(),
            size=encode_column(inventory.size),
            names=names if inventory.name else None,
        )
    )
    return MAGIC + _SIZE.pack(len(plain)) + zstd.compress(plain, LEVEL)


def decode(data: bytes, what: str) -> Inventory:
    """Return the inventory that `data` encodes.

    what: names the file in errors. Raises InputError that tells which rule is broken.
    """
    start = len(MAGIC) + _SIZE.size
    if not data.startswith(MAGIC) or len(data) < start:
        raise InputError(
            f"{what}: not an inventory, or of an unknown version",
            hint="vmpack inventory writes one",
        )
    (plain_bytes,) = _SIZE.unpack(data[len(MAGIC) : start])
    if plain_bytes > MAX_UNPACKED_BYTES:
        raise InputError(f"{what}: expected at most {MAX_UNPACKED_BYTES} bytes unpacked")
    plain = zstd.decompress(memoryview(data)[start:], plain_bytes, what)
    try:
        wire = _decoder.decode(plain)
    except msgspec.MsgspecError as error:
        raise InputError(f"{what}: not the MessagePack it should be ({error})") from error
    rows, rest = divmod(len(wire.digest), DIGEST_BYTES)
    if rest or rows > MAX_ROWS:
        raise InputError(f"{what}: digest: expected at most {MAX_ROWS} times 32 bytes")
    size = decode_column(wire.size, f"{what}: size", rows)
    if rows and int(size.min()) < 1:
        raise InputError(f"{what}: size: expected 1 or more, found {int(size.min())}")
    digest = np.frombuffer(wire.digest, dtype=np.uint8).reshape(rows, DIGEST_BYTES)
    keys = np.ascontiguousarray(digest).view(f"S{DIGEST_BYTES}").reshape(-1)
    if not bool((keys[1:] > keys[:-1]).all()):
        raise InputError(f"{what}: digest: expected sorted and distinct rows")
    return Inventory(digest, size, _decode_names(wire.names, rows, what))


def _decode_names(names: bytes | None, rows: int, what: str) -> tuple[str, ...]:
    if names is None:
        return ()
    count = names.count(b"\0") + 1  # before they are cut: NULs alone would fill the memory
    if count != rows:
        raise InputError(f"{what}: names: expected {rows}, found {count}")
    return tuple(names.decode("utf-8", "surrogateescape").split("\0"))


def take_inventory(
    roots: Sequence[tuple[Path, Sequence[str]]],
    memory: Memory | None = None,
    *,
    with_names: bool = False,
    progress: Progress | None = None,
) -> Inventory:
    """Return what every user can read below the given (root, folders to leave out) of this host.

    Each root is one file system. A content that is there under several names is listed once.
    Raises SourceError when a root cannot be used.
    """
    digests: list[NDArray[np.uint8]] = [np.empty((0, DIGEST_BYTES), dtype=np.uint8)]
    sizes: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
    names: list[str] = []
    for root, excluded in roots:
        tree = Tree(root, explicit=True, excluded=excluded)
        try:
            files = tree.walk(None)
            size = files.stamp[:, 2]
            with (progress or Silent()).stage(f"hashing {root}", int(size.sum())) as advance:
                digest, known = hash_files(tree, files, np.zeros_like(size), size, memory, advance)
        finally:
            tree.close()
        digests.append(digest[known])
        sizes.append(size[known])
        inside = str(root).rstrip("/")
        names += [inside + files.path[row] for row in np.flatnonzero(known).tolist()]
    digest, size = np.concatenate(digests), np.concatenate(sizes)
    order = np.lexsort(digest.T[::-1])
    digest, size = digest[order], size[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (digest[1:] != digest[:-1]).any(axis=1)
    listed = tuple(names[row] for row in order[first].tolist()) if with_names else ()
    return Inventory(digest[first], size[first], listed)
