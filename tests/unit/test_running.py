from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable

import pytest

from proxy.engines.base import (
    Completed,
    Event,
    Failed,
    TextDelta,
    Turn,
    TurnStarted,
    Usage,
    UsageReported,
)
from proxy.engines.running import Laps, RunningTurn, Turns
from proxy.errors import (
    EngineError,
    EngineProtocolError,
    EngineTimeout,
    RateLimited,
    ShuttingDown,
    TurnStopped,
)

Drive = Callable[[RunningTurn], Awaitable[None]]


def a_turn(deadline_s: float = 10.0) -> Turn:
    deadline = asyncio.get_running_loop().time() + deadline_s
    return Turn(request_id="r", messages=(), cwd="/", deadline=deadline)


def run(drive: Drive, deadline_s: float = 10.0) -> RunningTurn:
    return RunningTurn(a_turn(deadline_s), drive)


async def hang(running: RunningTurn) -> None:
    await asyncio.Event().wait()


async def events_of(running: RunningTurn) -> list[Event]:
    async with asyncio.timeout(10):
        return [event async for event in running]


async def error_of(running: RunningTurn) -> EngineError:
    (end,) = await events_of(running)
    assert isinstance(end, Failed)
    return end.error


class CleaningUp:
    """Hangs, and cleans up until it is allowed to end."""

    def __init__(self) -> None:
        self.has_begun, self.may_end = asyncio.Event(), asyncio.Event()
        self.done = asyncio.Event()

    async def __call__(self, running: RunningTurn) -> None:
        try:
            await hang(running)
        finally:
            self.has_begun.set()
            await self.may_end.wait()
            self.done.set()


async def test_events_come_in_the_order_they_were_emitted():
    async def drive(running: RunningTurn) -> None:
        for text in "abc":
            running.emit(TextDelta(text))
            await asyncio.sleep(0)
        running.emit(Completed())

    assert await events_of(run(drive)) == [*map(TextDelta, "abc"), Completed()]


async def test_nothing_is_told_after_the_end():
    async def drive(running: RunningTurn) -> None:
        running.emit(Completed())
        running.emit(TextDelta("late"))
        running.emit(Failed(EngineError("late")))
        raise RuntimeError("late")

    running = run(drive)
    assert await events_of(running) == [Completed()]
    await running.aclose()
    with pytest.raises(RuntimeError, match="end was read"):
        await running.next_event(0)


async def test_an_engine_that_gives_no_end_has_failed():
    async def drive(running: RunningTurn) -> None:
        return

    assert type(await error_of(run(drive))) is EngineProtocolError


async def test_an_engine_error_is_the_end():
    async def drive(running: RunningTurn) -> None:
        raise RateLimited("slower")

    assert type(await error_of(run(drive))) is RateLimited


async def test_a_bug_is_a_failure_without_details(caplog: pytest.LogCaptureFixture):
    async def drive(running: RunningTurn) -> None:
        raise ValueError("/home/secret")

    error = await error_of(run(drive))
    assert type(error) is EngineError
    assert "secret" not in str(error)


async def test_a_wait_inside_the_engine_that_times_out_is_not_the_deadline():
    async def drive(running: RunningTurn) -> None:
        async with asyncio.timeout(0):
            await hang(running)

    assert type(await error_of(run(drive))) is EngineProtocolError


async def test_the_deadline_ends_a_turn_that_keeps_talking():
    async def drive(running: RunningTurn) -> None:
        while True:
            running.emit(TextDelta("still "))
            await asyncio.sleep(0)

    events = await events_of(run(drive, 0.02))
    assert isinstance(events[-1], Failed)
    assert isinstance(events[-1].error, EngineTimeout)


async def test_the_reader_learns_of_the_deadline_before_the_clean_up_is_over():
    drive = CleaningUp()
    running = run(drive, 0.01)
    assert isinstance(await error_of(running), EngineTimeout)
    assert not drive.done.is_set()
    drive.may_end.set()
    await running.aclose()
    assert drive.done.is_set()


async def test_closing_stops_the_turn_and_waits_for_its_clean_up():
    drive = CleaningUp()
    running = run(drive)
    closing = asyncio.create_task(running.aclose())
    await drive.has_begun.wait()
    assert not closing.done()
    drive.may_end.set()
    await closing
    assert drive.done.is_set()
    assert isinstance(await error_of(running), TurnStopped)


async def test_a_turn_closed_before_it_began_still_has_an_end():
    running = run(hang)
    await running.aclose()
    assert isinstance(await error_of(running), TurnStopped)


