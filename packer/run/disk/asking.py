"""Ask suppliers what they have, and for pieces: what travels already is not asked for again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import numpy as np
from numpy.typing import NDArray

from packer.run.disk.blocks import Piece
from packer.run.disk.coming import Coming
from packer.run.disk.kept import Kept
from packer.run.disk.supplier import OF_GROUP, Supplier

Rows = NDArray[np.int64]

GRACE_SECONDS = 0.3
"""How long others have to say what they offer once one can supply what is wanted."""

_log = logging.getLogger(__name__)


class Asker:
    """Uses suppliers from the event loop; their work is done in threads.

    stall_seconds: after so long without a piece a supplier is not waited for.
    """

    def __init__(self, coming: Coming, kept: Kept, stall_seconds: float) -> None:
        self._coming = coming
        self._kept = kept
        self._stall_seconds = stall_seconds

    def ask(self, supplier: Supplier, rows: Rows) -> asyncio.Future[None] | None:
        """Return the question that is under way or was begun now; None if none is open.

        Who is asked for the first time is asked about everything that is not at hand.
        """
        if supplier.asked[rows].all():
            return None
        if _is_busy(supplier):
            return supplier.asking
        if not supplier.asked.any():
            rows = np.union1d(rows, np.flatnonzero(~self._kept.at_hand))
        rows = rows[~supplier.asked[rows]]
        supplier.asking = run(supplier, lambda: supplier.look(rows, deep=False))
        return supplier.asking

    async def until_asked(self, suppliers: Sequence[Supplier], rows: Rows) -> None:
        """Ask for offers; return when all have answered, or enough have and the others are slow."""
        jobs = self._questions(suppliers, rows)
        deadline = asyncio.get_running_loop().time() + self._stall_seconds
        while jobs:
            offered = all(any(one.offers(row) for one in suppliers) for row in rows.tolist())
            left = GRACE_SECONDS if offered else deadline - asyncio.get_running_loop().time()
            done, jobs = await asyncio.wait(
                jobs, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                return
            jobs |= self._questions(suppliers, rows)

    async def search(self, supplier: Supplier, rows: Rows) -> None:
        """Have a supplier look at all that there is, once; return when it has."""
        while _is_busy(supplier) or not supplier.searched:
            self._begin_search(supplier, rows)
            assert supplier.asking is not None
            await asyncio.wait({supplier.asking})

    async def search_a_while(self, supplier: Supplier, rows: Rows) -> None:
        """The same, but return before if it is slow: it is not alone, and is asked again later."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.search(supplier, rows), self._stall_seconds)

    def _begin_search(self, supplier: Supplier, rows: Rows) -> None:
        if not _is_busy(supplier):
            supplier.searched = True
            supplier.asking = run(supplier, lambda: supplier.look(rows, deep=True))

    async def renew(self, suppliers: Sequence[Supplier], rows: Rows) -> None:
        """Have those asked again that are not at work; who is slow to forget is not waited for."""
        idle = [one for one in suppliers if not one.flying and not _is_busy(one)]
        for supplier in idle:
            supplier.asking = run(supplier, partial(supplier.renew, rows))
        if jobs := [one.asking for one in idle if one.asking is not None]:
            await asyncio.wait(jobs, timeout=self._stall_seconds)

    async def fetch(self, supplier: Supplier, pieces: Sequence[Piece]) -> None:
        """Fetch the pieces that a supplier offers; return when they came, will not, or it stalls.

        Twice: what travels already is waited for, and may not bring all that it should.
        """
        pieces = [piece for piece in pieces if supplier.offers(piece[0])]
        for _ in range(2):
            left = self._coming.pending(pieces)
            jobs = {job for one in left if (job := supplier.flying.get(supplier.unit(one)))}
            fresh = [one for one in left if supplier.unit(one) not in supplier.flying]
            if fresh:
                jobs.add(self._fly(supplier, fresh))
            if not await self._until_landed(supplier, jobs, pieces) or len(fresh) == len(left):
                return

    async def _until_landed(
        self, supplier: Supplier, jobs: set[asyncio.Future[None]], pieces: Sequence[Piece]
    ) -> bool:
        """Return whether the supplier may be asked further: pieces are pending, it is at work."""
        while jobs:
            arrivals = supplier.arrivals
            _, jobs = await asyncio.wait(jobs, timeout=self._stall_seconds)
            if jobs and supplier.arrivals == arrivals:
                supplier.stalled = True
                return False
            if not self._coming.pending(pieces):
                return False
        return True

    def _questions(self, suppliers: Sequence[Supplier], rows: Rows) -> set[asyncio.Future[None]]:
        return {job for one in suppliers if (job := self.ask(one, rows))}

    def _fly(self, supplier: Supplier, pieces: list[Piece]) -> asyncio.Future[None]:
        units = {supplier.unit(piece) for piece in pieces}
        groups = np.array([group for kind, group in units if kind == OF_GROUP], dtype=np.int64)
        companions = supplier.members(groups)
        companions = companions[~self._kept.at_hand[companions]]
        job = run(supplier, lambda: supplier.fetch(pieces, companions))

        def landed(_: asyncio.Future[None]) -> None:
            for unit in units:
                if supplier.flying.get(unit) is job:
                    del supplier.flying[unit]

        supplier.flying.update(dict.fromkeys(units, job))
        job.add_done_callback(landed)
        return job


def _is_busy(supplier: Supplier) -> bool:
    """Return whether a question to it is open."""
    return supplier.asking is not None and not supplier.asking.done()


def run(supplier: Supplier, work: Callable[[], None]) -> asyncio.Future[None]:
    """Do something in a supplier's threads."""
    job = asyncio.get_running_loop().run_in_executor(supplier.pool, work)
    job.add_done_callback(report)
    return job


def report(job: asyncio.Future[None]) -> None:
    """Write down what should not have happened; the disk goes on with other sources."""
    if not job.cancelled() and (error := job.exception()) is not None:
        _log.error("unexpected", exc_info=error)
