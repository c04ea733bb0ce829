"""Blobs through a real registry, directly and behind a proxy that does one thing wrong."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from fixtures.registry import Running
from packer.errors import Error
from packer.transport import deadline
from packer.transport.registry import Registry
from packer.transport.registry_reference import parse_reference
from packer.transport.registry_upload import CHUNK_BYTES
from packer.transport.response import NotFoundError, TransportError
from tests.registry.conftest import Address
from tests.registry.proxy import Fault, Proxy, Request, always, once, proxy

MIB = 1 << 20
SMALL = random.Random(1).randbytes(300_000)
LARGE = random.Random(2).randbytes(2 * CHUNK_BYTES + 5 * MIB)  # two chunks and a rest


def name_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Sent:
    """A blob that was sent: how far the bar went, how much was read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.advanced: list[int] = []
        self.read_bytes = 0

    def read(self, offset: int, length: int) -> bytes:
        self.read_bytes += length
        return self.data[offset : offset + length]

    def through(self, registry: Registry) -> Sent:
        registry.send_blob(name_of(self.data), len(self.data), self.read, self.advanced.append)
        assert sum(self.advanced) == len(self.data)
        assert min(self.advanced) > 0
        return self


Behind = Callable[..., tuple[Registry, Proxy]]


@pytest.fixture
def behind(docker_registry: Running, address: Address) -> Iterator[Behind]:
    """`behind(fault)`: the registry through a proxy with that fault."""
    with ExitStack() as stack:

        def behind(fault: Fault = lambda _: False) -> tuple[Registry, Proxy]:
            server = stack.enter_context(proxy(docker_registry.host, fault))
            reference = parse_reference(address(server.host))
            made = Registry(reference, push=True, back_off_seconds=0.01)
            return stack.enter_context(made), server

        yield behind


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """A TransportError of one line that names the server and these words."""
    with pytest.raises(TransportError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for word in ("http://127.0.0.1:", *words):
        assert word in message


# Sending


@pytest.mark.parametrize("data", [b"", b"x", SMALL, LARGE], ids=["none", "one", "small", "large"])
def test_a_blob_arrives_whole(behind: Behind, docker_registry: Running, data: bytes) -> None:
    registry, server = behind()
    assert not registry.obtain_blob(name_of(data), len(data))
    registry.send_blob(name_of(data), len(data), lambda offset, n: data[offset : offset + n])
    assert registry.obtain_blob(name_of(data), len(data))
    assert docker_registry.blob_file(name_of(data)).read_bytes() == data
    assert server.received == len(data)


def test_a_large_blob_goes_in_chunks_and_its_rest_with_the_end(behind: Behind) -> None:
    registry, server = behind()
    Sent(LARGE).through(registry)
    sizes = [(one.method, one.received) for one in server.methods("POST", "PATCH", "PUT")]
    chunk = ("PATCH", CHUNK_BYTES)
    assert sizes == [("POST", 0), chunk, chunk, ("PUT", 5 * MIB)]
    ranges = [one.headers.get("Content-Range") for one in server.methods("PATCH", "PUT")]
    assert ranges == [
        None,
        f"{CHUNK_BYTES}-{2 * CHUNK_BYTES - 1}",
        f"{2 * CHUNK_BYTES}-{len(LARGE) - 1}",
    ]


def test_a_chunk_that_was_lost_on_the_way_is_sent_again_alone(behind: Behind) -> None:
    """As behind nginx, which hands on whole requests only."""

    def lose(request: Request) -> None:
        request.read_body(CHUNK_BYTES // 3)
        request.cut()

    chunks: list[int] = []

    def second_chunk(request: Request) -> bool:
        if request.command != "PATCH":
            return False
        chunks.append(1)
        if len(chunks) == 2:
            lose(request)
        return len(chunks) == 2

    registry, server = behind(second_chunk)
    sent = Sent(LARGE).through(registry)
    asked = [one.method for one in server.methods("GET", "POST", "PATCH", "PUT")]
    assert asked == ["POST", "PATCH", "PATCH", "GET", "PATCH", "PUT"]
    assert sent.read_bytes < len(LARGE) + CHUNK_BYTES


def test_a_blob_begins_again_where_the_registry_has_forgotten_it(
    behind: Behind, docker_registry: Running
) -> None:
    """docker-registry forgets an upload that breaks in the middle of a chunk."""

    def break_behind(request: Request) -> None:
        body = request.read_body(CHUNK_BYTES // 2)
        _send_part(request, body)
        request.cut()

    registry, server = behind(once(break_behind, method="PATCH"))
    Sent(LARGE).through(registry)
    assert docker_registry.blob_file(name_of(LARGE)).read_bytes() == LARGE
    asked = [one.method for one in server.methods("GET", "POST", "PATCH", "PUT")]
    assert asked == ["POST", "PATCH", "GET", "POST", "PATCH", "PATCH", "PUT"]


def _send_part(request: Request, body: bytes) -> None:
    """Hand on the head of a request and a part of its body, and hang up."""
    import socket

    host, _, port = request.server.target.partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as upstream:
        lines = [f"{request.command} {request.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        upstream.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        time.sleep(0.3)  # until it is written


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_a_blob_whose_last_answer_was_lost_is_not_sent_again(behind: Behind, data: bytes) -> None:
    def swallow(request: Request) -> None:
        request.ask()
        request.cut()

    registry, server = behind(once(swallow, method="PUT"))
    Sent(data).through(registry)
    assert server.received == len(data)
    assert [one.method for one in server.seen][-2:] == ["PUT", "HEAD"]


@pytest.mark.parametrize("status", [400, 404, 405, 413, 416, 501])
def test_a_registry_that_takes_no_chunks_gets_blobs_in_one_piece(
    behind: Behind, docker_registry: Running, status: int
) -> None:
    registry, server = behind(always(lambda one: one.refuse(status), method="PATCH"))
    Sent(LARGE).through(registry)
    assert docker_registry.blob_file(name_of(LARGE)).read_bytes() == LARGE
    assert [one.received for one in server.methods("PUT")] == [len(LARGE)]
    other = LARGE[::-1]
    Sent(other).through(registry)  # and is not asked to take any for the next one
    assert len(server.methods("PATCH")) == 1


def test_a_registry_that_refuses_the_end_of_chunks_gets_the_blob_in_one_piece(
    behind: Behind, docker_registry: Running
) -> None:
    """As one does that takes a PUT without a body only."""

    def refuse(request: Request) -> bool:
        if request.command != "PUT" or request.length == len(LARGE):
            return False
        request.refuse(400)
        return True

    registry, _ = behind(refuse)
    Sent(LARGE).through(registry)
    assert docker_registry.blob_file(name_of(LARGE)).read_bytes() == LARGE


def test_chunks_that_a_registry_keeps_in_part_are_gone_on_with(behind: Behind) -> None:
    """A registry may keep less of a chunk than was sent, and says so."""
    registry, _ = behind(always(_keep_a_third, method="PATCH"))
    sent = Sent(LARGE).through(registry)
    assert sent.read_bytes > len(LARGE)


def _keep_a_third(request: Request) -> None:
    body = request.read_body()
    request.body = body[: max(1, len(body) // 3)]
    request.headers.replace_header("Content-Length", str(len(request.body)))
    del request.headers["Content-Range"]
    request.forward()


def test_what_a_registry_has_kept_of_a_broken_chunk_is_not_sent_again(
    behind: Behind, docker_registry: Running
) -> None:
    """As the specification has it: the upload is asked how far it is."""
    kept: dict[str, str] = {}

    def keep_half(request: Request) -> bool:
        if request.command == "GET" and "/uploads/" in request.path:
            request.give(204, dict(kept), b"")
            return True
        if request.command != "PATCH" or kept:
            return False
        request.body = request.read_body(CHUNK_BYTES // 2 + 7)
        request.headers.replace_header("Content-Length", str(len(request.body)))
        _, headers, _ = request.ask()
        kept.update({name: headers[name] for name in ("Location", "Range")})
        request.cut()
        return True

    registry, server = behind(keep_half)
    Sent(LARGE).through(registry)
    assert docker_registry.blob_file(name_of(LARGE)).read_bytes() == LARGE
    assert server.received == len(LARGE)


def test_a_registry_that_wants_long_chunks_gets_them(behind: Behind) -> None:
    def demand(request: Request) -> None:
        status, headers, body = request.ask()
        request.give(status, {**headers, "OCI-Chunk-Min-Length": str(20 * MIB)}, body)

    registry, server = behind(always(demand, method="POST"))
    Sent(LARGE).through(registry)
    assert [one.received for one in server.methods("PATCH")] == [20 * MIB]


@pytest.mark.parametrize("status", [429, 503, 500])
@pytest.mark.parametrize("method", ["HEAD", "POST", "PATCH", "PUT"])
def test_a_registry_that_is_busy_is_asked_again(behind: Behind, method: str, status: int) -> None:
    registry, _ = behind(once(lambda one: one.refuse(status), method=method))
    registry.obtain_blob(name_of(LARGE), len(LARGE))
    Sent(LARGE).through(registry)


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
def test_retry_after_is_honoured(behind: Behind, method: str) -> None:
    registry, _ = behind(once(lambda one: one.refuse(429, Retry_After="2"), method=method))
    started = time.monotonic()
    Sent(LARGE).through(registry)
    assert time.monotonic() - started > 1.9


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT", "HEAD"])
def test_a_registry_that_never_answers_is_asked_again(
    behind: Behind, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "STEP_SECONDS", 1.0)

    def wait(request: Request) -> None:
        request.read_body()
        time.sleep(4)

    registry, _ = behind(once(wait, method=method))
    registry.obtain_blob(name_of(LARGE), len(LARGE))
    Sent(LARGE).through(registry)


def test_a_registry_that_stays_busy_is_given_up(behind: Behind) -> None:
    registry, server = behind(always(lambda one: one.refuse(503), method="PUT"))
    with refused("503", "5 attempts"):
        Sent(SMALL).through(registry)
    assert len(server.methods("PUT")) == 5


def test_a_connection_that_breaks_each_time_is_given_up(behind: Behind) -> None:
    registry, server = behind(always(Request.cut, method="PATCH"))
    with refused("5 attempts"):
        Sent(LARGE).through(registry)
    assert len(server.methods("PATCH")) == 5


def test_what_the_registry_says_of_a_wrong_digest_is_shown(behind: Behind) -> None:
    registry, _ = behind()
    with refused("DIGEST_INVALID"):
        registry.send_blob(name_of(b"other"), len(SMALL), Sent(SMALL).read)


def test_a_registry_that_stored_something_else_is_named(behind: Behind) -> None:
    def lie(request: Request) -> None:
        status, headers, body = request.ask()
        request.give(status, {**headers, "Docker-Content-Digest": name_of(b"other")}, body)

    registry, _ = behind(always(lie, method="PUT"))
    with refused(name_of(SMALL)):
        Sent(SMALL).through(registry)


@pytest.mark.parametrize("said", ["0-99999999999", "1-5", "0-x", "bytes 0-5/6", "0-" + "9" * 40])
def test_nonsense_about_what_arrived_is_refused(behind: Behind, said: str) -> None:
    def lie(request: Request) -> None:
        status, headers, body = request.ask()
        request.give(status, {**headers, "Range": said}, body)

    registry, _ = behind(always(lie, method="PATCH"))
    with refused("range"):
        Sent(LARGE).through(registry)


@pytest.mark.parametrize(
    "location", ["", "ftp://127.0.0.1/x", "http://[broken/", "http://h/" + "x" * 9000]
)
def test_an_upload_that_leads_nowhere_is_refused(behind: Behind, location: str) -> None:
    registry, _ = behind(always(lambda one: one.refuse(202, Location=location), method="POST"))
    with refused():
        Sent(SMALL).through(registry)


def test_a_registry_that_keeps_nothing_of_chunks_comes_to_an_end(behind: Behind) -> None:
    def keep_nothing(request: Request) -> None:
        request.refuse(202, Location=request.path, Range="0-0")

    registry, server = behind(always(keep_nothing, method="PATCH"))
    Sent(LARGE).through(registry)
    assert len(server.methods("PATCH")) == 1


# Blobs of other repositories


def test_a_blob_of_another_repository_is_taken_over(
    behind: Behind, docker_registry: Running
) -> None:
    there, _ = behind()
    Sent(LARGE).through(there)
    other = parse_reference(f"oci://{docker_registry.host}/{there.reference.repository}-2:1")
    with Registry(other, push=True) as registry:
        registry.mount_from(there.reference.repository)
        assert registry.obtain_blob(name_of(LARGE), len(LARGE))


def test_an_upload_that_was_begun_instead_is_used(behind: Behind) -> None:
    registry, server = behind()
    data = SMALL[::-1]
    registry.mount_from("team/has-nothing")
    assert not registry.obtain_blob(name_of(data), len(data))
    Sent(data).through(registry)
    assert len(server.methods("POST")) == 1


def test_a_registry_that_knows_no_mounts_gets_the_blob(behind: Behind) -> None:
    registry, _ = behind(once(lambda one: one.refuse(400), method="POST", path="mount="))
    registry.mount_from("team/other")
    assert not registry.obtain_blob(name_of(SMALL), len(SMALL))
    Sent(SMALL).through(registry)


def test_a_blob_of_another_size_is_an_error(behind: Behind) -> None:
    def lie(request: Request) -> None:
        request.give(200, {"Content-Length": "5"}, b"")

    registry, _ = behind(always(lie, method="HEAD"))
    with refused("300000", "5"):
        registry.obtain_blob(name_of(SMALL), len(SMALL))


def test_who_says_where_a_blob_lies_has_it(behind: Behind) -> None:
    def point(request: Request) -> None:
        request.give(307, {"Location": "https://storage.invalid/x"}, b"")

    registry, _ = behind(always(point, method="HEAD"))
    assert registry.obtain_blob(name_of(SMALL), len(SMALL))


# Reading

RANGES = [(0, 10), (5_000_000, 100), (20_000_000, 300_000), (len(LARGE) - 5, 5)]


@pytest.fixture
def stored(behind: Behind) -> Callable[[Fault], tuple[Registry, Proxy]]:
    """`stored(fault)`: a registry that has LARGE, behind a proxy with that fault."""
    Sent(LARGE).through(behind()[0])
    return behind


def check_read(registry: Registry, ranges: list[tuple[int, int]] = RANGES) -> None:
    found = dict(registry.get_ranges(name_of(LARGE), ranges))
    assert found == {row: LARGE[at : at + n] for row, (at, n) in enumerate(ranges)}


def sent_bytes(server: Proxy) -> list[str]:
    return [one.headers.get("Range", "") for one in server.methods("GET")]


def test_ranges_of_a_blob_are_read(stored: Behind) -> None:
    registry, server = stored()
    check_read(registry)
    assert all(sent_bytes(server))


def test_a_registry_that_ignores_ranges_sends_the_blob_once_for_all(stored: Behind) -> None:
    def whole(request: Request) -> bool:
        del request.headers["Range"]
        return False

    registry, server = stored(whole)
    check_read(registry)
    assert len(server.methods("GET")) == 1


def test_a_cut_connection_is_taken_up_where_it_broke(stored: Behind) -> None:
    registry, server = stored(once(lambda one: one.cut_after(3 * MIB), path="/blobs/"))
    check_read(registry, [(0, len(LARGE))])
    first, second, *_ = sent_bytes(server)
    assert first == f"bytes=0-{len(LARGE) - 1}"
    assert second == f"bytes={3 * MIB}-{len(LARGE) - 1}"


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_busy_registry_is_read_later(stored: Behind, status: int) -> None:
    registry, _ = stored(once(lambda one: one.refuse(status), path="/blobs/"))
    check_read(registry)


def test_a_blob_that_is_not_there_is_named(behind: Behind) -> None:
    registry, _ = behind()
    with pytest.raises(NotFoundError, match=name_of(b"never sent")):
        next(registry.get_ranges(name_of(b"never sent"), [(0, 1)]))


def test_nothing_is_asked_of_a_registry_that_is_only_named() -> None:
    Registry(parse_reference("oci://registry.invalid/team/demo:1")).close()


def test_a_reader_that_fails_ends_the_upload(behind: Behind, docker_registry: Running) -> None:
    def fail(offset: int, length: int) -> bytes:
        if offset:
            raise Error("the disk is gone")
        return SMALL[:length]

    registry, _ = behind()
    with pytest.raises(Error, match="the disk is gone"):
        registry.send_blob(name_of(SMALL * 2), 2 * len(SMALL), fail)
    assert not docker_registry.blob_file(name_of(SMALL * 2)).exists()
