from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.engines.base import Completed, Failed, Turn
from proxy.engines.gate import GUESS_S, Gate, Pace
from proxy.engines.running import RunningTurn, Turns
from proxy.errors import EngineBusy, EngineTimeout, KeyQueueFull

NEVER_S = 1000.0


@dataclass(frozen=True)
class Request:
    """Who asks for a place, as short as can be: `a2` is the second request of the key a."""

    request_id: str = ""
    max_queued: int | None = None

    @property
    def key(self) -> str:
        return self.request_id[:1]


class Visitor:
    """A task that wants a place, and keeps it until it is told to go."""

    def __init__(self, gate: Gate, request: Request) -> None:
        self.name = request.request_id
        self.is_inside, self._may_go = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._visit(gate, request))

    async def _visit(self, gate: Gate, request: Request) -> None:
        async with gate.place(request):
            self.is_inside.set()
            await self._may_go.wait()

    async def inside(self) -> None:
        await asyncio.wait_for(self.is_inside.wait(), 5)

    def let_go(self) -> None:
        self._may_go.set()

    async def leave(self) -> None:
        self.let_go()
        await self.task

    async def refused(self) -> EngineBusy:
        with pytest.raises(EngineBusy) as caught:
            await asyncio.wait_for(self.task, 5)
        return caught.value

    @property
    def has_ended(self) -> bool:
        return self.task.done()


async def visitors(gate: Gate, names: Iterable[str]) -> list[Visitor]:
    """Let these come, and let each find out whether it is inside, waits or is refused."""
    made = [Visitor(gate, Request(name)) for name in names]
    await settled()
    return made


async def settled() -> None:
    """Let every task run until it waits for something."""
    for _ in range(5):
        await asyncio.sleep(0)


async def served(gate: Gate, those: list[Visitor]) -> list[str]:
    """Let one after the other go; return the names in the order in which they came to a place."""
    names = []
    waiting = list(those)
    while waiting:
        (one,) = [visitor for visitor in waiting if visitor.is_inside.is_set()]
        waiting.remove(one)
        names.append(one.name)
        await one.leave()
        await settled()
    assert (gate.inside, gate.waiting) == (0, 0)
    return names


def names_in(gate: Gate) -> list[str]:
    return [waiter.request_id for waiter in gate.waiters()]


# Places.


async def test_there_are_never_more_inside_than_places():
    gate = Gate(2, 10, NEVER_S)
    those = await visitors(gate, ["a1", "a2", "a3", "a4", "a5"])
    assert [one.is_inside.is_set() for one in those] == [True, True, False, False, False]
    assert (gate.inside, gate.waiting) == (2, 3)
    for one in those:
        await one.inside()
        await one.leave()
    assert (gate.inside, gate.waiting) == (0, 0)


async def test_a_failure_inside_gives_the_place_back():
    gate = Gate(1, 0, NEVER_S)
    with pytest.raises(ValueError, match="inside"):
        async with gate.place(Request("a1")):
            raise ValueError("inside")
    assert gate.inside == 0


async def test_nobody_slips_past_those_who_wait():
    gate = Gate(1, 10, NEVER_S)
    holder, waiting = await visitors(gate, ["a1", "b1"])
    holder.let_go()
    latecomer = Visitor(gate, Request("c1"))
    await waiting.inside()
    assert not latecomer.is_inside.is_set()
    await waiting.leave()
    await latecomer.inside()
    await latecomer.leave()


# The order.


async def test_within_a_key_who_came_first_is_served_first():
    gate = Gate(1, 10, NEVER_S)
    those = await visitors(gate, ["a1", "a2", "a3", "a4"])
    assert await served(gate, those) == ["a1", "a2", "a3", "a4"]


async def test_keys_take_turns():
    gate = Gate(1, 10, NEVER_S)
    those = await visitors(gate, ["a1", "a2", "a3", "a4", "b1", "b2", "c1"])
    assert names_in(gate) == ["a2", "b1", "c1", "a3", "b2", "a4"]
    assert await served(gate, those) == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


