"""A turn whose answer is checked: shown when it is right, repaired once when it is not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from proxy.checked import run_checked
from proxy.engines.base import (
    AnswerRestarted,
    CommandStarted,
    Completed,
    Event,
    Failed,
    Message,
    MessageDone,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    ToolCalled,
    Turn,
    TurnStarted,
    Usage,
    UsageReported,
)
from proxy.engines.scripted import ScriptedEngine
from proxy.errors import AnswerIncomplete, EngineTimeout, RateLimited
from proxy.structured import AnswerInvalid

CALL = ToolCalled(ToolCall("1", "f", "{}"))


def a_turn(deadline_s: float = 10.0) -> Turn:
    deadline = asyncio.get_running_loop().time() + deadline_s
    return Turn("r", (Message("user", "hi"),), "/", deadline)


def accept(text: str) -> list[Event]:
    if not text.startswith("good"):
        raise AnswerInvalid("It is not good.")
    return [TextDelta(f"accepted {text}")]


def attempts(*scripts: Sequence[Any]) -> ScriptedEngine:
    """An engine that plays one script for each attempt."""
    engine = ScriptedEngine()
    engine.scripts = list(scripts)
    return engine


async def played(*scripts: Sequence[Any], **options: Any) -> tuple[list[Event], ScriptedEngine]:
    engine = attempts(*scripts)
    running = run_checked(engine.run, a_turn(), accept, **options)
    async with asyncio.timeout(5):
        events = [event async for event in running]
    await running.aclose()
    assert engine.cleaned_up == engine.turns
    return events, engine


async def test_right_answer_is_shown_whole_as_it_was_accepted() -> None:
    events, engine = await played([TextDelta("go"), TextDelta("od"), Completed()])
    assert events == [TurnStarted(), TextDelta("accepted good"), Completed()]
    assert len(engine.turns) == 1


async def test_wrong_answer_is_repaired_once_and_never_shown() -> None:
    events, engine = await played([TextDelta("bad")], [TextDelta("good")])
    assert events == [TurnStarted(), TextDelta("accepted good"), Completed()]
    first, second = engine.turns
    assert second.messages[:2] == (*first.messages, Message("assistant", "bad"))
    assert second.messages[2].role == "user"
    assert "It is not good." in second.messages[2].text


async def test_answer_that_is_wrong_again_is_the_failure() -> None:
    events, engine = await played([TextDelta("bad")], [TextDelta("worse")])
    (*_, end) = events
    assert isinstance(end, Failed)
    assert isinstance(end.error, AnswerInvalid)
    assert not [event for event in events if isinstance(event, TextDelta)]
    assert len(engine.turns) == 2


async def test_without_leave_to_repair_the_first_wrong_answer_is_the_failure() -> None:
    events, engine = await played([TextDelta("bad")], may_repair=False)
    assert isinstance(events[-1], Failed)
    assert len(engine.turns) == 1


async def test_usage_is_the_sum_of_the_attempts() -> None:
    events, _ = await played(
        [TextDelta("bad"), UsageReported(Usage(1, 2, 3, 4)), Completed()],
        [TextDelta("good"), UsageReported(Usage(10, 20, 30, 40)), Completed()],
    )
    reports = [event.usage for event in events if isinstance(event, UsageReported)]
    assert reports[-1] == Usage(11, 22, 33, 44)


async def test_usage_of_a_failed_repair_counts_what_is_known() -> None:
    events, _ = await played(
        [TextDelta("bad"), UsageReported(Usage(1, 2, 3, 4)), Completed()],
        [TextDelta("bad"), UsageReported(Usage(10, 20, 30, 40)), Completed()],
    )
    reports = [event.usage for event in events if isinstance(event, UsageReported)]
    assert reports[-1] == Usage(11, 22, 33, 44)
    assert isinstance(events[-1], Failed)


async def test_reasoning_is_shown_as_it_comes() -> None:
    events, _ = await played([ReasoningDelta("hm"), TextDelta("good")])
    assert events[1] == ReasoningDelta("hm")


async def test_restarted_text_is_void_and_told_of() -> None:
    events, _ = await played(
        [TextDelta("good"), MessageDone("good"), TextDelta("ba"), AnswerRestarted(), TextDelta(" two")]
    )  # fmt: skip
    assert AnswerRestarted() in events
    assert TextDelta("accepted good two") in events


async def test_calls_of_tools_are_shown_and_the_text_beside_them_not_judged() -> None:
    events, engine = await played([TextDelta("bad"), CALL, Completed()])
    assert events == [TurnStarted(), CALL, TextDelta("bad"), Completed()]
    assert len(engine.turns) == 1


async def test_no_text_at_all_is_not_repaired() -> None:
    events, engine = await played([CommandStarted("1", "ls"), Completed()])
    assert events == [TurnStarted(), Completed()]
    assert len(engine.turns) == 1


async def test_answer_cut_short_is_shown_as_it_is() -> None:
    cut = AnswerIncomplete("Cut.", finish_reason="length")
    events, _ = await played([TextDelta("ba"), cut])
    assert events == [TurnStarted(), TextDelta("ba"), Failed(cut)]


@pytest.mark.parametrize("error", [RateLimited("Slow."), AnswerIncomplete("C", finish_reason="x")])
async def test_failure_of_an_attempt_is_the_failure(error: Any) -> None:
    assert (await played([error]))[0] == [TurnStarted(), Failed(error)]
    assert (await played([TextDelta("bad")], [error]))[0] == [TurnStarted(), Failed(error)]


async def test_deadline_covers_both_attempts() -> None:
    engine = attempts([TextDelta("bad")], [asyncio.Event()])
    running = run_checked(engine.run, a_turn(0.05), accept)
    async with asyncio.timeout(5):
        *_, end = [event async for event in running]
    assert isinstance(end, Failed)
    assert isinstance(end.error, EngineTimeout)
    await running.aclose()
    assert engine.cleaned_up == engine.turns
    assert len(engine.turns) == 2


async def test_closing_ends_the_attempt_that_runs() -> None:
    engine = attempts([asyncio.Event()])
    running = run_checked(engine.run, a_turn(), accept)
    async with asyncio.timeout(5):
        await running.next_event()
        await running.aclose()
    assert engine.cleaned_up == engine.turns


async def test_what_served_is_known_of_the_checked_turn() -> None:
    engine = attempts([TextDelta("good")])
    running = run_checked(engine.run, a_turn(), accept)
    async with asyncio.timeout(5):
        assert [event async for event in running]
    known = (running.worker, running.codex_version, running.served_model)
    assert known == ("scripted", "0.0.0", "scripted-1")
    assert {"queue_wait", "turn_start"} <= set(running.laps.ms)
    await running.aclose()
