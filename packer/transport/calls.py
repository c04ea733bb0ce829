"""What a call of the HTTP client has under way: connections, attempts, threads."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from packer.transport.response import Body, Transient, TransportError, visible

MAX_WAIT_SECONDS = 60.0
"""The longest wait between attempts, whatever Retry-After says."""

END_SECONDS = 1.0
"""How long the end of a call waits for its threads, whose connections it has cut."""

AHEAD = 2
"""How many results a thread may be ahead of who takes them."""

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


class Call:
    """One request of a caller: what it has open, and whether it was called off."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._bodies: set[Body] = set()

    def opened(self, body: Body) -> None:
        """Note an answer that will be read."""
        with self._lock:
            self._bodies.add(body)

    def closed(self, body: Body) -> None:
        """Close an answer, read or not."""
        with self._lock:
            self._bodies.discard(body)
        body.close()

    def stop(self) -> None:
        """Wake every thread that waits for this call's data; none starts anew."""
        self.stopped.set()
        with self._lock:
            for body in self._bodies:
                body.interrupt()


@dataclass(slots=True)
class Attempts:
    """How often the same bytes were asked for in vain; `failed` waits or gives up."""

    url: str
    call: Call
    back_off_seconds: float
    limit: int
    count: int = 0

    def until_done(self, once: Callable[[], _Result]) -> _Result:
        """Return what `once` returns, after as many attempts as it takes."""
        while True:
            try:
                return once()
            except Transient as error:
                self.failed(error)

    def failed(self, error: Transient) -> None:
        """Wait before the next attempt. Raises TransportError when there is none left."""
        self.count += 1
        if self.count >= self.limit:
            raise TransportError(
                f"{visible(self.url)}: {error} ({self.count} attempts)",
                hint="try again later; what has arrived is kept",
            ) from error
        wait = self.back_off_seconds * 2 ** (self.count - 1) * random.uniform(0.5, 1.5)
        wait = min(max(wait, error.after_seconds or 0.0), MAX_WAIT_SECONDS)
        if self.call.stopped.wait(wait):
            raise TransportError(f"{visible(self.url)}: stopped") from error


@dataclass(frozen=True, slots=True)
class _Ended:
    """A job has given all its results; or why not."""

    error: Exception | None = None


def in_parallel(
    jobs: Sequence[_Job],
    work: Callable[[_Job], Iterator[_Result]],
    call: Call,
    threads: int,
    url: str,
) -> Generator[_Result, None, None]:
    """Yield what `work` yields for each job, in any order, from several threads.

    Raises the first error of any of them; the others are called off then.
    """
    todo: queue.SimpleQueue[_Job] = queue.SimpleQueue()
    for job in jobs:
        todo.put(job)
    # Bounded, so that a slow taker holds the threads back instead of filling memory.
    done: queue.Queue[_Result | _Ended] = queue.Queue(AHEAD * threads)

    def run() -> None:
        while not call.stopped.is_set():
            try:
                job = todo.get_nowait()
            except queue.Empty:
                return
            try:
                # One by one: who is killed keeps all that has come to its end.
                for result in work(job):
                    _put(done, result, call)
                _put(done, _Ended(), call)
            except Exception as error:  # noqa: BLE001 - raised in the caller's thread
                _put(done, _Ended(error), call)
                return

    # Daemons: a thread that waits for a dead server must not hold up the end of the program.
    running = [
        threading.Thread(target=run, name="(work)", daemon=True)
        for _ in range(min(threads, len(jobs)))
    ]
    for thread in running:
        thread.start()
    try:
        ended = 0
        while ended < len(jobs):
            found = _take(done, running, url)
            if not isinstance(found, _Ended):
                yield found
            elif found.error is not None:
                raise found.error
            else:
                ended += 1
    finally:
        call.stop()
        deadline = time.monotonic() + END_SECONDS
        for thread in running:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))


def _put(done: queue.Queue[_Result | _Ended], found: _Result | _Ended, call: Call) -> None:
    while not call.stopped.is_set():
        try:
            done.put(found, timeout=0.2)
        except queue.Full:
            continue
        return


def _take(
    done: queue.Queue[_Result | _Ended], threads: Sequence[threading.Thread], url: str
) -> _Result | _Ended:
    while True:
        try:
            return done.get(timeout=1.0)
        except queue.Empty:
            if not any(thread.is_alive() for thread in threads) and done.empty():
                raise TransportError(f"{visible(url)}: stopped") from None
