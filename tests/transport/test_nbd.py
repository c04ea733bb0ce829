from __future__ import annotations

import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.errors import Truncated
from packer.errors import UsageError
from packer.transport import nbd
from packer.transport.nbd import Address, NbdError, NbdSource, parse_uri

MIB = 1 << 20
SIZE = 48 * MIB
DATA = [(0, 2 * MIB), (7 * MIB, 8 * MIB), (SIZE - 64 * 1024, SIZE)]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nbd") / "image.raw"
    chance = random.Random(1)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for start, end in DATA:
            file.seek(start)
            file.write(chance.randbytes(end - start))
    return path


@contextmanager
def qemu_nbd(image: Path, *options: str, image_format: str = "raw") -> Iterator[Path]:
    path = image.with_name(f"socket{random.randrange(10**9)}")
    process = subprocess.Popen(
        ["qemu-nbd", "-r", "-t", "-e", "0", "-f", image_format, "-k", str(path), *options, image]
    )
    try:
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.02)
        yield path
    finally:
        process.terminate()
        process.wait()


def test_a_disk_behind_a_unix_socket_reads_as_it_is(image: Path) -> None:
    expected = image.read_bytes()
    with qemu_nbd(image) as path, NbdSource(f"nbd+unix:///?socket={path}") as source:
        assert source.size == SIZE
        assert source.pread(0, SIZE) == expected  # more than one request
        assert source.pread(SIZE, 0) == b""
        for offset, length in [(1, 1), (511, 2), (2 * MIB - 3, 6), (SIZE - 1, 1)]:
            assert source.pread(offset, length) == expected[offset : offset + length]
        with pytest.raises(Truncated):
            source.pread(SIZE - 1, 2)


def test_holes_are_told(image: Path) -> None:
    with qemu_nbd(image) as path, NbdSource(f"nbd+unix:///?socket={path}") as source:
        assert np.array_equal(source.data_ranges(0, SIZE), np.array(DATA))
        assert source.data_ranges(MIB, 8 * MIB - 5).tolist() == [
            [MIB, 2 * MIB],
            [7 * MIB, 8 * MIB - 5],
        ]
        assert len(source.data_ranges(3 * MIB, 6 * MIB)) == 0
        assert len(source.data_ranges(5, 5)) == 0


def test_a_disk_of_many_gigabytes_is_asked_about_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "large.raw"
    with path.open("wb") as file:
        file.truncate(9 << 30)
        file.seek(5 << 30)
        file.write(b"x" * 4096)
    with qemu_nbd(path) as server, NbdSource(f"nbd+unix:///?socket={server}") as source:
        assert source.data_ranges(0, 9 << 30).tolist() == [[5 << 30, (5 << 30) + 4096]]


def test_a_disk_behind_tcp_with_a_named_export_reads_as_it_is(image: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["qemu-nbd", "-r", "-t", "-e", "0", "-f", "raw", "-b", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen([*command, "-x", "the disk", str(image)])
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                source = NbdSource(f"nbd://127.0.0.1:{port}/the%20disk")
                break
            except NbdError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        with source:
            assert source.pread(7 * MIB, MIB) == image.read_bytes()[7 * MIB : 8 * MIB]
        with pytest.raises(NbdError, match="has no such export"):
            NbdSource(f"nbd://127.0.0.1:{port}/other")
    finally:
        process.terminate()
        process.wait()


def test_one_source_serves_several_threads(image: Path) -> None:
    expected = image.read_bytes()
    chance = random.Random(2)
    wanted = [(chance.randrange(SIZE - 100_000), chance.randrange(100_000)) for _ in range(200)]
    with (
        qemu_nbd(image) as path,
        NbdSource(f"nbd+unix:///?socket={path}") as source,
        ThreadPoolExecutor(8) as pool,
    ):
        found = list(pool.map(lambda one: source.pread(*one), wanted))
    assert found == [expected[offset : offset + length] for offset, length in wanted]


def test_a_dead_server_is_a_clear_error_and_stays_one(image: Path) -> None:
    with qemu_nbd(image) as path:
        source = NbdSource(f"nbd+unix:///?socket={path}")
    for _ in range(2):
        with pytest.raises(NbdError, match=r"the server (is gone|closed the connection)"):
            source.pread(0, 512)
    source.close()


@pytest.mark.parametrize("uri", ["nbd+unix:///?socket=/nowhere/at/all", "nbd://127.0.0.1:1/"])
def test_nobody_there_is_a_clear_error(uri: str) -> None:
    with pytest.raises(NbdError, match="nobody answers"):
        NbdSource(uri)


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("nbd://host/disk", Address("disk", host="host")),
        ("nbd://host:1234/", Address("", host="host", port=1234)),
        ("nbd://host", Address("", host="host")),
        ("nbd://[::1]:9/a%2Fb", Address("a/b", host="::1", port=9)),
        ("nbd+unix:///x?socket=/run/a%20b", Address("x", socket_path="/run/a b")),
    ],
)
def test_uris_are_understood(uri: str, address: Address) -> None:
    assert parse_uri(uri) == address


