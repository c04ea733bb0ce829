"""Files of a few kilobytes: read with a bound, written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from packer.artifact.layout.left_behind import temporary_name
from packer.artifact.layout.staging import refuse_existing, writing
from packer.durable import sync_directory
from packer.errors import InputError


def read_small_file(path: Path, max_bytes: int, expected: str) -> bytes:
    """Return the bytes of a regular file.

    expected: what it should be, for errors. Raises InputError when it is no regular file, cannot
    be read or is larger than max_bytes.
    """
    try:
        # O_NONBLOCK: opening a pipe must not wait for a writer before it is refused
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f"{path}: expected {expected}, found no regular file")
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > max_bytes:
        raise InputError(f"{path}: expected {expected} of at most {max_bytes} bytes, found more")
    return data


def write_small_file(path: Path, data: bytes, *, replace: bool) -> None:
    """Write a file whole; whoever reads meanwhile sees the old one or the new one.

    Raises UsageError when it is there and is not to be replaced, Error when it cannot be written.
    """
    if not replace:
        refuse_existing(path)
    temporary = temporary_name(path)
    with writing(path):
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_directory(path.parent)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
