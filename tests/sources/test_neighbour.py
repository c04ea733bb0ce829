"""A neighbour's store: real servers on loopback, honest and hostile ones."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packer.artifact.contents import Class
from packer.environment import STORE_TOKEN
from packer.errors import UsageError
from packer.sources.base import Blockwise, Bytes, SourceError, Wanted, is_near
from packer.sources.neighbour import NeighbourSource, is_neighbour
from packer.sources.store import Store
from packer.sources.store_protocol import (
    MOST_ANSWER_BYTES,
    MOST_DIGESTS,
    MOST_PIECES,
    PIECE_BYTES,
    Piece,
    bitmap_bytes,
    decode_bitmap,
    decode_pieces,
    encode_bitmap,
    encode_pieces,
)
from packer.sources.store_server import StoreHandler
from packer.transport.http_server import HttpServer
from tests.artifact.make import contents_of
from tests.artifact.real_packs import no_hints
from tests.sources.stores import put, sha256
from tests.transport.servers import Answer, answering, serving
from tests.transport.test_http_server import statuses, talk
from tests.unpack.simulated import numbered

TOKEN = "a-token-of-more-than-16"
MIB = 1 << 20
BLOBS = [b"one", numbered(40_000, 1), numbered(3 * MIB + 5, 2), numbered(2 * MIB, 3), b"absent"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VMPACK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(STORE_TOKEN, TOKEN)
    return tmp_path / "home"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "theirs")
    for blob in BLOBS[:-1]:
        put(store, blob)
    return store


@pytest.fixture
def server(store: Store) -> Iterator[tuple[HttpServer, int]]:
    with answering(StoreHandler(store, TOKEN)) as running:
        yield running


def source_at(port: int) -> NeighbourSource:
    return NeighbourSource(f"store://127.0.0.1:{port}/")


def ask(blobs: list[bytes], classes: list[Class] | None = None) -> Wanted:
    return Wanted(contents_of(blobs, classes), np.arange(len(blobs)), no_hints())


def fetched(source: NeighbourSource, rows: np.ndarray) -> dict[int, bytes]:
    """The blocks that came, joined; each came once."""
    blocks: dict[tuple[int, int], bytes] = {}
    for piece in source.fetch(rows):
        assert isinstance(piece, Bytes)
        assert (piece.row, piece.block) not in blocks
        blocks[piece.row, piece.block] = bytes(piece.data)
    return {
        row: b"".join(blocks[key] for key in sorted(blocks) if key[0] == row)
        for row in {row for row, _ in blocks}
    }


# -- what works ------------------------------------------------------------------------------------


def test_what_a_neighbour_holds_is_offered_at_its_size_and_fetched(
    server: tuple[HttpServer, int],
) -> None:
    source = source_at(server[1])
    assert is_near(source)
    assert not source.local
    offers = source.find(ask(BLOBS), deep=False)
    assert offers.rows.tolist() == [0, 1, 2, 3]
    assert offers.cost_bytes.tolist() == [len(blob) for blob in BLOBS[:4]]
    assert fetched(source, offers.rows) == dict(enumerate(BLOBS[:4]))
    source.close()


def test_single_pieces_are_fetched(server: tuple[HttpServer, int]) -> None:
    source = source_at(server[1])
    assert isinstance(source, Blockwise)
    source.find(ask(BLOBS), deep=False)
    rows, blocks = np.array([[2, 3], [2, 1], [1, 0]]).T
    found = {(one.row, one.block): bytes(one.data) for one in source.fetch_blocks(rows, blocks)}
    assert found == {
        (1, 0): BLOBS[1],
        (2, 1): BLOBS[2][MIB : 2 * MIB],
        (2, 3): BLOBS[2][3 * MIB :],
    }
    assert source.cost_of_blocks(rows, blocks) == 5 + MIB + 40_000
    source.close()


def test_after_renewal_it_is_asked_again(server: tuple[HttpServer, int], store: Store) -> None:
    source, wanted = source_at(server[1]), ask(BLOBS)
    assert 4 not in source.find(wanted, deep=False).rows
    put(store, BLOBS[4])
    assert 4 not in source.find(wanted, deep=False).rows
    source.renew()
    assert 4 in source.find(wanted, deep=False).rows
    source.close()


def test_only_shared_contents_are_asked_about_and_each_once(
    server: tuple[HttpServer, int],
) -> None:
    source = source_at(server[1])
    classes = [Class.BOOT, Class.PRIVATE, Class.SHARED, Class.SHARED, Class.SHARED]
    wanted = ask(BLOBS, classes)
    assert source.find(wanted, deep=False).rows.tolist() == [2, 3]
    assert source.find(wanted.only(np.array([3, 4])), deep=True).rows.tolist() == [3]
    assert server[0].served.requests == 1
    assert source.find(ask(BLOBS), deep=False).rows.tolist() == [0, 1, 2, 3]  # another pack
    source.close()


def test_requests_are_few(tmp_path: Path) -> None:
    """At most one for each MiB, and one for 32,768 questions."""
    store = Store(tmp_path / "many")
    blobs = [numbered(7000 + number, number) for number in range(1500)]
    for blob in blobs:
        put(store, blob)
    with answering(StoreHandler(store, TOKEN)) as (server, port):
        source = source_at(port)
        offers = source.find(ask(blobs), deep=False)
        assert server.served.requests == 1
        assert fetched(source, offers.rows) == dict(enumerate(blobs))
        assert server.served.requests - 1 <= server.served.sent_bytes / MIB
        source.close()
    assert MOST_DIGESTS == 32_768


def test_what_is_removed_meanwhile_is_left_out(
    server: tuple[HttpServer, int], store: Store
) -> None:
    source = source_at(server[1])
    offers = source.find(ask(BLOBS), deep=False)
    store.path_of(sha256(BLOBS[1])).unlink()
    shortened = store.path_of(sha256(BLOBS[3]))
    shortened.chmod(0o644)
    os.truncate(shortened, MIB + 10)
    found = fetched(source, offers.rows)
    assert found == {0: BLOBS[0], 2: BLOBS[2], 3: BLOBS[3][:MIB]}  # its first block is right
    source.close()


def test_an_empty_store_and_one_that_is_not_there_offer_nothing(tmp_path: Path) -> None:
    with answering(StoreHandler(Store(tmp_path / "none"), TOKEN)) as (_, port):
        source = source_at(port)
        assert len(source.find(ask(BLOBS), deep=False).rows) == 0
        source.close()
    assert not (tmp_path / "none").exists()


def test_no_proxy_and_no_netrc_gets_to_see_the_token(
    server: tuple[HttpServer, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login ann password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with serving(lambda answer, _: answer.give(502, {"Content-Length": "0"}, b"")) as proxy:
        for name in ("http_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        source = source_at(server[1])
        assert len(source.find(ask(BLOBS), deep=False).rows) == 4
        source.close()
        assert proxy.asked == []


# -- hostile clients -------------------------------------------------------------------------------


def request(path: str, body: bytes, *, token: str = TOKEN, method: str = "POST") -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def question(digest: bytes, offset: int = 0, length: int = 1) -> bytes:
    return encode_pieces([Piece(digest, offset, length)])


@pytest.mark.parametrize(
    "token", ["", "wrong-token-of-some-length", TOKEN[:-1], TOKEN + "x", TOKEN.upper()]
)
def test_who_has_another_token_learns_nothing(server: tuple[HttpServer, int], token: str) -> None:
    port = server[1]
    for path in ("/v1/have", "/v1/contents", "/", "/absent"):
        assert statuses(talk(port, request(path, sha256(BLOBS[0]), token=token))) == [401]
    assert statuses(talk(port, b"POST /v1/have HTTP/1.1\r\nHost: a\r\n\r\n")) == [401]
    assert server[0].served.requests == 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/have", 405),
        ("PUT", "/v1/contents", 405),
        ("DELETE", "/v1/contents", 405),
        ("POST", "/", 404),
        ("GET", "/", 404),
        ("POST", "/v1/have/", 404),
        ("POST", "/v1/have?x", 404),
        ("POST", "/v1/have/../contents", 404),
        ("POST", "/../../etc/passwd", 404),
        ("POST", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("POST", "/sha256/2c/26", 404),
    ],
)
def test_two_paths_are_answered_and_no_other(
    server: tuple[HttpServer, int], method: str, path: str, status: int
) -> None:
    answer = talk(server[1], request(path, sha256(BLOBS[0]), method=method))
    assert statuses(answer) == [status]
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/have", b""),
        ("/v1/have", b"x" * 31),
        ("/v1/have", b"../../../etc/passwd"),
        ("/v1/contents", b""),
        ("/v1/contents", b"x" * (PIECE_BYTES + 1)),
        ("/v1/contents", question(bytes(32), length=0)),
        ("/v1/contents", question(bytes(32), length=MOST_ANSWER_BYTES + 1)),
        ("/v1/contents", question(bytes(32), length=MOST_ANSWER_BYTES) * 2),
        ("/v1/contents", question(bytes(32), offset=(1 << 64) - 1)),
    ],
)
def test_questions_that_are_none_are_refused(
    server: tuple[HttpServer, int], path: str, body: bytes
) -> None:
    assert statuses(talk(server[1], request(path, body))) == [400]


def test_questions_beyond_the_bound_are_refused_before_they_are_read(
    server: tuple[HttpServer, int],
) -> None:
    for path, most in (("/v1/have", MOST_DIGESTS * 32), ("/v1/contents", MOST_PIECES * 48)):
        head = request(path, b"").replace(b"Length: 0", b"Length: %d" % (most + 32))
        assert statuses(talk(server[1], head)) == [413]
    without = request("/v1/have", b"").replace(b"Content-Length: 0\r\n", b"")
    assert statuses(talk(server[1], without)) == [411]


@given(st.binary(min_size=1, max_size=40).map(lambda tail: (tail * 48)[:48]))
def test_any_piece_is_read_or_refused(body: bytes) -> None:
    try:
        (piece,) = decode_pieces(body)
    except ValueError:
        return
    assert encode_pieces([piece]) == body


def test_only_objects_are_read_whatever_lies_in_the_folders(
    server: tuple[HttpServer, int], store: Store, tmp_path: Path
) -> None:
    """Not files being written, not links, not folders, not pipes."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    digests = [bytes([number]) * 32 for number in range(4)]
    paths = [store.path_of(digest) for digest in digests]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
    paths[0].symlink_to(secret)
    paths[1].mkdir()
    os.mkfifo(paths[2])
    (store.folder / "tmp" / paths[3].name).write_bytes(b"unfinished")
    have = talk(server[1], request("/v1/have", b"".join(digests)))
    assert have.endswith(b"\r\n\r\n\0")
    for digest in digests:
        answer = talk(server[1], request("/v1/contents", question(digest, length=6)))
        assert answer.endswith(b"\r\n\r\n\0")


