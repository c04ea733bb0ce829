"""A pack in a registry: one manifest of a repository read as a layout, and a writer of manifests.

A registry has no index.json; the one that readers ask for is made of the manifest that a tag or
digest names. Blobs are read in ranges where the registry allows it, else each in one pass. Nothing
of it is believed: digests are compared by whoever reads.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

from packer.artifact import manifest as manifests
from packer.artifact import media_types
from packer.artifact.layout.base import Buffer, Layout, check_digest, check_range
from packer.artifact.layout.staging import StagedBlob, Staging, writing
from packer.artifact.manifest import Blob, Entry
from packer.errors import Error, InputError, UsageError
from packer.progress import Advance, ignore
from packer.text import printable
from packer.transport.registry import Registry
from packer.transport.registry_reference import parse_reference
from packer.transport.response import NotFoundError

TAGS_SHOWN = 8


class RegistryLayout:
    """Reads the pack at oci://HOST/REPOSITORY:TAG; safe to use from several threads.

    Raises UsageError for an address that is none or names no manifest, InputError when there is no
    pack, TransportError when the registry cannot be used.
    """

    remote = True

    def __init__(self, address: str) -> None:
        self.reference = parse_reference(address)
        self.location = str(self.reference)
        self._registry = Registry(self.reference)
        try:
            self._manifest = self._read_manifest()
            self._digest = _digest(self._manifest)
            if self.reference.digest:
                check_digest(self.location, self.reference.digest, self._digest[7:])
            decoded = manifests.decode(self._manifest, f"{self.location}: manifest")
        except BaseException:
            self.close()
            raise
        self._sizes = {blob.digest: blob.size for blob in decoded.blobs()}
        self._sizes[self._digest] = len(self._manifest)
        self._named = dict(self._sizes)

    @property
    def received_bytes(self) -> int:
        """Return how many bytes came so far, wanted or not."""
        return self._registry.received_bytes

    def index(self) -> bytes:
        """Return the bytes of an index.json that names this one manifest."""
        return manifests.encode_index(
            [(self.reference.tag, Blob(self._digest, len(self._manifest)))]
        )

    def blob_size(self, digest: str) -> int | None:
        """Return the size of a blob as the manifest has it, None when it names no such blob."""
        return self._sizes.get(digest)

    def renew(self) -> None:
        """Take the blobs to be there again that the manifest names."""
        self._sizes = dict(self._named)

    def read(self, digest: str, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes of a blob from `offset`, not verified."""
        ((_row, data),) = self.read_many(digest, [(offset, length)])
        return data

    def read_many(
        self, digest: str, ranges: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, bytes]]:
        """Yield (row, bytes) for each (offset, length); neighbours travel together."""
        for offset, length in ranges:
            check_range(self.location, digest, self.blob_size(digest), offset, length)
        if digest == self._digest:
            for row, (offset, length) in enumerate(ranges):
                yield row, self._manifest[offset : offset + length]
            return
        try:
            yield from self._registry.get_ranges(digest, ranges)
        except NotFoundError:
            self._sizes.pop(digest, None)  # the manifest names it all the same
            check_range(self.location, digest, None, 0, 0)

    def close(self) -> None:
        """Give the connections back."""
        self._registry.close()

    def _read_manifest(self) -> bytes:
        if not self.reference.target:
            raise UsageError(f"{self.location}: expected a tag, found none", hint=self._tags())
        try:
            return self._registry.manifest(self.reference.target, media_types.OCI_MANIFEST)
        except NotFoundError as error:
            raise InputError(
                f"{self.location}: expected a pack, found none", hint=self._tags()
            ) from error

    def _tags(self) -> str:
        """Return a hint about what could have been meant."""
        try:
            tags = sorted(printable(tag) for tag in self._registry.tags())
        except Error as error:
            return f"its tags cannot be listed: {error}"
        more = f", … ({len(tags):,} in all)" if len(tags) > TAGS_SHOWN else ""
        return (
            f"tags there: {', '.join(tags[:TAGS_SHOWN])[:400]}{more}" if tags else "no tags there"
        )


