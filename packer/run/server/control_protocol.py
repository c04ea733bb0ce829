"""What a server of a disk is asked beside reading, and what it answers: JSON, one line each.

    {"do": "status"}                    {"result": {…}}
    {"do": "complete", "on": false}     {"result": null}
    {"do": "dance"}                     {"error": {"message": "…", "hint": "", "exit_code": 2}}

Answers come in the order of the questions.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import msgspec

from packer.errors import Error

PROTOCOL = 1
MAX_REQUEST_BYTES = 1 << 16
MAX_ANSWER_BYTES = 1 << 26
"""Some two million ranges that clients touched."""

Verb = Literal["hello", "status", "touched", "forget_touched", "complete", "retry", "stop"]


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question. on: of "complete", whether to go on with it or to pause."""

    do: Verb
    on: bool = True


class Failure(msgspec.Struct, frozen=True):
    """An error as a person reads it; see packer.errors."""

    message: str
    hint: str = ""
    exit_code: int = 1


class Hello(msgspec.Struct, frozen=True):
    """Who answers. config: the pack's identity. key: of the server's spec."""

    protocol: int
    pid: int
    config: str
    key: str


class SourceStatus(msgspec.Struct, frozen=True):
    """What a source has given so far, and what it did wrong.

    content_bytes: proven. fetched_bytes: that travelled for it.
    """

    source: str
    content_bytes: int
    fetched_bytes: int
    complaints: tuple[str, ...] = ()


class MissingStatus(msgspec.Struct, frozen=True):
    """A content that a client waits for and nobody has.

    path: where it lay in the guest, or "". looked_in: the sources that were asked for it.
    """

    content: str
    size_bytes: int
    path: str
    looked_in: tuple[str, ...] = ()


class ServerStatus(msgspec.Struct, frozen=True):
    """What a server does and has done. connections: NBD clients now. Counts are since its start.

    pack: "demo:1". config: the pack's identity. location: where it was opened. touched_bytes: of
    the disk, that clients have read since they were last forgotten, at 64 KiB. content_bytes: all
    that the disk holds; at_hand_bytes: what of it can be read without asking anybody. completing:
    whether the rest is fetched; complaint: why that had to end, or "". sources: in the order of
    asking, those that gave nothing, too. missing: the first of `missing_contents` that clients
    wait for and none of the sources has.
    """

    pid: int
    pack: str
    config: str
    location: str
    disk_bytes: int
    uptime_seconds: float
    connections: int
    touched_bytes: int
    content_bytes: int
    at_hand_bytes: int
    completing: bool
    complaint: str
    sources: tuple[SourceStatus, ...]
    missing: tuple[MissingStatus, ...]
    missing_contents: int


class _Answer(msgspec.Struct, omit_defaults=True):
    result: msgspec.Raw = msgspec.Raw(b"")
    error: Failure | None = None


class RemoteError(Error):
    """What a server says against a question, with the exit code it would have ended with."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message, hint=failure.hint)
        self.exit_code = failure.exit_code


def failure_of(error: Error) -> Failure:
    """Return an error as it is sent."""
    return Failure(error.message, error.hint, error.exit_code)


def encode_result(value: object) -> bytes:
    """Return the line that answers with a value."""
    line = msgspec.json.encode({"result": value}) + b"\n"
    if len(line) > MAX_ANSWER_BYTES:
        return encode_failure(
            Failure(f"expected an answer of at most {MAX_ANSWER_BYTES} bytes, found {len(line)}")
        )
    return line


def encode_failure(failure: Failure) -> bytes:
    """Return the line that answers with an error."""
    return msgspec.json.encode(_Answer(error=failure)) + b"\n"


_Value = TypeVar("_Value")


def decode_answer(line: bytes, kind: type[_Value]) -> _Value:
    """Return the value of an answer. Raises RemoteError, ValueError for something else."""
    answer = msgspec.json.decode(line, type=_Answer)
    if answer.error is not None:
        raise RemoteError(answer.error)
    return msgspec.json.decode(answer.result, type=kind)


def decode_request(line: bytes) -> Request:
    """Return the request of a line. Raises ValueError for something else."""
    return msgspec.json.decode(line, type=Request)