@pytest.mark.parametrize("again", ["aclose", "stop", "deadline"])
async def test_a_second_stop_does_not_cut_the_clean_up_short(again: str):
    drive = CleaningUp()
    running = run(drive, 0.05 if again == "deadline" else 10.0)
    closing = [asyncio.create_task(running.aclose())]
    await drive.has_begun.wait()
    if again == "aclose":
        closing.append(asyncio.create_task(running.aclose()))
    elif again == "stop":
        running.stop(ShuttingDown("now"))
    else:
        await asyncio.sleep(running.turn.deadline - asyncio.get_running_loop().time() + 0.01)
    await asyncio.sleep(0)
    assert not drive.done.is_set()
    drive.may_end.set()
    await asyncio.gather(*closing)
    assert drive.done.is_set()
    assert isinstance(await error_of(running), TurnStopped)


async def test_who_cancels_the_close_does_not_cut_the_clean_up_short():
    drive = CleaningUp()
    running = run(drive)
    closing = asyncio.create_task(running.aclose())
    await drive.has_begun.wait()
    closing.cancel()
    await asyncio.wait({closing})
    drive.may_end.set()
    await running.aclose()
    assert drive.done.is_set()


async def test_closing_after_the_end_leaves_the_clean_up_alone():
    drive = CleaningUp()

    async def finish(running: RunningTurn) -> None:
        running.emit(Completed())
        await drive(running)

    running = run(finish)
    assert await events_of(running) == [Completed()]
    closing = asyncio.create_task(running.aclose())
    await asyncio.sleep(0)
    assert not drive.has_begun.is_set()  # it was not cancelled: the turn had ended
    running._task.cancel()
    drive.may_end.set()
    await closing


async def test_no_event_within_the_patience_is_none_and_loses_none():
    go = asyncio.Event()

    async def drive(running: RunningTurn) -> None:
        await go.wait()
        running.emit(Completed())

    running = run(drive)
    assert await running.next_event(0) is None
    go.set()
    assert await running.next_event(5) == Completed()


async def test_a_reader_that_is_cancelled_loses_no_event():
    running = run(hang)
    reading = asyncio.create_task(running.next_event())
    await asyncio.sleep(0)
    running.emit(TextDelta("kept"))
    reading.cancel()
    await asyncio.wait({reading})
    assert await running.next_event(5) == TextDelta("kept")
    await running.aclose()


async def test_a_clean_up_that_is_stuck_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("proxy.engines.running.CLOSE_BOUND_S", 0.01)
    drive = CleaningUp()
    running = run(drive)
    await asyncio.sleep(0)
    await asyncio.wait_for(running.aclose(), 5)
    assert not drive.done.is_set()
    drive.may_end.set()
    await running.aclose()


async def test_nothing_of_the_request_is_inherited():
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")
    seen = []

    async def drive(running: RunningTurn) -> None:
        seen.append(variable.get())
        running.emit(Completed())

    variable.set("the request's")
    await events_of(run(drive))
    assert seen == ["none"]


async def test_usage_is_the_last_report():
    async def drive(running: RunningTurn) -> None:
        for count in (1, 2):
            running.emit(UsageReported(Usage(count, 0, 0, 0)))
        running.emit(Completed())

    running = run(drive)
    await events_of(running)
    assert running.usage == Usage(2, 0, 0, 0)


async def test_the_phases_of_a_turn_are_timed_once_each():
    async def drive(running: RunningTurn) -> None:
        running.laps.lap("turn_start")
        running.emit(TurnStarted())
        for text in "ab":
            running.emit(TextDelta(text))
        running.emit(Completed())

    running = run(drive)
    await events_of(running)
    assert list(running.laps.ms) == ["turn_start", "first_event", "first_delta", "answer"]
    assert running.engine_ms is not None


async def test_laps_add_up_to_the_whole():
    laps = Laps()
    for name in ("a", "b", "a"):
        laps.lap(name)
    assert list(laps.ms) == ["a", "b"]
    assert sum(laps.ms.values()) <= laps.since_start_ms() + 0.01


async def test_an_engine_that_closes_fails_its_turns_and_refuses_new_ones():
    turns, called = Turns(), []

    async def drive(running: RunningTurn) -> None:
        called.append(running)
        await hang(running)

    before = [turns.run(a_turn(), drive) for _ in range(2)]
    await asyncio.sleep(0)
    await turns.aclose()
    after = turns.run(a_turn(), drive)
    for running in (*before, after):
        assert isinstance(await error_of(running), ShuttingDown)
        await running.aclose()
    assert called == before
