"""Who may run now: a bounded gate, and before it a bounded queue that is fair between keys.

Each key has a line of its own, first come first served; the lines take turns. So a key that comes
once waits for one place per key that is before it, and never for all that a greedy key has sent.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Protocol

from proxy.errors import EngineBusy, KeyQueueFull

Clock = Callable[[], float]

GUESS_S = 5.0
"""How long a turn is thought to take before the first one has ended."""
NEWEST_WEIGHT = 0.2
MIN_RETRY_S, MAX_RETRY_S = 1, 60
"""What SDKs obey in a `retry-after`."""


class Pace:
    """How long places are held these days: what an honest `retry-after` is made of.

    A moving average, in which the newest of those that have ended weighs a fifth, and since when
    each place is held that is held now.
    """

    def __init__(self, guess_s: float = GUESS_S, clock: Clock = time.monotonic) -> None:
        self._mean_s, self._is_guess, self._clock = guess_s, True, clock
        self._since: dict[object, float] = {}

    def begin(self, holder: object) -> None:
        """Note that this one has its place from now on."""
        self._since[holder] = self._clock()

    def end(self, holder: object) -> None:
        held_s = self._clock() - self._since.pop(holder)
        weight = 1.0 if self._is_guess else NEWEST_WEIGHT
        self._mean_s += weight * (held_s - self._mean_s)
        self._is_guess = False

    @property
    def hold_s(self) -> float:
        """How long a place is held; before one has ended, those that run are the witnesses."""
        if not self._is_guess or not self._since:
            return self._mean_s
        so_far_s = self._clock() - sum(self._since.values()) / len(self._since)
        return max(self._mean_s, so_far_s)

    def retry_after_s(self, ahead: int, places: int) -> int:
        """Return the whole seconds until so many will have come to one of so many places.

        Each place is thought to be free when it has been held for the average time; one that has
        been held for longer than that, after the same time over again.
        """
        now = self._clock()
        free_in_s = [abs(self._mean_s - (now - since)) for since in self._since.values()]
        free_in_s += [self._mean_s] * (places - len(free_in_s))  # handed over, not begun
        heapq.heapify(free_in_s)
        last_s, hold_s = 0.0, self.hold_s
        for _ in range(max(ahead, 1)):
            last_s = heapq.heapreplace(free_in_s, free_in_s[0] + hold_s)
            if last_s > MAX_RETRY_S:
                break
        return min(max(math.ceil(last_s), MIN_RETRY_S), MAX_RETRY_S)


class Claimant(Protocol):
    """Who wants a place; a `Turn` is one."""

    @property
    def request_id(self) -> str: ...

    @property
    def key(self) -> str:
        """Whose line it waits in; compared, and never shown."""
        ...

    @property
    def max_queued(self) -> int | None:
        """How many of this key may wait; None for as many as the queue takes."""
        ...


class Visit:
    """One claimant's way through the gate; `verdict` says that it has a place, or gave way."""

    def __init__(self, claimant: Claimant, came_at: float) -> None:
        self.key, self.request_id, self.came_at = claimant.key, claimant.request_id, came_at
        self.verdict: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    @property
    def has_left(self) -> bool:
        """Whether it was cancelled; its task may not have run since and come to say so."""
        return self.verdict.cancelled()


class Lines:
    """Those who wait: a line for each key, in the order in which the keys have their turn."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, OrderedDict[Visit, None]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Visit]:
        """Those who have not left, in the order in which they would get a place if nobody came."""
        lines = ([visit for visit in line if not visit.has_left] for line in self._lines.values())
        for one_of_each in zip_longest(*lines):
            yield from (visit for visit in one_of_each if visit is not None)

    @property
    def keys(self) -> list[str]:
        return list(self._lines)

    def length(self, key: str) -> int:
        return len(self._lines.get(key, ()))

    def join(self, visit: Visit) -> None:
        """Put it at the end of its key's line; a key that is new has its turn after the others."""
        self._lines.setdefault(visit.key, OrderedDict())[visit] = None
        self._count += 1

    def remove(self, visit: Visit) -> None:
        """Take it out, if it is there."""
        line = self._lines.get(visit.key)
        if line is None or visit not in line:
            return
        del line[visit]
        self._count -= 1
        if not line:
            del self._lines[visit.key]

    def sweep(self) -> None:
        """Take out those who have left."""
        for line in list(self._lines.values()):
            for visit in [visit for visit in line if visit.has_left]:
                self.remove(visit)

    def pop_first(self) -> Visit | None:
        """Take out the first of the key whose turn it is; its key has its next turn last."""
        while self._lines:
            key, line = next(iter(self._lines.items()))
            visit = next(iter(line))
            self.remove(visit)
            if not visit.has_left:  # else its key still has its turn
                if key in self._lines:
                    self._lines.move_to_end(key)
                return visit
        return None

    def pop_newest(self, key: str) -> Visit:
        visit = next(reversed(self._lines[key]))
        self.remove(visit)
        return visit


