"""What parent and child say to each other: MessagePack of packed columns, nothing executable.

The request is trusted (the parent wrote it). A reply is not: the child has parsed hostile bytes
by then and may be anybody. `decode_reply` checks the shape and every length; what the numbers
mean for the disk at hand is checked by `packer.survey.believe`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from formats.ranges import Ranges
from packer.columns import Column, PackedColumn, decode_column, encode_column
from packer.errors import InputError
from packer.survey.limits import Limits

MAX_BYTES = 1 << 60
"""Above any offset or size on the wire, and the sum of two of them is still an int64."""

MAX_ROWS = 1 << 24
"""More files or extents than a child can list within its memory; bounds columns of zeros."""

MAX_TEXT_CHARACTERS = 4096
MAX_TEXTS = 4096
MAX_PARTITIONS = 4096
MAX_LISTED = 1 << 22
"""What any list of a reply may have; more is not even decoded."""

_LISTED = msgspec.Meta(max_length=MAX_LISTED)
Texts = Annotated[list[str], _LISTED]
Pairs = Annotated[list[tuple[str, str]], _LISTED]

Table = tuple[PackedColumn, ...]
"""The columns of a two-dimensional int64 array."""


class FlatColumns(msgspec.Struct, frozen=True, array_like=True):
    """The arguments of FlatDisk: a container's disk as columns."""

    size: int
    cluster_size: int
    compression: str
    runs: Table
    compressed: Table
    backed: Table


class PlainFile(msgspec.Struct, frozen=True, array_like=True, tag="file"):
    """An inherited descriptor whose bytes are the disk."""

    fd: int


class FlatFile(msgspec.Struct, frozen=True, array_like=True, tag="flat"):
    """An inherited descriptor of a container that has been parsed already."""

    fd: int
    columns: FlatColumns
    backing: PlainFile | FlatFile | NbdExport | None


class NbdExport(msgspec.Struct, frozen=True, array_like=True, tag="nbd"):
    """An NBD server that the child connects to."""

    uri: str


Opening = PlainFile | FlatFile | NbdExport


class ReadContainer(msgspec.Struct, frozen=True, array_like=True, tag="container"):
    """Parse the container in an inherited descriptor. Answer: ContainerReply."""

    container: str
    fd: int
    backing: Opening | None


class ReadTable(msgspec.Struct, frozen=True, array_like=True, tag="table"):
    """Read the partition table and say what each partition seems to be. Answer: TableReply."""

    opening: Opening


class ReadVolume(msgspec.Struct, frozen=True, array_like=True, tag="volume"):
    """Read the file system of `[start, end)` of the disk. Answer: VolumeReply."""

    opening: Opening
    reader: str
    start: int
    end: int


class ReadDisk(msgspec.Struct, frozen=True, array_like=True, tag="disk"):
    """Read the partition table and all file systems. Answer: DiskReply."""

    opening: Opening


class FileRuns(msgspec.Struct, frozen=True, array_like=True):
    """Files of a disk: columns (file, 1 + offset on the disk or 0 for zeros, length in bytes).

    The rows of a file follow each other, and it has no gaps. count: files; one may have no row.
    """

    count: int
    runs: Table


class ReadPrograms(msgspec.Struct, frozen=True, array_like=True, tag="programs"):
    """Look at Windows programs. Answer: ProgramsReply. with_signers: also at their signatures."""

    opening: Opening
    files: FileRuns
    with_signers: bool


class ReadSmallFiles(msgspec.Struct, frozen=True, array_like=True, tag="small files"):
    """Read files that lie within the metadata of an NTFS volume. Answer: SmallFilesReply."""

    opening: Opening
    start: int
    end: int
    paths: list[str]


class ReadHive(msgspec.Struct, frozen=True, array_like=True, tag="hive"):
    """Read keys of a registry hive. Answer: HiveReply.

    files: the hive, then its logs. wanted: (path, depth, values) of formats.windows.hive_query.
    """

    opening: Opening
    files: FileRuns
    wanted: list[tuple[str, int, list[str] | None]]


class ReadCatalogs(msgspec.Struct, frozen=True, array_like=True, tag="catalogs"):
    """Read security catalogs. Answer: CatalogsReply."""

    opening: Opening
    files: FileRuns


class ReadManifests(msgspec.Struct, frozen=True, array_like=True, tag="manifests"):
    """Read component manifests. Answer: ManifestsReply."""

    opening: Opening
    files: FileRuns


