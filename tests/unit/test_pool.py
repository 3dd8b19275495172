from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from proxy.engines.pool import WorkerPool
from proxy.errors import EngineUnavailable, ShuttingDown


class FakeWorker:
    def __init__(self, number: int) -> None:
        self.number = number
        self.is_usable = True
        self.is_worn = False
        self.stopped = 0
        self._gone = asyncio.Event()

    def retire(self) -> None:
        self.is_usable = False

    async def gone(self) -> None:
        await self._gone.wait()

    def die(self) -> None:
        self.is_usable = False
        self._gone.set()

    async def stop(self) -> None:
        self.is_usable = False
        self.stopped += 1


class Starter:
    """Starts fake workers; fails or waits where a test says so."""

    def __init__(self) -> None:
        self.workers: list[FakeWorker] = []
        self.failures = 0
        self.go = asyncio.Event()
        self.go.set()
        self.asked = 0

    async def __call__(self, number: int) -> FakeWorker:
        self.asked += 1
        await self.go.wait()
        if self.failures:
            self.failures -= 1
            raise EngineUnavailable("no")
        self.workers.append(FakeWorker(number))
        return self.workers[-1]

    @property
    def usable(self) -> int:
        return sum(worker.is_usable for worker in self.workers)


@pytest.fixture
def starter() -> Starter:
    return Starter()


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.engines.pool.FIRST_BACKOFF_S", 0.0)


async def held(stack: AsyncExitStack, pool: WorkerPool[FakeWorker], count: int) -> list[FakeWorker]:
    return [await stack.enter_async_context(pool.lease()) for _ in range(count)]