async def test_one_request_waits_for_one_round_however_many_another_key_has_sent():
    gate = Gate(2, 500, NEVER_S)
    flood = await visitors(gate, [f"a{number}" for number in range(500)])
    (one,) = await visitors(gate, ["b1"])
    assert gate.waiters()[1].request_id == "b1"
    for holder in flood[:2]:
        await holder.leave()
    await one.inside()
    for visitor in (*flood, one):
        await visitor.leave()


async def test_a_key_that_comes_again_has_its_turn_after_those_that_wait():
    gate = Gate(1, 10, NEVER_S)
    holder, *_ = those = await visitors(gate, ["a1", "b1", "c1"])
    await holder.leave()
    those += await visitors(gate, ["b2"])
    assert names_in(gate) == ["c1", "b2"]
    assert await served(gate, those[1:]) == ["b1", "c1", "b2"]


async def test_waiters_have_positions_and_have_waited(clock: Clock):
    gate = Gate(1, 10, NEVER_S, clock=clock)
    those = await visitors(gate, ["a1", "a2", "a3"])
    clock.now += 1.5
    those += await visitors(gate, ["b1"])
    clock.now += 0.5
    assert [(one.position, one.request_id, one.waited_s) for one in gate.waiters()] == [
        (1, "a2", 2.0),
        (2, "b1", 0.5),
        (3, "a3", 2.0),
    ]
    await served(gate, those)


# The bounds.


async def test_a_full_queue_is_busy_at_once():
    gate = Gate(1, 1, NEVER_S)
    those = await visitors(gate, ["a1", "a2", "a3"])
    assert "queue is full" in (await those.pop().refused()).message
    assert await served(gate, those) == ["a1", "a2"]


async def test_without_a_queue_a_full_gate_is_busy():
    gate = Gate(1, 0, NEVER_S)
    holder, other = await visitors(gate, ["a1", "b1"])
    await other.refused()
    await holder.leave()


async def test_the_newest_of_the_greediest_key_makes_room():
    gate = Gate(1, 3, NEVER_S)
    those = await visitors(gate, ["a1", "a2", "a3", "a4"])
    those += await visitors(gate, ["b1"])
    assert "gave its place" in (await those.pop(3).refused()).message
    assert names_in(gate) == ["a2", "b1", "a3"]
    assert await served(gate, those) == ["a1", "a2", "b1", "a3"]


async def test_who_would_hold_as_much_as_the_greediest_is_refused():
    """Else two keys would push each other out of the queue for ever."""
    gate = Gate(1, 3, NEVER_S)
    those = await visitors(gate, ["c1", "a1", "a2", "b1"])
    (late,) = await visitors(gate, ["b2"])
    await late.refused()
    assert await served(gate, those) == ["c1", "a1", "b1", "a2"]


async def test_places_inside_count_as_held():
    gate = Gate(2, 1, NEVER_S)
    those = await visitors(gate, ["a1", "a2", "a3", "b1"])
    await those.pop(2).refused()
    assert names_in(gate) == ["b1"]
    for one in those:
        await one.inside()
        await one.leave()


async def test_every_key_of_many_gets_its_place_from_a_flood():
    gate = Gate(2, 8, NEVER_S)
    flood = await visitors(gate, [f"a{number}" for number in range(100)])
    others = await visitors(gate, ["b1", "c1", "d1", "e1", "f1", "g1"])
    assert names_in(gate)[:7] == ["a2", "b1", "c1", "d1", "e1", "f1", "g1"]
    flood += await visitors(gate, [f"a{number}" for number in range(100, 200)])
    assert not any(one.has_ended for one in others)
    staying = [one for one in flood if not one.has_ended]
    assert [one.name for one in staying] == ["a0", "a1", "a2", "a3"]
    for one in (*staying, *others):
        one.let_go()
    await asyncio.gather(*(one.task for one in (*staying, *others)))
    for one in flood:
        if one not in staying:
            await one.refused()


