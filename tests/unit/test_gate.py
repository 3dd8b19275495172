from __future__ import annotations

import asyncio

import pytest

from proxy.engines.gate import Gate
from proxy.errors import EngineBusy

NEVER_S = 1000.0


class Visitor:
    """A task that wants a place, and keeps it until it is told to go."""

    def __init__(self, gate: Gate) -> None:
        self.is_inside, self._may_go = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._visit(gate))

    async def _visit(self, gate: Gate) -> None:
        async with gate.place():
            self.is_inside.set()
            await self._may_go.wait()

    async def inside(self) -> None:
        await asyncio.wait_for(self.is_inside.wait(), 5)

    async def leave(self) -> None:
        self._may_go.set()
        await self.task


async def visitors(gate: Gate, count: int) -> list[Visitor]:
    made = [Visitor(gate) for _ in range(count)]
    await asyncio.sleep(0)
    return made


async def test_there_are_never_more_inside_than_places():
    gate = Gate(2, 10, NEVER_S)
    those = await visitors(gate, 5)
    assert [one.is_inside.is_set() for one in those] == [True, True, False, False, False]
    assert (gate.inside, gate.waiting) == (2, 3)
    for one in those:
        await one.inside()
        await one.leave()
    assert (gate.inside, gate.waiting) == (0, 0)


async def test_who_came_first_is_served_first():
    gate = Gate(1, 10, NEVER_S)
    those = await visitors(gate, 4)
    for one, following in zip(those, [*those[1:], None], strict=True):
        assert one.is_inside.is_set()
        await one.leave()
        if following is not None:
            await following.inside()


async def test_nobody_slips_past_those_who_wait():
    gate = Gate(1, 10, NEVER_S)
    holder, waiting = await visitors(gate, 2)
    holder._may_go.set()
    latecomer = Visitor(gate)
    await waiting.inside()
    assert not latecomer.is_inside.is_set()
    await waiting.leave()
    await latecomer.inside()
    await latecomer.leave()


async def test_a_full_queue_is_busy_at_once():
    gate = Gate(1, 1, NEVER_S)
    holder, waiting = await visitors(gate, 2)
    with pytest.raises(EngineBusy):
        await asyncio.wait_for(gate._enter(), 1)
    await holder.leave()
    await waiting.leave()


async def test_without_a_queue_a_full_gate_is_busy():
    gate = Gate(1, 0, NEVER_S)
    (holder,) = await visitors(gate, 1)
    with pytest.raises(EngineBusy):
        await asyncio.wait_for(gate._enter(), 1)
    await holder.leave()


async def test_who_waits_too_long_is_told_so_and_frees_the_place():
    gate = Gate(1, 1, 0.01)
    (holder,) = await visitors(gate, 1)
    with pytest.raises(EngineBusy):
        await gate._enter()
    assert (gate.inside, gate.waiting) == (1, 0)
    await holder.leave()


async def test_a_waiter_that_is_cancelled_frees_its_place_in_the_queue():
    gate = Gate(1, 1, NEVER_S)
    holder, leaving = await visitors(gate, 2)
    leaving.task.cancel()
    await asyncio.wait({leaving.task})
    assert gate.waiting == 0
    (following,) = await visitors(gate, 1)
    await holder.leave()
    await following.inside()
    await following.leave()


async def test_a_place_handed_to_one_who_is_cancelled_goes_to_the_next():
    gate = Gate(1, 10, NEVER_S)
    holder, leaving, following = await visitors(gate, 3)
    holder._may_go.set()
    await holder.task  # the place is handed over now
    leaving.task.cancel()
    await asyncio.wait({leaving.task})
    await following.inside()
    await following.leave()
    assert (gate.inside, gate.waiting) == (0, 0)


async def test_a_place_handed_to_the_last_one_who_is_cancelled_is_free():
    gate = Gate(1, 10, NEVER_S)
    holder, leaving = await visitors(gate, 2)
    await holder.leave()
    leaving.task.cancel()
    await asyncio.wait({leaving.task})
    assert (gate.inside, gate.waiting) == (0, 0)


async def test_a_failure_inside_gives_the_place_back():
    gate = Gate(1, 0, NEVER_S)
    with pytest.raises(ValueError, match="inside"):
        async with gate.place():
            raise ValueError("inside")
    assert gate.inside == 0
