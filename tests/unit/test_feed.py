"""The events of some turns, for every reader from the first one on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from proxy.engines.base import Completed, Event, Failed, TextDelta, Turn
from proxy.engines.running import RunningTurn
from proxy.errors import TurnStopped
from proxy.feed import Feed, Reader


class Turns:
    """Two turns whose events the test emits."""

    def __init__(self) -> None:
        self.cleaned_up: list[RunningTurn] = []
        self.over = asyncio.Event()

        async def hang(running: RunningTurn) -> None:
            try:
                await self.over.wait()
            finally:
                self.cleaned_up.append(running)

        deadline = asyncio.get_running_loop().time() + 10
        self.turns = [RunningTurn(Turn(name, (), "/", deadline), hang) for name in "ab"]
        self.feed = Feed(self.turns)


@pytest.fixture
async def playing() -> AsyncIterator[Turns]:
    found = Turns()
    await asyncio.sleep(0)  # the turns begin
    yield found
    found.over.set()
    await asyncio.gather(*(turn.aclose() for turn in found.turns))


async def read(reader: Reader, count: int) -> list[tuple[int, Event] | None]:
    async with asyncio.timeout(5):
        return [await reader.next_event() for _ in range(count)]


async def test_events_come_in_order_with_the_number_of_their_turn(playing: Turns) -> None:
    reader = playing.feed.join()
    playing.turns[0].emit(TextDelta("a"))
    assert await read(reader, 1) == [(0, TextDelta("a"))]
    playing.turns[1].emit(TextDelta("b"))
    playing.turns[0].emit(Completed())
    assert sorted(await read(reader, 2), key=str) == [(0, Completed()), (1, TextDelta("b"))]


async def test_event_wakes_a_reader_that_waits(playing: Turns) -> None:
    readers = [playing.feed.join() for _ in range(3)]
    waiting = [asyncio.create_task(read(reader, 1)) for reader in readers]
    await asyncio.sleep(0)
    playing.turns[1].emit(TextDelta("b"))
    assert await asyncio.gather(*waiting) == [[(1, TextDelta("b"))]] * 3


async def test_late_reader_gets_everything_from_the_start(playing: Turns) -> None:
    first = playing.feed.join()
    playing.turns[0].emit(TextDelta("a"))
    await read(first, 1)
    late = playing.feed.join()
    playing.turns[0].emit(TextDelta("b"))
    assert await read(late, 2) == [(0, TextDelta("a")), (0, TextDelta("b"))]
    assert await read(first, 1) == [(0, TextDelta("b"))]


async def test_no_event_within_the_patience_is_none_and_loses_none(playing: Turns) -> None:
    reader = playing.feed.join()
    assert await reader.next_event(0) is None
    assert await reader.next_event(0.001) is None
    playing.turns[0].emit(TextDelta("a"))
    assert await reader.next_event(0) == (0, TextDelta("a"))


async def test_reader_that_is_cancelled_loses_no_event(playing: Turns) -> None:
    reader = playing.feed.join()
    reading = asyncio.create_task(reader.next_event())
    await asyncio.sleep(0)
    playing.turns[0].emit(TextDelta("kept"))
    reading.cancel()
    await asyncio.wait({reading})
    assert await read(reader, 1) == [(0, TextDelta("kept"))]


async def test_first_to_leave_cuts_nothing_and_last_ends_the_turns(playing: Turns) -> None:
    first, second = playing.feed.join(), playing.feed.join()
    await first.aclose()
    await first.aclose()
    assert playing.feed.is_running
    assert playing.cleaned_up == []
    await second.aclose()
    assert playing.cleaned_up == playing.turns
    assert not playing.feed.is_running


async def test_feed_runs_until_its_last_turn_has_ended(playing: Turns) -> None:
    playing.feed.join()
    playing.turns[0].emit(Completed())
    assert playing.feed.is_running
    playing.turns[1].emit(Completed())
    assert not playing.feed.is_running


async def test_stopped_turn_ends_and_the_others_go_on(playing: Turns) -> None:
    reader = playing.feed.join()
    playing.feed.stop(0)
    playing.feed.stop(0)
    ((index, event),) = [found for found in await read(reader, 1) if found]
    assert index == 0
    assert isinstance(event, Failed)
    assert isinstance(event.error, TurnStopped)
    assert not playing.turns[1].is_over
