"""Bring the rest of a pack's contents while nobody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import Contents
from packer.run.disk.asking import Asker
from packer.run.disk.coming import Coming
from packer.run.disk.kept import Kept
from packer.run.disk.seek import Seeker
from packer.run.disk.supplier import Supplier
from packer.unpack.gather import is_worth_a_search
from packer.unpack.plan import Plan, choose

Rows = NDArray[np.int64]
STEP_BYTES = 4 << 20
STEP_ROWS = 128
"""What is brought between two looks whether somebody waits."""


class Completion:
    """Brings what is not at hand: from this host, then from near, then from afar.

    calm: is set while nobody waits for a read.
    """

    def __init__(
        self,
        contents: Contents,
        coming: Coming,
        kept: Kept,
        asker: Asker,
        seeker: Seeker,
        calm: asyncio.Event,
    ) -> None:
        self._contents = contents
        self._coming = coming
        self._kept = kept
        self._asker = asker
        self._seeker = seeker
        self._calm = calm

    async def run(self) -> None:
        """Return when all that can be had is here. May be cancelled."""
        local, near, far = self._seeker.tiers
        await self._ask(local)
        await self._from_local()
        for tier in (near, far):
            if not tier or len(self._kept.lacking()) == 0:
                continue
            await self._ask(tier)
            if tier is far and is_worth_a_search(self._plan(tier)):
                for supplier in local:
                    await self._asker.search(supplier, self._kept.lacking())
                await self._from_local()
            plan = self._plan(tier)
            for supplier, chosen in zip(tier, plan.chosen, strict=True):
                await self._bring(supplier, chosen)
        await self._bring(None, self._kept.lacking())
        await self._seeker.in_store_pool(self._kept.write)

    async def _ask(self, suppliers: Sequence[Supplier]) -> None:
        """Return when suppliers have said what they offer of what is lacking."""
        for supplier in suppliers:
            while job := self._asker.ask(supplier, self._kept.lacking()):
                await asyncio.wait({job})

    async def _from_local(self) -> None:
        for supplier in self._seeker.tiers[0]:
            lacking = self._kept.lacking()
            await self._bring(supplier, lacking[supplier.offered()[lacking]])

    def _plan(self, tier: Sequence[Supplier]) -> Plan:
        rows = self._kept.lacking()
        return choose(rows, self._contents.size, [one.offers_of(rows) for one in tier])

    async def _bring(self, supplier: Supplier | None, rows: Rows) -> None:
        for step in _steps(rows, self._contents.size):
            await self._bring_quietly(supplier, np.intersect1d(step, self._kept.lacking()))

    async def _bring_quietly(self, supplier: Supplier | None, rows: Rows) -> None:
        """Try once to bring contents, from one supplier first, when nobody waits for others."""
        await self._calm.wait()
        blocks = self._contents.block_count
        every = ((row, number) for row in rows.tolist() for number in range(blocks(row)))
        here = self._kept.unwritten
        pieces = [piece for piece in every if piece not in self._coming and piece not in here]
        for piece in pieces:
            self._coming.expect(piece, sought=False)
        try:
            await self._seeker.once(pieces, supplier)
        finally:
            self._coming.give_up(pieces)


def _steps(rows: Rows, size: Rows) -> Iterator[Rows]:
    """Yield rows a few at a time."""
    if len(rows) == 0:
        return
    group = np.cumsum(size[rows]) // STEP_BYTES + np.arange(len(rows)) // STEP_ROWS
    yield from np.split(rows, np.flatnonzero(np.diff(group)) + 1)
