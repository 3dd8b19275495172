"""What every engine promises, on every engine. Where one cannot be asked, the list says why."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from functools import partial
from typing import Any

import pytest

from proxy.engines import worker as worker_module
from proxy.engines.base import (
    CommandFinished,
    CommandStarted,
    Completed,
    Failed,
    MessageDone,
    ReasoningDelta,
    TextDelta,
    TurnStarted,
    UsageReported,
)
from proxy.errors import (
    ContextTooLong,
    EngineBusy,
    EngineProtocolError,
    EngineTimeout,
    EngineUnavailable,
    RateLimited,
    ShuttingDown,
    TurnFailed,
    TurnStopped,
    WorkerDied,
)
from tests.contract.engines.bench import (
    USAGE,
    WAIT_S,
    Bench,
    end_of,
    error_of_turn,
    events_of,
    first,
    survivors,
    text_of,
    until,
)

# The scripted engine has no process that could die, flood or be left behind, and no queue.
ALL = ["scripted", "app-server", "exec"]
CODEX = ["app-server", "exec"]
# Only app-server speaks both ways, has deltas, and shares one process among turns.
APP_SERVER = ["app-server"]
EXEC = ["exec"]

# Far below every deadline here, far above what a busy machine needs.
AT_ONCE_S = 8.0


def on(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("bench", names, indirect=True)


class Within:
    """The block ends within so many seconds."""

    def __init__(self, limit_s: float = AT_ONCE_S) -> None:
        self.limit_s = limit_s

    def __enter__(self) -> None:
        self.began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        assert time.monotonic() - self.began < self.limit_s


# The answer.


@on(*ALL)
async def test_a_turn_gives_its_text_in_order_and_completes(bench: Bench):
    events = await events_of(bench.ask(bench.engine(), "say: one two three"))
    assert text_of(events) == "one two three"
    assert events[0] == TurnStarted()
    assert events[-1] == Completed()
    assert MessageDone("one two three") in events


@on(*APP_SERVER, "scripted")  # exec gives whole messages: Codex has no others there
async def test_deltas_come_one_by_one(bench: Bench):
    events = await events_of(bench.ask(bench.engine(), "say: one two three"))
    deltas = [event.text for event in events if isinstance(event, TextDelta)]
    assert deltas == ["one ", "two ", "three"]


@on(*ALL)
async def test_usage_is_what_codex_reported(bench: Bench):
    running = bench.ask(bench.engine(), "say: hi")
    assert UsageReported(USAGE) in await events_of(running)
    assert running.usage == USAGE


@on(*ALL)
async def test_a_command_is_told_when_it_starts_and_when_it_ends(bench: Bench):
    events = await events_of(bench.ask(bench.engine(), "command: ls\nsay: done"))
    (started,) = [event for event in events if isinstance(event, CommandStarted)]
    (finished,) = [event for event in events if isinstance(event, CommandFinished)]
    assert started.command == finished.command == "ls"
    assert (finished.exit_code, finished.output) == (0, "out")
    assert events.index(started) < events.index(finished)


@on(*ALL)
async def test_commentary_is_no_part_of_the_answer(bench: Bench):
    events = await events_of(bench.ask(bench.engine(), "remark: looking\nsay: found"))
    assert text_of(events) == "found"
    assert MessageDone("looking", is_commentary=True) in events


@on(*ALL)
async def test_reasoning_is_no_part_of_the_answer(bench: Bench):
    events = await events_of(bench.ask(bench.engine(), "think: hm\nsay: yes"))
    assert ReasoningDelta("hm") in events
    assert text_of(events) == "yes"


@on(*ALL)
async def test_phases_worker_version_and_model_are_known_afterwards(bench: Bench):
    running = bench.ask(bench.engine(), "say: hi")
    await events_of(running)
    start = {"exec": {"process_spawn"}}.get(bench.name, {"worker_start", "thread_start"})
    phases = {"queue_wait", "turn_start", "first_event", "first_delta", "answer"} | start
    assert phases <= running.laps.ms.keys()
    assert running.engine_ms is not None
    assert sum(running.laps.ms.values()) == pytest.approx(running.engine_ms, abs=5)
    assert running.worker
    assert running.codex_version
    assert running.served_model in ("fake-1", "scripted-1")


# The end.


@on(*ALL)
@pytest.mark.parametrize("text", ["say: hi", 'fail: {"message": "no"}', "hang"])
async def test_a_turn_has_one_end_and_nothing_after_it(bench: Bench, text: str):
    running = bench.ask(bench.engine(), text, deadline_s=WAIT_S if text != "hang" else 0.5)
    events = await events_of(running)
    ends = [event for event in events if isinstance(event, Completed | Failed)]
    assert ends == events[-1:]
    await running.aclose()
    running.emit(TextDelta("late"))
    with pytest.raises(RuntimeError):
        await running.next_event(0)


@on(*ALL)
async def test_a_turn_that_keeps_chatting_ends_at_its_deadline(bench: Bench):
    engine = bench.engine()
    await engine.inspect()
    running = bench.ask(engine, "think: hm\nchatter", deadline_s=0.8)
    with Within(0.8 + AT_ONCE_S):
        error = await error_of_turn(running)
    assert isinstance(error, EngineTimeout)
    assert asyncio.get_running_loop().time() >= running.turn.deadline


@on(*ALL)
async def test_a_turn_whose_deadline_has_passed_times_out(bench: Bench):
    error = await error_of_turn(bench.ask(bench.engine(), "hang", deadline_s=-1))
    assert isinstance(error, EngineTimeout)


@on(*ALL)
async def test_a_failure_is_typed(bench: Bench):
    message = "exceeded retry limit, last status: 429 Too Many Requests"
    text = f"fail: {json.dumps({'message': message})}"
    assert isinstance(await error_of_turn(bench.ask(bench.engine(), text)), RateLimited)


@on(*ALL)
async def test_a_failure_tells_no_path_and_no_address(bench: Bench):
    message = "cannot read /home/codex/auth.json from https://models.example/v1"
    text = f"fail: {json.dumps({'message': message})}"
    error = await error_of_turn(bench.ask(bench.engine(), text))
    assert isinstance(error, TurnFailed)
    assert "codex/auth" not in str(error)
    assert "example" not in str(error)


# Leaving.


@on(*ALL)
async def test_closing_in_the_middle_stops_the_turn(bench: Bench):
    running = bench.ask(bench.engine(), "think: hm\nhang")
    await first(running, ReasoningDelta)
    with Within():
        await running.aclose()
    assert isinstance(await error_of_turn(running), TurnStopped)


@on(*ALL)
async def test_closing_at_once_still_gives_an_end(bench: Bench):
    running = bench.ask(bench.engine(), "hang")
    await running.aclose()
    assert isinstance(await error_of_turn(running), TurnStopped)


@on(*ALL)
async def test_closing_before_codex_has_started_leaves_nothing(bench: Bench):
    running = bench.ask(bench.engine(), "hang")
    await asyncio.sleep(0)
    await running.aclose()
    assert isinstance(await error_of_turn(running), TurnStopped)


@on(*ALL)
async def test_a_closed_turn_does_not_disturb_the_next_one(bench: Bench):
    engine = bench.engine()
    leaving = bench.ask(engine, "think: hm\nhang")
    await first(leaving, ReasoningDelta)
    await leaving.aclose()
    assert text_of(await events_of(bench.ask(engine, "say: still here"))) == "still here"


@on(*ALL)
async def test_closing_twice_at_once_waits_for_the_same_clean_up(bench: Bench):
    running = bench.ask(bench.engine(), "think: hm\nhang")
    await first(running, ReasoningDelta)
    await asyncio.gather(running.aclose(), running.aclose())
    assert isinstance(await error_of_turn(running), TurnStopped)


@on(*ALL)
async def test_who_cancels_the_close_does_not_cut_the_clean_up_short(bench: Bench):
    running = bench.ask(bench.engine(), "think: hm\nhang")
    await first(running, ReasoningDelta)
    over = asyncio.Event()
    running.when_over(over.set)
    closing = asyncio.create_task(running.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait_for(over.wait(), WAIT_S)
    assert isinstance(await error_of_turn(running), TurnStopped)


@on(*EXEC)
async def test_closing_an_exec_turn_ends_its_process(bench: Bench):
    running = bench.ask(bench.engine(), "think: hm\nhang")
    await first(running, ReasoningDelta)
    await running.aclose()
    assert survivors(record["pid"] for record in bench.fake.starts("exec")) == set()


@on(*CODEX)
async def test_children_that_ignore_term_are_gone_after_the_close(bench: Bench):
    engine = bench.engine()
    running = bench.ask(engine, "ignore-term\ngrandchild\nthink: hm\nhang")
    await first(running, ReasoningDelta)
    pids = bench.fake.pids()
    assert len(survivors(pids)) >= 2
    with Within():
        await running.aclose()
        await engine.aclose()
    assert survivors(pids) == set()


@on(*CODEX)
async def test_a_grandchild_is_gone_when_codex_dies(bench: Bench):
    engine = bench.engine()
    error = await error_of_turn(bench.ask(engine, "ignore-term\ngrandchild\ndie"))
    assert isinstance(error, WorkerDied)
    pids = bench.fake.pids()
    await until(lambda: survivors(pids) == set())


@on(*APP_SERVER)
async def test_closing_interrupts_the_turn_and_unsubscribes(bench: Bench):
    engine = bench.engine()
    running = bench.ask(engine, "think: hm\nhang")
    await first(running, ReasoningDelta)
    await running.aclose()
    (interrupt,), (unsubscribe,) = (
        bench.fake.got("turn/interrupt"),
        bench.fake.got("thread/unsubscribe"),
    )
    assert interrupt["threadId"] == unsubscribe["threadId"]
    assert interrupt["turnId"]
    await events_of(bench.ask(engine, "say: hi"))
    assert len(bench.fake.starts("app-server")) == 1


@on(*APP_SERVER)
async def test_closing_an_agent_turn_ends_its_background_commands(bench: Bench):
    running = bench.ask(bench.engine(), "think: hm\nhang", sandbox="workspace-write")
    await first(running, ReasoningDelta)
    await running.aclose()
    assert len(bench.fake.got("thread/backgroundTerminals/clean")) == 1


@on(*APP_SERVER)
async def test_closing_while_the_thread_starts_lets_go_of_the_thread(bench: Bench):
    engine = bench.engine()
    bench.fake.allow("hold-thread-start")
    running = bench.ask(engine, "hang")
    await until(lambda: bench.fake.got("thread/start"))
    await running.aclose()
    bench.fake.allow("go-thread-start")
    await until(lambda: len(bench.fake.got("thread/unsubscribe")) == 1)
    assert bench.fake.got("turn/start") == []
    await events_of(bench.ask(engine, "say: hi"))
    assert len(bench.fake.starts("app-server")) == 1


@on(*APP_SERVER)
@pytest.mark.usefixtures("impatient")
async def test_worker_that_hangs_while_threads_start_gets_no_more_turns(bench: Bench):
    """Seen with a stopped process: each deadline passed in a thread's start, and so did the next."""
    engine = bench.engine()
    await events_of(bench.ask(engine, "say: hi"))
    (hanging,) = bench.fake.starts("app-server")
    os.kill(hanging["pid"], signal.SIGSTOP)
    async with asyncio.timeout(WAIT_S):
        while len(bench.fake.starts("app-server")) == 1:
            late = await events_of(bench.ask(engine, "say: hi", deadline_s=0.3))
            assert isinstance(late[-1], Failed | Completed)
    answered = await events_of(bench.ask(engine, "say: hi"))
    assert isinstance(answered[-1], Completed)


