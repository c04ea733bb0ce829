"""A layout as one ISO 9660 image, written: with Rock Ridge and Joliet, read by every system.

Plain names are those of ISO 9660:1999 ("level 4"): a blob has its whole name of 64 digits even
where a system looks at neither Rock Ridge nor Joliet. Blobs lie in the order in which they are
read (signature, maps, frame index, hints, boot, private, shared), extra files behind them. No time,
user or place goes into the image: the same files give the same bytes.

References: ECMA-119 (4th edition), 8.4.26 (dates of a volume), 9.1.5 (dates of a record).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from pycdlib import PyCdlib
from pycdlib.dates import DirectoryRecordDate
from pycdlib.dr import DirectoryRecord
from pycdlib.pycdlibexception import PyCdlibException

from packer.artifact.layout.base import COPY_BYTES, most_index_bytes
from packer.artifact.layout.directory import with_page
from packer.artifact.layout.extras import PAGE_NAME, Extra, Page
from packer.artifact.layout.staging import StagedWriter, refuse_existing, writing
from packer.artifact.manifest import OCI_LAYOUT, Blob, Entry
from packer.durable import sync_directory
from packer.errors import Error, UsageError

SECTOR_BYTES = 2048
LABEL_CHARACTERS = 16
"""What Joliet holds of a volume's name."""

_FOLDER_MODE, _FILE_MODE, _PROGRAM_MODE = 0o040555, 0o100444, 0o100555
_RECORD_TIME = (80, 1, 1, 0, 0, 0, 0)
"""1 January 1980, 0:00 UTC, the first moment that FAT knows: years since 1900, …, zone."""

_VOLUME_TIMES = b"1980010100000000\0" * 2 + b"0000000000000000\0" * 2
"""Created and changed then; expires and begins to be valid: not said."""

