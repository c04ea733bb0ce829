"""Writing safely: blobs under temporary names, errors of the medium in words, durable renames."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Self

from packer.artifact.layout.base import (
    COPY_BYTES,
    Buffer,
    Layout,
    blob_hex,
    check_digest,
    check_range,
)
from packer.artifact.layout.extras import Extra
from packer.artifact.layout.left_behind import (
    FETCHED,
    locked_folder,
    size_of,
    take_left_behind,
)
from packer.artifact.layout.waiting import Waiting
from packer.artifact.manifest import OCI_LAYOUT, Blob, Entry, encode, encode_index
from packer.errors import Error, InputError, UsageError
from packer.file_system import file_system_type
from packer.progress import Advance, ignore
from packer.text import format_bytes

_HINTS = {
    errno.ENOSPC: "the medium is full; free some space or choose another output",
    errno.EDQUOT: "your quota on this file system is used up; choose another output",
    errno.EFBIG: "the file system takes no file this large (FAT: 4 GiB); take one with exFAT, or "
    "write a directory",
    errno.EROFS: "the file system is read-only; choose another output",
    errno.EACCES: "you may not write there; choose another output",
    errno.EPERM: "you may not write there; choose another output",
    errno.ENOENT: "create the folder first",
}


FAT_TYPES = ("vfat", "msdos")
FAT_FILE_BYTES = (4 << 30) - 1
"""The largest file that FAT holds (Microsoft FAT specification, 6: DIR_FileSize)."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says against writing `path` into an Error with a hint."""
    try:
        yield
    except OSError as error:
        raise Error(
            f"cannot write {path}: {error.strerror or error}",
            hint=_HINTS.get(error.errno or 0, ""),
        ) from error


def refuse_existing(path: Path) -> None:
    """Raise UsageError when something has this name already."""
    if os.path.lexists(path):
        raise UsageError(
            f"{path} exists already", hint="choose another name, or replace it with --force"
        )


