"""Writing safely: blobs under temporary names, errors of the medium in words, durable renames."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
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
from packer.artifact.manifest import OCI_LAYOUT, Blob, Manifest, encode, encode_index
from packer.errors import Error, UsageError

_HINTS = {
    errno.ENOSPC: "the medium is full; free some space or choose another output",
    errno.EDQUOT: "your quota on this file system is used up; choose another output",
    errno.EFBIG: "the file system takes no file this large (FAT: 4 GiB); write a directory instead",
    errno.EROFS: "the file system is read-only; choose another output",
    errno.EACCES: "you may not write there; choose another output",
    errno.EPERM: "you may not write there; choose another output",
    errno.ENOENT: "create the folder first",
}


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


def temporary_name(final: Path) -> Path:
    """Return an unused name beside `final`, on the same file system, that shows what it was."""
    return final.with_name(f"{final.name[:50]}.{secrets.token_hex(6)}.partial")


def refuse_existing(path: Path) -> None:
    """Raise UsageError when something has this name already."""
    if os.path.lexists(path):
        raise UsageError(
            f"{path} exists already", hint="choose another name, or replace it with --force"
        )


class Staging:
    """A folder under a temporary name in which blobs collect: blobs/sha256/HEX below `root`.

    durable: whether each blob is flushed to the medium when it ends.
    """

    def __init__(self, final: Path, *, durable: bool) -> None:
        self.final = final
        self.durable = durable
        self.root = temporary_name(final)
        self.blobs: dict[str, Blob] = {}
        self._streams: list[StagedBlob] = []
        with writing(final):
            self.root.mkdir()
            try:
                (self.root / "blobs" / "sha256").mkdir(parents=True)
            except OSError:
                shutil.rmtree(self.root, ignore_errors=True)
                raise

    def path(self, digest: str) -> Path:
        """Return where a blob lies."""
        return self.root / "blobs" / "sha256" / blob_hex(digest, str(self.final))

    def stream(self) -> StagedBlob:
        """Begin a blob."""
        blob = StagedBlob(self, self.root / f"incoming-{len(self._streams)}")
        self._streams.append(blob)
        return blob

    def add(self, data: Buffer) -> Blob:
        """Store one blob that is in memory."""
        with self.stream() as blob:
            blob.write(data)
            return blob.finish()

    def copy(self, layout: Layout, blob: Blob) -> Blob:
        """Store a blob of another layout; raise InputError when its bytes are not what it says."""
        check_range(layout.location, blob.digest, layout.blob_size(blob.digest), 0, blob.size)
        with self.stream() as staged:
            for offset in range(0, blob.size, COPY_BYTES):
                length = min(COPY_BYTES, blob.size - offset)
                staged.write(layout.read(blob.digest, offset, length))
            check_digest(layout.location, blob.digest, staged.hexdigest())
            return staged.finish()

    def add_file(self, name: str, data: bytes) -> None:
        """Write one of the layout's own files, "index.json" or "oci-layout"."""
        with writing(self.final), (self.root / name).open("xb") as file:
            file.write(data)
            self.flush(file)

    def seal(self, manifest: Manifest, ref_name: str) -> Blob:
        """Write manifest, index.json and oci-layout; return the manifest's blob.

        Raises ValueError unless the manifest names exactly the blobs that were stored.
        """
        named = {blob.digest: blob.size for blob in manifest.blobs()}
        stored = {blob.digest: blob.size for blob in self.blobs.values()}
        if named != stored:
            odd = sorted(name for name, _size in named.items() ^ stored.items())
            raise ValueError(f"manifest and stored blobs differ: {', '.join(odd)}")
        blob = self.add(encode(manifest))
        self.add_file("index.json", encode_index(blob, ref_name))
        self.add_file("oci-layout", OCI_LAYOUT)
        return blob

    def flush(self, file: BinaryIO) -> None:
        """Flush a file that ends here, to the medium if this staging is durable."""
        file.flush()
        if self.durable:
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Remove everything, whatever state it is in."""
        for stream in self._streams:
            stream.discard()
        shutil.rmtree(self.root, ignore_errors=True)


class StagedBlob:
    """A blob that is being written into a Staging and hashed on the way."""

    def __init__(self, staging: Staging, path: Path) -> None:
        self._staging = staging
        self._path = path
        self._hash = hashlib.sha256()
        self._done = False
        self.size = 0
        with writing(staging.final):
            self._file = path.open("xb", buffering=COPY_BYTES // 4)

    def write(self, data: Buffer) -> None:
        """Append bytes; raise Error when the medium takes no more."""
        with writing(self._staging.final):
            self._file.write(data)
        self._hash.update(data)
        self.size += memoryview(data).nbytes

    def hexdigest(self) -> str:
        """Return the SHA-256 of what was written so far, in hex."""
        return self._hash.hexdigest()

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
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


class StagedWriter:
    """A LayoutWriter but for `finish`: blobs collect in a Staging beside the final name.

    durable: see Staging.
    """

    def __init__(self, path: Path, *, replace: bool, durable: bool) -> None:
        self.location = str(path)
        self._path = path.absolute()
        self._replace = replace
        self._staging: Staging | None = Staging(self._path, durable=durable)

    def add(self, data: Buffer) -> Blob:
        """Store one blob that is in memory."""
        return self._open_staging().add(data)

    def stream(self) -> StagedBlob:
        """Begin a blob that is written piece by piece."""
        return self._open_staging().stream()

    def copy(self, layout: Layout, blob: Blob) -> Blob:
        """Store a blob of another layout as it is, verified on the way."""
        return self._open_staging().copy(layout, blob)

    def abort(self) -> None:
        """Remove what was written; does nothing after `finish`."""
        if self._staging is not None:
            self._staging.remove()
            self._staging = None

    def _open_staging(self) -> Staging:
        if self._staging is None:
            raise ValueError("this layout was finished or aborted")
        return self._staging

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()