_VOLUME_TIMES_OFFSET = 813


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the image. opened: gives its bytes; called once, when it is written."""

    name: str
    size: int
    mode: int
    opened: Callable[[], BinaryIO]


class IsoWriter(StagedWriter):
    """Writes a layout as one ISO image.

    page, extras: files beside the layout. replace: whether an existing file of that name is
    replaced. Raises UsageError when the name is taken.
    """

    def __init__(
        self,
        path: Path,
        *,
        replace: bool = False,
        extras: Sequence[Extra] = (),
        page: Page | None = None,
    ) -> None:
        if not replace:
            refuse_existing(path)
        elif path.exists() and not path.is_file():
            raise UsageError(f"{path} exists and is no file", hint="choose another name")
        self._extras = tuple(extras)
        self._page = page
        super().__init__(path, replace=replace, durable=False)

    def medium_bytes(self, blob_sizes: Sequence[int]) -> int:
        """Return the size of the image with blobs of these sizes, manifests included.

        A page or an index.json that is smaller than it may be makes it up to a few sectors less.
        """
        page_bytes = 0 if self._page is None else self._page.most_bytes(len(blob_sizes))
        extras = [(one.name, one.size) for one in self._extras]
        if self._page is not None:
            extras.append((PAGE_NAME, page_bytes))
        return iso_bytes(blob_sizes, extras)

    def finish(self, packs: Sequence[Entry]) -> tuple[Blob, ...]:
        """Put the image together, make it durable, give it its name."""
        staging = self._open_staging()
        manifests = staging.seal(packs)
        extras = with_page(staging.root, self._extras, self._page)
        contained = (blob.digest for pack in packs for blob in pack.manifest.blobs())
        digests = dict.fromkeys([*(blob.digest for blob in manifests), *contained])
        files = [
            *(_staged(name, staging.root / name) for name in ("oci-layout", "index.json")),
            *(_staged(_blob_name(digest), staging.path(digest)) for digest in digests),
            *(_extra(one) for one in extras),
        ]
        whole = staging.root / "whole.iso"
        with writing(self._path):
            with whole.open("xb") as image, ExitStack() as opened:
                _write(_volume(files, _label(packs), opened), image)
                image.flush()
                os.fsync(image.fileno())
            if not self._replace:
                refuse_existing(self._path)
            whole.replace(self._path)
            sync_directory(self._path.parent)
        staging.remove()
        self._staging = None
        return manifests


def iso_bytes(blob_sizes: Sequence[int], extras: Iterable[tuple[str, int]] = ()) -> int:
    """Return the exact size of an image with blobs of these sizes.

    extras: (name, size in bytes) of the files beside the layout, the page among them. index.json
    is taken to be as large as it can be.
    """
    sizes = {"oci-layout": len(OCI_LAYOUT), "index.json": most_index_bytes(len(blob_sizes))}
    for number, size in enumerate(blob_sizes):
        sizes[_blob_name("sha256:" + hashlib.sha256(b"%d" % number).hexdigest())] = size
    sizes |= dict(extras)
    files = [_File(name, size, _FILE_MODE, _nothing) for name, size in sizes.items()]
    return int(_volume(files, "", ExitStack()).pvd.space_size) * SECTOR_BYTES


def _nothing() -> BinaryIO:
    raise ValueError("this image is only measured")


def _blob_name(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _staged(name: str, path: Path) -> _File:
    """Return a staged file, which is removed when it is opened: it lies on the medium twice
    only as long as it is copied.
    """

    def opened() -> BinaryIO:
        file = path.open("rb")
        path.unlink()
        return file

    return _File(name, path.stat().st_size, _FILE_MODE, opened)


def _extra(one: Extra) -> _File:
    return _File(one.name, one.size, _PROGRAM_MODE if one.executable else _FILE_MODE, one.open)


def _label(packs: Sequence[Entry]) -> str:
    """Return what a volume is called: "DEMO_3"."""
    name, _, version = packs[0].ref_name.rpartition(":") if len(packs) == 1 else ("VMPACK", "", "")
    shown = f"{name[: LABEL_CHARACTERS - len(version) - 1]}_{version}".strip("_").upper()
    return re.sub("[^A-Z0-9]", "_", shown)[:LABEL_CHARACTERS]


class _Data:
    """What pycdlib reads a file from: opened when it is written, closed at its end.

    opened: closes it when the writing fails before that.
    """

    mode = "rb"  # pycdlib looks

    def __init__(self, file: _File, opened: ExitStack) -> None:
        self._file = file
        self._stack = opened
        self._left = file.size
        self._opened: BinaryIO | None = None

    def seek(self, offset: int) -> None:
        """Begin; pycdlib does so once, at offset 0."""
        assert offset == 0
        self._opened = self._stack.enter_context(self._file.opened())

    def read(self, length: int) -> bytes:
        """Return exactly so many bytes; pycdlib would write a shorter file and say nothing."""
        assert self._opened is not None
        data = self._opened.read(length)
        self._left -= len(data)
        if len(data) != length or not self._left:
            self._opened.close()
        if len(data) != length:
            raise Error(f"{self._file.name} became shorter while it was copied")
        return data


def _volume(files: Sequence[_File], label: str, opened: ExitStack) -> PyCdlib:
    """Return an image that is ready to be written, with its files in this order."""
    iso = PyCdlib()
    iso.new(
        interchange_level=4, joliet=3, rock_ridge="1.09", vol_ident=label, app_ident_str="VMPACK"
    )
    folders: set[PurePosixPath] = {PurePosixPath("/")}
    for file in files:
        path = PurePosixPath("/", file.name)
        for folder in reversed(path.parents):
            if folder not in folders:
                folders.add(folder)
                iso.add_directory(
                    str(folder), folder.name, joliet_path=str(folder), file_mode=_FOLDER_MODE
                )
        try:
            # All that pycdlib does with a file is to seek and to read.
            data = cast(BinaryIO, _Data(file, opened))
            iso.add_fp(data, file.size, str(path), path.name, str(path), file.mode)
        except PyCdlibException as error:
            raise Error(f"{file.name} cannot be part of an ISO image: {error}") from error
    iso.force_consistency()
    _in_order(iso)
    _without_times(iso)
    return iso


def _in_order(iso: PyCdlib) -> None:
    """Place the files in the order in which they were added; pycdlib sorts them by name."""
    files = [one for one in iso.inodes if one.get_data_length()]
    block = min((one.extent_location() for one in files), default=0)
    for one in files:
        one.set_extent_location(block)
        for record, _ in one.linked_records:  # each tree's records, several for more than 4 GiB
            if isinstance(record, DirectoryRecord):
                start = block + record.data_extent_offset
                record.set_data_location(start, start)
        block += -(-one.get_data_length() // SECTOR_BYTES)


def _without_times(iso: PyCdlib) -> None:
    """Replace the present time, which pycdlib gives every record."""
    time = DirectoryRecordDate.from_fields(*_RECORD_TIME)
    roots = [one.root_directory_record() for one in (iso.pvd, *iso.svds)]
    for record in (one for root in roots for one in _records(root)):
        record.date = time
        rock_ridge = record.rock_ridge
        for fields in (rock_ridge.dr_entries, rock_ridge.ce_entries) if rock_ridge else ():
            if fields is not None and fields.tf_record is not None:
                fields.tf_record.access_time = time
                fields.tf_record.modification_time = time
                fields.tf_record.attribute_change_time = time


def _records(folder: DirectoryRecord) -> Iterator[DirectoryRecord]:
    yield folder
    for child in folder.children:
        if child.is_dir() and not child.is_dot() and not child.is_dotdot():
            yield from _records(child)
        else:
            yield child


def _write(iso: PyCdlib, image: BinaryIO) -> None:
    iso.write_fp(image, blocksize=COPY_BYTES)
    # pycdlib puts the present time into each volume descriptor while it writes it.
    for descriptor in (iso.pvd, *iso.svds):
        image.seek(descriptor.extent_location() * SECTOR_BYTES + _VOLUME_TIMES_OFFSET)
        image.write(_VOLUME_TIMES)