class Staging:
    """A folder under a temporary name in which blobs collect: blobs/sha256/HEX below `root`.

    It is locked until `unlock`; what killed runs left of the same final name is removed first, but
    what they had fetched over the network is taken up again: those blobs are not fetched twice.
    durable: whether each blob is flushed to the medium when it ends.
    """

    def __init__(self, final: Path, *, durable: bool) -> None:
        self.final = final
        self.durable = durable
        self.blobs: dict[str, Blob] = {}
        self._streams: list[StagedBlob] = []
        with writing(final):
            self.root, self._lock = locked_folder(final)
            try:
                (self.root / "blobs" / "sha256").mkdir(parents=True)
            except OSError:
                self.remove()
                raise
        self._fetched = self.root / FETCHED
        take_left_behind(final, self._fetched)

    def path(self, digest: str) -> Path:
        """Return where a blob lies."""
        return self.root / "blobs" / "sha256" / blob_hex(digest, str(self.final))

    def stream(self, place: Path | None = None) -> StagedBlob:
        """Begin a blob; or go on with what lies at `place`, which then stays when it fails."""
        path = place or self.root / f"incoming-{len(self._streams)}"
        blob = StagedBlob(self, path, keep=place is not None)
        self._streams.append(blob)
        return blob

    def add(self, data: Buffer) -> Blob:
        """Store one blob that is in memory."""
        with self.stream() as blob:
            blob.write(data)
            return blob.finish()

    def copy(self, layout: Layout, blob: Blob, advance: Advance = ignore) -> Blob:
        """Store a blob of another layout, unless it is stored already (packs share bundles).

        Raises InputError when its bytes are not what its name says.
        """
        if blob.digest in self.blobs:
            advance(blob.size)
            return self.blobs[blob.digest]
        check_range(layout.location, blob.digest, layout.blob_size(blob.digest), 0, blob.size)
        with self.stream(self._place(layout, blob)) as staged:
            if staged.size > blob.size:
                staged.start_again()
            begun = staged.size
            advance(begun)
            self._append(layout, blob, staged, advance)
            if begun and not staged.is_called(blob.digest):
                # What an earlier run left may have been damaged since; it is not asked of whom.
                advance(-blob.size)
                staged.start_again()
                self._append(layout, blob, staged, advance)
            found = staged.hexdigest()
            if not staged.is_called(blob.digest):
                staged.start_again()  # what is wrong must not be taken up again
            check_digest(layout.location, blob.digest, found)
            return staged.finish()

    def _append(self, layout: Layout, blob: Blob, staged: StagedBlob, advance: Advance) -> None:
        """Append what is lacking of a blob; what came stays when it ends too early."""
        for data in _in_order(layout, blob, staged.size, self):
            staged.write(data)
            advance(len(data))
        if staged.size != blob.size:
            raise InputError(
                f"{layout.location}: blob {blob.digest}: expected {blob.size} bytes, "
                f"{staged.size} came",
                hint="try again; what has arrived is kept",
            )

    def add_file(self, name: str, data: bytes) -> None:
        """Write one of the layout's own files, "index.json" or "oci-layout"."""
        self._write(self.root / name, io.BytesIO(data))

    def add_extra(self, extra: Extra) -> None:
        """Write a file beside the layout."""
        with extra.open() as source:
            self._write(self.root / extra.name, source, executable=extra.executable)

    def _write(self, path: Path, source: BinaryIO, *, executable: bool = False) -> None:
        with writing(self.final):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                shutil.copyfileobj(source, file, COPY_BYTES)
                if executable:
                    _make_executable(file.fileno())
                self.flush(file)

    def folders(self) -> Iterator[Path]:
        """Yield the folders of the layout, each after those within it."""
        for root, _, _ in os.walk(self.root, topdown=False):
            yield Path(root)

    def seal(self, packs: Sequence[Entry]) -> tuple[Blob, ...]:
        """Write manifests, index.json and oci-layout; return the manifests' blobs.

        Raises ValueError unless the manifests together name exactly the blobs that were stored.
        """
        named = {blob.digest: blob.size for pack in packs for blob in pack.manifest.blobs()}
        stored = {blob.digest: blob.size for blob in self.blobs.values()}
        if named != stored:
            odd = sorted(name for name, _size in named.items() ^ stored.items())
            raise ValueError(f"manifests and stored blobs differ: {', '.join(odd)}")
        blobs = tuple(self.add(encode(pack.manifest)) for pack in packs)
        names = [pack.ref_name for pack in packs]
        self.add_file("index.json", encode_index(list(zip(names, blobs, strict=True))))
        self.add_file("oci-layout", OCI_LAYOUT)
        return blobs

    def there_bytes(self, blob: Blob) -> int:
        """Return how many bytes of a blob an earlier run left here."""
        return size_of(self._fetched / blob_hex(blob.digest, str(self.final)))

    def _place(self, layout: Layout, blob: Blob) -> Path | None:
        """Return where a copied blob grows so that a later run can go on; None: anywhere."""
        if not layout.remote:
            return None
        with writing(self.final):
            self._fetched.mkdir(exist_ok=True)
        return self._fetched / blob_hex(blob.digest, layout.location)

    def forget_fetched(self) -> None:
        """Remove what came over the network and belongs to no blob of this layout."""
        shutil.rmtree(self._fetched, ignore_errors=True)

    @contextlib.contextmanager
    def unnamed(self) -> Iterator[int]:
        """Open a file that is gone when it is closed; yield its descriptor."""
        with contextlib.ExitStack() as stack:
            with writing(self.final):
                file = stack.enter_context(tempfile.TemporaryFile(dir=self.root, buffering=0))
            yield file.fileno()

    def flush(self, file: BinaryIO) -> None:
        """Flush a file that ends here, to the medium if this staging is durable."""
        file.flush()
        if self.durable:
            os.fsync(file.fileno())

    def give_up(self) -> None:
        """Remove everything, but for blobs if some came over the network: a later run goes on."""
        for stream in self._streams:
            stream.discard()
        begun = [path for path in self._fetched.glob("*") if size_of(path)]
        if not self._fetched.is_dir() or not (begun or self.blobs):
            self.remove()
            return
        for path in self.root.iterdir():
            if path.is_file():  # it is made anew of the blobs
                path.unlink()
        self.unlock()

    def remove(self) -> None:
        """Remove everything, whatever state it is in."""
        for stream in self._streams:
            stream.discard()
        shutil.rmtree(self.root, ignore_errors=True)
        self.unlock()

    def unlock(self) -> None:
        """Give up the lock: what lies under the temporary name now may be removed by others."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class StagedBlob:
    """A blob that is being written into a Staging and hashed on the way.

    keep: whether a file that is there already is gone on with, and stays when the blob fails.
    """

    def __init__(self, staging: Staging, path: Path, *, keep: bool) -> None:
        self._staging = staging
        self._path = path
        self._hash = hashlib.sha256()
        self._done = False
        self._keep = keep
        self.size = 0
        with writing(staging.final):
            self._file = path.open("a+b" if keep else "xb", buffering=COPY_BYTES // 4)
            if keep:
                self._take_up()

    def write(self, data: Buffer) -> None:
        """Append bytes; raise Error when the medium takes no more."""
        with writing(self._staging.final):
            self._file.write(data)
        self._hash.update(data)
        self.size += memoryview(data).nbytes

    def hexdigest(self) -> str:
        """Return the SHA-256 of what was written so far, in hex."""
        return self._hash.hexdigest()

    def is_called(self, digest: str) -> bool:
        """Return whether what was written so far is the blob of that name."""
        return digest == "sha256:" + self.hexdigest()

    def finish(self) -> Blob:
        """Give the blob its name; the same bytes twice are stored once."""
        blob = Blob("sha256:" + self.hexdigest(), self.size)
        with writing(self._staging.final):
            self._staging.flush(self._file)
            self._file.close()
            self._path.replace(self._staging.path(blob.digest))
        self._done = True
        self._staging.blobs[blob.digest] = blob
        return blob

    def discard(self) -> None:
        """Forget the blob unless it was finished."""
        if self._done:
            return
        self._done = True
        with contextlib.suppress(OSError):  # a full medium fails again when buffers are flushed
            self._file.close()
        if not self._keep:
            self._path.unlink(missing_ok=True)

    def start_again(self) -> None:
        """Forget what was written so far."""
        with writing(self._staging.final):
            self._file.truncate(0)
        self._hash = hashlib.sha256()
        self.size = 0

    def _take_up(self) -> None:
        self._file.seek(0)
        while data := self._file.read(COPY_BYTES):
            self._hash.update(data)
            self.size += len(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


class StagedWriter:
    """A LayoutWriter but for `medium_bytes` and `finish`: blobs collect in a Staging.

    durable, staging: see Staging. single_file: whether the layout becomes one file.
    """

    def __init__(
        self,
        path: Path,
        *,
        replace: bool,
        durable: bool,
        single_file: bool = True,
        staging: type[Staging] = Staging,
    ) -> None:
        self.location = str(path)
        self._path = path.absolute()
        self._replace = replace
        self._single_file = single_file
        self._staging: Staging | None = staging(self._path, durable=durable)
        self._unlock = self._staging.unlock

    def check_room(self, blobs: Sequence[Blob]) -> None:
        """Raise Error when the medium has no room for these blobs, or for a file that large."""
        staging = self._open_staging()
        sizes = [blob.size for blob in blobs]
        largest = max(sizes, default=0)
        needed = sum(blob.size - min(blob.size, staging.there_bytes(blob)) for blob in blobs)
        # What comes before its turn waits there, too, instead of what its blob does not hold yet.
        if self._single_file:  # the largest blob lies there twice while the file is put together
            largest, needed = sum(sizes), needed + largest
        _check_room(self._path, staging.root, largest, needed)

    def add(self, data: Buffer) -> Blob:
        """Store one blob that is in memory."""
        return self._open_staging().add(data)

    def stream(self) -> StagedBlob:
        """Begin a blob that is written piece by piece."""
        return self._open_staging().stream()

    def copy(self, layout: Layout, blob: Blob, advance: Advance = ignore) -> Blob:
        """Store a blob of another layout as it is, verified on the way."""
        return self._open_staging().copy(layout, blob, advance)

    def abort(self) -> None:
        """Remove what was written, but for what was fetched; does nothing after `finish`."""
        if self._staging is not None:
            self._staging.give_up()
            self._staging = None

    def _open_staging(self) -> Staging:
        if self._staging is None:
            raise ValueError("this layout was finished or aborted")
        return self._staging

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()
        self._unlock()


def _make_executable(fd: int) -> None:
    """Let those run a program who may read it, where the file system can say so (FAT cannot)."""
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    with contextlib.suppress(OSError):
        os.fchmod(fd, mode | (mode & 0o444) >> 2)


def _check_room(path: Path, folder: Path, file_bytes: int, needed_bytes: int) -> None:
    with writing(path):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            kind, room = file_system_type(fd), os.fstatvfs(fd)
        finally:
            os.close(fd)
    if kind in FAT_TYPES and file_bytes > FAT_FILE_BYTES:
        raise Error(
            f"cannot write {path}: a file of {format_bytes(file_bytes)} is needed, "
            f"FAT holds files of up to {format_bytes(FAT_FILE_BYTES)}",
            hint="take a medium with exFAT; of an ISO image or tar file that is too large, "
            "a folder may fit",
        )
    free_bytes = room.f_bavail * room.f_frsize
    if needed_bytes > free_bytes:
        raise Error(
            f"cannot write {path}: {format_bytes(needed_bytes)} are needed there, "
            f"{format_bytes(free_bytes)} are free",
            hint=_HINTS[errno.ENOSPC],
        )


def _in_order(layout: Layout, blob: Blob, start: int, staging: Staging) -> Iterator[bytes]:
    """Yield a blob's bytes from `start`.

    A remote layout sends them over several connections: what comes too early waits in a file
    without a name in the staging, because one slow connection can hold up all the rest.
    """
    ranges = [
        (offset, min(COPY_BYTES, blob.size - offset))
        for offset in range(start, blob.size, COPY_BYTES)
    ]
    following = 0
    with staging.unnamed() as fd:
        waiting = Waiting(fd)
        for row, data in layout.read_many(blob.digest, ranges):
            if row > following:
                with writing(staging.final):
                    waiting.put(row, data)
            if row != following:
                continue
            yield data
            following += 1
            while following in waiting:
                with writing(staging.final):
                    data = waiting.take(following)
                yield data
                following += 1
