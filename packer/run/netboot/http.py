"""A few files in memory over HTTP, for boot loaders; see packer.transport.http_server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http import HTTPStatus

from packer.transport.http_server import CHUNK_BYTES, Answer, Refusal, Request


class Files:
    """Answers GET for `files`, by name without the leading slash, and nothing else."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def most_body_bytes(self, request: Request) -> int:
        """See Handler: nobody sends anything here."""
        if request.method != "GET":
            raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": "GET"})
        return 0

    def answer(self, request: Request, body: bytes) -> Answer:  # noqa: ARG002
        """See Handler."""
        content = self._files.get(request.path.removeprefix("/"))
        if content is None:
            raise Refusal(HTTPStatus.NOT_FOUND)
        return Answer(len(content), _chunks(content))


def _chunks(content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), CHUNK_BYTES):
        yield content[start : start + CHUNK_BYTES]