async def test_no_more_of_a_key_wait_than_its_cap_says():
    gate = Gate(1, 10, NEVER_S)
    made = [Visitor(gate, Request(f"a{number}", max_queued=2)) for number in range(4)]
    made += await visitors(gate, ["b1"])
    error = await made.pop(3).refused()
    assert isinstance(error, KeyQueueFull)
    assert error.code == "key_concurrency_exceeded"
    assert await served(gate, made) == ["a0", "a1", "b1", "a2"]


async def test_a_cap_of_none_waiting_lets_a_key_in_where_there_is_room():
    gate = Gate(1, 10, NEVER_S)
    first, second = (Visitor(gate, Request(name, max_queued=0)) for name in ("a1", "a2"))
    assert isinstance(await second.refused(), KeyQueueFull)
    await first.leave()


async def test_who_waits_too_long_is_told_so_and_frees_its_place():
    """Fails where the time-out leaves the waiter in its line: the queue would stay full."""
    gate = Gate(1, 1, 0.0)
    holder, late = await visitors(gate, ["a1", "b1"])
    assert "too long" in (await late.refused()).message
    assert (gate.inside, gate.waiting) == (1, 0)
    await holder.leave()


# Leaving, and the races: each of these fails when the line is removed that its docstring names.


@pytest.fixture
async def held() -> AsyncIterator[AsyncExitStack]:
    """Holds a place that is freed within one step of the loop, by `aclose`."""
    async with AsyncExitStack() as stack:
        yield stack


async def test_a_waiter_that_is_cancelled_frees_its_place_in_the_queue():
    """`_give_up` removes it; else the queue would stay full."""
    gate = Gate(1, 1, NEVER_S)
    holder, leaving = await visitors(gate, ["a1", "a2"])
    leaving.task.cancel()
    await asyncio.wait({leaving.task})
    assert gate.waiting == 0
    (following,) = await visitors(gate, ["b1"])
    assert await served(gate, [holder, following]) == ["a1", "b1"]


async def test_a_place_handed_to_one_who_is_cancelled_goes_to_the_next(held: AsyncExitStack):
    """`_give_up` leaves where the verdict was a place; else nobody would ever have it again."""
    gate = Gate(1, 10, NEVER_S)
    await held.enter_async_context(gate.place(Request("a1")))
    leaving, following = await visitors(gate, ["b1", "c1"])
    await held.aclose()  # the place is handed over
    leaving.task.cancel()  # and its new owner cancelled before it has run
    await asyncio.wait({leaving.task})
    await following.inside()
    await following.leave()
    assert (gate.inside, gate.waiting) == (0, 0)


async def test_a_place_handed_to_the_last_one_who_is_cancelled_is_free(held: AsyncExitStack):
    """The same line: without it the gate would count one inside for ever."""
    gate = Gate(1, 10, NEVER_S)
    await held.enter_async_context(gate.place(Request("a1")))
    (leaving,) = await visitors(gate, ["b1"])
    await held.aclose()
    leaving.task.cancel()
    await asyncio.wait({leaving.task})
    assert (gate.inside, gate.waiting) == (0, 0)


async def test_one_cancelled_before_the_place_is_free_is_passed_over(held: AsyncExitStack):
    """`pop_first` passes over those who have left; else the verdict would find a cancelled one."""
    gate = Gate(1, 10, NEVER_S)
    await held.enter_async_context(gate.place(Request("a1")))
    leaving, following, other = await visitors(gate, ["b1", "b2", "c1"])
    leaving.task.cancel()  # it has not run and come to say so
    assert names_in(gate) == ["b2", "c1"]
    await held.aclose()
    await following.inside()  # its key had its turn still
    assert await served(gate, [following, other]) == ["b2", "c1"]


async def test_the_place_in_the_queue_is_free_before_the_cancelled_one_has_run():
    """`_make_room` sweeps; else the newcomer would find the queue full of one who has left."""
    gate = Gate(1, 1, NEVER_S)
    holder, leaving = await visitors(gate, ["a1", "b1"])
    newcomer = Visitor(gate, Request("b2"))
    leaving.task.cancel()
    await settled()
    assert not newcomer.has_ended
    assert await served(gate, [holder, newcomer]) == ["a1", "b2"]


