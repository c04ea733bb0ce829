"""The order in which everybody is asked for pieces, and what is done when nobody has them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packer.run.disk.asking import Asker, report
from packer.run.disk.blocks import Piece
from packer.run.disk.coming import Coming
from packer.run.disk.kept import Kept
from packer.run.disk.supplier import Progress, Supplier, rows_of

_log = logging.getLogger(__name__)
Rows = NDArray[np.int64]
Tiers = tuple[list[Supplier], list[Supplier], list[Supplier]]
"""Suppliers on this host, on the local network, far away."""


class Seeker:
    """Brings pieces that are expected. carrier: the pack's own bundles if they are on this host.

    retry_seconds: between two rounds for what nobody has. store_pool: where the store is read.
    """

    def __init__(
        self,
        coming: Coming,
        kept: Kept,
        asker: Asker,
        carrier: Supplier | None,
        tiers: Tiers,
        store_pool: ThreadPoolExecutor,
        retry_seconds: float,
    ) -> None:
        self.carrier = carrier
        self.tiers = tiers
        self._coming = coming
        self._kept = kept
        self._asker = asker
        self._store_pool = store_pool
        self._retry_seconds = retry_seconds
        self._retry_now = asyncio.Event()
        self._retrying: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def suppliers(self) -> list[Supplier]:
        """Return all in the order of asking."""
        local, near, far = self.tiers
        return [*([self.carrier] if self.carrier else []), *local, *near, *far]

    def progress(self) -> list[Progress]:
        """Return how far each supplier is; see `goes_on`."""
        return [one.progress() for one in self.suppliers]

    def goes_on(self, pieces: Sequence[Piece], before: Sequence[Progress]) -> bool:
        """Return whether anybody has gone on with pieces since, or is still looking for them."""
        return any(
            one.goes_on(pieces, then) for one, then in zip(self.suppliers, before, strict=True)
        )

    def begin(self, pieces: list[Piece]) -> None:
        """Begin to bring pieces; what nobody has is looked for again and again."""
        self.spawn(self._seek(pieces))

    def retry(self) -> None:
        """Look now for what is missing, everywhere."""
        for supplier in self.suppliers:
            supplier.searched = False
        self._retry_now.set()

    async def once(self, pieces: list[Piece], first: Supplier | None = None) -> None:
        """Ask everybody once for pieces, in order, until all are here. first: before others."""
        if self.carrier is not None:
            carried = [one for one in self._left(pieces) if self.carrier.offers(one[0])]
            await self._asker.fetch(self.carrier, carried)
            self._kept.at_hand[rows_of(self._left(carried))] = False  # it is damaged
        offered = {piece for piece in self._left(pieces) if self._is_beside_the_store(piece)}
        await self._from_store([piece for piece in pieces if piece not in offered])
        if first is not None:
            await self._asker.fetch(first, self._left(pieces))
        local, near, far = self.tiers
        for supplier in sorted(local, key=lambda one: one.stalled):
            if left := self._left(pieces):
                await self._asker.until_asked([supplier], rows_of(left))
                await self._asker.fetch(supplier, left)
        await self._from_store(list(offered))
        for tier in (near, far):
            await self._from_cheapest(tier, pieces)
        await self._from_depth(pieces)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something until `close`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(report)

    async def in_store_pool(self, work: Callable[[], None]) -> None:
        """Do something with the store in a thread."""
        await asyncio.get_running_loop().run_in_executor(self._store_pool, work)

    async def close(self) -> None:
        """Stop what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for supplier in self.suppliers:
            supplier.stop()

    def _left(self, pieces: Sequence[Piece]) -> list[Piece]:
        return self._coming.pending(pieces)

    async def _try(self, pieces: list[Piece]) -> None:
        """Ask everybody once."""
        try:
            await self.once(pieces)
        except Exception:  # noqa: BLE001 - a bug must not end the search for good
            _log.exception("unexpected")

    async def _seek(self, pieces: list[Piece]) -> None:
        await self._try(pieces)
        if left := self._left(pieces):
            self._coming.missing.update(dict.fromkeys(left))
            if self._retrying is None or self._retrying.done():
                self._retrying = asyncio.get_running_loop().create_task(self._retry())
                self._tasks.add(self._retrying)
                self._retrying.add_done_callback(report)

    async def _retry(self) -> None:
        """Look for what is missing until nothing is."""
        while pieces := self._left(list(self._coming.missing)):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._retry_now.wait(), self._retry_seconds)
            self._retry_now.clear()
            await self._asker.renew([one for tier in self.tiers for one in tier], rows_of(pieces))
            await self._try(pieces)
        self._coming.missing.clear()

    def _is_beside_the_store(self, piece: Piece) -> bool:
        """Return whether somebody on this host has offered what the store did not have."""
        row, _ = piece
        ready = any(one.offers(row) and not one.stalled for one in self.tiers[0])
        return ready and not self._kept.at_hand[row]

    async def _from_store(self, pieces: list[Piece]) -> None:
        if left := self._left(pieces):
            await self.in_store_pool(lambda: self._kept.look(left))

    async def _from_cheapest(self, tier: Sequence[Supplier], pieces: list[Piece]) -> None:
        """Fetch each piece from who sends the fewest bytes for it, then from the next one."""
        if not tier or not (left := self._left(pieces)):
            return
        await self._asker.until_asked(tier, rows_of(left))
        tried: set[tuple[Piece, int]] = set()
        while left := self._left(pieces):
            chosen: dict[int, list[Piece]] = {}
            for piece in left:
                who = [
                    (one.stalled, one.price(piece), number)
                    for number, one in enumerate(tier)
                    if one.offers(piece[0]) and (piece, number) not in tried
                ]
                if who:
                    number = min(who)[2]
                    chosen.setdefault(number, []).append(piece)
                    tried.add((piece, number))
            if not chosen:
                return
            await asyncio.gather(
                *(self._asker.fetch(tier[number], chosen[number]) for number in chosen)
            )

    async def _from_depth(self, pieces: list[Piece]) -> None:
        """Have everybody look at all that there is, once; who takes long is asked next time."""
        for supplier in [one for tier in self.tiers for one in tier]:
            if (left := self._left(pieces)) and not supplier.searched:
                lacking = np.flatnonzero(~self._kept.at_hand)
                await self._asker.search_a_while(
                    supplier, lacking if supplier.local else rows_of(left)
                )
                await self._asker.fetch(supplier, left)