Request = (
    ReadContainer
    | ReadTable
    | ReadVolume
    | ReadDisk
    | ReadPrograms
    | ReadSmallFiles
    | ReadHive
    | ReadCatalogs
    | ReadManifests
)


class Order(msgspec.Struct, frozen=True, array_like=True):
    """A request and the limits within which it has to be answered."""

    limits: Limits
    request: Request


class Failure(msgspec.Struct, frozen=True, array_like=True, tag="failure"):
    """The bytes are not what they should be and the reader noticed, or they cannot be had.

    by_server: whether an NBD server does not answer, or answers wrongly.
    """

    reason: str
    by_server: bool = False


class ContainerReply(msgspec.Struct, frozen=True, array_like=True, tag="container"):
    """columns: None when a backing file is needed or nothing was mapped.

    backing_name, backing_format: what the container records. files: further files it names.
    """

    columns: FlatColumns | None
    backing_name: str
    backing_format: str
    files: list[str]


class WirePartition(msgspec.Struct, frozen=True, array_like=True):
    """A partition, and what its first bytes look like.

    reader: who can read it, "" for nobody; note: what it seems to be, for people; quiet: whether
    the note is nothing to warn of. volume_label: what the superblock says, for people.
    """

    number: int
    start: int
    end: int
    type: str
    uuid: str
    label: str
    reader: str
    note: str
    quiet: bool
    volume_label: str = ""


class TableReply(msgspec.Struct, frozen=True, array_like=True, tag="table"):
    """See formats.volume.model.PartitionTable."""

    kind: str
    sector_size: int
    identifier: str
    partitions: list[WirePartition]
    warnings: Texts


class VolumeReply(msgspec.Struct, frozen=True, array_like=True, tag="volume"):
    """See formats.filesystem.model.FileSystem. Paths are joined by NUL, which no name contains."""

    kind: str
    block_size: int
    label: str
    uuid: str
    state: str
    state_reason: str
    free: Table
    held: Table
    snapshots: Table
    dropped: Table
    streams: Table
    extents: Table
    name_stream: PackedColumn
    names: bytes
    link_names: bytes
    link_targets: bytes
    unread: Texts


class DiskReply(msgspec.Struct, frozen=True, array_like=True, tag="disk"):
    """volumes: of the partitions that have a reader, in the order of the table."""

    table: TableReply
    volumes: Annotated[list[VolumeReply | Failure], msgspec.Meta(max_length=MAX_PARTITIONS)]


class ProgramsReply(msgspec.Struct, frozen=True, array_like=True, tag="programs"):
    """What was asked for, a row for each program; see packer.survey.programs.

    numbers: machine, timestamp, size of the image, subsystem, 1 + row in `signers` (0: none).
    needs: program, kind, row in `modules`; sorted by program. signers: (organization, common name).
    errors: what could not be read of each program, "" for nothing.
    """

    numbers: Table
    needs: Table
    modules: Texts
    signers: Pairs
    errors: Texts


class SmallFilesReply(msgspec.Struct, frozen=True, array_like=True, tag="small files"):
    """files: (path as it was asked for, contents) of each that is such a file."""

    files: Annotated[list[tuple[str, bytes]], _LISTED]


class HiveReply(msgspec.Struct, frozen=True, array_like=True, tag="hive"):
    """See formats.windows.hive_query.View.

    keys: paths. values: row in `keys`, type, size in bytes; sorted by key. names: of each value.
    data: of all values, one after the other.
    """

    state: str
    done: Texts
    warnings: Texts
    keys: Texts
    values: Table
    names: Texts
    data: bytes


class CatalogsReply(msgspec.Struct, frozen=True, array_like=True, tag="catalogs"):
    """A row for each catalog; see packer.survey.records.

    numbers: 1 + row in `signers` (0: none), SHA-1 digests, SHA-256 digests. sha1, sha256: of all
    catalogs, one after the other. signers: (organization, common name). errors: "" for none.
    """

    numbers: Table
    sha1: bytes
    sha256: bytes
    signers: Pairs
    errors: Texts


class ManifestsReply(msgspec.Struct, frozen=True, array_like=True, tag="manifests"):
    """A row for each digest of each file; see packer.survey.records.

    numbers: row of the manifest, bytes of the digest. names: of the files, joined by NUL.
    digests: one after the other. errors: of each manifest, "" for none.
    """

    numbers: Table
    names: bytes
    digests: bytes
    errors: Texts


