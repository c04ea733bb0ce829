"""What all connections of a server together hold in memory for their clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Budget:
    """Bytes of replies that are waited for or not taken yet. Used from one event loop.

    Who finds no room waits for its turn; since one request more is taken whenever there is any
    room, the bytes may exceed `most_bytes` by that one.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held_bytes = 0
        self._waiting: dict[Callable[[], None], None] = {}

    @property
    def is_crowded(self) -> bool:
        """Whether anybody waits for room."""
        return bool(self._waiting)

    def has_room(self, proceed: Callable[[], None]) -> bool:
        """Return whether there is room; if not, `proceed` is called once there is."""
        if self._held_bytes < self._most_bytes:
            return True
        self._waiting[proceed] = None
        return False

    def hold(self, count: int) -> None:
        """Hold bytes until `release`."""
        self._held_bytes += count

    def release(self, count: int) -> None:
        """Hold bytes no longer; the one that has waited for longest is next."""
        self._held_bytes -= count
        self.pass_on()

    def leave(self, proceed: Callable[[], None]) -> None:
        """Wait no longer."""
        self._waiting.pop(proceed, None)

    def pass_on(self) -> None:
        """Call who waits, if there is room: the next one is called when it has had its turn."""
        if self._waiting and self._held_bytes < self._most_bytes:
            proceed = next(iter(self._waiting))
            del self._waiting[proceed]
            asyncio.get_running_loop().call_soon(self._turn, proceed)

    def _turn(self, proceed: Callable[[], None]) -> None:
        try:
            proceed()
        finally:
            self.pass_on()
