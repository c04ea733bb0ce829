"""Hand-made maps and contents for tests: small, legal, and easy to damage."""

from __future__ import annotations

import hashlib

import numpy as np

from packer.artifact.contents import BLOCK_BYTES, Class, Contents, block_starts
from packer.artifact.map import Kind, Map


def contents_of(data: list[bytes], classes: list[Class] | None = None) -> Contents:
    """Return the contents with these bytes, in this order."""
    size = np.array([len(one) for one in data], dtype=np.int64)
    digests = b"".join(hashlib.sha256(one).digest() for one in data)
    blocks = b"".join(
        hashlib.sha256(one[start : start + BLOCK_BYTES]).digest()
        for one in data
        if len(one) > BLOCK_BYTES
        for start in range(0, len(one), BLOCK_BYTES)
    )
    return Contents(
        np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32),
        size,
        np.array(classes or [Class.SHARED] * len(data), dtype=np.uint8),
        np.frombuffer(blocks, dtype=np.uint8).reshape(-1, 32),
        block_starts(size),
    )


def map_of(contents: Contents, rows: list[tuple[Kind, int, int, int]]) -> Map:
    """Return the map of (kind, length, content, offset) rows."""
    kind = np.array([row[0] for row in rows], dtype=np.uint8)
    end = np.cumsum([row[1] for row in rows], dtype=np.int64)
    content = np.array([row[2] for row in rows], dtype=np.int64)
    offset = np.array([row[3] for row in rows], dtype=np.int64)
    return Map(int(end[-1]), end, kind, content, offset, contents)


def small_map() -> Map:
    """Return a map with every kind of range, a fragmented content, a twin and a large content."""
    contents = contents_of(
        [b"boot" * 128, b"fragmented" * 1000, bytes(range(256)) * 9000],
        [Class.BOOT, Class.PRIVATE, Class.SHARED],
    )
    return map_of(
        contents,
        [
            (Kind.CONTENT, 512, 0, 0),
            (Kind.ZERO, 3584, -1, 0),
            (Kind.CONTENT, 8192, 1, 0),
            (Kind.UNUSED, 4096, -1, 0),
            (Kind.CONTENT, 1808, 1, 8192),
            (Kind.UNUSED, 2288, -1, 0),
            (Kind.CONTENT, 512, 0, 0),
            (Kind.DROPPED, 3584, -1, 0),
            (Kind.CONTENT, 2304000, 2, 0),
            (Kind.ZERO, 4096, -1, 0),
        ],
    )