@on(*APP_SERVER)
async def test_closing_while_the_turn_starts_interrupts_it(bench: Bench):
    engine = bench.engine()
    running = bench.ask(engine, "hold-turn-start: go\nhang")
    await until(lambda: bench.fake.got("turn/start"))
    closing = asyncio.create_task(running.aclose())
    await asyncio.sleep(0)
    bench.fake.allow("go")
    await closing
    assert len(bench.fake.got("turn/interrupt")) == 1
    await events_of(bench.ask(engine, "say: hi"))
    assert len(bench.fake.starts("app-server")) == 1


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on a worker's clean-up, shortened."""
    monkeypatch.setattr(worker_module, "CLEAN_UP_BOUND_S", 0.2)


@on(*APP_SERVER)
@pytest.mark.usefixtures("impatient")
async def test_a_worker_that_never_answers_a_start_is_replaced(bench: Bench):
    engine = bench.engine()
    running = bench.ask(engine, "mute-turn-start\nhang")
    await until(lambda: bench.fake.got("turn/start"))
    with Within():
        await running.aclose()
    await events_of(bench.ask(engine, "say: hi"))
    assert len(bench.fake.starts("app-server")) == 2


@on(*APP_SERVER)
@pytest.mark.usefixtures("impatient")
async def test_a_worker_that_does_not_acknowledge_an_interrupt_is_replaced(bench: Bench):
    engine = bench.engine()
    running = bench.ask(engine, "deaf\nthink: hm\nhang")
    await first(running, ReasoningDelta)
    with Within():
        await running.aclose()
    assert text_of(await events_of(bench.ask(engine, "say: hi"))) == "hi"
    first_worker, _ = bench.fake.starts("app-server")
    await until(lambda: survivors({first_worker["pid"]}) == set())