@pytest.mark.parametrize(
    "uri",
    [
        "nbd+unix:///x",
        "nbd:///x",
        "nbd://host:port/x",
        "nbd://host:99999/x",
        "nbds://host/x",
        "nbd://host/" + "x" * 5000,
    ],
)
def test_other_uris_are_refused(uri: str) -> None:
    with pytest.raises(UsageError):
        parse_uri(uri)


# A server of our own that keeps to the protocol, except where a test tells it not to.

Misdeed = Callable[[str, bytes], bytes]
_CONTEXT = 7


class SmallServer:
    """The transmission and handshake phases for one client, written from the protocol's text.

    bend: gets (what is sent, its bytes) and returns what is really sent.
    """

    def __init__(
        self, content: bytes, bend: Misdeed, *, structured: bool = True, least: int = 1
    ) -> None:
        self.content = content
        self.bend = bend
        self.structured = structured
        self.least = least
        self.asked: list[tuple[int, int, int]] = []
        self.ours, self.theirs = socket.socketpair()
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> SmallServer:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ours.close()
        self.theirs.close()
        self.thread.join(10)

    def _serve(self) -> None:
        try:
            with self.theirs.makefile("rb") as stream:
                self._handshake(stream.read)
                while self._answer(stream.read):
                    pass
        except (OSError, ValueError, struct.error):
            pass
        finally:
            self.theirs.close()

    def _send(self, what: str, data: bytes) -> None:
        self.theirs.sendall(self.bend(what, data))

    def _handshake(self, read: Callable[[int], bytes]) -> None:
        self._send("greeting", b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        read(4)
        while True:
            _, option, length = struct.unpack(">QII", read(16))
            read(length)
            replies: list[tuple[int, bytes]] = [(1, b"")]
            if option in (8, 10) and not self.structured:
                replies = [((1 << 31) + 1, b"")]
            elif option == 10:
                replies.insert(0, (4, struct.pack(">I", _CONTEXT) + b"base:allocation"))
            elif option == 7:
                export = struct.pack(">HQH", 0, len(self.content), 3)
                blocks = struct.pack(">HIII", 3, self.least, 4096, 1 << 20)
                replies = [(3, export), (3, blocks), *replies]
            for kind, data in replies:
                head = struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data))
                self._send(f"option {option}", head + data)
            if option == 7:
                return

    def _answer(self, read: Callable[[int], bytes]) -> bool:
        _, _, command, cookie, offset, length = struct.unpack(">IHHQQI", read(28))
        self.asked.append((command, offset, length))
        if command == 2:
            return False
        data = self.content[offset : offset + length]
        if not self.structured:
            self._send("simple", struct.pack(">IIQ", 0x67446698, 0, cookie) + data)
            return True
        if command == 7:
            status = struct.pack(">IIIII", _CONTEXT, 4096, 3, length - 4096, 0)
            self._send("status", chunk(cookie, 5, status, done=True))
            return True
        half = len(data) // 2  # in two pieces, the second one first
        second = struct.pack(">Q", offset + half) + data[half:]
        self._send("data", chunk(cookie, 1, second))
        if half and not any(data[:half]):
            hole = struct.pack(">QI", offset, half)
            self._send("hole", chunk(cookie, 2, hole))
        elif half:
            self._send("data", chunk(cookie, 1, struct.pack(">Q", offset) + data[:half]))
        self._send("done", chunk(cookie, 0, b"", done=True))
        return True


def chunk(cookie: int, kind: int, payload: bytes, *, done: bool = False) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, int(done), kind, cookie, len(payload)) + payload


def honest(what: str, data: bytes) -> bytes:
    return data


@contextmanager
def small_server(
    monkeypatch: pytest.MonkeyPatch, bend: Misdeed = honest, **options: object
) -> Iterator[SmallServer]:
    with SmallServer(CONTENT, bend, **options) as server:  # type: ignore[arg-type]
        monkeypatch.setattr(nbd, "_connect", lambda uri, address: server.ours)
        yield server