async def settled() -> None:
    """Let the tasks run that stop workers."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_leases_are_spread_over_the_workers(starter: Starter):
    pool = WorkerPool(starter, 3)
    async with AsyncExitStack() as stack:
        numbers = sorted(worker.number for worker in await held(stack, pool, 6))
    assert numbers == [1, 1, 2, 2, 3, 3]
    assert len(starter.workers) == 3
    await pool.aclose()


async def test_an_idle_worker_is_used_again(starter: Starter):
    pool = WorkerPool(starter, 1)
    for _ in range(3):
        async with pool.lease() as worker:
            assert worker is starter.workers[0]
    await pool.aclose()


async def test_those_who_come_together_wait_for_one_start(starter: Starter):
    pool = WorkerPool(starter, 1)
    starter.go.clear()
    async with AsyncExitStack() as stack:
        asking = asyncio.create_task(held(stack, pool, 1))
        also = asyncio.create_task(held(stack, pool, 1))
        await settled()
        starter.go.set()
        assert await asking == await also
    assert starter.asked == 1
    await pool.aclose()


async def test_who_is_cancelled_does_not_stop_a_start_that_others_wait_for(starter: Starter):
    pool = WorkerPool(starter, 1)
    starter.go.clear()
    async with AsyncExitStack() as stack:
        leaving, staying = (asyncio.create_task(held(stack, pool, 1)) for _ in range(2))
        await settled()
        leaving.cancel()
        await settled()
        starter.go.set()
        (worker,) = await staying
        assert worker.is_usable
    assert starter.asked == 1
    await pool.aclose()


async def test_a_start_that_nobody_waits_for_any_more_is_used_by_the_next(starter: Starter):
    pool = WorkerPool(starter, 1)
    starter.go.clear()
    async with AsyncExitStack() as stack:
        leaving = asyncio.create_task(held(stack, pool, 1))
        await settled()
        leaving.cancel()
        starter.go.set()
        await settled()
        await held(stack, pool, 1)
    assert starter.asked == 1
    await pool.aclose()


async def test_a_dead_worker_is_replaced_and_stopped(starter: Starter):
    pool = WorkerPool(starter, 1)
    async with pool.lease() as worker:
        worker.is_usable = False
    await settled()
    assert worker.stopped == 1
    async with pool.lease() as other:
        assert other is not worker
    await pool.aclose()


async def test_a_worker_that_died_idle_is_replaced(starter: Starter):
    pool = WorkerPool(starter, 1)
    async with pool.lease() as worker:
        pass
    worker.is_usable = False
    async with pool.lease() as other:
        assert other is not worker
    await settled()
    assert worker.stopped == 1
    await pool.aclose()


async def test_a_retired_worker_is_stopped_when_its_last_lease_ends(starter: Starter):
    pool = WorkerPool(starter, 1)
    async with pool.lease() as worker:
        async with pool.lease():
            worker.is_usable = False
        async with pool.lease() as other:
            assert other is not worker
        await settled()
        assert worker.stopped == 0
    await settled()
    assert worker.stopped == 1
    assert other.stopped == 0
    await pool.aclose()


@pytest.mark.usefixtures("no_backoff")
async def test_the_pool_never_shrinks_and_never_grows(starter: Starter):
    pool = WorkerPool(starter, 2)
    for round_number in range(5):
        starter.failures = round_number % 3
        for _ in range(4):
            async with AsyncExitStack() as stack:
                try:
                    workers = await held(stack, pool, 4)
                except EngineUnavailable:
                    continue
                assert starter.usable == 2
                workers[round_number % 4].is_usable = False
        await settled()
    starter.failures = 0
    async with AsyncExitStack() as stack:
        await held(stack, pool, 8)
        assert starter.usable == 2
    await pool.aclose()
    assert {worker.stopped for worker in starter.workers} == {1}


async def test_a_failed_start_is_told_and_not_repeated_before_its_backoff(starter: Starter):
    pool = WorkerPool(starter, 1)
    starter.failures = 1
    for _ in range(3):
        with pytest.raises(EngineUnavailable):
            async with pool.lease():
                pass
    assert starter.asked == 1
    await pool.aclose()


async def test_where_one_worker_cannot_start_another_serves(starter: Starter):
    pool = WorkerPool(starter, 2)
    starter.failures = 1
    with pytest.raises(EngineUnavailable):
        async with pool.lease():
            pass
    async with pool.lease() as worker:
        assert worker.number == 2
    await pool.aclose()


@pytest.mark.usefixtures("no_backoff")
async def test_after_a_failed_start_the_next_one_works(starter: Starter):
    pool = WorkerPool(starter, 1)
    starter.failures = 2
    for _ in range(2):
        with pytest.raises(EngineUnavailable):
            async with pool.lease():
                pass
    async with pool.lease() as worker:
        assert worker.is_usable
    await pool.aclose()


async def test_every_failure_doubles_the_backoff_and_a_success_forgets_it(
    starter: Starter, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("proxy.engines.pool.FIRST_BACKOFF_S", 4.0)
    clock = [0.0]
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock[0])
    pool = WorkerPool(starter, 1)

    async def is_tried_at(now: float) -> bool:
        clock[0], asked = now, starter.asked
        try:
            async with pool.lease():
                pass
        except EngineUnavailable:
            pass
        return starter.asked > asked

    starter.failures = 2
    tried = [await is_tried_at(now) for now in (0.0, 3.9, 4.1, 12.0, 12.2)]
    assert tried == [True, False, True, False, True]
    starter.workers[0].is_usable = False
    starter.failures = 1
    tried = [await is_tried_at(now) for now in (20.0, 23.9, 24.1)]
    assert tried == [True, False, True]
    await pool.aclose()


async def test_closing_stops_every_worker_leased_ones_too(starter: Starter):
    pool = WorkerPool(starter, 2)
    async with AsyncExitStack() as stack:
        await held(stack, pool, 3)
        await pool.aclose()
        assert [worker.stopped for worker in starter.workers] == [1, 1]


async def test_closing_stops_a_retired_worker_that_is_still_leased(starter: Starter):
    pool = WorkerPool(starter, 1)
    async with pool.lease() as worker:
        async with pool.lease():
            worker.is_usable = False
        await pool.aclose()
        assert worker.stopped == 1


async def test_closing_ends_a_start_that_runs(starter: Starter):
    pool = WorkerPool(starter, 1)
    starter.go.clear()
    async with AsyncExitStack() as stack:
        asking = asyncio.create_task(held(stack, pool, 1))
        await settled()
        await pool.aclose()
        await asyncio.wait({asking})
    assert starter.workers == []


async def test_a_closed_pool_says_so(starter: Starter):
    pool = WorkerPool(starter, 1)
    await pool.aclose()
    with pytest.raises(ShuttingDown):
        async with pool.lease():
            pass
    assert starter.asked == 0


# Replacement.


async def test_a_worker_that_dies_idle_is_replaced_before_anybody_asks(starter: Starter):
    pool = WorkerPool(starter, 1)
    async with pool.lease() as worker:
        pass
    worker.die()
    await settled()
    assert starter.asked == 2
    async with pool.lease() as other:
        assert other is starter.workers[1]
    assert worker.stopped == 1
    await pool.aclose()


async def test_one_that_dies_young_again_is_replaced_after_a_backoff_only(
    starter: Starter, monkeypatch: pytest.MonkeyPatch
):
    """Without the count of early deaths a worker that cannot live would be started for ever."""
    clock = [0.0]
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock[0])
    pool = WorkerPool(starter, 1)
    async with pool.lease():
        pass
    for _ in range(2):
        starter.workers[-1].die()
        await settled()
    assert starter.asked == 2
    with pytest.raises(EngineUnavailable, match="again and again"):
        async with pool.lease():
            pass
    clock[0] = 0.6
    async with pool.lease() as worker:
        assert worker.number == 1
    assert starter.asked == 3
    await pool.aclose()


async def test_one_that_lived_long_is_replaced_at_once_however_often(
    starter: Starter, monkeypatch: pytest.MonkeyPatch
):
    clock = [0.0]
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock[0])
    pool = WorkerPool(starter, 1)
    async with pool.lease():
        pass
    for number in range(1, 4):
        clock[0] += 11.0
        starter.workers[-1].die()
        await settled()
        assert starter.asked == number + 1
    await pool.aclose()


async def test_a_worn_worker_gives_way_to_its_successor_and_cuts_nobody(starter: Starter):
    pool = WorkerPool(starter, 1)
    async with pool.lease() as worker:
        starter.go.clear()
        async with pool.lease():
            worker.is_worn = True
        await settled()
        async with pool.lease() as still:
            assert still is worker, "its successor is not there yet"
        starter.go.set()
        await settled()
        async with pool.lease() as other:
            assert other is not worker
        assert worker.stopped == 0
    await settled()
    assert worker.stopped == 1
    assert starter.asked == 2
    await pool.aclose()


async def test_a_worn_worker_stays_while_no_successor_can_start(starter: Starter):
    pool = WorkerPool(starter, 1)
    starter.failures = 0
    async with pool.lease() as worker:
        worker.is_worn = True
        starter.failures = 1
    await settled()
    async with pool.lease() as still:
        assert still is worker
    assert starter.asked == 2, "not tried again at once"
    await pool.aclose()


async def test_closing_ends_a_renewal_that_runs(starter: Starter):
    pool = WorkerPool(starter, 1)
    async with pool.lease() as worker:
        starter.go.clear()
        worker.is_worn = True
    await settled()
    await pool.aclose()
    assert [one.stopped for one in starter.workers] == [1]
    assert asyncio.all_tasks() == {asyncio.current_task()}