@on(*APP_SERVER)
@pytest.mark.usefixtures("impatient")
async def test_a_retired_worker_finishes_the_turns_that_run_on_it(bench: Bench):
    engine = bench.engine()
    staying = bench.ask(engine, "think: hm\nwait: go\nsay: finished")
    await first(staying, ReasoningDelta)
    deaf = bench.ask(engine, "deaf\nthink: hm\nhang")
    await first(deaf, ReasoningDelta)
    await deaf.aclose()
    await events_of(bench.ask(engine, "say: hi"))
    bench.fake.allow("go")
    assert text_of(await events_of(staying)) == "finished"
    assert len(bench.fake.starts("app-server")) == 2


@on(*APP_SERVER)
async def test_leaving_during_the_clean_up_does_not_cut_it_short(bench: Bench):
    engine = bench.engine()
    await engine.inspect()
    running = bench.ask(engine, "hold-turn-start: go\nthink: hm\nhang", deadline_s=1.0)
    await until(lambda: bench.fake.got("turn/start"))
    deadline = running.turn.deadline - asyncio.get_running_loop().time()
    await asyncio.sleep(deadline + 0.2)  # the deadline has passed and the clean-up waits
    closing = asyncio.create_task(running.aclose())
    await asyncio.sleep(0)
    bench.fake.allow("go")
    await closing
    assert isinstance(await error_of_turn(running), EngineTimeout)
    assert len(bench.fake.got("turn/interrupt")) == 1
    assert len(bench.fake.got("thread/unsubscribe")) == 1


# Death.


