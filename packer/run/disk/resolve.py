"""Bring the pieces of a pack's contents that somebody reads, from whoever has them.

In this order: the pack's own bundles, if they are on this host; the store; other sources on this
host; those on the local network; those far away, the cheapest first. What comes is proven before it
is kept, and kept in the store before it is served, but for what the pack itself carries, which
stays in memory. Sources and files are used in threads, everything else happens in the event loop.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import BLOCK_BYTES
from packer.artifact.hints import Hints
from packer.artifact.opened import OpenedPack
from packer.run.disk.asking import Asker
from packer.run.disk.blocks import Piece
from packer.run.disk.coming import Coming
from packer.run.disk.completion import Completion
from packer.run.disk.export import Part, UnavailableError
from packer.run.disk.kept import Block, Kept, Span, pieces_of
from packer.run.disk.seek import Seeker, Tiers
from packer.run.disk.status import MissingContent, Status
from packer.run.disk.supplier import Progress, Supplier
from packer.sources.base import Source, Wanted
from packer.sources.delta import delta_sources
from packer.sources.pack import PackSource
from packer.sources.store import Store
from packer.unpack.gather import tiers

Rows = NDArray[np.int64]
_Result = TypeVar("_Result")

HOLD_SECONDS = 10.0
"""How long a read waits for what nobody has."""

MOST_HOLD_SECONDS = 25.0
"""How long it waits while a source goes on sending: disks of guests give up near 30 s."""

PROGRESS_SECONDS = 3.0
"""Who has sent nothing for so long does not go on."""

STALL_SECONDS = 3.0
"""After so long without a piece the next source is asked as well."""

RETRY_SECONDS = 2.0
MEMORY_BYTES = 128 << 20
MOST_OPEN, OTHER_FILES = 32_768, 1024
"""Files of the store that are open at a time, at most; descriptors that are left for others."""

STORE_WORKERS = 4
CLOSE_SECONDS = 10.0
WRITE_AFTER_SECONDS = 1.0
WRITTEN_AT_ONCE = 8
"""When pieces that nobody has asked for are put into the store, and how many in one step."""

MISSING_SHOWN = 20


class Resolver:
    """Brings pieces of one pack's contents. Used from one event loop, after `start`.

    pack, sources, store: belong to the caller, who closes them after `close`. hold_seconds: how
    long a read waits for what nobody has; most_hold_seconds: for what is on its way, or may be with
    who still looks. stall_seconds: how long a source may send nothing before
    the next one is asked. memory_bytes: for proven pieces in memory. most_open: files at a time; as
    many as this process may open if it is not told.
    """

    def __init__(
        self,
        pack: OpenedPack,
        sources: Sequence[Source],
        store: Store,
        *,
        hold_seconds: float = HOLD_SECONDS,
        most_hold_seconds: float = MOST_HOLD_SECONDS,
        stall_seconds: float = STALL_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
        memory_bytes: int = MEMORY_BYTES,
        most_open: int | None = None,
    ) -> None:
        self._pack = pack
        self._contents = contents = pack.map.contents
        self._hints: Hints | None = None
        self._hold_seconds = hold_seconds
        self._most_hold_seconds = max(hold_seconds, most_hold_seconds)
        self._coming = Coming()
        self._kept = Kept(
            store,
            contents,
            self._coming.deliver,
            memory_bytes=memory_bytes,
            most_open=most_open or _most_open(),
        )
        self._store_pool = ThreadPoolExecutor(STORE_WORKERS, thread_name_prefix="store")
        self._asker = Asker(self._coming, self._kept, stall_seconds)
        self._seeker = Seeker(
            self._coming,
            self._kept,
            self._asker,
            *self._suppliers(sources),
            self._store_pool,
            retry_seconds,
        )
        blocks = np.maximum(1, np.diff(contents.block_start))
        self._first_piece: Rows = np.concatenate([[0], np.cumsum(blocks)]).astype(np.int64)
        self._demanded = np.zeros(int(self._first_piece[-1]), dtype=bool)
        self._waiting = 0
        self._calm = asyncio.Event()
        self._calm.set()
        self._writing = False
        self._completing = False
        self._completion = Completion(
            contents, self._coming, self._kept, self._asker, self._seeker, self._calm
        )

    async def start(self) -> None:
        """Begin to find out what is on this host; only what needs that waits for it."""
        self._loop = self._coming.loop = asyncio.get_running_loop()
        rows = np.arange(len(self._contents), dtype=np.int64)
        if self._seeker.carrier is not None:
            self._seeker.carrier.look(rows, deep=False)  # no file is read for that
            self._kept.at_hand |= self._seeker.carrier.offered()
        wanted = Wanted(self._contents, rows, self._load_hints)
        self._seeker.spawn(self._seeker.in_store_pool(lambda: self._kept.find(wanted)))
        for supplier in self._seeker.tiers[0]:
            self._asker.ask(supplier, self._kept.lacking())

    def read_now(self, row: int, offset: int, length: int) -> list[Part] | None:
        """Return a part of a content if its bytes are proven and in memory, else None."""
        return self._kept.read_now(row, offset, length)

    async def read(self, spans: Sequence[Span]) -> list[Part]:
        """Return the bytes of parts of contents, one after the other.

        Raises UnavailableError when a piece cannot be had within `hold_seconds`; it is looked for
        further.
        """
        pieces = list(dict.fromkeys(pieces_of(spans)))
        for row, block in pieces:
            self._demanded[self._first_piece[row] + block] = True
        began = self._loop.time()
        parts: list[Part] | None = None
        if self._is_stored(pieces):
            parts = await self._in_store_pool(lambda: self._kept.read(spans))
        while parts is None:
            blocks = await self._bring(pieces, began)
            # What has come just now is in memory as a rule.
            parts = self._read_now(spans)
            if parts is None:
                parts = await self._in_store_pool(partial(self._kept.gather, spans, blocks))
            if parts is None and self._loop.time() > began + self._hold_seconds:
                raise self._unavailable(pieces)
        return parts

    def status(self) -> Status:
        """Return what came from where, and what nobody has."""
        size, missing = self._contents.size, sorted({row for row, _ in self._coming.missing})
        carrier = int(self._seeker.carrier is not None)
        records = [one.record() for one in self._seeker.suppliers]
        # A copy: numpy counts a mask before it fills, and threads set more of it meanwhile.
        at_hand = self._kept.at_hand.copy()
        return Status(
            sources=(*records[:carrier], self._kept.record(), *records[carrier:]),
            missing=tuple(self._missing_content(row) for row in missing[:MISSING_SHOWN]),
            missing_contents=len(missing),
            contents=len(size),
            content_bytes=int(size.sum()),
            at_hand=int(at_hand.sum()),
            at_hand_bytes=int(size[at_hand].sum()),
            completing=self._completing,
            demanded_bytes=self._demanded_bytes(),
        )

    def demanded(self) -> NDArray[np.int64]:
        """Return the pieces that were read so far: int64[k, 2], rows of contents and blocks."""
        pieces = np.flatnonzero(self._demanded)
        row = np.searchsorted(self._first_piece, pieces, side="right") - 1
        return np.stack([row, pieces - self._first_piece[row]], axis=1)

    def retry(self) -> None:
        """Look now for what is missing."""
        self._seeker.retry()

    async def complete(self) -> None:
        """Bring everything that is not at hand, a little at a time and while nobody waits.

        Returns when all that can be had is here. May be cancelled.
        """
        self._completing = True
        try:
            await self._completion.run()
        finally:
            self._completing = False

    async def close(self) -> None:
        """Stop everything that is under way."""
        await self._seeker.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._in_store_pool(self._kept.write), CLOSE_SECONDS)
        self._coming.close()
        self._store_pool.shutdown(wait=False, cancel_futures=True)
        self._kept.close()

    def _is_stored(self, pieces: Iterable[Piece]) -> bool:
        """Return whether the store had all of the contents when it was looked at."""
        at_hand, carrier = self._kept.at_hand, self._seeker.carrier
        return all(
            at_hand[row] and (carrier is None or not carrier.offers(row)) for row, _ in pieces
        )

    def _read_now(self, spans: Sequence[Span]) -> list[Part] | None:
        parts: list[Part] = []
        for row, offset, length in spans:
            found = [length] if row < 0 else self._kept.read_now(row, offset, length)
            if found is None:
                return None
            parts += found
        return parts

    async def _in_store_pool(self, work: Callable[[], _Result]) -> _Result:
        return await self._loop.run_in_executor(self._store_pool, work)

    async def _bring(self, pieces: Iterable[Piece], began: float) -> dict[Piece, Block]:
        """Return where pieces can be read, when all of them can."""
        found: dict[Piece, Block] = {}
        waiting: dict[Piece, asyncio.Future[Block]] = {}
        new: list[Piece] = []
        for piece in pieces:
            if block := self._kept.proven(piece):
                found[piece] = block
                continue
            if piece not in self._coming.sought:
                new.append(piece)
            waiting[piece] = self._coming.expect(piece, sought=True)
        if new:
            self._seeker.begin(new)
            self._begin_to_write()
        if waiting:
            await self._wait(waiting, began)
        return {**found, **{piece: future.result() for piece, future in waiting.items()}}

    def _begin_to_write(self) -> None:
        """Write soon what comes along with pieces."""
        if not self._writing:
            self._writing = True
            self._seeker.spawn(self._write())

    async def _write(self) -> None:
        """Put into the store what came along with pieces, while nobody waits for others."""
        try:
            await asyncio.sleep(WRITE_AFTER_SECONDS)
            while self._kept.unwritten:
                await self._calm.wait()
                await self._in_store_pool(partial(self._kept.write, WRITTEN_AT_ONCE))
        finally:
            self._writing = False

    async def _wait(self, waiting: dict[Piece, asyncio.Future[Block]], began: float) -> None:
        self._waiting += 1
        self._calm.clear()
        try:
            await self._hold(waiting, began)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._calm.set()

    async def _hold(self, waiting: dict[Piece, asyncio.Future[Block]], began: float) -> None:
        """Return when all is here. Raises UnavailableError: see `hold_seconds`."""
        last = began + self._most_hold_seconds
        pause = min(PROGRESS_SECONDS, self._hold_seconds)
        before: list[Progress] = []
        for turn in count(-1):  # the first one ends a pause before the usual end
            until = min(began + self._hold_seconds + turn * pause, last)
            await asyncio.wait(waiting.values(), timeout=max(0.0, until - self._loop.time()))
            late = [piece for piece, future in waiting.items() if not future.done()]
            if not late:
                return
            if turn >= 0 and (until == last or not self._seeker.goes_on(late, before)):
                raise self._unavailable(late)
            before = self._seeker.progress()

    def _suppliers(self, sources: Sequence[Source]) -> tuple[Supplier | None, Tiers]:
        own_store = self._kept.store.folder
        others = [
            one for one in sources if not (isinstance(one, Store) and one.folder == own_store)
        ]
        others += delta_sources(self._pack, [Store(own_store)])
        pack = self._pack
        own = PackSource(f"pack:{pack.layout.location}", pack.layout, self._contents, pack.index)
        if not own.local:
            others.insert(0, own)
        local, near, far = ([self._supplier(one) for one in tier] for tier in tiers(others))
        carrier = self._supplier(own, carried=True) if own.local else None
        return carrier, (local, near, far)

    def _supplier(self, source: Source, *, carried: bool = False) -> Supplier:
        kept = self._kept
        take = kept.take_carried if carried else kept.take
        besides = kept.take_carried if carried else kept.take_besides
        return Supplier(source, self._contents, self._load_hints, take, besides, kept.take_file)

    def _load_hints(self) -> Hints:
        self._hints = self._pack.hints
        return self._hints

    def _demanded_bytes(self) -> int:
        row, block = self.demanded().T
        rest = self._contents.size[row] - block * BLOCK_BYTES
        return int(np.minimum(rest, BLOCK_BYTES).sum())

    def _missing_content(self, row: int) -> MissingContent:
        places = self._hints.of(row) if self._hints is not None else range(0)
        path = self._hints.path[places[0]] if self._hints is not None and len(places) else ""
        asked = [one.source.uri for one in self._seeker.suppliers if one.asked[row]]
        looked_in = (self._kept.store.uri, *asked)
        name, size = self._contents.name(row), int(self._contents.size[row])
        return MissingContent(name, size, path, looked_in)

    def _unavailable(self, pieces: Sequence[Piece]) -> UnavailableError:
        rows = sorted({row for row, _ in pieces})
        first = self._missing_content(rows[0])
        more = f" and {len(rows) - 1} others" if len(rows) > 1 else ""
        return UnavailableError(
            f"{self._pack.layout.location}: {first.name} ({first.size:,} bytes, "
            f"{first.path or 'file-system metadata'}){more} cannot be had now; "
            f"looked in: {', '.join(first.looked_in)}",
            hint="it is looked for further; name another source with --from",
        )


def _most_open() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_OPEN
    return max(soft // 2, min(soft - OTHER_FILES, MOST_OPEN))
