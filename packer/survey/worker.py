"""The child's side: read one thing from a disk, answer once, end.

Started by `packer.survey.child`; everything is imported before the limits are taken on, because
what is imported is trusted and what is read afterwards is not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from formats.container.qcow2 import BackingRequired, Qcow2
from formats.errors import FormatError
from formats.filesystem import ext, fat, ntfs, swap
from formats.filesystem.model import FileSystem
from formats.filesystem.ntfs.small import read_small_files
from formats.source import Source, Window
from formats.volume.model import Partition, PartitionTable
from formats.volume.table import read_table
from packer.columns import encode_column
from packer.errors import InputError
from packer.survey import hive_reader, program_reader, record_reader, wire
from packer.survey.child import EXIT_OUT_OF_MEMORY
from packer.survey.limits import limit_this_process, parent_is_gone
from packer.survey.opening import inherited_file, open_source, pack_flat
from packer.survey.recognise import label_of, recognise
from packer.survey.references import referenced_files
from packer.transport.nbd import NbdError

_STDIN, _STDOUT, _STDERR = 0, 1, 2
_NO_TABLE_NUMBER = 0
_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class Reader:
    """A file system's reader."""

    name: str
    probe: Callable[[Source], bool]
    read: Callable[[Source], FileSystem]


READERS: tuple[Reader, ...] = (
    Reader("ext", ext.probe, ext.read),
    Reader("swap", swap.probe, swap.read),
    Reader("FAT", fat.probe, fat.read),
    Reader("NTFS", ntfs.probe, ntfs.read),
)


def main(parent: int) -> None:
    """Answer the request on standard input, within the limits that it sets."""
    answers = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)  # what a C library may print is no part of the answer
    with os.fdopen(_STDIN, "rb", closefd=False) as pipe:
        order = wire.decode_order(pipe.read())
    limit_this_process(order.limits)
    if parent_is_gone(parent):
        sys.exit(1)
    try:
        answer = wire.encode(_answer(order.request))
    except MemoryError:
        os._exit(EXIT_OUT_OF_MEMORY)
    with os.fdopen(answers, "wb") as pipe:
        pipe.write(answer)
    # Nothing is left to do, and freeing a million objects one by one takes its time.
    os._exit(0)


def _answer(request: wire.Request) -> wire.Reply:
    return _or_failure(lambda: _read(request))


def _or_failure(read: Callable[[], _Read]) -> _Read | wire.Failure:
    try:
        return read()
    except NbdError as error:
        return wire.Failure(_printable(str(error)), by_server=True)
    except (FormatError, InputError) as error:
        return wire.Failure(_printable(str(error)))
    except OSError as error:
        return wire.Failure(f"cannot be read: {_printable(str(error))}")


def _read(request: wire.Request) -> wire.Reply:
    if isinstance(request, wire.ReadContainer):
        return _read_container(request)
    source = open_source(request.opening)
    if isinstance(request, wire.ReadTable):
        return _read_table(source)
    if isinstance(request, wire.ReadDisk):
        return _read_disk(request, source)
    if isinstance(request, wire.ReadPrograms):
        return program_reader.answer(request, source)
    if isinstance(request, wire.ReadHive):
        return hive_reader.answer(request, source)
    if isinstance(request, wire.ReadCatalogs):
        return record_reader.answer_catalogs(request, source)
    if isinstance(request, wire.ReadManifests):
        return record_reader.answer_manifests(request, source)
    if isinstance(request, wire.ReadSmallFiles):
        return _read_small_files(request, source)
    return _read_volume(request, source)


def _read_container(request: wire.ReadContainer) -> wire.ContainerReply:
    file = inherited_file(request.fd)
    if request.container != "qcow2":
        names = referenced_files(file, request.container)
        return wire.ContainerReply(None, "", "", [_printable(name) for name in names])
    backing = open_source(request.backing) if request.backing is not None else None
    try:
        disk = Qcow2(file, backing)
    except BackingRequired as needed:
        return wire.ContainerReply(None, _printable(needed.name), _printable(needed.format), [])
    return wire.ContainerReply(
        pack_flat(disk), _printable(disk.backing_name), _printable(disk.backing_format), []
    )


def _read_table(source: Source) -> wire.TableReply:
    table = read_table(source)
    partitions = table.partitions
    if table.kind == "none" and source.size:
        partitions = (Partition(_NO_TABLE_NUMBER, 0, source.size, ""),)
    return wire.TableReply(
        table.kind,
        table.sector_size,
        table.identifier,
        [_look_at(source, one, table) for one in partitions],
        [_printable(warning) for warning in table.warnings[: wire.MAX_TEXTS]],
    )


