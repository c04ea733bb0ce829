"""The TFTP server, with other people's clients and with one that behaves as it is told to."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from packer.run.netboot import tftp
from packer.run.netboot.tftp import MAX_TRANSFERS_OF_ONE, TRIES, TftpServer
from packer.run.netboot.tftp_packets import BLOCK_NUMBERS, MAX_WINDOW

READ, WRITE, DATA, ACK, ERROR, OPTIONS = 1, 2, 3, 4, 5, 6
SECONDS = 10.0
FILES = {
    "boot.ipxe": b"#!ipxe\nboot\n",
    "empty": b"",
    "one-block": bytes(range(256)) * 2,  # an empty block says that it has ended
    "vmlinuz": random.Random(1).randbytes(3_000_001),
    "many-blocks": random.Random(2).randbytes(8 * (BLOCK_NUMBERS + 100) + 3),
}


class Running:
    """The server in a thread with an event loop of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.faults: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.faults.append(context))
        self.server = TftpServer(FILES)
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.port = self.wait(self.server.start("127.0.0.1", 0))

    def wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(SECONDS)

    def stop(self) -> None:
        self.wait(self.server.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    @property
    def transfers(self) -> int:
        return len(self.server._transfers)


@pytest.fixture
def running() -> Iterator[Running]:
    one = Running()
    yield one
    one.stop()
    assert one.faults == []


class Client:
    """A client that says what it is told to; every wait is bounded."""

    def __init__(self, port: int, seconds: float = SECONDS) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.settimeout(seconds)
        self.server = ("127.0.0.1", port)
        self.peer = self.server

    def ask(self, name: str, **options: int) -> None:
        words = [name, "octet", *(str(word) for pair in options.items() for word in pair)]
        self.socket.sendto(b"\0\1" + b"".join(w.encode() + b"\0" for w in words), self.server)

    def hear(self) -> tuple[int, int, bytes]:
        """(opcode, number, the rest) of the next packet."""
        packet, self.peer = self.socket.recvfrom(65536)
        if packet[:2] == b"\0\6":
            return OPTIONS, 0, packet[2:]
        opcode, number = struct.unpack_from(">HH", packet)
        return opcode, number, packet[4:]

    def confirm(self, number: int) -> None:
        self.socket.sendto(struct.pack(">HH", ACK, number % BLOCK_NUMBERS), self.peer)

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    one = Client(running.port)
    yield one
    one.close()


def got(*command: str | Path) -> None:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


# -- other people's clients ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["boot.ipxe", "one-block", "vmlinuz"])
@pytest.mark.parametrize("block_bytes", [512, 1468, 65464])
def test_curl_reads_files(running: Running, tmp_path: Path, name: str, block_bytes: int) -> None:
    out = tmp_path / "out"
    uri = f"tftp://127.0.0.1:{running.port}/{name}"
    got("curl", "-sS", "--tftp-blksize", str(block_bytes), "-o", out, uri)
    assert out.read_bytes() == FILES[name]


def test_curl_reads_without_options(running: Running, tmp_path: Path) -> None:
    uri = f"tftp://127.0.0.1:{running.port}/vmlinuz"
    got("curl", "-sS", "--tftp-no-options", "-o", tmp_path / "out", uri)
    assert (tmp_path / "out").read_bytes() == FILES["vmlinuz"]


@pytest.mark.parametrize("options", [(), ("windowsize 4",), ("windowsize 32", "blksize 1024")])
def test_atftp_reads_with_windows(
    running: Running, tmp_path: Path, options: tuple[str, ...]
) -> None:
    asked = [word for one in ("tsize", *options) for word in ("--option", one)]
    where = ("127.0.0.1", str(running.port))
    got("atftp", *asked, "-g", "-r", "vmlinuz", "-l", tmp_path / "out", *where)
    assert (tmp_path / "out").read_bytes() == FILES["vmlinuz"]


def test_curl_is_told_what_is_not_there(running: Running) -> None:
    for name in ("../etc/passwd", "%2e%2e/etc/passwd", "etc/passwd", "vmlinuz2"):
        done = subprocess.run(
            ["curl", "-sS", "--path-as-is", f"tftp://127.0.0.1:{running.port}/{name}"],
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 68, name  # CURLE_TFTP_NOTFOUND
        assert done.stdout == b""


def test_nobody_writes(running: Running, tmp_path: Path) -> None:
    file = tmp_path / "new"
    file.write_bytes(b"new")
    done = subprocess.run(
        ["curl", "-sS", "-T", file, f"tftp://127.0.0.1:{running.port}/boot.ipxe"],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 69  # CURLE_TFTP_PERM
    assert FILES["boot.ipxe"].startswith(b"#!ipxe")


# -- a client that behaves as it is told to --------------------------------------------------------


def read_all(
    client: Client, name: str, *, lose: Callable[[int], bool] = lambda _: False, **options: int
) -> bytes:
    """Read a file as RFC 7440 says; lose: which of the packets that arrive count as lost."""
    client.ask(name, **options)
    size, window = options.get("blksize", 512), options.get("windowsize", 1)
    if options:
        assert client.hear()[0] == OPTIONS
        client.confirm(0)
    data, expected, arrived, since = bytearray(), 1, 0, 0
    while True:
        try:
            opcode, number, piece = client.hear()
        except TimeoutError:
            client.confirm(expected - 1)
            continue
        assert opcode == DATA
        arrived += 1
        if lose(arrived):
            continue
        if number != expected % BLOCK_NUMBERS:
            since = 0
            client.confirm(expected - 1)
            continue
        data += piece
        expected += 1
        since += 1
        if len(piece) < size or since == window:
            since = 0
            client.confirm(expected - 1)
        if len(piece) < size:
            return bytes(data)


@pytest.mark.parametrize("options", [{}, {"blksize": 1024}, {"tsize": 0, "windowsize": 4}])
def test_an_empty_file(client: Client, options: dict[str, int]) -> None:
    """curl takes a tsize of 0 for an error, so it cannot ask for one."""
    assert read_all(client, "empty", lose=lambda _: False, **options) == b""


def test_numbers_of_blocks_begin_anew(client: Client) -> None:
    assert read_all(client, "many-blocks", blksize=8, windowsize=32) == FILES["many-blocks"]


@pytest.mark.parametrize("window", [1, 7, 32])
def test_lost_packets_come_again(
    running: Running, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(tftp, "TRY_SECONDS", 0.02)
    client, chance = Client(running.port, 0.1), random.Random(window)
    found = read_all(
        client,
        "vmlinuz",
        lose=lambda _: chance.random() < 0.02,
        blksize=1468,
        windowsize=window,
    )
    client.close()
    assert found == FILES["vmlinuz"]


def test_what_is_confirmed_twice_is_not_sent_twice(client: Client) -> None:
    """Else every later packet would travel twice: the Sorcerer's Apprentice of RFC 1123."""
    client.ask("vmlinuz")
    assert client.hear()[:2] == (DATA, 1)
    for _ in range(3):
        client.confirm(1)
    assert client.hear()[:2] == (DATA, 2)
    client.socket.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.hear()


def test_a_request_that_comes_twice_is_one(running: Running, client: Client) -> None:
    client.ask("vmlinuz")
    client.hear()
    client.ask("vmlinuz")
    time.sleep(0.1)
    assert running.transfers == 1


def test_a_client_that_gives_up_is_let_go(running: Running, client: Client) -> None:
    client.ask("vmlinuz")
    client.hear()
    client.socket.sendto(b"\0\5\0\0enough\0", client.peer)
    deadline = time.monotonic() + 0.9  # before anything would be sent again
    while running.transfers and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running.transfers == 0


def test_a_stranger_cannot_confirm(running: Running, client: Client) -> None:
    client.ask("vmlinuz")
    client.hear()
    stranger = Client(running.port)
    stranger.peer = client.peer
    stranger.confirm(1)
    client.socket.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.hear()
    stranger.close()


# -- those who mean harm ---------------------------------------------------------------------------


def test_little_is_sent_to_who_never_asked(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender of a request can be forged: with options only they are sent, and that often."""
    monkeypatch.setattr(tftp, "TRY_SECONDS", 0.01)
    victim = Client(running.port, 1.0)
    victim.ask("vmlinuz", blksize=1468, windowsize=MAX_WINDOW)
    assert [victim.hear()[0] for _ in range(TRIES)] == [OPTIONS] * TRIES
    with pytest.raises(TimeoutError):
        victim.hear()
    victim.close()
    assert running.transfers == 0


def test_one_address_has_few_transfers(running: Running) -> None:
    clients = [Client(running.port) for _ in range(MAX_TRANSFERS_OF_ONE + 1)]
    for one in clients:
        one.ask("vmlinuz")
    answers = sorted(one.hear()[0] for one in clients)
    assert answers == [DATA] * MAX_TRANSFERS_OF_ONE + [ERROR]
    assert running.transfers == MAX_TRANSFERS_OF_ONE
    for one in clients:
        one.close()


def test_noise_disturbs_nobody(running: Running, tmp_path: Path) -> None:
    chance = random.Random(7)
    noise = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    reading = threading.Thread(
        target=test_curl_reads_files, args=(running, tmp_path, "vmlinuz", 512)
    )
    reading.start()
    for _ in range(2000):
        packet = chance.randbytes(chance.randrange(700))
        if chance.random() < 0.7:
            packet = struct.pack(">H", chance.randrange(8)) + packet
        noise.sendto(packet, ("127.0.0.1", running.port))
    noise.close()
    reading.join()
    assert (tmp_path / "out").read_bytes() == FILES["vmlinuz"]


def test_noise_within_a_transfer_disturbs_nobody(running: Running, client: Client) -> None:
    client.ask("vmlinuz", blksize=1024)
    client.hear()
    chance = random.Random(8)
    for _ in range(500):
        packet = chance.randbytes(chance.randrange(100))
        if packet[:2] != b"\0\5":
            client.socket.sendto(packet, client.peer)
    other = Client(running.port)
    assert read_all(other, "boot.ipxe") == FILES["boot.ipxe"]
    other.close()


def test_a_busy_port_is_an_error(running: Running) -> None:
    async def start() -> None:
        with pytest.raises(OSError, match=os.strerror(98)):
            await TftpServer(FILES).start("127.0.0.1", running.port)

    asyncio.run(start())