Answer = (
    ContainerReply
    | TableReply
    | VolumeReply
    | DiskReply
    | ProgramsReply
    | SmallFilesReply
    | HiveReply
    | CatalogsReply
    | ManifestsReply
)
Reply = Failure | Answer
Expected = TypeVar("Expected", bound=Answer)

_ORDERS = msgspec.msgpack.Decoder(Order)
_REPLIES = msgspec.msgpack.Decoder(Reply)


class MalformedError(InputError):
    """A reply that no honest child sends."""


def encode(message: Order | Reply) -> bytes:
    """Return an order or a reply as bytes."""
    return msgspec.msgpack.encode(message)


def decode_order(data: bytes) -> Order:
    """Return what the parent asks for."""
    return _ORDERS.decode(data)


def decode_reply(data: bytes | bytearray, kind: type[Expected]) -> Expected | Failure:
    """Return a reply of the given kind, or the failure that came instead.

    Raises MalformedError.
    """
    try:
        reply = _REPLIES.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"not a reply: {error}") from error
    if not isinstance(reply, (kind, Failure)):
        raise MalformedError(f"expected a {kind.__name__}, found a {type(reply).__name__}")
    return reply


def pack_table(rows: NDArray[np.integer]) -> Table:
    """Return the columns of a two-dimensional array of values of at least 0."""
    return tuple(encode_column(rows[:, column]) for column in range(rows.shape[1]))


def pack_rows(rows: Sequence[tuple[int, ...]], columns: int) -> Table:
    """Return the columns of rows of values of at least 0, of which there may be none."""
    return pack_table(np.array(rows, dtype=np.int64).reshape(-1, columns))


def unpack_column(packed: PackedColumn, what: str, rows: int | None = None) -> Column:
    """Return a column of values in [0, MAX_BYTES].

    Raises MalformedError.
    """
    if packed.rows > MAX_ROWS:
        raise MalformedError(f"{what}: {packed.rows} rows")
    try:
        column = decode_column(packed, what, rows)
    except InputError as error:
        raise MalformedError(error.message) from error
    if len(column) and int(column.max()) > MAX_BYTES:
        raise MalformedError(f"{what}: {int(column.max())} is more than any disk has")
    return column


def unpack_columns(table: Table, what: str, count: int) -> list[Column]:
    """Return exactly `count` columns of equal length.

    Raises MalformedError.
    """
    if len(table) != count:
        raise MalformedError(f"{what}: expected {count} columns, found {len(table)}")
    return [unpack_column(one, what, table[0].rows) for one in table]


def unpack_table(table: Table, what: str, count: int) -> NDArray[np.int64]:
    """Return int64[n, count].

    Raises MalformedError.
    """
    return np.stack(unpack_columns(table, what, count), axis=1)


def unpack_ranges(table: Table, what: str, size: int) -> Ranges:
    """Return ranges that are sorted, disjoint, not empty and inside `[0, size)`.

    Raises MalformedError.
    """
    ranges = unpack_table(table, what, 2)
    if len(ranges) == 0:
        return ranges
    if (ranges[:, 1] <= ranges[:, 0]).any() or (ranges[1:, 0] < ranges[:-1, 1]).any():
        raise MalformedError(f"{what}: the ranges are empty, unsorted or overlap")
    if int(ranges[-1, 1]) > size:
        raise MalformedError(f"{what}: a range ends at {int(ranges[-1, 1])}, the volume at {size}")
    return ranges


def pack_texts(texts: list[str]) -> bytes:
    """Return strings, of which none contains NUL, as bytes; any code point passes, surrogates too.

    An empty list and a list of one empty string look alike: whoever unpacks knows the count.
    """
    return "\0".join(texts).encode("utf-8", "surrogatepass")


def unpack_texts(data: bytes, count: int, what: str) -> list[str]:
    """Return exactly `count` strings of at most MAX_TEXT_CHARACTERS each.

    Raises MalformedError.
    """
    try:
        texts = data.decode("utf-8", "surrogatepass").split("\0")
    except UnicodeDecodeError as error:
        raise MalformedError(f"{what}: {error}") from error
    if count == 0 and texts == [""]:
        return []
    if len(texts) != count:
        raise MalformedError(f"{what}: expected {count}, found {len(texts)}")
    if max(map(len, texts)) > MAX_TEXT_CHARACTERS:
        raise MalformedError(f"{what}: one has more than {MAX_TEXT_CHARACTERS} characters")
    return texts