@dataclass(frozen=True, slots=True)
class Waiter:
    """One who waits, as the operator may see it: the first to be served has position 1."""

    request_id: str
    position: int
    waited_s: float


class Gate:
    """At most `capacity` inside, at most `max_queue` waiting, in `Lines` that are fair to keys.

    When the queue is full, the key that holds most (inside and waiting together) makes room: its
    newest waiter is refused in the newcomer's stead, if the newcomer's key will still hold less
    than that one. Else the newcomer is refused. So no key can fill the queue against the others.

    A waiter that is cancelled frees its place in the queue at once, and a place that was just
    handed to it goes to the next one.
    """

    def __init__(
        self,
        capacity: int,
        max_queue: int,
        queue_timeout_s: float,
        clock: Clock = time.monotonic,
    ) -> None:
        self.capacity, self.max_queue, self.queue_timeout_s = capacity, max_queue, queue_timeout_s
        self.inside = 0
        self._inside_of: Counter[str] = Counter()
        self._lines = Lines()
        self._clock = clock
        self._pace = Pace(clock=clock)

    @property
    def waiting(self) -> int:
        return len(self._lines)

    def waiters(self) -> list[Waiter]:
        """Those who wait, in the order in which they will be served if nobody comes or leaves."""
        now = self._clock()
        return [
            Waiter(visit.request_id, position, round(now - visit.came_at, 3))
            for position, visit in enumerate(self._lines, start=1)
        ]

    @asynccontextmanager
    async def place(self, claimant: Claimant) -> AsyncIterator[None]:
        """Hold one place.

        Raises `EngineBusy` when the queue is full, after waiting too long, or when the place in the
        queue had to be given up to another key; `KeyQueueFull` when too many of this key wait.
        """
        visit = Visit(claimant, self._clock())
        await self._enter(visit, claimant.max_queued)
        self._pace.begin(visit)
        try:
            yield
        finally:
            self._pace.end(visit)
            self._leave(visit)

    async def _enter(self, visit: Visit, max_queued: int | None) -> None:
        if self.inside < self.capacity:  # then nobody waits
            self.inside += 1
            self._inside_of[visit.key] += 1
            return
        self._make_room(visit, max_queued)
        self._lines.join(visit)
        try:
            async with asyncio.timeout(self.queue_timeout_s):
                await visit.verdict
        except TimeoutError as error:
            if visit.has_left:
                self._lines.remove(visit)
                raise self._busy("The request waited too long for a free engine.") from error
            # Else the verdict came in the same moment, and it counts.
        except asyncio.CancelledError:
            self._give_up(visit)
            raise
        if not visit.verdict.result():
            raise self._busy(
                "The server is busy, and this request gave its place in the queue up to a key "
                "that asks for less. Try again later."
            )

    def _make_room(self, visit: Visit, max_queued: int | None) -> None:
        """Let there be a place in the queue for it. Raises where there is none."""
        if max_queued is not None or len(self._lines) >= self.max_queue:
            self._lines.sweep()  # those whose tasks have not come to say that they left
        mine = self._lines.length(visit.key)
        if max_queued is not None and mine >= max_queued:
            ahead = min(len(self._lines), mine * len(self._lines.keys))
            raise KeyQueueFull(
                f"{max_queued} requests of this key may wait, and as many do. Try again later.",
                retry_after_s=self._pace.retry_after_s(ahead, self.capacity),
            )
        if len(self._lines) < self.max_queue:
            return
        greediest = max(self._lines.keys, key=self._held, default=None)
        if greediest is None or self._held(visit.key) + 1 >= self._held(greediest):
            raise self._busy("The server is busy and its queue is full. Try again later.")
        self._lines.pop_newest(greediest).verdict.set_result(False)

    def _held(self, key: str) -> int:
        return self._inside_of[key] + self._lines.length(key)

    def _busy(self, message: str) -> EngineBusy:
        """Return the refusal; by the time it says, those who wait now have come to a place."""
        after_s = self._pace.retry_after_s(len(self._lines), self.capacity)
        return EngineBusy(message, retry_after_s=after_s)

    def _give_up(self, visit: Visit) -> None:
        if visit.has_left:
            self._lines.remove(visit)
        elif visit.verdict.result():
            self._leave(visit)  # the place was ours already

    def _leave(self, visit: Visit) -> None:
        """Hand the place to the first who still waits; else it is free."""
        self._inside_of[visit.key] -= 1
        if not self._inside_of[visit.key]:
            del self._inside_of[visit.key]
        following = self._lines.pop_first()
        if following is None:
            self.inside -= 1
        else:
            self._inside_of[following.key] += 1
            following.verdict.set_result(True)