async def test_a_place_handed_over_in_the_moment_of_the_time_out_is_taken(held: AsyncExitStack):
    """`_enter` asks whether the visit has left; else it would refuse one who has a place."""
    gate = Gate(1, 1, 0.0)
    await held.enter_async_context(gate.place(Request("a1")))
    lucky = Visitor(gate, Request("b1"))
    await asyncio.sleep(0)  # it waits, and its time is up in the next round of the loop
    await held.aclose()
    await lucky.inside()
    await lucky.leave()
    assert (gate.inside, gate.waiting) == (0, 0)


async def test_one_who_gave_way_and_is_cancelled_frees_no_place():
    """`_give_up` looks at the verdict; else it would free a place that it never had."""
    gate = Gate(1, 2, NEVER_S)
    holder, staying, leaving = await visitors(gate, ["a1", "a2", "a3"])
    newcomer = Visitor(gate, Request("b1"))
    await asyncio.sleep(0)  # the newcomer has pushed it out, and it has not run since
    leaving.task.cancel()
    await asyncio.wait({leaving.task})
    assert leaving.task.cancelled()
    assert (gate.inside, gate.waiting) == (1, 2)
    assert await served(gate, [holder, staying, newcomer]) == ["a1", "a2", "b1"]


class Desk:
    """Runs turns through a gate as an engine does, and notes which came to a place."""

    def __init__(self, gate: Gate) -> None:
        self.gate, self.began, self._turns = gate, list[str](), Turns()

    def run(self, request_id: str, deadline_s: float) -> RunningTurn:
        deadline = asyncio.get_running_loop().time() + deadline_s
        turn = Turn(request_id, messages=(), cwd="/", deadline=deadline, key=request_id[:1])
        return self._turns.run(turn, self._drive)

    async def _drive(self, running: RunningTurn) -> None:
        async with self.gate.place(running.turn):
            self.began.append(running.turn.request_id)
            running.emit(Completed())


async def test_a_turn_whose_deadline_passes_while_it_waits_frees_its_place(held: AsyncExitStack):
    """`_give_up` removes it, at its deadline as when its caller leaves."""
    desk = Desk(Gate(1, 1, NEVER_S))
    await held.enter_async_context(desk.gate.place(Request("a1")))
    late = desk.run("b1", deadline_s=0.0)
    end = await late.next_event()
    assert isinstance(end, Failed)
    assert isinstance(end.error, EngineTimeout)
    await late.aclose()
    assert (desk.gate.inside, desk.gate.waiting) == (1, 0)
    following = desk.run("c1", NEVER_S)
    await settled()
    assert names_in(desk.gate) == ["c1"]
    await held.aclose()
    assert await following.next_event() == Completed()
    assert desk.began == ["c1"]
    await following.aclose()


async def test_a_place_handed_over_in_the_moment_of_the_deadline_goes_on(held: AsyncExitStack):
    """`_give_up` leaves where the verdict was a place: no turn runs past its deadline."""
    desk = Desk(Gate(1, 2, NEVER_S))
    await held.enter_async_context(desk.gate.place(Request("a1")))
    late, following = desk.run("b1", NEVER_S), desk.run("c1", NEVER_S)
    await settled()
    await held.aclose()
    late.stop(EngineTimeout("Late."))  # what the alarm does, in the round of the handing over
    assert await following.next_event() == Completed()
    assert desk.began == ["c1"]
    for turn in (late, following):
        await turn.aclose()
    assert (desk.gate.inside, desk.gate.waiting) == (0, 0)


# When to come again.


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def hold_in_turn(gate: Gate, clock: Clock, *durations_s: float) -> None:
    """Let turns of these durations pass through the gate, one after the other."""
    for duration_s in durations_s:
        async with gate.place(Request("a0")):
            clock.now += duration_s