CONTENT = bytes(65536) + random.Random(4).randbytes(65536)


@pytest.mark.parametrize("structured", [True, False])
def test_a_server_written_from_the_text_is_understood(
    monkeypatch: pytest.MonkeyPatch, structured: bool
) -> None:
    with small_server(monkeypatch, structured=structured), NbdSource("nbd://x") as source:
        assert source.pread(0, len(CONTENT)) == CONTENT
        assert source.pread(70_001, 999) == CONTENT[70_001:71_000]
        expected = [[4096, len(CONTENT)]] if structured else [[0, len(CONTENT)]]
        assert source.data_ranges(0, len(CONTENT)).tolist() == expected


def test_requests_keep_to_the_servers_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    with small_server(monkeypatch, least=512) as server, NbdSource("nbd://x") as source:
        assert source.pread(70_001, 999) == CONTENT[70_001:71_000]
        assert source.data_ranges(5000, 15_000).tolist() == [[9_096 // 512 * 512, 15_000]]
    for command, offset, length in server.asked:
        assert command == 2 or (offset % 512 == 0 and length % 512 == 0)


def replacing(which: str, change: Callable[[bytes], bytes]) -> Misdeed:
    return lambda what, data: change(data) if what == which else data


HEAD = 20
"""Bytes of a structured reply's header; the cookie stands at 8."""


@pytest.mark.parametrize(
    "bend",
    [
        pytest.param(replacing("greeting", lambda data: b"HTTP/1.1 400 Bad!!"), id="no nbd"),
        pytest.param(replacing("greeting", lambda data: data[:16] + b"\0\0"), id="old style"),
        pytest.param(replacing("greeting", lambda data: data[:5]), id="cut greeting"),
        pytest.param(replacing("option 7", lambda data: b"\0" * len(data)), id="no reply magic"),
        pytest.param(
            replacing("option 7", lambda data: data[:16] + b"\xff" * 4), id="option of 4 GiB"
        ),
        pytest.param(
            replacing("option 7", lambda data: data[:20] + data[20:22] + b"\xff" * 8 + data[30:]),
            id="export of 16 EiB",
        ),
        pytest.param(
            replacing("option 7", lambda data: data[:-4] if len(data) == 34 else data),
            id="short info",
        ),
        pytest.param(
            replacing("option 8", lambda data: (data[:12] + b"\0\0\0\3" + data[16:]) * 1000),
            id="options without end",
        ),
    ],
)
def test_a_hostile_handshake_is_refused(monkeypatch: pytest.MonkeyPatch, bend: Misdeed) -> None:
    monkeypatch.setattr(nbd, "REPLY_SECONDS", 1.0)
    with small_server(monkeypatch, bend), pytest.raises(NbdError):
        NbdSource("nbd://x")


@pytest.mark.parametrize(
    "bend",
    [
        pytest.param(replacing("data", lambda data: b"\0" * len(data)), id="no magic"),
        pytest.param(
            replacing("data", lambda data: data[:8] + b"\xff" * 8 + data[16:]), id="wrong cookie"
        ),
        pytest.param(
            replacing("data", lambda data: data[:HEAD] + b"\xff" * 8 + data[HEAD + 8 :]),
            id="piece outside",
        ),
        pytest.param(
            replacing("data", lambda data: data[:16] + b"\xff" * 4 + data[HEAD:]),
            id="piece of 4 GiB",
        ),
        pytest.param(replacing("data", lambda data: data + data), id="piece twice"),
        pytest.param(replacing("data", lambda data: b""), id="piece missing"),
        pytest.param(replacing("hole", lambda data: data[:-4] + b"\xff" * 4), id="hole of 4 GiB"),
        pytest.param(replacing("hole", lambda data: data[:-4] + bytes(4)), id="hole of nothing"),
        pytest.param(
            replacing("data", lambda data: chunk(int.from_bytes(data[8:16], "big"), 99, b"")),
            id="unknown chunk",
        ),
        pytest.param(
            replacing(
                "data",
                lambda data: chunk(int.from_bytes(data[8:16], "big"), 0x8001, b"\0\0\0\5\0\0"),
            ),
            id="error",
        ),
        pytest.param(
            replacing("data", lambda data: data[:6] + b"\x80\x01" + b"\xff" * 12), id="long error"
        ),
        pytest.param(replacing("data", lambda data: data[:30]), id="cut"),
    ],
)
def test_a_hostile_answer_to_a_read_is_an_error_and_the_last_one(
    monkeypatch: pytest.MonkeyPatch, bend: Misdeed
) -> None:
    monkeypatch.setattr(nbd, "REPLY_SECONDS", 1.0)
    with small_server(monkeypatch, bend):
        source = NbdSource("nbd://x")
        for _ in range(2):
            with pytest.raises(NbdError):
                source.pread(0, len(CONTENT))
        source.close()


def status_of(*numbers: int, context: int = _CONTEXT) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        payload = struct.pack(f">{len(numbers) + 1}I", context, *numbers)
        return chunk(int.from_bytes(data[8:16], "big"), 5, payload, done=True)

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(status_of(0, 0), id="no length"),
        pytest.param(status_of(), id="no descriptor"),
        pytest.param(status_of(4096, 0, 512), id="half a descriptor"),
        pytest.param(status_of(4096, 0, context=8), id="unknown context"),
        pytest.param(lambda data: data[:4] + b"\0\0" + data[6:] + data, id="twice"),
    ],
)
def test_a_hostile_block_status_is_an_error(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr(nbd, "REPLY_SECONDS", 1.0)
    with small_server(monkeypatch, replacing("status", change)):
        source = NbdSource("nbd://x")
        with pytest.raises(NbdError):
            source.data_ranges(0, len(CONTENT))


def test_a_block_status_in_crumbs_ends_and_hides_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd, "_MAX_STATUS_REQUESTS", 10)
    crumb = replacing("status", status_of(1, 2))  # one byte of zeros at a time
    with small_server(monkeypatch, crumb) as server, NbdSource("nbd://x") as source:
        assert source.data_ranges(0, len(CONTENT)).tolist() == [[10, len(CONTENT)]]
    assert len(server.asked) == 11


