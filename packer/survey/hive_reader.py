"""The child's side of `packer.survey.hives`: read a hive with its logs, answer in columns."""

from __future__ import annotations

from collections.abc import Iterable

from formats.errors import Unsupported
from formats.source import Runs, Source
from formats.windows.hive_log import MAX_HIVE_BYTES, MAX_LOG_BYTES
from formats.windows.hive_query import View, Wanted, query
from packer.survey import wire
from packer.survey.opening import open_files


def answer(request: wire.ReadHive, disk: Source) -> wire.HiveReply:
    """Return what is wanted of the hive.

    Raises FormatError when it is none.
    """
    primary, *logs = open_files(request.files, disk)
    if primary.size > MAX_HIVE_BYTES:
        reason = f"{primary.size} bytes, at most {MAX_HIVE_BYTES} are read"
        raise Unsupported("registry hive", 0, reason)
    wanted = [
        Wanted(path, depth, None if values is None else tuple(values))
        for path, depth, values in request.wanted
    ]
    return _reply(query(primary.pread(0, primary.size), list(map(_log, logs)), wanted))


def _log(file: Runs) -> bytes:
    """Return a log, or enough of one that is too large to be told so."""
    return file.pread(0, min(file.size, MAX_LOG_BYTES + 1))


def _reply(view: View) -> wire.HiveReply:
    values = [(row, value) for row, key in enumerate(view.keys) for value in key.values]
    numbers = [(row, value.type, len(value.data)) for row, value in values]
    return wire.HiveReply(
        view.state,
        _texts(view.done),
        _texts(view.warnings),
        _texts(key.path for key in view.keys),
        wire.pack_rows(numbers, 3),
        _texts(value.name for _, value in values),
        b"".join(value.data for _, value in values),
    )


def _texts(texts: Iterable[str]) -> list[str]:
    """Return texts that can be encoded, which names with lone surrogates cannot."""
    return [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
