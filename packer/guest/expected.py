"""What the bytes of a file should hash to, as records of its own guest say.

A record is a hint until the bytes are hashed; whoever hashes them is `packer.pack.digest`.
"""

from __future__ import annotations

from dataclasses import dataclass

ALGORITHMS = {16: "md5", 20: "sha1", 32: "sha256"}
"""Bytes of a digest -> its algorithm, as hashlib calls it."""


@dataclass(frozen=True, slots=True)
class Catalogued:
    """Digests that security catalogs list, all of them: they do not say which file has which.

    sha1, sha256: digests of 20 and 32 bytes. Of a program it is the one of Authenticode, see
    formats.windows.authenticode.image_digest; of any other file that of all its bytes.
    """

    sha1: frozenset[bytes] = frozenset()
    sha256: frozenset[bytes] = frozenset()


Expected = bytes | Catalogued
"""The digest of a whole file, of 16, 20 or 32 bytes; or many, of which one has to fit."""