def test_a_block_status_beyond_the_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    beyond = replacing("status", status_of(4096, 2, 0xFFFFFFFF, 0))
    with small_server(monkeypatch, beyond), NbdSource("nbd://x") as source:
        assert source.data_ranges(0, len(CONTENT)).tolist() == [[4096, len(CONTENT)]]


def test_a_server_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd, "REPLY_SECONDS", 0.3)
    with small_server(monkeypatch, replacing("done", lambda data: b"")):
        source = NbdSource("nbd://x")
        begin = time.monotonic()
        with pytest.raises(NbdError, match=r"is gone|within"):
            source.pread(0, 4096)
        assert time.monotonic() - begin < 3


def test_a_reply_of_chunks_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(data: bytes) -> bytes:
        return chunk(int.from_bytes(data[8:16], "big"), 0, b"") * 150_000

    with small_server(monkeypatch, replacing("done", endless)):
        source = NbdSource("nbd://x")
        with pytest.raises(NbdError, match="chunks"):
            source.pread(0, 4096)


def test_a_reply_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd, "REPLY_SECONDS", 0.5)
    servers: list[SmallServer] = []

    def drips(what: str, data: bytes) -> bytes:
        cookie = int.from_bytes(data[8:16], "big")
        while what == "done":  # until the client hangs up
            servers[0].theirs.sendall(chunk(cookie, 0, b""))
            time.sleep(0.1)
        return data

    with small_server(monkeypatch, drips) as server:
        servers.append(server)
        source = NbdSource("nbd://x")
        begin = time.monotonic()
        with pytest.raises(NbdError, match=r"is gone|within"):
            source.pread(0, 4096)
        assert time.monotonic() - begin < 3


@given(where=st.integers(0, 40), value=st.integers(1, 255), which=st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_no_wrong_byte_of_a_server_escapes_as_anything_but_an_error(
    where: int, value: int, which: int
) -> None:
    """Flip one byte of the nth message; what comes out is right, wrong data, or NbdError."""
    count = iter(range(100))

    def bend(what: str, data: bytes) -> bytes:
        if next(count) != which:
            return data
        place = where % len(data)
        return data[:place] + bytes([data[place] ^ value]) + data[place + 1 :]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nbd, "REPLY_SECONDS", 0.2)
        with small_server(patch, bend):
            try:
                source = NbdSource("nbd://x")
                length = min(source.size, len(CONTENT))
                assert len(source.pread(0, length)) == length
                ranges = source.data_ranges(0, length)
                assert (ranges[:, 1] > ranges[:, 0]).all()
                source.close()
            except NbdError:
                pass