class RegistryWriter:
    """Writes packs into a repository, each under a tag of its own; a tag appears last.

    With a tag in the address one pack is written, under that tag. Without, the tag of one pack is
    its version ("3"), of several name and version ("demo-3"). Blobs that the repository has are
    not sent, nor those that it can take over from another repository of the registry: those named
    by `mount_from`, and the one that is copied from. What was sent stays when the writing is given
    up, and is not sent again.
    replace: whether tags that exist may be moved. Raises UsageError when the tag is taken.
    tags: those written so far; sent_bytes: how many bytes of blobs and manifests were.
    """

    def __init__(
        self, address: str, *, replace: bool = False, mount_from: Sequence[str] = ()
    ) -> None:
        self.reference = parse_reference(address)
        self.location = str(self.reference)
        self.tags: list[str] = []
        self.sent_bytes = 0
        if self.reference.digest:
            raise UsageError(f"{self.location}: expected a tag to write, found a digest")
        self._replace = replace
        self._blobs: dict[str, Blob] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._staging: Staging | None = None
        self._registry = Registry(self.reference, push=True)
        try:
            for repository in mount_from:
                self._registry.mount_from(repository)
            if self.reference.tag:
                self._refuse_taken(self.reference.tag)
        except BaseException:
            self._registry.close()
            raise

    def check_room(self, blobs: Sequence[Blob]) -> None:
        """Do nothing: a registry says itself what it has no room for."""

    def add(self, data: Buffer) -> Blob:
        """Store one blob that is in memory."""
        held = bytes(data)
        blob = Blob(_digest(held), len(held))
        if not self._has(blob):
            self._send(blob, lambda offset, length: held[offset : offset + length])
        return blob

    def stream(self) -> StreamedBlob:
        """Begin a blob that is written piece by piece; it is sent when it ends."""
        return StreamedBlob(self._open_staging().stream(), self._store_staged)

    def copy(self, layout: Layout, blob: Blob, advance: Advance = ignore) -> Blob:
        """Store a blob of another layout as it is, verified on the way."""
        check_range(layout.location, blob.digest, layout.blob_size(blob.digest), 0, blob.size)
        if isinstance(layout, RegistryLayout) and layout.reference.host == self.reference.host:
            self._registry.mount_from(layout.reference.api_repository)
        if self._has(blob):
            advance(blob.size)
        elif layout.remote:
            both = _Halves(advance)  # what travels twice is on its way twice as long
            self._open_staging().copy(layout, blob, both)
            self._send_staged(blob, both)
        else:
            self._send(blob, _Proven(layout, blob).read, advance)
        return blob

    def medium_bytes(self, blob_sizes: Sequence[int]) -> int:
        """Return how much a registry holds with blobs of these sizes."""
        return sum(blob_sizes)

    def finish(self, packs: Sequence[Entry]) -> tuple[Blob, ...]:
        """Put the manifests, each under its tag."""
        named = {blob.digest for pack in packs for blob in pack.manifest.blobs()}
        if named != self._blobs.keys():
            odd = sorted(named ^ self._blobs.keys())
            raise ValueError(f"manifests and stored blobs differ: {', '.join(odd)}")
        tagged = list(zip(self._choose_tags(packs), packs, strict=True))
        if not self.reference.tag:
            for tag, _ in tagged:
                self._refuse_taken(tag)
        blobs: list[Blob] = []
        for tag, pack in tagged:
            data = manifests.encode(pack.manifest)
            self._registry.put_manifest(tag, media_types.OCI_MANIFEST, data)
            self.tags.append(tag)
            self.sent_bytes += len(data)
            blobs.append(Blob(_digest(data), len(data)))
        return tuple(blobs)

    def abort(self) -> None:
        """Forget what is staged here; what the registry has got stays there, without a tag."""
        if self._staging is not None:
            self._staging.remove()
            self._staging = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()
        self._registry.close()

    def _choose_tags(self, packs: Sequence[Entry]) -> list[str]:
        """Return a tag for each pack; raise UsageError when they cannot be told apart."""
        if self.reference.tag:
            if len(packs) > 1:
                raise UsageError(
                    f"{self.location}: expected one pack for one tag, found {len(packs)}",
                    hint="leave the tag out: each pack gets one of its own, as 'demo-3'",
                )
            return [self.reference.tag]
        names = [pack.ref_name for pack in packs]
        if len(packs) == 1:
            names = [names[0].rpartition(":")[2]]
        return [self.reference.with_tag(name.replace(":", "-")).tag for name in names]

    def _refuse_taken(self, tag: str) -> None:
        """Raise UsageError when the tag exists and must not be moved."""
        if self._replace:
            return
        try:
            self._registry.manifest(tag, f"{media_types.OCI_MANIFEST}, {media_types.OCI_INDEX}")
        except NotFoundError:
            return
        raise UsageError(
            f"{self.reference.with_tag(tag)} exists already",
            hint="choose another tag, or move it with --force",
        )

    def _has(self, blob: Blob) -> bool:
        """Return whether a blob need not be sent; its tag may name it in any case now."""
        here = blob.digest in self._blobs or self._registry.obtain_blob(blob.digest, blob.size)
        self._blobs[blob.digest] = blob
        return here

    def _send(
        self, blob: Blob, read: Callable[[int, int], bytes], advance: Advance = ignore
    ) -> None:
        self._registry.send_blob(blob.digest, blob.size, read, advance)
        self.sent_bytes += blob.size

    def _store_staged(self, blob: Blob) -> None:
        if self._has(blob):
            self._open_staging().path(blob.digest).unlink()
        else:
            self._send_staged(blob)

    def _send_staged(self, blob: Blob, advance: Advance = ignore) -> None:
        """Send a blob that lies in the staging folder, and remove it there."""
        path = self._open_staging().path(blob.digest)
        with writing(path), path.open("rb") as file:

            def read(offset: int, length: int) -> bytes:
                file.seek(offset)
                return file.read(length)

            self._send(blob, read, advance)
            path.unlink()

    def _open_staging(self) -> Staging:
        if self._staging is None:
            self._folder = tempfile.TemporaryDirectory(prefix="vmpack-")
            self._staging = Staging(Path(self._folder.name) / "push", durable=False)
        return self._staging


