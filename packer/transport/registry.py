"""One repository of an OCI registry: manifests, blobs, tags. Nothing here is verified or believed.

Reference: OCI distribution-spec 1.1.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Generator, Sequence
from typing import Self
from urllib.parse import quote

import msgspec

from packer.errors import UsageError
from packer.progress import Advance, ignore
from packer.text import printable
from packer.transport.http import BACK_OFF_SECONDS
from packer.transport.registry_http import RefusedError, RegistryHttp
from packer.transport.registry_reference import Reference, is_repository
from packer.transport.registry_upload import CHUNK_BYTES, Upload
from packer.transport.response import NotFoundError, TransportError, visible

MAX_MANIFEST_BYTES = 4 << 20
"""What registries accept (distribution-spec 1.1, "Pushing Manifests")."""

MAX_TAGS_BYTES = 1 << 20
_SIZE = re.compile(r"\d{1,19}", re.ASCII)


class _Tags(msgspec.Struct):
    tags: list[str] | None = None


class Registry:
    """A repository, to be read or, with `push`, written. Reading is safe from several threads.

    Nothing is asked of the network before a method is called, but of registries on this host.
    """

    def __init__(
        self,
        reference: Reference,
        *,
        push: bool = False,
        back_off_seconds: float = BACK_OFF_SECONDS,
    ) -> None:
        self.reference = reference
        self._mount_from: list[str] = []
        name = reference.api_repository
        self._http = RegistryHttp(
            reference,
            [f"repository:{name}:{'pull,push' if push else 'pull'}"],
            back_off_seconds=back_off_seconds,
        )
        self._base = f"{self._http.root}/v2/{name}"
        self._takes_chunks = True
        self._begun: dict[str, str] = {}  # uploads that the registry began instead of a mount

    def mount_from(self, repository: str) -> None:
        """Use blobs of another repository of this registry instead of sending them."""
        if not is_repository(repository):
            raise UsageError(
                f"{printable(repository)[:200]}: expected the name of a repository "
                f"of {self.reference.host}"
            )
        if repository not in (self.reference.api_repository, *self._mount_from):
            self._mount_from.append(repository)
            self._http.add_scope(f"repository:{repository}:pull")

    def manifest(self, target: str, media_type: str) -> bytes:
        """Return the manifest that a tag or digest names.

        Raises NotFoundError when there is none, TransportError when the registry says that these
        bytes have another digest.
        """
        url = f"{self._base}/manifests/{target}"
        answer = self._http.fetch(url, {"Accept": media_type}, max_bytes=MAX_MANIFEST_BYTES)
        named = answer.headers.get("Docker-Content-Digest", "")
        found = f"sha256:{hashlib.sha256(answer.body).hexdigest()}"
        if named.startswith("sha256:") and named != found:
            raise TransportError(
                f"{visible(url)}: expected the manifest {named!r:.100}, found {found}",
                hint="the registry, or something before it, is broken",
            )
        return answer.body

    def put_manifest(self, target: str, media_type: str, data: bytes) -> None:
        """Store a manifest under a tag; registries refuse one whose blobs are not there."""
        url = f"{self._base}/manifests/{target}"
        answer = self._http.exchange("PUT", url, {"Content-Type": media_type}, data)
        if answer.status not in (200, 201):
            raise TransportError(f"{visible(url)}: expected status 201, found {answer.status}")

    def tags(self) -> list[str]:
        """Return the repository's tags, or as many as the registry names at once."""
        url = f"{self._base}/tags/list"
        answer = self._http.fetch(url, max_bytes=MAX_TAGS_BYTES)
        try:
            return msgspec.json.decode(answer.body, type=_Tags).tags or []
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise TransportError(f"{visible(url)}: expected a list of tags: {error}") from error

    def has_blob(self, digest: str, size: int) -> bool:
        """Return whether a blob is there. Raises TransportError when it has another size."""
        try:
            answer = self._http.exchange("HEAD", self._blob(digest))
        except NotFoundError:
            return False
        if answer.status >= 300:
            return True  # who says where the bytes lie has them
        found = answer.headers.get("Content-Length", "")
        if _SIZE.fullmatch(found) and int(found) != size:
            raise TransportError(
                f"{visible(answer.url)}: expected a blob of {size} bytes, found {found}"
            )
        return True

    def get_ranges(
        self, digest: str, ranges: Sequence[tuple[int, int]]
    ) -> Generator[tuple[int, bytes], None, None]:
        """Yield (row, bytes) for each (offset, length) of a blob; see Client.get_ranges."""
        return self._http.client.get_ranges(self._blob(digest), ranges)

    def ignores_ranges(self, digest: str) -> bool:
        """Return whether this blob was seen to come only as a whole."""
        return self._http.client.ignores_ranges(self._blob(digest))

    def obtain_blob(self, digest: str, size: int) -> bool:
        """Return whether a blob is there, or could be taken over from another repository."""
        if self.has_blob(digest, size):
            return True
        for other in self._mount_from:
            location = self._mount(digest, other)
            if location is None:
                return True
            if location:
                self._begun[digest] = location
        return False

    def send_blob(
        self,
        digest: str,
        size: int,
        read: Callable[[int, int], bytes],
        advance: Advance = ignore,
    ) -> None:
        """Send a blob.

        read: returns its bytes by (offset, length), from front to back, and again from any byte
        after a failure. Raises TransportError when the registry does not take it.
        """
        upload = Upload(
            self._http,
            self._uploads,
            digest,
            size,
            read=read,
            arrived=lambda: self.has_blob(digest, size),
            advance=advance,
            location=self._begun.pop(digest, ""),
        )
        if self._takes_chunks and size > CHUNK_BYTES:
            try:
                upload.in_chunks()
                return
            except RefusedError:
                self._takes_chunks = False  # the following blobs need not try
        upload.in_one_piece()

    @property
    def received_bytes(self) -> int:
        """Return how many bytes of blobs came so far, wanted or not."""
        return self._http.client.received_bytes

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _uploads(self) -> str:
        return f"{self._base}/blobs/uploads/"

    def _blob(self, digest: str) -> str:
        return f"{self._base}/blobs/{digest}"

    def _mount(self, digest: str, other: str) -> str | None:
        """Return None when the blob was taken over from another repository.

        Else the address of the upload that the registry has begun instead, or "".
        """
        query = f"mount={quote(digest, safe='')}&from={quote(other, safe='')}"
        try:
            answer = self._http.exchange("POST", f"{self._uploads}?{query}")
        except (RefusedError, NotFoundError):
            return ""
        return None if answer.status == 201 else self._http.location(answer)
