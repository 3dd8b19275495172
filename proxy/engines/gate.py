"""Who may run now: a bounded gate with a bounded queue before it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from proxy.errors import EngineBusy


class Gate:
    """At most `capacity` inside, at most `max_queue` waiting, first come first served.

    A waiter that is cancelled frees its place at once, and a place that was just handed to it goes
    to the next one.
    """

    def __init__(self, capacity: int, max_queue: int, queue_timeout_s: float) -> None:
        self.capacity, self.max_queue, self.queue_timeout_s = capacity, max_queue, queue_timeout_s
        self.inside = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold one place. Raises `EngineBusy` when the queue is full, or after waiting too long."""
        await self._enter()
        try:
            yield
        finally:
            self._leave()

    async def _enter(self) -> None:
        if self.inside < self.capacity and not self._waiting:
            self.inside += 1
            return
        if len(self._waiting) >= self.max_queue:
            raise EngineBusy("The server is busy and its queue is full. Try again later.")
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(ticket)
        try:
            async with asyncio.timeout(self.queue_timeout_s):
                await ticket
        except TimeoutError as error:
            self._give_up(ticket)
            raise EngineBusy("The request waited too long for a free engine.") from error
        except asyncio.CancelledError:
            self._give_up(ticket)
            raise

    def _give_up(self, ticket: asyncio.Future[None]) -> None:
        if ticket.done() and not ticket.cancelled():
            self._leave()  # the place was ours already
        elif ticket in self._waiting:
            self._waiting.remove(ticket)

    def _leave(self) -> None:
        """Hand the place to the first who still waits; else it is free."""
        while self._waiting:
            ticket = self._waiting.popleft()
            if not ticket.done():
                ticket.set_result(None)
                return
        self.inside -= 1