@on(*CODEX)
async def test_codex_dying_in_the_middle_ends_the_turn_at_once(bench: Bench):
    engine = bench.engine()
    await engine.inspect()
    with Within():
        error = await error_of_turn(bench.ask(engine, "think: hm\ndie"))
    assert isinstance(error, WorkerDied)
    assert text_of(await events_of(bench.ask(engine, "say: again"))) == "again"


@on(*CODEX)
async def test_codex_dying_in_the_middle_of_a_line_is_a_death_too(bench: Bench):
    error = await error_of_turn(bench.ask(bench.engine(), "think: hm\ndie-mid-line"))
    assert isinstance(error, WorkerDied)


@on(*CODEX)
async def test_codex_giving_up_in_the_middle_is_a_death_too(bench: Bench):
    error = await error_of_turn(bench.ask(bench.engine(), "think: hm\nexit: 101"))
    assert isinstance(error, WorkerDied)


@on(*CODEX)
async def test_a_dead_worker_with_a_grandchild_on_its_pipe_is_noticed(bench: Bench):
    with Within():
        error = await error_of_turn(bench.ask(bench.engine(), "grandchild\nthink: hm\ndie"))
    assert isinstance(error, WorkerDied)


@on(*EXEC)  # app-server has read its configuration long before a turn
async def test_exec_that_refuses_to_start_is_unavailable(bench: Bench):
    engine = bench.engine()
    await engine.inspect()
    await events_of(bench.ask(engine, "say: hi"))
    bench.fake.allow("refuse")
    error = await error_of_turn(bench.ask(engine, "say: hi"))
    assert type(error) is EngineUnavailable


@on(*APP_SERVER)
async def test_an_idle_worker_that_died_is_replaced_before_the_next_turn(bench: Bench):
    engine = bench.engine()
    await events_of(bench.ask(engine, "say: hi\ngrandchild"))
    await error_of_turn(bench.ask(engine, "say: so far\ndie"))
    assert text_of(await events_of(bench.ask(engine, "say: again"))) == "again"
    assert len(bench.fake.starts("app-server")) == 2


@on(*CODEX)
async def test_a_turn_whose_process_dies_before_a_word_is_tried_once_more(bench: Bench):
    """Without the second try the caller would pay for a death that it had no part in."""
    running = bench.ask(bench.engine(), "die-first: once\nsay: hi")
    events = await events_of(running)
    assert text_of(events) == "hi"
    assert events[-1] == Completed()
    assert len([event for event in events if isinstance(event, Failed)]) == 0


@on(*CODEX)
async def test_it_is_tried_no_third_time(bench: Bench):
    error = await error_of_turn(bench.ask(bench.engine(), "die"))
    assert isinstance(error, WorkerDied)
    assert len(bench.fake.turns()) == 2


@on(*CODEX)
@pytest.mark.parametrize("verb", ["say: hi", "think: hm", "command: rm it"])
async def test_a_turn_that_has_produced_something_is_never_run_twice(bench: Bench, verb: str):
    error = await error_of_turn(bench.ask(bench.engine(), f"{verb}\ndie"))
    assert isinstance(error, WorkerDied)
    assert len(bench.fake.turns()) == 1


@on(*CODEX)
async def test_an_agent_that_may_have_acted_is_never_run_twice(bench: Bench):
    """Codex tells of a command late: one that killed its own Codex would run again."""
    error = await error_of_turn(bench.ask(bench.engine(), "die", sandbox="workspace-write"))
    assert isinstance(error, WorkerDied)
    assert len(bench.fake.turns()) == 1


@on(*APP_SERVER)
async def test_the_second_try_is_bound_by_the_same_deadline(bench: Bench):
    running = bench.ask(bench.engine(), "die-first: once\nhang", deadline_s=1.0)
    assert isinstance(await error_of_turn(running), EngineTimeout)


@on(*APP_SERVER)
async def test_the_next_turn_takes_a_thread_that_was_opened_ahead(bench: Bench):
    engine = bench.engine(spare_threads=2)
    await events_of(bench.ask(engine, "say: warm", model="fake-1"))
    await until(lambda: len(bench.fake.got("thread/start")) == 3)
    running = bench.ask(engine, "say: hi", system="be short", model="fake-1")
    assert text_of(await events_of(running)) == "hi"
    opened_for_it = bench.fake.got("turn/start")[-1]["threadId"]
    assert opened_for_it.endswith(("-1", "-2")), "one of those that the start has prepared"
    assert running.served_model == "fake-1"


