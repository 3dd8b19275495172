"""A fixed number of workers, each shared by several turns.

Nothing here knows Codex. A worker is anything that can be started, used by several at once, found
dead or worn out, and stopped.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Generic, Protocol, TypeVar

from proxy.errors import EngineUnavailable, ShuttingDown

log = logging.getLogger(__name__)

FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.5, 30.0
YOUNG_S = 10.0
"""A worker that dies younger than this may do so again: the second of them in a row has to wait."""


class PooledWorker(Protocol):
    """What the pool needs to know of a worker."""

    @property
    def is_usable(self) -> bool:
        """Whether new work may be given to it."""
        ...

    @property
    def is_worn(self) -> bool:
        """Whether it should be replaced when that costs nobody anything. Cheap to ask."""
        ...

    def retire(self) -> None:
        """Make it unusable for new work; what runs on it goes on."""
        ...

    async def gone(self) -> None:
        """Wait until it has died by itself. Safe to cancel."""
        ...

    async def stop(self) -> None: ...


T = TypeVar("T")
W = TypeVar("W", bound=PooledWorker)


class _Slot(Generic[W]):
    """One seat of the pool: the worker in it, what runs there, and how its starts have failed."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.worker: W | None = None
        self.load = 0
        self.starting: asyncio.Task[W] | None = None
        self.renewing: asyncio.Task[None] | None = None
        self.failure: EngineUnavailable | None = None
        self.retry_at = 0.0
        self.backoff_s = FIRST_BACKOFF_S
        self.early_deaths = 0

    def must_wait(self, failure: EngineUnavailable) -> None:
        """Try no start before a backoff, twice as long each time."""
        self.failure = failure
        self.retry_at = asyncio.get_running_loop().time() + self.backoff_s
        self.backoff_s = min(self.backoff_s * 2, LAST_BACKOFF_S)

    def works(self) -> None:
        self.failure, self.backoff_s = None, FIRST_BACKOFF_S