async def test_retry_after_is_when_those_who_wait_have_come_to_a_place(clock: Clock):
    gate = Gate(2, 4, NEVER_S, clock=clock)
    await hold_in_turn(gate, clock, 2.9, 3.1, 3.0)
    those = await visitors(gate, [f"a{number}" for number in range(7)])
    assert 5 <= (await those.pop().refused()).retry_after_s <= 7  # 4 waiters, 2 places, 3 seconds
    for one in those:
        one.let_go()
    await asyncio.gather(*(one.task for one in those))


async def test_retry_after_without_a_queue_is_when_a_place_is_free(clock: Clock):
    gate = Gate(2, 0, NEVER_S, clock=clock)
    await hold_in_turn(gate, clock, 20.0)
    holders = await visitors(gate, ["a1"])
    clock.now += 7.0
    holders += await visitors(gate, ["a2"])
    clock.now += 5.0
    (other,) = await visitors(gate, ["b1"])
    assert (await other.refused()).retry_after_s == 20 - 12
    for one in holders:
        one.let_go()
    await asyncio.gather(*(one.task for one in holders))


async def test_turns_that_began_together_are_not_thought_to_end_one_by_one(clock: Clock):
    gate = Gate(100, 4, NEVER_S, clock=clock)
    await hold_in_turn(gate, clock, 10.0)
    those = await visitors(gate, [f"a{number}" for number in range(105)])
    assert (await those.pop().refused()).retry_after_s == 10
    for one in those:
        one.let_go()
    await asyncio.gather(*(one.task for one in those))


def test_a_turn_that_takes_longer_than_usual_may_do_so_for_a_while(clock: Clock):
    pace = Pace(guess_s=3.0, clock=clock)
    pace.begin("one")
    clock.now += 40.0
    assert pace.retry_after_s(ahead=1, places=1) == 37


async def test_retry_after_follows_the_newest_turns(clock: Clock):
    pace = Pace(clock=clock)
    found = []
    for duration_s in [2.0] * 5 + [20.0] * 15:
        pace.begin("one")
        clock.now += duration_s
        pace.end("one")
        found.append(pace.retry_after_s(ahead=1, places=1))
    assert found[:5] == [2] * 5
    assert found == sorted(found)
    assert 19 <= found[-1] <= 20


@pytest.mark.parametrize(
    ("duration_s", "ahead", "places", "retry_after_s"),
    [(0.001, 1, 1, 1), (0.3, 64, 100, 1), (3.0, 4, 2, 6), (3.0, 5, 2, 9), (90.0, 64, 1, 60)],
)
def test_retry_after_is_in_whole_seconds_from_1_to_60(
    clock: Clock, duration_s: float, ahead: int, places: int, retry_after_s: int
):
    pace = Pace(clock=clock)
    pace.begin("one")
    clock.now += duration_s
    pace.end("one")
    assert pace.retry_after_s(ahead, places) == retry_after_s


def test_before_any_turn_has_ended_those_that_run_tell_how_long_they_take(clock: Clock):
    pace = Pace(clock=clock)
    assert pace.hold_s == GUESS_S
    pace.begin("one")
    pace.begin("other")
    clock.now += 2.0
    assert pace.hold_s == GUESS_S
    clock.now += 38.0
    assert pace.hold_s == 40.0
    pace.end("one")
    pace.end("other")
    clock.now += 100.0
    assert pace.hold_s == 40.0


