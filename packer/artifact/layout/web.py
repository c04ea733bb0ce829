"""A layout on a web server: a static directory, or one tar file read through HTTP Range.

No server software is needed beyond what hands out files. Nothing that the server says is believed
further than its sizes; digests are compared by whoever reads. The sizes that a manifest tells are
not asked for again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from urllib.parse import urlsplit, urlunsplit

from packer.artifact.layout.base import (
    MAX_INDEX_BYTES,
    MAX_LAYOUT_FILE_BYTES,
    Expecting,
    Layout,
    Renewing,
    blob_hex,
    check_range,
)
from packer.artifact.layout.tar import TarLayout
from packer.artifact.manifest import Blob, check_oci_layout
from packer.errors import Error, InputError, UsageError
from packer.transport.http import Client, ForbiddenError, NotFoundError
from packer.transport.response import is_address, visible


class WebLayout:
    """Reads a layout at an http:// or https:// address; safe to use from several threads.

    An address that ends in "/" is looked at as a directory first, any other one as a tar file
    first; the second guess is the other kind. client: shared with others and left open, or None.
    Raises UsageError for an address that is none, InputError when no layout is there,
    TransportError when the server cannot be used.
    """

    remote = True

    def __init__(self, url: str, client: Client | None = None) -> None:
        if not is_address(url):
            raise UsageError(f"{visible(url)}: expected an address like https://host/directory/")
        self.location = visible(url)
        self._client = client or Client()
        self._shared = client is not None
        try:
            self._layout = _open(url, self._client)
        except BaseException:
            self.close()
            raise

    @property
    def received_bytes(self) -> int:
        """Return how many bytes came so far, wanted or not."""
        return self._client.received_bytes

    def index(self) -> bytes:
        """Return the bytes of index.json."""
        return self._layout.index()

    def blob_size(self, digest: str) -> int | None:
        """Return the size of a blob in bytes, or None when it is not there."""
        return self._layout.blob_size(digest)

    def read(self, digest: str, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes of a blob from `offset`, not verified."""
        return self._layout.read(digest, offset, length)

    def read_many(
        self, digest: str, ranges: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, bytes]]:
        """Yield (row, bytes) for each (offset, length); neighbours travel together."""
        return self._layout.read_many(digest, ranges)

    def expect(self, blobs: Iterable[Blob]) -> None:
        """Take note of sizes that need not be asked for."""
        if isinstance(self._layout, Expecting):
            self._layout.expect(blobs)

    def renew(self) -> None:
        """Forget which blobs were not there."""
        if isinstance(self._layout, Renewing):
            self._layout.renew()

    def close(self) -> None:
        """Give back the connections, unless they belong to somebody else."""
        if not self._shared:
            self._client.close()


def _open(url: str, client: Client) -> Layout:
    kinds: list[Callable[[str, Client], Layout]] = [_WebTar, _Directory]
    if urlsplit(url).path.endswith("/"):
        kinds.reverse()
    failures: list[Error] = []
    for kind in kinds:
        try:
            return kind(url, client)
        except (InputError, NotFoundError, ForbiddenError) as error:
            failures.append(error)
    raise InputError(
        f"{visible(url)}: expected a pack, found none: " + "; ".join(map(str, failures)),
        hint="the address of a pack is its folder, ending in /, or its file",
    ) from failures[0]


def _below(url: str, name: str) -> str:
    """Return the address of a file in a directory; a query (an access token) is kept."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}", fragment=""))


class _Directory:
    """oci-layout, index.json and blobs/sha256/HEX below one address."""

    remote = True

    def __init__(self, url: str, client: Client) -> None:
        self.location = visible(url)
        self._url = url
        self._client = client
        self._sizes: dict[str, int | None] = {}
        self._index: bytes | None = None
        marker = client.get_bytes(_below(url, "oci-layout"), MAX_LAYOUT_FILE_BYTES)
        check_oci_layout(marker, f"{self.location}: oci-layout")

    def index(self) -> bytes:
        if self._index is None:  # it is looked at for its names, then for one of them
            try:
                url = _below(self._url, "index.json")
                self._index = self._client.get_bytes(url, MAX_INDEX_BYTES)
            except NotFoundError as error:
                raise InputError(f"{self.location}: expected index.json, found none") from error
        return self._index

    def blob_size(self, digest: str) -> int | None:
        # Two threads may both ask for a size that is not known yet; both get the same answer.
        if digest not in self._sizes:
            try:
                self._sizes[digest] = self._client.get_size(self._blob(digest))
            except NotFoundError:
                self._sizes[digest] = None
        return self._sizes[digest]

    def expect(self, blobs: Iterable[Blob]) -> None:
        for blob in blobs:
            self._sizes.setdefault(blob.digest, blob.size)

    def renew(self) -> None:
        self._sizes = {digest: size for digest, size in self._sizes.items() if size is not None}

    def read(self, digest: str, offset: int, length: int) -> bytes:
        ((_row, data),) = self.read_many(digest, [(offset, length)])
        return data

    def read_many(
        self, digest: str, ranges: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, bytes]]:
        for offset, length in ranges:
            check_range(self.location, digest, self.blob_size(digest), offset, length)
        try:
            yield from self._client.get_ranges(self._blob(digest), ranges)
        except NotFoundError:
            self._sizes[digest] = None  # the manifest names it all the same
            check_range(self.location, digest, None, 0, 0)

    def close(self) -> None:
        pass  # the client belongs to WebLayout

    def _blob(self, digest: str) -> str:
        return _below(self._url, f"blobs/sha256/{blob_hex(digest, self.location)}")


class _WebFile:
    """One file on a web server as bytes at offsets."""

    def __init__(self, url: str, client: Client) -> None:
        self._url = url
        self._client = client
        self.size = client.get_size(url)
        if client.ignores_ranges(url):
            raise InputError(
                f"{visible(url)}: the server hands out whole files only",
                hint="fetch the file and name its path, or serve the pack as a directory",
            )

    def pread(self, offset: int, length: int) -> bytes:
        return self._client.get_range(self._url, offset, length)


class _WebTar(TarLayout):
    """A tar file on a web server, whose ranges are fetched together."""

    def __init__(self, url: str, client: Client) -> None:
        self._url = url
        self._client = client
        super().__init__(_WebFile(url, client), visible(url), remote=True)

    def read_many(
        self, digest: str, ranges: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, bytes]]:
        member = self._find(f"blobs/sha256/{blob_hex(digest, self.location)}")
        for offset, length in ranges:
            size = None if member is None else member.size
            check_range(self.location, digest, size, offset, length)
        start = 0 if member is None else member.offset
        return self._client.get_ranges(
            self._url, [(start + offset, length) for offset, length in ranges]
        )