class WorkerPool(Generic[W]):
    """Keeps up to `size` workers, started on demand, each used by several leases at once.

    A worker that is no longer usable leaves its slot at once and is stopped when its last lease
    ends, so the pool never shrinks, never grows beyond `size` usable workers, and cuts nobody. One
    that died is replaced before anybody asks; one that is worn out gives way to its successor once
    that has started.
    """

    def __init__(self, start: Callable[[int], Awaitable[W]], size: int) -> None:
        self._start = start
        self._slots: list[_Slot[W]] = [_Slot(number) for number in range(1, size + 1)]
        self._loads: dict[W, int] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._watching: dict[W, asyncio.Task[None]] = {}
        self._helpers: set[asyncio.Task[Any]] = set()
        self._closed = False

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[W]:
        """Share the least loaded worker, started if need be.

        Raises `EngineUnavailable` when none can be started; a failed start is not tried again
        before its backoff has passed. Cancelling a waiter does not stop a start others wait for.
        """
        slot = self._choose()
        slot.load += 1
        worker: W | None = None
        try:
            worker = await self._worker_of(slot)
            self._loads[worker] = self._loads.get(worker, 0) + 1
            yield worker
        finally:
            slot.load -= 1
            if worker is not None:
                self._release(slot, worker)

    def _choose(self) -> _Slot[W]:
        if self._closed:
            raise ShuttingDown("The server is shutting down.")
        now = asyncio.get_running_loop().time()
        ready = [slot for slot in self._slots if slot.failure is None or slot.retry_at <= now]
        if not ready:
            failure = self._slots[0].failure
            raise failure or EngineUnavailable("No worker can be started.")
        return min(ready, key=lambda slot: slot.load)

    async def _worker_of(self, slot: _Slot[W]) -> W:
        if slot.worker is not None and slot.worker.is_usable:
            return slot.worker
        if slot.worker is not None:
            self._part_with(slot)
        starting = slot.starting or self._begin_start(slot)
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            if starting.cancelled():  # by our `aclose`: it is not the waiter who was cancelled
                raise ShuttingDown("The server is shutting down.") from None
            raise

    def _spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start a task of the pool's, which inherits nothing from the request that causes it."""
        task = asyncio.get_running_loop().create_task(
            work, name=name, context=contextvars.Context()
        )
        self._helpers.add(task)
        task.add_done_callback(self._helpers.discard)
        return task

    # Starts.

    def _begin_start(self, slot: _Slot[W]) -> asyncio.Task[W]:
        slot.starting = self._spawn(self._fill(slot), f"worker-start-{slot.number}")
        # Whoever waited may be gone when it fails; the failure is kept in the slot.
        slot.starting.add_done_callback(lambda task: task.cancelled() or task.exception())
        return slot.starting

    async def _fill(self, slot: _Slot[W]) -> W:
        try:
            worker = await self._start(slot.number)
        except EngineUnavailable as error:
            slot.must_wait(error)
            raise
        else:
            if not slot.early_deaths:
                slot.works()
            slot.failure = None
            self._seat(slot, worker)
            return worker
        finally:
            slot.starting = None

    def _seat(self, slot: _Slot[W], worker: W) -> None:
        slot.worker = worker
        watching = self._watch(slot, worker)
        self._watching[worker] = self._spawn(watching, f"worker-{slot.number}-watch")

    async def _watch(self, slot: _Slot[W], worker: W) -> None:
        """Replace a worker that dies in its seat: at once, or after a backoff if that repeats."""
        clock = asyncio.get_running_loop().time
        seated_at = clock()
        await worker.gone()
        if slot.worker is not worker:
            return
        is_early = clock() - seated_at < YOUNG_S
        slot.early_deaths = slot.early_deaths + 1 if is_early else 0
        self._part_with(slot)
        if slot.early_deaths <= 1:
            slot.works()
            _ = self._begin_start(slot)
        else:
            log.error("worker %d has died young %d times", slot.number, slot.early_deaths)
            slot.must_wait(EngineUnavailable("Codex ends again and again right after its start."))
            _ = self._spawn(self._start_later(slot), f"worker-{slot.number}-backoff")

    async def _start_later(self, slot: _Slot[W]) -> None:
        await asyncio.sleep(slot.retry_at - asyncio.get_running_loop().time())
        if slot.worker is None and slot.starting is None:
            _ = self._begin_start(slot)

    def _begin_renewal(self, slot: _Slot[W], worker: W) -> None:
        """Let a successor take the seat of a worn worker, which ends with its last lease."""

        async def renew() -> None:
            try:
                successor = await self._start(slot.number)
            except EngineUnavailable as error:
                log.warning("worker %d is worn and cannot be replaced: %s", slot.number, error)
                await asyncio.sleep(LAST_BACKOFF_S)
                return
            if slot.worker is not worker:  # it has died, and been replaced, meanwhile
                await successor.stop()
                return
            log.info("worker %d is worn: another one takes over", slot.number)
            self._part_with(slot)
            self._seat(slot, successor)

        slot.renewing = self._spawn(renew(), f"worker-renewal-{slot.number}")

        def over(task: asyncio.Task[None]) -> None:
            slot.renewing = None
            if not task.cancelled() and task.exception() is not None:
                log.error("worker %d cannot be renewed", slot.number, exc_info=task.exception())

        slot.renewing.add_done_callback(over)

    # Ends.

    def _release(self, slot: _Slot[W], worker: W) -> None:
        if worker not in self._loads:  # the pool was closed meanwhile
            return
        self._loads[worker] -= 1
        if slot.worker is not worker:
            self._stop_when_idle(worker)
        elif not worker.is_usable:
            self._part_with(slot)
        elif worker.is_worn and slot.renewing is None and not self._closed:
            self._begin_renewal(slot, worker)

    def _part_with(self, slot: _Slot[W]) -> None:
        worker, slot.worker = slot.worker, None
        if worker is not None:
            worker.retire()
            self._stop_when_idle(worker)

    def _stop_when_idle(self, worker: W) -> None:
        if not self._loads.get(worker):
            self._loads.pop(worker, None)
            watching = self._watching.pop(worker, None)
            if watching is not None and watching is not asyncio.current_task():
                watching.cancel()
            task = asyncio.get_running_loop().create_task(
                worker.stop(), name="worker-stop", context=contextvars.Context()
            )
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def aclose(self) -> None:
        """Stop every worker, leased ones too, and wait for it."""
        self._closed = True
        helpers = list(self._helpers)
        for task in helpers:
            task.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)
        self._watching.clear()
        workers = {slot.worker for slot in self._slots if slot.worker is not None} | set(
            self._loads
        )
        self._loads.clear()
        for slot in self._slots:
            slot.worker = None
        for worker in workers:
            self._stop_when_idle(worker)
        await asyncio.gather(*self._leaving, return_exceptions=True)