@pytest.mark.parametrize("mean_s", [0.5, 3.0, 12.0])
async def test_retry_after_tracks_what_happens(clock: Clock, mean_s: float):
    """Turns of a random length pass in simulated time; every promise is compared with the truth."""
    chance, gate, ratios = random.Random(1), Gate(2, 4, NEVER_S, clock=clock), list[float]()
    ends: list[tuple[float, int, Visitor]] = []
    waiting: list[Visitor] = []
    count = 0

    async def come() -> Visitor:
        nonlocal count
        count += 1
        (visitor,) = await visitors(gate, [f"a{count}"])
        return visitor

    async def next_end() -> None:
        """Go on to the end of the next turn, and begin the one that gets its place."""
        clock.now, _, over = heapq.heappop(ends)
        await over.leave()
        await settled()
        await begin()

    async def begin() -> None:
        for visitor in [one for one in waiting if one.is_inside.is_set()]:
            waiting.remove(visitor)
            duration_s = mean_s * chance.uniform(0.6, 1.4)
            heapq.heappush(ends, (clock.now + duration_s, int(visitor.name[1:]), visitor))

    for _ in range(20):
        while len(ends) + len(waiting) < 6:
            waiting.append(await come())
            await begin()
        promised_s = (await (await come()).refused()).retry_after_s
        asked_at, those = clock.now, list(waiting)
        while not all(one.is_inside.is_set() for one in those):
            await next_end()
        ratios.append(promised_s / max(clock.now - asked_at, 1.0))
    while ends:
        await next_end()
    learned = ratios[4:]
    assert 0.8 < sum(learned) / len(learned) < 1.7
    assert all(0.5 < ratio < 2.2 for ratio in learned)


# Whatever happens, in whatever order.

KEYS = "abc"
STEPS = st.one_of(
    st.tuples(st.just("come"), st.integers(0, len(KEYS) - 1)),
    st.tuples(st.sampled_from(["leave", "cancel"]), st.integers(0, 30)),
    st.tuples(st.sampled_from(["round", "round", "settle"]), st.just(0)),
)


class Crowd:
    """Visitors that come, leave and are cancelled at any moment, and what must hold of them."""

    def __init__(self) -> None:
        self.gate = Gate(2, 4, NEVER_S)
        self.all: list[Visitor] = []

    def come(self, number: int) -> None:
        name = f"{KEYS[number]}{len(self.all):03}"
        self.all.append(Visitor(self.gate, Request(name)))

    def leave(self, number: int) -> None:
        inside = [one for one in self.all if one.is_inside.is_set() and not one.has_ended]
        if inside:
            inside[number % len(inside)].let_go()

    def cancel(self, number: int) -> None:
        living = [one for one in self.all if not one.has_ended]
        if living:
            living[number % len(living)].task.cancel()

    @property
    def waiting(self) -> list[Visitor]:
        return [one for one in self.all if not one.has_ended and not one.is_inside.is_set()]

    async def step(self, what: str, number: int) -> None:
        if what == "settle":
            await self.settle()
        elif what == "round":  # of the loop: what is on its way stays so for the next step
            await asyncio.sleep(0)
        else:
            getattr(self, what)(number)

    async def settle(self) -> None:
        await settled()
        inside = [one for one in self.all if one.is_inside.is_set() and not one.has_ended]
        gate = self.gate
        assert (gate.inside, gate.waiting) == (len(inside), len(self.waiting))
        assert gate.inside <= gate.capacity
        assert gate.waiting <= gate.max_queue
        assert gate.inside == gate.capacity or not gate.waiting, "a place is free and one waits"
        assert sorted(names_in(gate)) == sorted(one.name for one in self.waiting)
        for key in KEYS:  # first come, first served
            line = [one.name for one in self.waiting if one.name[0] == key]
            assert [name for name in names_in(gate) if name[0] == key] == line

    async def go_home(self) -> None:
        for one in self.all:
            one.let_go()
        await asyncio.gather(*(one.task for one in self.all), return_exceptions=True)
        assert (self.gate.inside, self.gate.waiting) == (0, 0)
        assert not self.gate._inside_of
        for one in self.all:
            if not one.task.cancelled() and one.task.exception() is not None:
                assert isinstance(one.task.exception(), EngineBusy)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_nobody_is_lost_whatever_happens(steps: list[tuple[str, int]]):
    async def play() -> None:
        crowd = Crowd()
        for what, number in steps:
            await crowd.step(what, number)
        await crowd.settle()
        await asyncio.wait_for(crowd.go_home(), 5)

    asyncio.run(play())
