"""What a client may ask, what it gets, and what becomes of one that does not behave."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from packer.errors import Error, UsageError
from packer.run.disk.export import Part
from packer.run.nbd import Limits
from packer.transport import nbd_wire as wire
from tests.run.nbd.exports import LateExport, OpenFileExport, PatternExport, pattern
from tests.run.serving import Client, Serving, content, serving, serving_unix, start_tcp, wait_until

MIB = 1 << 20
SIZE = 96 * MIB + 1234
DISK = PatternExport(SIZE, 100_000)
QUICK = Limits(handshake_seconds=1.0, reply_seconds=1.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture
def late() -> LateExport:
    return LateExport(DISK, 0.0)


@pytest.fixture
def server(path: Path) -> Iterator[Serving]:
    with serving_unix(DISK, path) as (one, _):
        yield one


def check_read(client: Client, offset: int, length: int) -> None:
    client.request(wire.CMD_READ, 1, offset, length)
    assert client.data(offset, length) == DISK.expected(offset, length)


# What is answered.


@pytest.mark.usefixtures("server")
def test_reads_of_every_kind_of_range_are_right(path: Path) -> None:
    with Client(path).go() as client:
        for offset, length in [(0, 1), (99_999, 2), (SIZE - 1, 1), (12_345, 300_001)]:
            check_read(client, offset, length)
        check_read(client, 5, 32 * MIB)


@pytest.mark.usefixtures("server")
def test_an_unfragmented_reply_is_one_chunk(path: Path) -> None:
    with Client(path).go() as client:
        client.request(wire.CMD_READ, 1, 7, 32 * MIB, wire.CMD_FLAG_DF)
        _, chunks = client.reply()
        assert [kind for kind, _ in chunks] == [wire.REPLY_TYPE_OFFSET_DATA]
        assert content(chunks, 7, 32 * MIB) == DISK.expected(7, 32 * MIB)


@pytest.mark.usefixtures("server")
def test_an_old_client_gets_simple_replies(path: Path) -> None:
    with Client(path) as client:
        client.greet(flags=1)
        client.send(wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_EXPORT_NAME, 0))
        size, _ = client.unpack(struct.Struct(">QH"))
        assert (size, client.receive(124)) == (SIZE, bytes(124))
        for offset, length in [(0, 1), (3, 32 * MIB)]:
            client.request(wire.CMD_READ, 9, offset, length)
            assert client.simple() == (9, 0)
            assert client.receive(length) == DISK.expected(offset, length)
        client.request(wire.CMD_READ, 10, SIZE, 1)
        assert client.simple() == (10, wire.EINVAL)
        client.request(wire.CMD_CACHE, 11, 0, 1)
        assert client.simple() == (11, 0)


@pytest.mark.usefixtures("server")
def test_the_status_tells_zeros_of_what_was_asked(path: Path) -> None:
    with Client(path).go() as client:
        client.request(wire.CMD_BLOCK_STATUS, 1, 50_000, 200_000)
        _, [(_, payload)] = client.reply()
        assert payload == struct.pack(">7I", 1, 50_000, 0, 100_000, 3, 50_000, 0)
        client.request(wire.CMD_BLOCK_STATUS, 1, 150_000, SIZE - 150_000, wire.CMD_FLAG_REQ_ONE)
        _, [(_, payload)] = client.reply()
        assert payload == struct.pack(">III", 1, 50_000, 3)


def test_the_status_of_a_disk_in_crumbs_comes_in_bounded_answers(path: Path) -> None:
    with serving_unix(PatternExport(1 << 40, 512), path), Client(path).go() as client:
        client.request(wire.CMD_BLOCK_STATUS, 1, 0, 0xFFFFFFFF)
        _, [(_, payload)] = client.reply()
        assert len(payload) == 4 + 8 * 8192


@pytest.mark.parametrize(
    ("command", "offset", "length", "flags", "number"),
    [
        (wire.CMD_WRITE, 0, 4096, 0, wire.EPERM),
        (wire.CMD_WRITE, 0, 32 * MIB, 1, wire.EPERM),
        (wire.CMD_TRIM, 0, 4096, 0, wire.EPERM),
        (wire.CMD_WRITE_ZEROES, 0, 0xFFFFFFFF, 2, wire.EPERM),
        (wire.CMD_READ, SIZE - 1, 2, 0, wire.EINVAL),
        (wire.CMD_READ, SIZE, 1, 0, wire.EINVAL),
        (wire.CMD_READ, 0xFFFFFFFFFFFFFFFF, 0xFFFFFFFF, 0, wire.EINVAL),
        (wire.CMD_READ, 0, 0, 0, wire.EINVAL),
        (wire.CMD_READ, 0, 32 * MIB + 1, 0, wire.EINVAL),
        (wire.CMD_READ, 0, 1, wire.CMD_FLAG_REQ_ONE, wire.EINVAL),
        (wire.CMD_READ, 0, 1, 0xFFFF, wire.EINVAL),
        (wire.CMD_BLOCK_STATUS, 0, SIZE + 1, 0, wire.EINVAL),
        (wire.CMD_BLOCK_STATUS, 0, 0, 0, wire.EINVAL),
        (wire.CMD_CACHE, SIZE, 1, 0, wire.EINVAL),
        (3, 0, 0, 0, wire.EINVAL),
        (0xFFFF, 0, 0, 0, wire.EINVAL),
    ],
)
@pytest.mark.usefixtures("server")
def test_what_cannot_be_done_is_an_error_of_that_request_alone(
    path: Path, command: int, offset: int, length: int, flags: int, number: int
) -> None:
    with Client(path).go() as client:
        client.request(command, 77, offset, length, flags)
        if command == wire.CMD_WRITE:
            client.send(bytes(length))
        cookie, found, message = client.error()
        assert (cookie, found) == (77, number)
        assert message
        check_read(client, 10, 20)


@pytest.mark.usefixtures("server")
def test_what_was_not_agreed_is_an_error(path: Path) -> None:
    with Client(path).go(contexts=False) as client:
        client.request(wire.CMD_BLOCK_STATUS, 5, 0, 4096)
        assert client.error()[:2] == (5, wire.EINVAL)
    with Client(path).go(structured=False) as client:
        client.request(wire.CMD_READ, 5, 0, 4096, wire.CMD_FLAG_DF)
        assert client.simple() == (5, wire.EINVAL)


def test_bytes_that_nobody_has_are_an_error_until_somebody_has_them(
    path: Path, late: LateExport
) -> None:
    late.gone.add(3)
    with (
        serving_unix(late, path),
        Client(path).go() as client,
        Client(path).go(structured=False) as old,
    ):
        client.request(wire.CMD_READ, 8, 3 * MIB, 4096)
        assert client.error() == (8, wire.EIO, f"nobody has the bytes at {3 * MIB}")
        client.request(wire.CMD_CACHE, 9, 3 * MIB, 4096)
        assert client.error()[:2] == (9, wire.EIO)
        old.request(wire.CMD_READ, 8, 3 * MIB, 4096)
        assert old.simple() == (8, wire.EIO)
        check_read(client, 2 * MIB, 4096)
        late.gone.clear()
        check_read(client, 3 * MIB, 4096)
        client.request(wire.CMD_CACHE, 9, 3 * MIB, 4096)
        assert client.reply() == (9, [(wire.REPLY_TYPE_NONE, b"")])


def test_replies_come_in_the_order_in_which_bytes_are_at_hand(path: Path, late: LateExport) -> None:
    late.held.add(0)
    with serving_unix(late, path), Client(path).go() as client:
        client.request(wire.CMD_READ, 100, 0, 4096)
        client.request(wire.CMD_READ, 200, MIB, 4096)
        cookie, chunks = client.reply()
        assert cookie == 200
        assert content(chunks, MIB, 4096) == DISK.expected(MIB, 4096)
        late.held.clear()
        assert client.reply()[0] == 100


def test_goodbye_waits_for_the_replies_that_are_due(path: Path, late: LateExport) -> None:
    late.held.add(0)
    with serving_unix(late, path), Client(path).go() as client:
        client.request(wire.CMD_READ, 1, 0, 4096)
        client.request(wire.CMD_DISC, 2)
        time.sleep(0.1)
        late.held.clear()
        assert client.data(0, 4096) == DISK.expected(0, 4096)
        assert client.is_cut()


# What is bounded.


@pytest.mark.parametrize(("length", "most"), [(512, 64), (4 * MIB, 8), (32 * MIB, 1)])
def test_so_many_reads_and_no_more_are_under_way(
    path: Path, late: LateExport, length: int, most: int
) -> None:
    late.held.add(0)
    with serving_unix(late, path), Client(path).go() as client:
        for cookie in range(200):
            client.request(wire.CMD_READ, cookie, cookie, length)
        wait_until(lambda: late.waiting == most)
        time.sleep(0.2)
        assert late.waiting == most
        late.held.clear()
        count = 200 if length < MIB else 10
        answered = set()
        for _ in range(count):
            cookie, chunks = client.reply()
            answered.add(cookie)
            assert content(chunks, cookie, length)[:512] == DISK.expected(cookie, 512)
        assert len(answered) == count
        assert late.waiting <= most


def test_more_requests_than_the_buffer_holds_are_all_answered(path: Path) -> None:
    count = 8000  # three times the buffer; nothing is read before all are sent
    with serving_unix(DISK, path), Client(path).go() as client:
        request = b"".join(
            wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.CMD_READ, cookie, cookie, 512)
            for cookie in range(count)
        )
        sender = threading.Thread(target=client.send, args=(request,))
        sender.start()
        time.sleep(0.3)
        for cookie in range(count):
            found, chunks = client.reply()
            assert found == cookie
            assert content(chunks, cookie, 512) == DISK.expected(cookie, 512)
        sender.join()


def test_who_does_not_take_replies_is_cut_off_and_others_do_not_notice(path: Path) -> None:
    with serving_unix(DISK, path, QUICK) as (one, _), Client(path).go() as good:
        with Client(path).go() as slow:
            for cookie in range(16):
                slow.request(wire.CMD_READ, cookie, 0, 32 * MIB)
            begin = time.monotonic()
            while one.server.connections == 2:
                check_read(good, 4321, 100_000)
                assert time.monotonic() - begin < 10
            assert time.monotonic() - begin > 0.8
            assert slow.is_cut()
        check_read(good, 0, MIB)


def test_a_reader_that_drips_is_cut_off_too(path: Path) -> None:
    with serving_unix(DISK, path, QUICK) as (one, _), Client(path).go() as slow:
        slow.request(wire.CMD_READ, 1, 0, 32 * MIB)
        begin = time.monotonic()
        while one.server.connections:
            slow.socket.recv(100)
            time.sleep(0.02)
            assert time.monotonic() - begin < 10


def test_all_connections_together_hold_so_much_and_no_more(path: Path, late: LateExport) -> None:
    late.held.add(0)
    limits = Limits(total_bytes=16 * MIB)
    with serving_unix(late, path, limits) as (_, _), ExitStack() as stack:
        clients = [stack.enter_context(Client(path).go()) for _ in range(6)]
        for cookie in range(3):
            for client in clients:
                client.request(wire.CMD_READ, cookie, cookie, 4 * MIB)
        wait_until(lambda: late.waiting == 4)
        time.sleep(0.2)
        assert late.waiting == 4
        late.held.clear()
        for client in clients:  # everybody has a turn
            answered = {client.reply()[0] for _ in range(3)}
            assert answered == {0, 1, 2}


def test_who_does_not_take_replies_goes_soon_when_others_need_the_memory(path: Path) -> None:
    limits = Limits(total_bytes=8 * MIB, reply_seconds=60.0, crowded_reply_seconds=1.0)
    with serving_unix(DISK, path, limits) as (one, _), ExitStack() as stack:
        slow = [stack.enter_context(Client(path).go()) for _ in range(3)]
        slow[0].request(wire.CMD_READ, 1, 0, 32 * MIB)
        time.sleep(2.5)
        assert one.server.connections == 3  # nobody needs it yet
        for client in slow[1:]:
            client.request(wire.CMD_READ, 1, 0, 32 * MIB)
        with Client(path).go() as good:
            begin = time.monotonic()
            check_read(good, 4321, 100_000)
            assert time.monotonic() - begin < 10
            wait_until(lambda: one.server.connections == 1)


@pytest.mark.parametrize("said", [b"", bytes(3), bytes([0, 0, 0, 3]) + b"IHAVE"])
def test_who_does_not_come_to_the_point_is_cut_off(path: Path, said: bytes) -> None:
    with serving_unix(DISK, path, QUICK) as (one, _), Client(path) as client:
        begin = time.monotonic()
        client.send(said)
        assert client.is_cut()
        assert 0.8 < time.monotonic() - begin < 10
        wait_until(lambda: one.server.connections == 0)


def list_for(client: Client, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        client.option(wire.OPT_LIST)


def test_options_without_end_do_not_lengthen_the_handshake(path: Path) -> None:
    with serving_unix(DISK, path, QUICK), Client(path) as client:
        client.greet()
        begin = time.monotonic()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            list_for(client, 10)
        assert time.monotonic() - begin < 10


def test_who_has_chosen_an_export_may_be_quiet(path: Path) -> None:
    with serving_unix(DISK, path, QUICK) as (one, _), Client(path).go() as client:
        time.sleep(2.5)
        assert one.server.connections == 1
        check_read(client, 0, 4096)


def test_reads_end_with_their_client(path: Path, late: LateExport) -> None:
    late.held.add(0)
    with serving_unix(late, path) as (one, _):
        with Client(path).go() as client:
            client.request(wire.CMD_READ, 1, 0, 4096)
            wait_until(lambda: late.waiting == 1)
        wait_until(lambda: late.waiting == 0 and one.server.connections == 0)


def test_a_crowd_of_the_undecided_keeps_nobody_out(path: Path) -> None:
    limits = Limits(connections=4)
    with serving_unix(DISK, path, limits) as (one, _):
        undecided = [Client(path) for _ in range(20)]
        wait_until(lambda: one.server.connections == 4)
        decided = [Client(path).go() for _ in range(4)]
        for client in decided:
            check_read(client, 5, 5)
        with Client(path) as more:
            assert more.is_cut()
        for client in (*decided, *undecided):
            client.socket.close()
        wait_until(lambda: one.server.connections == 0)


# What is not a client at all.


def session(chance: random.Random) -> bytes:
    """What somebody sends who means ill, or something else than NBD."""
    return chance.choice(sessions(chance))


def sessions(chance: random.Random) -> list[bytes]:
    flags = wire.U32.pack(3)
    go = wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_GO, 6) + bytes(6)
    noise = chance.randbytes(chance.randrange(200))

    def request(**changed: int) -> bytes:
        fields = {
            "magic": wire.REQUEST_MAGIC,
            "flags": 0,
            "command": 0,
            "cookie": 1,
            "offset": 0,
            "length": 512,
        } | changed
        return wire.REQUEST.pack(*fields.values())

    return [
        noise,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        wire.U32.pack(chance.getrandbits(32)) + noise,
        flags + noise,
        flags + wire.OPTION.pack(chance.getrandbits(64), wire.OPT_GO, 6) + bytes(6),
        flags + wire.OPTION.pack(wire.OPTION_MAGIC, chance.randrange(12), 0xFFFFFFFF),
        (flags + wire.OPTION.pack(wire.OPTION_MAGIC, chance.randrange(12), len(noise)) + noise),
        flags + go + noise,
        flags + go + request(magic=chance.getrandbits(32)) + noise,
        flags + go + request(command=wire.CMD_WRITE, length=0xFFFFFFFF) + noise,
        flags + go + request(command=wire.CMD_WRITE, length=1000) + noise,
        flags + go + request(length=0xFFFFFFFF, offset=chance.getrandbits(64)),
        flags + go + request(length=32 * MIB) * 3,
        flags + go + request(command=chance.randrange(1 << 16)) + noise,
        (flags + go + request())[: chance.randrange(50)],
    ]


def test_two_thousand_malformed_sessions_hurt_nobody(path: Path) -> None:
    chance = random.Random(5)
    limits = Limits(handshake_seconds=2.0, reply_seconds=2.0)
    with serving_unix(DISK, path, limits) as (one, _), Client(path).go() as good:
        for number in range(2000):
            with Client(path) as bad:
                try:
                    bad.send(session(chance))
                    if number % 3 == 0:
                        bad.socket.shutdown(socket.SHUT_WR)
                        bad.is_cut()
                    elif number % 3 == 1:
                        bad.socket.settimeout(0.001)
                        bad.socket.recv(100)
                except (OSError, TimeoutError):
                    pass  # cut off already
            if number % 20 == 0:
                offset, length = chance.randrange(SIZE - MIB), chance.randrange(1, MIB)
                check_read(good, offset, length)
        wait_until(lambda: one.server.connections == 1)
        check_read(good, 0, 4096)


class BrokenExport(PatternExport):
    """Has bugs: one for each of the first three MiB."""

    def read_now(self, offset: int, length: int) -> list[Part] | None:
        if offset < MIB:
            raise ZeroDivisionError
        if offset < 2 * MIB:
            return [bytes(length - 1)]
        if offset < 3 * MIB:
            return None
        return super().read_now(offset, length)

    async def read(self, offset: int, length: int) -> list[Part]:
        raise ZeroDivisionError


@pytest.mark.parametrize("offset", [0, MIB, 2 * MIB])
def test_a_bug_ends_the_connection_that_met_it(path: Path, offset: int) -> None:
    export = BrokenExport(SIZE, 100_000)
    with serving_unix(export, path) as (one, _), Client(path).go() as good:
        with Client(path).go() as client:
            client.request(wire.CMD_READ, 1, offset, 4096)
            assert client.is_cut()
        check_read(good, 5 * MIB, 4096)
        assert one.faults
        one.faults.clear()


# Where it listens.


@pytest.mark.parametrize("length", [100_000, 20 * MIB])
def test_a_file_that_ends_too_early_ends_the_connection(
    path: Path, tmp_path: Path, length: int
) -> None:
    """Its length was promised; another client, and the next one, are served."""
    file = tmp_path / "file"
    file.write_bytes(pattern(0, 32 * MIB))

    def read(client: Client, offset: int, length: int) -> bytes:
        client.request(wire.CMD_READ, 1, offset, length)
        return client.data(offset, length)

    with OpenFileExport(file) as export, serving_unix(export, path):
        with Client(path).go() as good, Client(path).go() as one:
            assert read(one, 5, length) == pattern(5, length)
            os.truncate(file, MIB)
            with pytest.raises(ConnectionResetError):
                read(one, MIB - 50_000, length)
            assert read(good, 0, MIB) == pattern(0, MIB)
        with Client(path).go() as another:
            assert read(another, 0, MIB) == pattern(0, MIB)


def test_closing_hangs_up_without_an_error(path: Path, late: LateExport) -> None:
    late.held.add(0)
    with serving_unix(late, path) as (one, _), Client(path).go() as client:
        client.request(wire.CMD_READ, 1, 0, 4096)
        wait_until(lambda: late.waiting == 1)
        one.run(one.server.close())
        assert client.socket.recv(1) == b""
        assert one.server.connections == 0
        assert not path.exists()


def test_plain_tcp_is_for_this_host_alone() -> None:
    with serving({"": DISK}) as one:
        for host in ("0.0.0.0", "::", ""):
            with pytest.raises((UsageError, Error)):
                start_tcp(one, host=host)
        assert start_tcp(one, host="localhost") > 0
        assert start_tcp(one, host="0.0.0.0", allow_plain=True) > 0


def test_a_port_in_use_is_a_clear_error() -> None:
    with serving({"": DISK}) as one, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Error, match=f"cannot listen at 127.0.0.1, port {port}"):
            one.run(one.server.start_tcp("127.0.0.1", port))