def _look_at(source: Source, partition: Partition, table: PartitionTable) -> wire.WirePartition:
    window = Window(source, partition.start, partition.end - partition.start)
    reader, note, quiet = _judge(window, partition.type)
    if reader and any(_covers(partition, start, end, table.kind) for start, end in table.own):
        # Its file system may call these bytes free, and whoever reads the table does not.
        reader, note, quiet = "", "it covers a part of the partition table", False
    return wire.WirePartition(
        partition.number,
        partition.start,
        partition.end,
        partition.type,
        partition.uuid,
        _printable(partition.label),
        reader,
        note,
        quiet,
        _printable(label_of(window)),
    )


def _covers(partition: Partition, start: int, end: int, kind: str) -> bool:
    """Say whether bytes of the table lie where the partition's file system may call them free.

    A boot record is one sector, and no reader calls the first sector of its volume free: a volume
    from sector 0 carries the MBR in its own boot sector (`mkfs.fat --mbr`).
    """
    if kind == "mbr" and start == partition.start:
        return False
    return start < partition.end and partition.start < end


def _judge(volume: Source, partition_type: str) -> tuple[str, str, bool]:
    """Return (reader, note, quiet): a reader only if nothing else claims the volume."""
    able = [one.name for one in READERS if one.probe(volume)]
    guess = recognise(volume, partition_type)
    if guess and guess.certain:
        return "", guess.note, guess.quiet
    claims = able + ([guess.name] if guess and guess.claims else [])
    if len(claims) > 1:
        return "", f"signs of {' and '.join(claims)}: one of them is stale", False
    if able:
        return able[0], "", True
    if guess:
        return "", guess.note, guess.quiet
    if len(volume.data_ranges(0, volume.size)) == 0:
        return "", "empty: reads as zeros", True
    return "", "no known file system", False


def _read_volume(request: wire.ReadVolume, source: Source) -> wire.VolumeReply:
    window = Window(source, request.start, request.end - request.start)
    read = next(one.read for one in READERS if one.name == request.reader)
    found = read(window)
    streams = found.streams
    unread = [_printable(sentence) for sentence in found.unread[: wire.MAX_TEXTS - 1]]
    names = sorted((stream, name) for stream, name in found.names if _fits(name))
    if len(names) < len(found.names):
        unread.append(f"{len(found.names) - len(names)} names are too long or contain NUL")
    links = [link for link in found.symlinks if all(map(_fits, link))]
    return wire.VolumeReply(
        found.kind,
        found.block_size,
        _printable(found.label),
        found.uuid,
        found.state,
        _printable(found.state_reason),
        wire.pack_table(found.free),
        wire.pack_table(found.held),
        wire.pack_table(found.snapshots),
        wire.pack_table(found.dropped),
        _columns(streams.inode, streams.size, streams.valid, streams.form),
        _columns(
            streams.stream,
            streams.file_offset,
            streams.disk_offset,
            streams.length,
            streams.kind,
        ),
        encode_column(np.array([stream for stream, _ in names], dtype=np.int64)),
        wire.pack_texts([name for _, name in names]),
        wire.pack_texts([name for name, _ in links]),
        wire.pack_texts([target for _, target in links]),
        unread,
    )


def _read_disk(request: wire.ReadDisk, source: Source) -> wire.DiskReply:
    table = _read_table(source)
    volumes = [
        wire.ReadVolume(request.opening, one.reader, one.start, one.end)
        for one in table.partitions
        if one.reader
    ]
    return wire.DiskReply(
        table, [_or_failure(partial(_read_volume, one, source)) for one in volumes]
    )


def _read_small_files(request: wire.ReadSmallFiles, source: Source) -> wire.SmallFilesReply:
    window = Window(source, request.start, request.end - request.start)
    return wire.SmallFilesReply(list(dict(read_small_files(window, request.paths)).items()))


def _columns(*columns: NDArray[np.integer]) -> wire.Table:
    return tuple(encode_column(column) for column in columns)


def _fits(text: str) -> bool:
    return 0 < len(text) <= wire.MAX_TEXT_CHARACTERS and "\0" not in text


def _printable(text: str) -> str:
    """Return text that can be encoded, which names with lone surrogates cannot, and cut."""
    return text.encode("utf-8", "replace").decode("utf-8")[: wire.MAX_TEXT_CHARACTERS]
