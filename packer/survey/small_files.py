"""Ask a child for files of an NTFS volume that lie within its master file table."""

from __future__ import annotations

from collections.abc import Sequence

from packer.survey import wire
from packer.survey.answers import ask, demand
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

    def believe(reply: wire.SmallFilesReply) -> dict[str, bytes]:
        found = dict(reply.files)
        demand(found.keys() <= set(paths), "a file that nobody asked for")
        demand(len(found) == len(reply.files), "a file twice")
        demand(max(map(len, found.values()), default=0) <= MAX_SMALL_FILE_BYTES, "a large file")
        return found

    return ask(
        disk,
        "NTFS",
        request,
        wire.SmallFilesReply,
        believe,
        what="small files of",
        limits=limits or Limits(),
    )