def test_offsets_past_the_end_are_not_there(server: tuple[HttpServer, int]) -> None:
    one = sha256(BLOBS[0])
    for offset, length, found in ((0, 3, b"\1one"), (1, 2, b"\1ne"), (1, 3, b"\0"), (3, 1, b"\0")):
        answer = talk(server[1], request("/v1/contents", question(one, offset, length)))
        assert answer.partition(b"\r\n\r\n")[2] == found


# -- hostile servers -------------------------------------------------------------------------------


def all_bits(request: Answer) -> bytes:
    count = len(request.body) // 32
    return encode_bitmap([True] * count)


def says_it_has_all(request: Answer) -> bool:
    if request.path.endswith("/have"):
        bits = all_bits(request)
        request.give(200, {"Content-Length": str(len(bits))}, bits)
        return True
    return False


def lies(request: Answer, _: int) -> None:
    if not says_it_has_all(request):
        pieces = decode_pieces(request.body)
        body = encode_bitmap([True] * len(pieces)) + b"?" * sum(one.length for one in pieces)
        request.give(200, {"Content-Length": str(len(body))}, body)


def too_short(request: Answer, _: int) -> None:
    if not says_it_has_all(request):
        bits = encode_bitmap([True] * len(decode_pieces(request.body)))
        request.give(200, {"Content-Length": str(len(bits))}, bits)