class StreamedBlob:
    """A blob that is staged until its digest is known, and sent then."""

    def __init__(self, staged: StagedBlob, store: Callable[[Blob], None]) -> None:
        self._staged = staged
        self._store = store

    @property
    def size(self) -> int:
        """How many bytes were written so far."""
        return self._staged.size

    def write(self, data: Buffer) -> None:
        """Append bytes. Raises Error when the medium takes no more."""
        self._staged.write(data)

    def finish(self) -> Blob:
        """End the blob, send it, and return its name."""
        blob = self._staged.finish()
        self._store(blob)
        return blob

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._staged.discard()


class _Proven:
    """A blob of a layout that is compared with its name before its last byte is handed out."""

    def __init__(self, layout: Layout, blob: Blob) -> None:
        self._layout = layout
        self._blob = blob
        self._hash = hashlib.sha256()
        self._hashed_bytes = 0

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the blob, which is read from front to back, parts of it again."""
        data = self._layout.read(self._blob.digest, offset, length)
        if offset <= self._hashed_bytes < offset + length:
            self._hash.update(data[self._hashed_bytes - offset :])
            self._hashed_bytes = offset + length
            if self._hashed_bytes == self._blob.size:
                check_digest(self._layout.location, self._blob.digest, self._hash.hexdigest())
        return data


class _Halves:
    """Tells somebody half of what it is told."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._sum_bytes = 0

    def __call__(self, done_bytes: int) -> None:
        before = self._sum_bytes // 2
        self._sum_bytes += done_bytes
        self._advance(self._sum_bytes // 2 - before)


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
