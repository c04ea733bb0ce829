"""Pieces of contents that somebody waits for, and how they arrive from other threads."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from contextlib import suppress

from packer.run.disk.blocks import Piece
from packer.run.disk.kept import Block


class Coming:
    """The pieces on their way. Used from one event loop, but for `deliver` and `in`.

    sought: those that are looked for until they are here; for the others one try is made.
    missing: those that nobody has had so far.
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.sought: set[Piece] = set()
        self.missing: dict[Piece, None] = {}
        self._futures: dict[Piece, asyncio.Future[Block]] = {}
        self._inbox: deque[tuple[Piece, Block]] = deque()
        self._woken = False

    def __contains__(self, piece: Piece) -> bool:
        return piece in self._futures

    def expect(self, piece: Piece, *, sought: bool) -> asyncio.Future[Block]:
        """Return what tells where a piece can be read when it is here."""
        if piece not in self._futures:
            assert self.loop is not None  # `start` came before
            self._futures[piece] = self.loop.create_future()
        if sought:
            self.sought.add(piece)
        return self._futures[piece]

    def pending(self, pieces: Iterable[Piece]) -> list[Piece]:
        """Return which pieces are not here yet."""
        return [piece for piece in pieces if piece in self._futures]

    def give_up(self, pieces: Iterable[Piece]) -> None:
        """Expect pieces no longer that nobody has asked for."""
        for piece in pieces:
            if piece not in self.sought and piece in self._futures:
                self._futures.pop(piece).cancel()

    def deliver(self, piece: Piece, block: Block) -> None:
        """Note from any thread that a piece has arrived; many at once wake the loop once."""
        self._inbox.append((piece, block))
        if not self._woken and self.loop is not None:
            self._woken = True
            with suppress(RuntimeError):  # the loop has ended
                self.loop.call_soon_threadsafe(self._arrive)

    def close(self) -> None:
        """Let everybody go who waits."""
        for future in self._futures.values():
            future.cancel()
        self._futures.clear()

    def _arrive(self) -> None:
        self._woken = False
        while self._inbox:
            piece, block = self._inbox.popleft()
            future = self._futures.pop(piece, None)
            self.sought.discard(piece)
            self.missing.pop(piece, None)
            if future is not None and not future.done():
                future.set_result(block)