@on(*APP_SERVER)
async def test_a_worn_worker_is_replaced_and_its_turn_is_not_cut(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(worker_module, "WEIGHING_EVERY_S", 0.0)
    engine = bench.engine(worker_max_mb=0)
    long = bench.ask(engine, "wait: go\nsay: whole")
    await until(lambda: bench.fake.turns())
    await events_of(bench.ask(engine, "say: hi"))
    await until(lambda: len(bench.fake.starts("app-server")) == 2)
    bench.fake.allow("go")
    assert text_of(await events_of(long)) == "whole"


@on(*APP_SERVER)
async def test_a_worker_that_answers_no_question_is_not_ready_and_is_replaced(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(worker_module, "INSPECTION_BOUND_S", 0.2)
    engine = bench.engine()
    await engine.inspect()
    (record,) = bench.fake.starts("app-server")
    os.kill(record["pid"], signal.SIGSTOP)
    with pytest.raises(EngineUnavailable):
        await engine.inspect()
    assert (await engine.inspect()).codex_version
    assert len(bench.fake.starts("app-server")) == 2


@on(*CODEX)
async def test_a_codex_without_a_known_catalogue_says_that_it_is_not_lean(bench: Bench):
    assert (await bench.engine().inspect()).is_lean
    assert not (await bench.engine(env={"FAKE_NO_CATALOGUE": "1"}).inspect()).is_lean
    as_wanted = bench.engine(env={"FAKE_NO_CATALOGUE": "1"}, is_lean=False)
    assert (await as_wanted.inspect()).is_lean


# Strange talk.


@on(*CODEX)
@pytest.mark.parametrize("size", [1_000_000, 8_000_000])
async def test_a_long_line_arrives_whole(bench: Bench, size: int):
    events = await events_of(bench.ask(bench.engine(), f"long-line: {size}"))
    assert text_of(events) == "x" * size
    assert events[-1] == Completed()


@on(*CODEX)
async def test_a_flood_on_stderr_neither_blocks_nor_fills_the_memory(bench: Bench):
    events = await events_of(bench.ask(bench.engine(), "flood-stderr: 4000000\nsay: dry"))
    assert text_of(events) == "dry"


@on(*CODEX)
async def test_unknown_frames_are_passed_over(bench: Bench):
    events = await events_of(bench.ask(bench.engine(), "unknown-frames\nsay: fine"))
    assert text_of(events) == "fine"
    assert events[-1] == Completed()


@on(*CODEX)
async def test_a_known_frame_without_its_fields_fails_this_turn_only(bench: Bench):
    engine = bench.engine()
    error = await error_of_turn(bench.ask(engine, "garble\nhang"))
    assert isinstance(error, EngineProtocolError)
    assert text_of(await events_of(bench.ask(engine, "say: fine"))) == "fine"


@on(*CODEX)
async def test_an_answer_that_begins_again_is_given_once(bench: Bench):
    events = await events_of(bench.ask(bench.engine(), "replay\nsay: the whole answer"))
    assert MessageDone("the whole answer") in events
    restarts = [i for i, event in enumerate(events) if type(event).__name__ == "AnswerRestarted"]
    assert text_of(events[restarts[0] if restarts else 0 :]) == "the whole answer"


@on(*APP_SERVER)
async def test_an_unasked_approval_is_declined_and_the_turn_goes_on(bench: Bench):
    events = await events_of(bench.ask(bench.engine(), "server-request\nsay: on"))
    assert text_of(events).split() == ["decline", "on"]


@on(*APP_SERVER)
async def test_an_answer_to_turn_start_that_comes_last_loses_nothing(bench: Bench):
    events = await events_of(bench.ask(bench.engine(), "late-turn-start\nsay: one two"))
    assert text_of(events) == "one two"
    assert events[0] == TurnStarted()
    assert events[-1] == Completed()


@on(*APP_SERVER)
async def test_an_overloaded_start_is_tried_again(bench: Bench):
    engine = bench.engine(env={"FAKE_OVERLOADED": "3"})
    assert text_of(await events_of(bench.ask(engine, "say: at last"))) == "at last"
    assert len(bench.fake.got("thread/start")) == 4


@on(*APP_SERVER)
async def test_a_thread_that_codex_refuses_is_a_failed_turn_with_a_safe_message(bench: Bench):
    engine = bench.engine()
    error = await error_of_turn(bench.ask(engine, "say: hi", model="refused"))
    assert isinstance(error, TurnFailed)
    assert "secret" not in str(error)
    await events_of(bench.ask(engine, "say: hi"))
    assert len(bench.fake.starts("app-server")) == 1


# Several turns at once.


@on(*CODEX)
async def test_turns_at_the_same_time_do_not_mix(bench: Bench):
    engine = bench.engine()
    await engine.inspect()
    turns = [bench.ask(engine, f"think: {n}\nwait: go\nsay: answer {n}") for n in range(4)]
    for turn in turns:
        await first(turn, ReasoningDelta)
    bench.fake.allow("go")
    texts = [text_of(events) for events in await asyncio.gather(*map(events_of, turns))]
    assert texts == [f"answer {n}" for n in range(4)]
    assert len(bench.fake.starts("app-server")) == 1


@on(*CODEX)
@pytest.mark.parametrize("end", ['fail: {"message": "no"}', "garble\nhang", "leave"])
async def test_the_end_of_one_turn_does_not_touch_the_others(bench: Bench, end: str):
    engine = bench.engine()
    staying = bench.ask(engine, "think: hm\nwait: go\nsay: unharmed")
    await first(staying, ReasoningDelta)
    other = bench.ask(engine, f"think: hm\n{end if end != 'leave' else 'hang'}")
    await first(other, ReasoningDelta)
    if end == "leave":
        await other.aclose()
    assert isinstance(await end_of(other), Failed)
    bench.fake.allow("go")
    assert text_of(await events_of(staying)) == "unharmed"
    assert len(bench.fake.starts("app-server")) == 1


@on(*APP_SERVER)
async def test_the_death_of_a_worker_ends_every_turn_on_it_at_once(bench: Bench):
    engine = bench.engine()
    turns = [bench.ask(engine, "think: hm\nhang") for _ in range(3)]
    for turn in turns:
        await first(turn, ReasoningDelta)
    with Within():
        errors = await asyncio.gather(
            error_of_turn(bench.ask(engine, "die")), *map(error_of_turn, turns)
        )
    assert {type(error) for error in errors} == {WorkerDied}


@on(*APP_SERVER)
async def test_there_are_never_more_workers_than_configured(bench: Bench):
    engine = bench.engine(workers=2)
    turns = [bench.ask(engine, "think: hm\nwait: go\nsay: hi") for _ in range(6)]
    for turn in turns:
        await first(turn, ReasoningDelta)
    bench.fake.allow("go")
    await asyncio.gather(*map(events_of, turns))
    assert len(bench.fake.starts("app-server")) == 2


# The queue.

NARROW: dict[str, Any] = {"workers": 1, "turns_per_worker": 1, "max_concurrency": 1}


@on(*CODEX)
async def test_a_full_queue_is_busy_at_once(bench: Bench):
    engine = bench.engine(**NARROW, max_queue_size=1)
    holder = bench.ask(engine, "think: hm\nhang")
    await first(holder, ReasoningDelta)
    bench.ask(engine, "hang")
    await asyncio.sleep(0)
    error = await error_of_turn(bench.ask(engine, "hang"))
    assert isinstance(error, EngineBusy)
    assert error.retry_after_s


@on(*CODEX)
async def test_who_waits_too_long_is_told_that_it_is_busy(bench: Bench):
    engine = bench.engine(**NARROW, queue_timeout_s=0.05)
    holder = bench.ask(engine, "think: hm\nhang")
    await first(holder, ReasoningDelta)
    assert isinstance(await error_of_turn(bench.ask(engine, "say: hi")), EngineBusy)


@on(*CODEX)
async def test_a_waiter_that_leaves_frees_its_place(bench: Bench):
    engine = bench.engine(**NARROW, max_queue_size=1)
    holder = bench.ask(engine, "think: hm\nhang")
    await first(holder, ReasoningDelta)
    leaving = bench.ask(engine, "hang")
    await asyncio.sleep(0)
    await leaving.aclose()
    next_one = bench.ask(engine, "say: my turn")
    await asyncio.sleep(0)
    await holder.aclose()
    assert text_of(await events_of(next_one)) == "my turn"


@on(*CODEX)
async def test_the_deadline_covers_the_wait_in_the_queue(bench: Bench):
    engine = bench.engine(**NARROW)
    holder = bench.ask(engine, "think: hm\nhang")
    await first(holder, ReasoningDelta)
    error = await error_of_turn(bench.ask(engine, "say: hi", deadline_s=0.1))
    assert isinstance(error, EngineTimeout)


@on(*CODEX)
async def test_the_queue_is_fair_between_keys(bench: Bench):
    engine = bench.engine(**NARROW)
    holder = bench.ask(engine, "think: hm\nhang", key="a")
    await first(holder, ReasoningDelta)
    order: list[str] = []
    turns = [bench.ask(engine, "say: hi", key=key) for key in ("a", "a", "a", "b")]
    for turn in turns:
        turn.when_over(partial(order.append, turn.turn.key))
    await asyncio.sleep(0)
    await holder.aclose()
    await asyncio.gather(*map(events_of, turns))
    await asyncio.gather(*(turn.aclose() for turn in turns))
    assert order == ["a", "b", "a", "a"]


# Start and shutdown.


@on(*CODEX)
async def test_inspect_tells_version_catalogue_and_login(bench: Bench):
    inspection = await bench.engine().inspect()
    assert inspection.codex_version == "0.163.0"
    assert [model.id for model in inspection.models] == ["fake-1", "fake-2"]
    assert inspection.models[0].efforts == ("low", "high")
    assert [model.is_default for model in inspection.models] == [True, False]
    assert inspection.account == "apiKey"
    assert inspection.can_ask


@on(*CODEX)
async def test_inspect_tells_that_nobody_is_logged_in(bench: Bench):
    inspection = await bench.engine(env={"FAKE_LOGGED_OUT": "1"}).inspect()
    assert inspection.account is None
    assert not inspection.can_ask


@on(*CODEX)
async def test_a_codex_that_cannot_start_is_unavailable_and_works_once_it_can(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("proxy.engines.pool.FIRST_BACKOFF_S", 0.1)
    engine = bench.engine(workers=2)
    bench.fake.allow("refuse")
    for _ in range(3):
        error = await error_of_turn(bench.ask(engine, "say: hi"))
        assert type(error) is EngineUnavailable
        assert str(bench.fake.folder) not in str(error)
    (bench.fake.folder / "refuse").unlink()

    async with asyncio.timeout(WAIT_S):
        while isinstance(await end_of(bench.ask(engine, "say: hi")), Failed):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    turns = [bench.ask(engine, "think: hm\nwait: go\nsay: hi") for _ in range(3)]
    for turn in turns:
        await first(turn, ReasoningDelta)
    bench.fake.allow("go")
    assert {await end_of(turn) for turn in turns} == {Completed()}


@on(*APP_SERVER)
async def test_a_failed_start_is_not_tried_again_before_its_backoff(bench: Bench):
    engine = bench.engine()
    bench.fake.allow("refuse")
    for _ in range(3):
        await error_of_turn(bench.ask(engine, "say: hi"))
    assert len(bench.fake.starts("app-server")) == 1


@on(*CODEX)
async def test_a_codex_that_is_not_there_is_unavailable(bench: Bench):
    engine = bench.engine(codex_bin=str(bench.fake.folder / "missing"))
    assert type(await error_of_turn(bench.ask(engine, "say: hi"))) is EngineUnavailable


@on(*CODEX)
async def test_a_codex_that_never_shakes_hands_is_unavailable(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(worker_module, "HANDSHAKE_BOUND_S", 0.3)
    engine = bench.engine(env={"FAKE_MUTE": "1"})
    assert type(await error_of_turn(bench.ask(engine, "say: hi"))) is EngineUnavailable


@on(*CODEX)
async def test_without_a_lean_catalogue_codex_answers_with_its_own(bench: Bench):
    engine = bench.engine(env={"FAKE_NO_CATALOGUE": "1"})
    assert text_of(await events_of(bench.ask(engine, "say: hi"))) == "hi"
    assert "model_catalog_json" not in json.dumps(bench.fake.starts(bench.name))


@on(*CODEX)
async def test_a_child_sees_the_listed_environment_only(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CODEX_PROXY_API_KEY", "secret")
    await events_of(bench.ask(bench.engine(), "say: hi"))
    listed = {"PATH", "LISTED", "CODEX_HOME", "GIT_DIR"}
    added_by_sh_and_python = {"PWD", "SHLVL", "_", "LC_CTYPE", "__CF_USER_TEXT_ENCODING"}
    for record in bench.fake.records():
        if "environment" in record:
            assert listed <= record["environment"].keys() <= listed | added_by_sh_and_python
            assert record["environment"]["CODEX_HOME"] == bench.config.codex_home


@on(*ALL)
async def test_shutdown_fails_the_running_turns_and_leaves_no_process(bench: Bench):
    engine = bench.engine()
    running = bench.ask(engine, "think: hm\nhang")
    await first(running, ReasoningDelta)
    with Within():
        await engine.aclose()
    assert isinstance(await error_of_turn(running), ShuttingDown)
    assert survivors(bench.fake.pids()) == set()


@on(*ALL)
async def test_after_the_shutdown_a_turn_is_refused(bench: Bench):
    engine = bench.engine()
    await engine.aclose()
    assert isinstance(await error_of_turn(bench.ask(engine, "say: hi")), ShuttingDown)
    assert bench.fake.records() == []


@on(*CODEX)
async def test_shutdown_while_codex_starts_leaves_no_process(bench: Bench):
    engine = bench.engine(env={"FAKE_MUTE": "1"})
    running = bench.ask(engine, "say: hi")
    await until(lambda: bench.fake.starts("app-server"))
    await engine.aclose()
    assert isinstance(await error_of_turn(running), ShuttingDown)
    assert survivors(bench.fake.pids()) == set()


@on(*CODEX)
async def test_shutdown_while_the_catalogue_is_read_leaves_no_process(bench: Bench):
    engine = bench.engine()
    running = bench.ask(engine, "say: hi")
    await until(lambda: bench.fake.starts("debug"))
    await engine.aclose()
    assert isinstance(await error_of_turn(running), ShuttingDown)
    assert survivors(bench.fake.pids()) == set()


@on(*CODEX)
async def test_shutdown_lets_those_who_wait_know(bench: Bench):
    engine = bench.engine(**NARROW)
    holder = bench.ask(engine, "think: hm\nhang")
    await first(holder, ReasoningDelta)
    waiting = bench.ask(engine, "say: hi")
    await asyncio.sleep(0)
    await engine.aclose()
    assert isinstance(await error_of_turn(waiting), ShuttingDown)


@on(*CODEX)
async def test_an_inspection_that_is_cancelled_does_not_spoil_the_next(bench: Bench):
    engine = bench.engine()
    asking = asyncio.create_task(engine.inspect())
    await until(lambda: bench.fake.records())
    asking.cancel()
    await asyncio.wait({asking})
    assert (await engine.inspect()).codex_version == "0.163.0"


# What Codex is asked.


def overrides(record: dict[str, Any]) -> dict[str, str]:
    argv = record["start"]
    pairs = [argv[i + 1].partition("=") for i, part in enumerate(argv) if part == "-c"]
    return {key: value for key, _, value in pairs}


@on(*APP_SERVER)
async def test_a_chat_thread_has_no_tools_no_environment_and_no_approvals(bench: Bench):
    await events_of(bench.ask(bench.engine(), "say: hi", system="be short"))
    (params,) = bench.fake.got("thread/start")
    assert params["ephemeral"] is True
    assert params["approvalPolicy"] == "never"
    assert params["sandbox"] == "read-only"
    assert params["environments"] == params["dynamicTools"] == []
    assert params["baseInstructions"] == ""
    (injected,) = bench.fake.got("thread/inject_items")
    assert [item["role"] for item in injected["items"]] == ["developer", "user"]


@on(*APP_SERVER)
async def test_an_agent_thread_works_in_its_untrusted_folder(bench: Bench):
    running = bench.ask(bench.engine(), "say: hi", system="be short", sandbox="workspace-write")
    await events_of(running)
    (params,) = bench.fake.got("thread/start")
    cwd = running.turn.cwd
    assert params["cwd"] == cwd
    assert "sandbox" not in params, "a sandbox flag switches the profile off"
    assert params["permissions"] == "codexsite_write"
    assert params["config"]["permissions.codexsite_write"]["filesystem"][cwd] == "write"
    assert not [name for name in params["config"] if name.startswith("sandbox")]
    assert params["approvalPolicy"] == "never"
    assert params["config"]["projects"][cwd] == {"trust_level": "untrusted"}
    assert params["developerInstructions"] == "be short"


@on(*EXEC)
async def test_an_exec_chat_is_read_only_and_away_from_every_workspace(bench: Bench):
    running = bench.ask(bench.engine(), "say: hi", system="be short", effort="low", model="fake-2")
    await events_of(running)
    (record,) = bench.fake.starts("exec")
    argv, settings = record["start"], overrides(record)
    assert argv[argv.index("--sandbox") + 1] == "read-only"
    assert argv[argv.index("--model") + 1] == running.served_model == "fake-2"
    flags = {
        "--json",
        "--ephemeral",
        "--skip-git-repo-check",
        "--ignore-user-config",
        "--ignore-rules",
    }
    assert flags <= set(argv)
    assert settings["approval_policy"] == '"never"'
    assert settings["model_reasoning_effort"] == '"low"'
    assert settings["features.shell_tool"] == "false"
    assert record["cwd"].startswith(bench.config.scratch_dir)
    assert {"instructions": "be short"}.items() <= bench.fake.records()[-1].items()


@on(*EXEC)
async def test_an_exec_agent_works_in_its_untrusted_folder(bench: Bench):
    running = bench.ask(bench.engine(), "say: hi", system="be short", sandbox="workspace-write")
    await events_of(running)
    (record,) = bench.fake.starts("exec")
    argv, settings = record["start"], overrides(record)
    assert not {"--sandbox", "-s"} & set(argv), "a sandbox flag switches the profile off"
    assert not [name for name in settings if name.startswith("sandbox")]
    cwd = running.turn.cwd
    assert record["cwd"] == cwd
    assert settings["default_permissions"] == '"codexsite_write"'
    assert f'"{cwd}" = "write"' in settings["permissions.codexsite_write"]
    assert f'"{cwd}" = {{"trust_level" = "untrusted"}}' in settings["projects"]
    (prompt,) = bench.fake.prompts()
    assert '"role": "system",\n    "content": "be short"' in prompt


@on(*EXEC)
@pytest.mark.parametrize("sandbox", ["read-only", "workspace-write"])
async def test_no_text_of_a_request_is_in_the_arguments_that_all_can_read(
    bench: Bench, sandbox: Any
):
    running = bench.ask(bench.engine(), "say: xyzzy", system="plugh", sandbox=sandbox)
    await events_of(running)
    arguments = str(bench.fake.starts("exec")[0]["start"])
    assert "xyzzy" not in arguments
    assert "plugh" not in arguments


@on(*EXEC)
async def test_a_long_prompt_reaches_exec_whole(bench: Bench):
    text = "say: hi\n" + "\n".join(["ignore-term"] * 40_000)
    assert text_of(await events_of(bench.ask(bench.engine(), text))) == "hi"
    assert bench.fake.prompts() == [text]


@on(*EXEC)
@pytest.mark.parametrize(
    "fields",
    [
        {"text": "x" * 1_048_577},
        {"text": "x", "system": "y" * 1_048_577, "sandbox": "workspace-write"},
    ],
    ids=["prompt", "system text of an agent"],
)
async def test_what_is_too_long_for_exec_is_the_callers_error(bench: Bench, fields: dict[str, Any]):
    assert isinstance(await error_of_turn(bench.ask(bench.engine(), **fields)), ContextTooLong)


@on(*EXEC)
async def test_a_long_system_text_reaches_an_exec_chat(bench: Bench):
    await events_of(bench.ask(bench.engine(), "say: hi", system="y" * 200_000))
    assert bench.fake.records()[-1]["instructions"] == "y" * 200_000


@on(*EXEC)
async def test_an_empty_message_is_answered_too(bench: Bench):
    assert await end_of(bench.ask(bench.engine(), " ")) == Completed()
    assert json.loads(bench.fake.prompts()[0].partition("\n\n")[2]) == [
        {"role": "user", "content": " "}
    ]
