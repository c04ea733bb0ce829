"""One interface for the kinds of place where a pack's blobs can lie, and one to write them."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, Self, runtime_checkable

from formats.errors import FormatError
from packer.artifact.manifest import Blob, Entry
from packer.errors import InputError
from packer.progress import Advance, ignore

MAX_INDEX_BYTES = 4 << 20
"""Upper bound of index.json; the largest that registries accept for a manifest."""

MAX_LAYOUT_FILE_BYTES = 4096
"""Upper bound of the file oci-layout, which holds one short JSON object."""

COPY_BYTES = 4 << 20
"""How much of a blob is in memory at a time while it is copied."""

Buffer = bytes | bytearray | memoryview

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Layout(Protocol):
    """An OCI image layout that can be read: directory, tar file, web directory, …"""

    @property
    def location(self) -> str:
        """How the user names it, for messages."""

    @property
    def remote(self) -> bool:
        """Whether reading costs network traffic."""

    def index(self) -> bytes:
        """Return the bytes of index.json, at most MAX_INDEX_BYTES."""

    def blob_size(self, digest: str) -> int | None:
        """Return the size of a blob in bytes, or None when the layout does not hold it.

        A layout that is `Expecting` may find out only when the blob is read.
        """

    def read(self, digest: str, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes of the blob named "sha256:…" from `offset`.

        Raises InputError when blob or range is not there. The bytes are *not* verified: frames
        are verified by the digest of what comes out, whole blobs by `read_blob`.
        """

    def read_many(
        self, digest: str, ranges: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, bytes]]:
        """Yield (row in ranges, bytes) for each (offset, length), in any order.

        A remote layout coalesces neighbours and uses several connections.
        """

    def close(self) -> None:
        """Give back what is open."""


@runtime_checkable
class Expecting(Protocol):
    """A layout that would have to ask somebody else for a blob's size."""

    def expect(self, blobs: Iterable[Blob]) -> None:
        """Take these blobs to be there and as large as a manifest says, until reading shows more.

        A size that is wrong bounds what can be read; it never makes bytes right.
        """


@runtime_checkable
class Renewing(Protocol):
    """A layout that remembers which blobs it did not find where its manifest has them."""

    def renew(self) -> None:
        """Forget that: they may be there by now."""


@runtime_checkable
class Receiving(Protocol):
    """Something that things travel to, and that knows of them before they are whole."""

    @property
    def received_bytes(self) -> int:
        """Return how many bytes came so far, wanted or not."""


class BlobWriter(Protocol):
    """A blob whose size and digest are known only when it ends. Discarded unless finished."""

    @property
    def size(self) -> int:
        """How many bytes were written so far."""

    def write(self, data: Buffer) -> None:
        """Append bytes. Raises Error when the medium takes no more."""

    def finish(self) -> Blob:
        """End the blob and return its name; the same bytes twice are stored once."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class LayoutWriter(Protocol):
    """A layout being written. Nothing appears under its final name before `finish`.

    Used as a context manager: leaving it without `finish` removes every trace. Several blobs may
    be open at once; calls come from one thread.
    """

    @property
    def location(self) -> str:
        """The final name, for messages."""

    def check_room(self, blobs: Sequence[Blob]) -> None:
        """Raise Error when these blobs cannot be stored, before any of them is."""

    def add(self, data: Buffer) -> Blob:
        """Store one blob that is in memory."""

    def stream(self) -> BlobWriter:
        """Begin a blob that is written piece by piece."""

    def copy(self, layout: Layout, blob: Blob, advance: Advance = ignore) -> Blob:
        """Store a blob of another layout as it is, verified on the way.

        advance: called with the bytes copied since the last call.
        Raises InputError when the other layout holds other bytes under that name.
        """

    def medium_bytes(self, blob_sizes: Sequence[int]) -> int:
        """Return how large the whole layout is with blobs of these sizes, manifests included."""

    def finish(self, packs: Sequence[Entry]) -> tuple[Blob, ...]:
        """Write manifests and index.json, make all of it durable, give it its final name.

        The blobs stored and the blobs that the manifests name together must be the same.
        Returns the manifests' blobs. Raises Error when writing fails, ValueError when they differ.
        """

    def abort(self) -> None:
        """Remove what was written; does nothing after `finish`."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@contextlib.contextmanager
def reading(location: str) -> Iterator[None]:
    """Turn what file or format say against reading a layout into an InputError."""
    try:
        yield
    except (OSError, FormatError) as error:
        raise InputError(
            f"cannot read {location}: {getattr(error, 'strerror', None) or error}"
        ) from error


def most_index_bytes(blobs: int) -> int:
    """Return an upper bound of the size of index.json in a layout of so many blobs.

    A pack has several of them, and its entry less than 1 KiB.
    """
    return 1024 + 256 * blobs


def blob_hex(digest: str, location: str) -> str:
    """Return the 64 hex digits of "sha256:…", the blob's file name.

    Raises InputError for any other string, so that a digest read from a pack is never a path.
    """
    if not _DIGEST.fullmatch(digest):
        raise InputError(
            f"{location}: expected a blob name of 'sha256:' and 64 hex digits, "
            f"found {digest[:100]!r}"
        )
    return digest.removeprefix("sha256:")


def check_range(location: str, digest: str, size: int | None, offset: int, length: int) -> None:
    """Raise InputError unless `[offset, offset + length)` lies inside a blob of `size` bytes."""
    if size is None:
        raise InputError(
            f"{location} does not hold blob {digest}",
            hint="this copy is incomplete; name a fuller one with --from",
        )
    if offset < 0 or length < 0 or offset + length > size:
        raise InputError(
            f"{location}: blob {digest}: expected bytes [{offset}, {offset + length}), "
            f"found a blob of {size} bytes",
            hint="the copy is damaged or incomplete; fetch it again",
        )


def read_blob(layout: Layout, digest: str, max_bytes: int) -> bytes:
    """Return a whole blob, verified against its name.

    max_bytes: how large it may be at most. Raises InputError when it is absent, larger or other
    bytes than its name says.
    """
    size = layout.blob_size(digest)
    check_range(layout.location, digest, size, 0, 0)
    assert size is not None
    if size > max_bytes:
        raise InputError(
            f"{layout.location}: blob {digest}: expected at most {max_bytes} bytes, found {size}"
        )
    data = layout.read(digest, 0, size)
    check_digest(layout.location, digest, hashlib.sha256(data).hexdigest())
    return data


def check_digest(location: str, digest: str, found_hex: str) -> None:
    """Raise InputError unless the SHA-256 found (hex) is the one that the name demands."""
    if digest != "sha256:" + found_hex:
        raise InputError(
            f"{location}: blob {digest}: expected bytes with that SHA-256, "
            f"found sha256:{found_hex}",
            hint="the copy is damaged; fetch it again or name another one with --from",
        )
