"""What somebody relies on in this host's store, and what is therefore not collected.

    FOLDER/leases/NAME          digests, 32 bytes each, that a VM relies on until it is released
    FOLDER/leases/@PID-RANDOM   the same for a process, which holds a lock on it while it works

A lease appears by rename under the store's shared lock, never during a collection, which could
not see it yet.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import DIGEST_BYTES
from packer.sources.store_files import (
    CREATE_FLAGS,
    LEASES,
    StoreError,
    is_locked,
    locked,
    names,
    store_errors,
    write_all,
)

_OF_A_VM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_OF_A_PROCESS = re.compile(r"@[0-9a-f-]+")
_ANY = re.compile(rf"{_OF_A_PROCESS.pattern}|{_OF_A_VM.pattern}")


class Leases:
    """The leases of the store in `folder`. Raises StoreError when they cannot be read or written.

    To rely on an object, lease it first and look whether it is there then.
    """

    def __init__(self, folder: Path) -> None:
        self._store = folder
        self._folder = folder / LEASES

    def lease(self, name: str, digests: NDArray[np.uint8]) -> None:
        """Note that a VM relies on contents (uint8[n, 32]) until `release`; replaces its lease.

        What is leased is not collected, whether it is in the store already or comes later.
        """
        os.close(self._write(self._path(name), digests))

    def has(self, name: str) -> bool:
        """Return whether a VM has a lease."""
        path = self._path(name)
        with store_errors(self._store):
            return path.exists()

    def release(self, name: str) -> None:
        """Drop a VM's lease, if there is one."""
        path = self._path(name)
        with store_errors(self._store):
            path.unlink(missing_ok=True)

    @contextmanager
    def using(self, digests: NDArray[np.uint8]) -> Iterator[None]:
        """Lease contents to this process while it works; the lease ends with the process."""
        path = self._folder / f"@{os.getpid()}-{os.urandom(8).hex()}"
        fd = self._write(path, digests)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(fd)

    def leased(self) -> dict[str, NDArray[np.uint8]]:
        """Return {name: digests uint8[n, 32]} of all leases but those of ended processes.

        Raises StoreError when one cannot be read: then nothing may be collected.
        """
        found: dict[str, NDArray[np.uint8]] = {}
        with store_errors(self._store):
            for name in names(self._folder, _ANY):
                path = self._folder / name
                try:
                    if _has_ended(path):
                        continue
                    data = path.read_bytes()
                except FileNotFoundError:
                    continue
                found[name] = _digests(path, data)
        return found

    def forget_ended(self) -> None:
        """Remove the leases of ended processes. The caller holds the store's lock exclusively."""
        with store_errors(self._store):
            for name in names(self._folder, _OF_A_PROCESS):
                path = self._folder / name
                try:
                    if _has_ended(path):
                        path.unlink()
                except FileNotFoundError:
                    continue

    def _path(self, name: str) -> Path:
        if not _OF_A_VM.fullmatch(name):
            raise StoreError(f"lease {name!r}: a name has letters, digits, '.', '_' and '-' only")
        return self._folder / name

    def _write(self, path: Path, digests: NDArray[np.uint8]) -> int:
        """Write a lease and return its descriptor; the lease is locked until that is closed."""
        temporary = self._folder / f".{os.getpid()}-{os.urandom(8).hex()}"
        with store_errors(self._store), locked(self._store, fcntl.LOCK_SH):
            fd = os.open(temporary, CREATE_FLAGS, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH)
                write_all(fd, np.ascontiguousarray(digests, dtype=np.uint8).tobytes())
                temporary.rename(path)
            except OSError:
                os.close(fd)
                temporary.unlink(missing_ok=True)
                raise
            return fd


def _has_ended(path: Path) -> bool:
    """Return whether a lease is that of an ended process. Raises OSError."""
    return _OF_A_PROCESS.fullmatch(path.name) is not None and not is_locked(path)


def _digests(path: Path, data: bytes) -> NDArray[np.uint8]:
    if len(data) % DIGEST_BYTES:
        raise StoreError(
            f"{path}: expected digests of 32 bytes each, found {len(data)} bytes",
            hint="remove this file if no VM has the UUID that it is named after: vmpack ps --json",
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, DIGEST_BYTES)
