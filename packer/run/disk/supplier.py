"""One source of a running disk: what it offers, what it was asked, what it gave."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from asyncio import Future
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import BLOCK_BYTES, Contents
from packer.artifact.layout.base import Receiving
from packer.errors import Error
from packer.run.disk.blocks import Piece
from packer.run.disk.kept import Count
from packer.run.disk.status import FromSource
from packer.sources.base import (
    Blockwise,
    Bytes,
    FileRange,
    LazyHints,
    Learning,
    Offers,
    Renewable,
    Source,
    Wanted,
)
from packer.sources.base import Piece as Sent

Rows = NDArray[np.int64]
Unit = tuple[int, int]
"""What travels together: (OF_GROUP, group), (WHOLE, row), or a piece."""

OF_GROUP, WHOLE = -1, -2

Take = Callable[[int, int, bytes | memoryview, Count], None]
"""(row, block, proven bytes, count): keep them, and tell who waits for them."""

TakeFile = Callable[[FileRange, Sequence[int], Count], bool]
"""Keep a whole content that lies in a file, for some blocks of it; False if it was other bytes."""

Progress = tuple[int, int, Future[None] | None]
"""(pieces that came, bytes that came, the question under way) of a supplier."""

LOCAL_WORKERS, REMOTE_WORKERS = 2, 4
MOST_TRIES = 8
"""How many candidates of one source are tried for a content."""

MOST_COMPLAINTS = 20
FIRST_REFUSAL_SECONDS, LAST_REFUSAL_SECONDS = 1.0, 60.0
"""How long a source is not asked again for a content that it did not give; doubled each time."""

BESIDES_BYTES = 4 << 20
"""How much of what was not asked for waits until that has come."""

LEARN_ROWS = 256
"""After so many whole files the source is told which of them were right."""

WHOLE_FILE_BYTES = 64 << 20
"""A content of a local file up to this size is kept as a whole, sharing its blocks if it can."""


class Supplier:
    """A source with what is known about it. Its methods run in `pool` but for those named plain.

    asking: the question that is under way. asked: bool[n], which contents it was asked about.
    searched: whether it was told to look deep. flying: what is being fetched, each with its job.
    stalled: whether nothing came for long; arrivals: what came so far.
    take: receives proven pieces of contents that were asked for; take_besides: of others;
    take_file: whole files.
    workers: calls of the source at once.
    """

    def __init__(
        self,
        source: Source,
        contents: Contents,
        hints: LazyHints,
        take: Take,
        take_besides: Take,
        take_file: TakeFile,
        workers: int | None = None,
    ) -> None:
        self.source = source
        self.local = source.local
        # Asked once: such a question costs more than most answers here.
        self._blockwise = source if isinstance(source, Blockwise) else None
        self._learning = source if isinstance(source, Learning) else None
        workers = workers or (LOCAL_WORKERS if source.local else REMOTE_WORKERS)
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix=source.uri[:40])
        self.asking: Future[None] | None = None
        self.asked = np.zeros(len(contents), dtype=bool)
        self.searched = False
        self.flying: dict[Unit, Future[None]] = {}
        self.stalled = False
        self.arrivals = 0
        self._contents = contents
        self._hints = hints
        self._take = take
        self._take_besides = take_besides
        self._take_file = take_file
        self._lock = threading.Lock()
        self._stopped = False
        self._cost = np.full(len(contents), -1, dtype=np.int64)
        self._group = np.full(len(contents), -1, dtype=np.int64)
        self._group_bytes: dict[int, int] = {}
        self._groups = 0
        self._refused: dict[int, tuple[float, float]] = {}
        self._proven_bytes = 0
        self._fetched_bytes = 0
        self._whole: list[int] = []
        self._complaints: dict[str, None] = {}

    # -- plain: called from the event loop ---------------------------------------------------------

    def record(self) -> FromSource:
        """Return what it gave so far."""
        complaints = tuple(self._complaints.copy())
        return FromSource(self.source.uri, self._proven_bytes, self._fetched_bytes, complaints)

    def offers(self, row: int) -> bool:
        """Return whether it has offered a content and may be asked for it now."""
        if self._cost[row] < 0:
            return False
        refusal = self._refused.get(row)
        return refusal is None or refusal[0] <= time.monotonic()

    def offered(self) -> NDArray[np.bool_]:
        """Return for each content whether it has offered it: bool[n]."""
        return self._cost >= 0

    def offers_of(self, rows: Rows) -> Offers:
        """Return what it has offered of some contents; see Offers."""
        rows = rows[self._cost[rows] >= 0]
        groups, place = np.unique(self._group[rows], return_inverse=True)
        group_bytes = [self._group_bytes.get(group, 0) for group in groups.tolist()]
        place = np.where(self._group[rows] >= 0, place, -1)
        return Offers(rows, self._cost[rows], place, np.array(group_bytes, dtype=np.int64))

    def unit(self, piece: Piece) -> Unit:
        """Return what comes with a piece when it is fetched."""
        group = int(self._group[piece[0]])
        if group >= 0:
            return OF_GROUP, group
        return piece if self._blockwise is not None else (WHOLE, piece[0])

    def price(self, piece: Piece) -> int:
        """Return how many bytes must travel for a piece alone."""
        row, _ = piece
        group = int(self._group[row])
        if group >= 0:
            return self._group_bytes.get(group, 0) + int(self._cost[row])
        if self._blockwise is not None:  # about: its blocks are not all as long
            return int(self._cost[row]) // self._contents.block_count(row)
        return int(self._cost[row])

    def members(self, groups: Rows) -> Rows:
        """Return the contents that travel with these groups, sorted, if they are fetched whole.

        None for a source that sends what travels together by itself.
        """
        if self._blockwise is not None or len(groups) == 0:
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(np.isin(self._group, groups) & (self._cost >= 0))

    def progress(self) -> Progress:
        """Return what changes as long as something comes; see `goes_on`."""
        received = self.source.received_bytes if isinstance(self.source, Receiving) else 0
        busy = self.asking is not None and not self.asking.done()
        return self.arrivals, received, self.asking if busy else None

    def goes_on(self, pieces: Sequence[Piece], before: Progress) -> bool:
        """Return whether it has sent anything since `before`, and pieces are on their way from it.

        Or whether it still has not answered what it was asked then.
        """
        now = self.progress()
        if now[2] is not None and now[2] is before[2]:
            return True
        return now[:2] != before[:2] and any(self.unit(one) in self.flying for one in pieces)

    def stop(self) -> None:
        """Give no more; what is being asked for ends with the next piece."""
        self._stopped = True
        self.pool.shutdown(wait=False, cancel_futures=True)
        self._learn()

    # -- in the pool -------------------------------------------------------------------------------

    def look(self, rows: Rows, *, deep: bool) -> None:
        """Ask what the source has of some contents."""
        wanted = Wanted(self._contents, rows, self._hints)
        try:
            self._note(rows, self.source.find(wanted, deep=deep))
        except Error as error:
            self._complain(str(error))
        finally:
            self.asked[rows] = True

    def _note(self, rows: Rows, offers: Offers) -> None:
        """Take note of what is offered of `rows`; others read the columns meanwhile."""
        with self._lock:
            cost, group = self._cost.copy(), self._group.copy()
            cost[rows] = group[rows] = -1
            cost[offers.rows] = offers.cost_bytes
            group[offers.rows] = np.where(offers.group >= 0, offers.group + self._groups, -1)
            numbers = range(self._groups, self._groups + len(offers.group_bytes))
            known = {
                **self._group_bytes,
                **dict(zip(numbers, offers.group_bytes.tolist(), strict=True)),
            }
            self._groups += len(offers.group_bytes)
            # Who is asked again and again for what it lacks must not fill the memory.
            self._group_bytes = {one: known[one] for one in np.unique(group).tolist() if one >= 0}
            self._group, self._cost = group, cost

    def renew(self, rows: Rows) -> None:
        """Have the source forget what could not be had from it, and be asked for `rows` again.

        Not for those that it has offered and was never asked to send: it found them just now.
        """
        try:
            if isinstance(self.source, Renewable):
                self.source.renew()
        except Error as error:
            self._complain(str(error))
        finally:
            untried = (self._cost[rows] >= 0) & ~np.isin(rows, list(self._refused))
            self.asked[rows[~untried]] = False

    def fetch(self, pieces: Sequence[Piece], companions: Rows) -> None:
        """Fetch pieces and hand over what was proven.

        companions: contents that travel with them and are wanted, too, sorted.
        """
        left = self._ask(pieces, np.union1d(rows_of(pieces), companions))
        for _ in range(MOST_TRIES - 1):
            if not left or self._learning is None or self._stopped:
                break
            rows = rows_of(left)
            self._learning.learn(rows, ok=False)
            self.look(rows, deep=False)
            again = [piece for piece in left if self._cost[piece[0]] >= 0]
            if not again:
                break
            left = self._ask(again, rows_of(again)) + [one for one in left if one not in again]
        for row in {row for row, _ in left}:
            self._refuse(row)

    def _ask(self, pieces: Sequence[Piece], rows: Rows) -> list[Piece]:
        """Ask once; return the pieces that did not come, or were wrong."""
        came: set[Piece] = set()
        answered: set[int] = set()
        asked = {row for row, _ in pieces}
        try:
            for sent in self._sent(pieces, rows):
                if self._stopped:
                    break
                answered.add(sent.row)
                came.update(self._receive(sent, pieces, asked))
            else:
                self._note_silence(rows_of(pieces), answered)
        except (Error, OSError) as error:
            self._complain(str(error))
        if len(self._whole) >= LEARN_ROWS:
            self._learn()
        return [piece for piece in pieces if piece not in came]

    def _learn(self) -> None:
        """Tell the source which of its files were what it took them for."""
        with self._lock:
            rows, self._whole = np.unique(self._whole), []
        if self._learning is not None and len(rows):
            self._learning.learn(rows, ok=True)

    def _note_silence(self, rows: Rows, answered: set[int]) -> None:
        """Complain of contents that were offered and not sent, by a source that does not guess.

        A pack whose frames cannot be unpacked, for example.
        """
        if self._learning is None:
            for row in set(rows.tolist()) - answered:
                name = self._contents.name(row)
                self._complain(f"{self.source.uri}: offered {name} and did not send it")

    def _sent(self, pieces: Sequence[Piece], rows: Rows) -> Iterator[Sent]:
        """Yield what the source sends; what must have travelled for each piece is counted."""
        columns = np.array(pieces, dtype=np.int64)
        if self._blockwise is not None:
            blocks = self._blockwise.fetch_blocks(columns[:, 0], columns[:, 1])
            sent: Iterator[Sent] = _asked_first(blocks, pieces)
        else:
            sent = self.source.fetch(rows)
        came: set[int] = set()
        for piece in sent:
            if 0 <= piece.row < len(self._contents) and self._cost[piece.row] >= 0:
                travelled = self._travelled(piece, came)
                with self._lock:
                    self._fetched_bytes += travelled
            yield piece

    def _travelled(self, sent: Sent, came: set[int]) -> int:
        """Return how many bytes must have travelled for a piece. came: groups, each counts once."""
        row, group = sent.row, int(self._group[sent.row])
        of_group = 0 if group < 0 or group in came else self._group_bytes.get(group, 0)
        came.add(group)
        cost, size = int(self._cost[row]), max(1, int(self._contents.size[row]))
        if isinstance(sent, FileRange):
            return of_group + cost
        if not 0 <= sent.block < self._contents.block_count(row):
            return 0
        if group < 0 and self._blockwise is not None:
            return self._blockwise.cost_of_blocks(np.array([row]), np.array([sent.block]))
        start, end = self._contents.block_bounds(row, sent.block)
        return of_group + cost * end // size - cost * start // size

    def _receive(self, sent: Sent, pieces: Sequence[Piece], asked: Set[int]) -> Iterable[Piece]:
        """Prove what was sent and hand it over; return the pieces that it was."""
        contents = self._contents
        if not 0 <= sent.row < len(contents):
            return ()
        if isinstance(sent, FileRange):
            return self._receive_file(sent, [piece for piece in pieces if piece[0] == sent.row])
        if not 0 <= sent.block < contents.block_count(sent.row):
            return ()
        right = self._prove(sent, self._take if sent.row in asked else self._take_besides)
        return ((sent.row, sent.block),) if right else ()

    def _prove(self, sent: Bytes, take: Take) -> bool:
        contents = self._contents
        start, end = contents.block_bounds(sent.row, sent.block)
        digest = contents.block_digest(sent.row, sent.block)
        if len(sent.data) != end - start or hashlib.sha256(sent.data).digest() != digest:
            if self._learning is None:  # whose offers are guesses
                self._complain(f"{self.source.uri}: sent wrong bytes of {contents.name(sent.row)}")
            return False
        take(sent.row, sent.block, sent.data, self._count)
        return True

    def _receive_file(self, sent: FileRange, asked: Sequence[Piece]) -> list[Piece]:
        contents = self._contents
        size = int(contents.size[sent.row])
        blocks = [block for _, block in asked]
        if size <= WHOLE_FILE_BYTES and self._take_file(sent, blocks, self._count):
            with self._lock:
                self._whole.append(sent.row)
            return list(asked)
        came = []
        for row, block in asked:
            start, end = contents.block_bounds(row, block)
            try:
                data = os.pread(sent.fd, BLOCK_BYTES, sent.offset + start)[: end - start]
            except OSError as error:
                self._complain(f"{self.source.uri}: {error.strerror}")
                break
            if self._prove(Bytes(row, block, data), self._take):
                came.append((row, block))
        return came

    def _count(self, proven: int) -> None:
        """Note that something came; proven: bytes of it that nobody has brought before."""
        with self._lock:
            self._proven_bytes += proven
            self.arrivals += 1
            self.stalled = False

    def _refuse(self, row: int) -> None:
        """Do not ask for a content for a while, each time for longer."""
        _, seconds = self._refused.get(row, (0.0, FIRST_REFUSAL_SECONDS / 2))
        seconds = min(2 * seconds, LAST_REFUSAL_SECONDS)
        self._refused[row] = (time.monotonic() + seconds, seconds)

    def _complain(self, text: str) -> None:
        with self._lock:
            if len(self._complaints) < MOST_COMPLAINTS:
                self._complaints[text] = None


def _asked_first(sent: Iterator[Bytes], asked: Sequence[Piece]) -> Iterator[Bytes]:
    """Yield what was asked for before what lies in the same frames.

    Somebody waits for the one; a frame has hundreds of the others.
    """
    left = set(asked)
    besides: list[Bytes] = []
    held_bytes = 0
    for one in sent:
        if (one.row, one.block) in left:
            left.remove((one.row, one.block))
            yield one
        else:
            besides.append(one)
            held_bytes += len(one.data)
        if not left or held_bytes > BESIDES_BYTES:
            yield from besides
            besides, held_bytes = [], 0
    yield from besides


def rows_of(pieces: Iterable[Piece]) -> Rows:
    """Return the contents of pieces, sorted, each once."""
    rows = np.fromiter((row for row, _ in pieces), dtype=np.int64)
    return np.unique(rows)
