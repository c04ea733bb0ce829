"""Ask a child for files of an NTFS volume that lie within its master file table."""

from __future__ import annotations

from collections.abc import Sequence

from packer.errors import InputError
from packer.survey import wire
from packer.survey.child import ChildError, clean_text
from packer.survey.disk import Disk
from packer.survey.limits import Limits

MAX_SMALL_FILE_BYTES = 4096
"""What a record of the largest size can hold."""


def read_small_files(
    disk: Disk, start: int, end: int, paths: Sequence[str], *, limits: Limits | None = None
) -> dict[str, bytes]:
    """Return the contents of those paths of the volume `[start, end)` that are such files.

    Raises InputError when the volume cannot be read, or when the child does not answer as it
    should.
    """
    request = wire.ReadSmallFiles(disk.opening, start, end, list(paths))
    reply = disk.ask("NTFS", disk.path, request, wire.SmallFilesReply, limits or Limits())
    if isinstance(reply, wire.Failure):
        raise InputError(f"small files of {disk.path} cannot be read: {clean_text(reply.reason)}")
    found = dict(reply.files)
    sane = all(len(data) <= MAX_SMALL_FILE_BYTES for data in found.values())
    if not found.keys() <= set(paths) or len(found) != len(reply.files) or not sane:
        raise ChildError("NTFS", disk.path, "sent back something that cannot be (small files)")
    return found
