"""Those who attend to a VM, and those who only take its time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from packer.run.supervisor import link_server
from packer.run.supervisor.link import (
    Ask,
    Attach,
    Console,
    Ended,
    Input,
    Request,
    Say,
    Start,
    Stop,
    decode_request,
    decode_told,
    encode,
)
from packer.run.supervisor.link_server import Client, LinkServer
from packer.run.supervisor.scrollback import SCROLLBACK_BYTES, Scrollback, last_words, shorten, tail

CHUNK = b"x" * 4096


async def attach(client: Client, request: Request) -> None:
    client.attached = isinstance(request, Attach)


@pytest.mark.parametrize(
    "request_",
    [
        Attach(),
        Attach(Start(("-fw_cfg", "name=a,string=ö"), "/here", True), replay=False),
        Ask(),
        Input(bytes(range(256))),
        Stop(2.5),
    ],
)
def test_a_request_arrives_as_it_was_sent(request_: Request) -> None:
    assert decode_request(encode(request_)) == request_


@pytest.mark.parametrize(
    "line", [b"", b"{}", b'{"do":"dance"}', b'{"do":"stop","grace_seconds":-1}', b"\xff", b"[" * 9]
)
def test_what_is_no_request_is_none(line: bytes) -> None:
    with pytest.raises(ValueError):
        decode_request(line)


def test_who_does_not_read_loses_words_and_holds_nobody_up(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clients, of whom one sleeps; what is said is more than a socket and its buffer hold."""
    monkeypatch.setattr(link_server, "MAX_WAITING_BYTES", 1 << 18)
    monkeypatch.setattr(link_server, "LAST_WORDS_SECONDS", 0.5)
    chunks = 2000

    async def talk() -> tuple[int, int]:
        server = LinkServer(short_folder / "link", attach)
        await server.start()
        awake, writer = await asyncio.open_unix_connection(short_folder / "link")
        asleep, other = await asyncio.open_unix_connection(short_folder / "link")
        for one in (writer, other):
            one.write(encode(Attach()))
            await one.drain()
        await asyncio.sleep(0.1)
        heard = 0
        for _ in range(chunks):
            server.tell(Console(CHUNK))
            told = decode_told(await awake.readline())
            heard += isinstance(told, Console)
        server.tell(Ended("guest"))
        assert decode_told(await awake.readline()) == Ended("guest")
        got = len(await asyncio.wait_for(_rest(asleep, server), 20))
        for one in (writer, other):
            one.close()
        return heard, got

    heard, got = asyncio.run(talk())
    assert heard == chunks
    assert got < chunks * len(CHUNK) / 2


async def _rest(reader: asyncio.StreamReader, server: LinkServer) -> bytes:
    server.stop_listening()
    ending = asyncio.create_task(server.finish())
    data = await reader.read()
    await ending
    return data


def test_only_so_many_attend(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_server, "MAX_CLIENTS", 1)

    async def come() -> tuple[bytes, bytes]:
        server = LinkServer(short_folder / "link", attach)
        await server.start()
        first, writer = await asyncio.open_unix_connection(short_folder / "link")
        await asyncio.sleep(0.05)
        second, other = await asyncio.open_unix_connection(short_folder / "link")
        refused = await asyncio.wait_for(second.read(), 5)
        server.tell(Say("here"))
        line = await asyncio.wait_for(first.readline(), 5)
        writer.close()
        other.close()
        server.stop_listening()
        await server.finish()
        return refused, line

    refused, line = asyncio.run(come())
    assert refused == b""
    assert decode_told(line) == Say("here")


def test_the_socket_is_nobody_elses(short_folder: Path) -> None:
    async def look() -> int:
        server = LinkServer(short_folder / "link", attach)
        await server.start()
        mode = (short_folder / "link").stat().st_mode
        server.stop_listening()
        await server.finish()
        return mode

    assert asyncio.run(look()) & 0o777 == 0o600
    assert not (short_folder / "link").exists()


# -- what is kept of what a guest says -------------------------------------------------------------


def test_a_scrollback_keeps_the_end() -> None:
    back = Scrollback()
    for number in range(100):
        back.add(bytes([number]) * (SCROLLBACK_BYTES // 10))
    assert len(back.last()) == SCROLLBACK_BYTES
    assert back.last()[-1] == 99


def test_a_log_is_shortened_while_somebody_appends_to_it(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    with path.open("ab", buffering=0) as log:
        log.write(b"a" * 900 + b"b" * 200)
        shorten(path, 2000)
        assert path.stat().st_size == 1100
        shorten(path, 1000)
        log.write(b"next")
    assert path.read_bytes() == b"next"
    assert (tmp_path / "console.old").read_bytes() == b"a" * 50 + b"b" * 200


def test_the_end_of_a_log_is_read_from_where_it_matters(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before\nwhat went\nwrong\n")
    assert tail(path, 100, 7) == b"what went\nwrong\n"
    assert tail(path, 6) == b"wrong\n"
    assert tail(path, 100, 1000) == path.read_bytes()  # it was shortened meanwhile
    assert last_words(path, 7) == "what went wrong"
    assert tail(tmp_path / "none", 10) == b""