def bits_beyond_the_end(request: Answer, _: int) -> None:
    count = len(request.body) // (32 if request.path.endswith("/have") else 48)
    bits = b"\xff" * bitmap_bytes(count)
    request.give(200, {"Content-Length": str(len(bits))}, bits)


def endless(request: Answer, _: int) -> None:
    if not says_it_has_all(request):
        request.give(200, {"Connection": "close"}, b"")
        for _ in range(10_000):
            request.wfile.write(bytes(1 << 16))


def huge(request: Answer, _: int) -> None:
    if not says_it_has_all(request):
        request.give(200, {"Content-Length": str(1 << 50)}, b"")


def elsewhere(request: Answer, _: int) -> None:
    request.give(307, {"Location": "http://127.0.0.1:1/v1/have", "Content-Length": "0"}, b"")


def cuts(request: Answer, _: int) -> None:
    if not says_it_has_all(request):
        request.give(200, {"Content-Length": "1000"}, b"half")
        request.cut()


@pytest.mark.parametrize(
    "misdeed", [too_short, bits_beyond_the_end, endless, huge, elsewhere, cuts],
    ids=lambda one: one.__name__,
)  # fmt: skip
def test_a_server_that_makes_no_sense_is_one_source_error(misdeed: object) -> None:
    with serving(misdeed) as server:  # type: ignore[arg-type]
        source = NeighbourSource(server.url.replace("http", "store"))
        with pytest.raises(SourceError, match=r"store://127"):
            fetched(source, source.find(ask(BLOBS), deep=False).rows)
        source.close()
    assert not [one for one in threading.enumerate() if one.name == "(work)"]


