"""A TFTP server for a few files in memory; it only sends. See tftp_packets.py.

Each file is sent from a port of its own, that hears nobody but its client. UDP's senders can be
forged, so whatever nobody confirms is sent a few times only, and how many transfers there are, in
all and to one address, and how long each may take is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

from packer.run.netboot.tftp_packets import (
    BLOCK_NUMBERS,
    Code,
    Opcode,
    Refusal,
    Terms,
    acknowledged,
    agree,
    data_packet,
    error_packet,
    opcode_of,
    options_packet,
    parse_request,
)

MAX_TRANSFERS = 64
MAX_TRANSFERS_OF_ONE = 8
"""To one address."""

TRIES = 5
"""How often something is sent that nobody confirms."""

TRY_SECONDS = 1.0
"""Until it is sent again; twice as long each time."""

TRANSFER_SECONDS = 900.0
"""For a whole file."""

Address = tuple[Any, ...]
"""(host, port, …), as asyncio has it."""


class TftpServer(asyncio.DatagramProtocol):
    """Sends `files`, by name without leading slashes. sent_bytes: of them so far."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files
        self._transport: asyncio.DatagramTransport | None = None
        self._address = ""
        self._transfers: dict[Address, asyncio.Task[None]] = {}
        self.sent_bytes = 0

    async def start(self, address: str, port: int) -> int:
        """Listen; return the port (another than asked for if that was 0). Raises OSError."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(address, port))
        self._transport, self._address = transport, address
        return int(transport.get_extra_info("sockname")[1])

    async def stop(self) -> None:
        """Listen no more and end what is being sent."""
        if self._transport is not None:
            self._transport.close()
        tasks = list(self._transfers.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        """Take a request; see asyncio.DatagramProtocol."""
        if opcode_of(data) not in (Opcode.READ, Opcode.WRITE) or addr in self._transfers:
            return  # nothing to answer, or asked again: it is being sent
        try:
            request = parse_request(data)
            content = self._files.get(request.name.lstrip("/"))
            if content is None:
                raise Refusal(Code.NOT_FOUND, "no such file")
            if self._crowded(addr[0]):
                raise Refusal(Code.UNDEFINED, "too many transfers, try again later")
        except Refusal as refusal:
            if self._transport is not None:
                self._transport.sendto(error_packet(refusal), addr)
            return
        terms = agree(request.options, len(content))
        task = asyncio.get_running_loop().create_task(self._send(content, terms, addr))
        self._transfers[addr] = task
        task.add_done_callback(lambda _: self._transfers.pop(addr))

    def error_received(self, exc: Exception) -> None:
        """Pass over what the network says of an answer that nobody took."""

    def _crowded(self, host: str) -> bool:
        of_one = sum(client[0] == host for client in self._transfers)
        return len(self._transfers) >= MAX_TRANSFERS or of_one >= MAX_TRANSFERS_OF_ONE

    async def _send(self, content: bytes, terms: Terms, client: Address) -> None:
        """Send a file to a client from a new port."""
        with suppress(OSError, TimeoutError):  # the client is gone
            async with asyncio.timeout(TRANSFER_SECONDS):
                _, transfer = await asyncio.get_running_loop().create_datagram_endpoint(
                    lambda: _Transfer(content, terms),
                    local_addr=(self._address, 0),
                    remote_addr=client,
                )
                try:
                    await transfer.run()
                finally:
                    self.sent_bytes += transfer.confirmed_bytes
                    transfer.close()


class _Transfer(asyncio.DatagramProtocol):
    """One file on its way. Blocks are counted from 1; the last one is shorter than the others."""

    def __init__(self, content: bytes, terms: Terms) -> None:
        self._content = memoryview(content)
        self._terms = terms
        self._last = len(content) // terms.block_bytes + 1
        self._confirmed = 0
        self._begun = terms.accepted is None  # else the options are to be confirmed first
        self._heard: asyncio.Queue[bytes] = asyncio.Queue(terms.window)
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to send; see asyncio.DatagramProtocol."""
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Address) -> None:  # noqa: ARG002
        """Take what the client says; if it says too much, a part of it."""
        if not self._heard.full():
            self._heard.put_nowait(data)

    def error_received(self, exc: Exception) -> None:  # noqa: ARG002
        """End: nobody listens at the client's port any more."""
        self._ended = True

    @property
    def confirmed_bytes(self) -> int:
        """Return how many bytes of the file the client has confirmed."""
        return min(self._confirmed * self._terms.block_bytes, len(self._content))

    async def run(self) -> None:
        """Send until all is confirmed, or the client gives up or is silent for too long."""
        tries = 0
        while self._confirmed < self._last and tries < TRIES and not self._ended:
            self._send_window()
            wait = self._terms.timeout_seconds or TRY_SECONDS * (1 << tries)
            tries = 0 if await self._hear(wait) else tries + 1

    def close(self) -> None:
        """Close the port."""
        self._transport.close()

    def _send_window(self) -> None:
        """Send what is not confirmed, as much of it as may be in flight."""
        if not self._begun:
            self._transport.sendto(options_packet(self._terms.accepted or {}))
            return
        size = self._terms.block_bytes
        end = min(self._confirmed + self._terms.window, self._last)
        for block in range(self._confirmed + 1, end + 1):
            data = self._content[(block - 1) * size : block * size]
            self._transport.sendto(data_packet(block, data))

    async def _hear(self, seconds: float) -> bool:
        """Return whether the client has confirmed more than before, within that time.

        What is confirmed twice sends nothing again (RFC 1123, 4.2.3.1), but time does.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._ended:
                    packet = await self._heard.get()
                    if opcode_of(packet) == Opcode.ERROR:
                        self._ended = True
                    elif (number := acknowledged(packet)) is not None and self._advance(number):
                        return True
        return False

    def _advance(self, number: int) -> bool:
        """Take a confirmation; return whether it is news."""
        if not self._begun:
            self._begun = number == 0
            return self._begun
        more = (number - self._confirmed) % BLOCK_NUMBERS
        if not 0 < more <= min(self._terms.window, self._last - self._confirmed):
            return False
        self._confirmed += more
        return True