def test_wrong_bytes_are_handed_on_in_the_size_that_was_asked_for() -> None:
    """The assembler compares digests."""
    with serving(lies) as server:
        source = NeighbourSource(server.url.replace("http", "store"))
        offers = source.find(ask(BLOBS), deep=False)
        assert fetched(source, offers.rows) == {
            row: b"?" * len(blob) for row, blob in enumerate(BLOBS)
        }
        source.close()


def test_a_server_that_is_not_there_is_a_source_error() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        source = source_at(probe.getsockname()[1])
    with pytest.raises(SourceError, match="refused"):
        source.find(ask(BLOBS), deep=False)
    source.close()


def test_a_certificate_that_is_not_there_is_a_source_error(home: Path) -> None:
    config = home / "config"
    config.mkdir(parents=True)
    (config / "neighbours.toml").write_text(
        f'["127.0.0.1:9"]\ntoken = "{TOKEN}"\ncertificate = "{home}/none.pem"\n'
    )
    (config / "neighbours.toml").chmod(0o600)
    source = NeighbourSource("store+https://127.0.0.1:9/")
    with pytest.raises(SourceError, match=r"none\.pem"):
        source.find(ask(BLOBS), deep=False)
    source.close()


def test_a_wrong_token_is_said_as_such_also_for_many_questions(
    server: tuple[HttpServer, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STORE_TOKEN, "another-token-altogether")
    contents = contents_of([b"x"])
    many = contents_of([b"%d" % number for number in range(30_000)])
    for one in (contents, many):
        source = source_at(server[1])
        with pytest.raises(SourceError, match="401") as caught:
            source.find(Wanted(one, np.arange(len(one)), no_hints()), deep=False)
        assert "token" in caught.value.hint
        source.close()


# -- addresses and tokens --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("store://host:81/", "store://host:81/"),
        ("store://host:81", "store://host:81/"),
        ("store://HOST", "store://host:7436/"),
        ("store+https://10.0.0.1/", "store+https://10.0.0.1:7436/"),
        ("store://[::1]:81/", "store://[::1]:81/"),
    ],
)
def test_addresses_of_neighbours(uri: str, shown: str) -> None:
    assert is_neighbour(uri)
    assert NeighbourSource(uri).uri == shown


@pytest.mark.parametrize(
    "uri",
    [
        "store://ann:secret@host:81/",
        "store://host:81/folder",
        "store://host:81/?x",
        "store://host:99999/",
        "store://host:x/",
        "store+https://",
        "store+https:/folder",
        "store://[::1/",
    ],
)
def test_what_is_no_address_of_a_neighbour(uri: str) -> None:
    assert is_neighbour(uri)
    with pytest.raises(UsageError, match="expected an address"):
        NeighbourSource(uri)


@pytest.mark.parametrize("uri", ["store:", "store:/folder", "store:folder", "store:///folder"])
def test_stores_of_this_host_are_no_neighbours(uri: str) -> None:
    assert not is_neighbour(uri)


def test_without_a_token_the_hint_says_where_one_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STORE_TOKEN)
    with pytest.raises(UsageError, match="not known here") as caught:
        NeighbourSource("store://host/")
    assert "vmpack store token" in caught.value.hint


@given(st.lists(st.booleans(), min_size=1, max_size=100))
def test_bitmaps_are_read_as_they_are_written(bits: list[bool]) -> None:
    data = encode_bitmap(bits)
    assert len(data) == bitmap_bytes(len(bits))
    assert decode_bitmap(data, len(bits)).tolist() == bits
    for wrong in (data + b"\0", data[:-1]):
        with pytest.raises(ValueError):
            decode_bitmap(wrong, len(bits))
