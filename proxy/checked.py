"""A turn whose answer is checked before anybody sees it, and asked for once more if it is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from proxy.answers import total_usage
from proxy.engines.base import (
    ActionRecorded,
    AnswerRestarted,
    Completed,
    Event,
    Failed,
    Message,
    MessageDone,
    ReasoningDelta,
    TextDelta,
    ToolCalled,
    Turn,
    TurnStarted,
    Usage,
    UsageReported,
)
from proxy.engines.running import RunningTurn
from proxy.errors import AnswerIncomplete, EngineProtocolError
from proxy.structured import AnswerInvalid, repair_request

Accept = Callable[[str], list[Event]]
"""Takes the answer's text; returns the events to show instead, or raises `AnswerInvalid`."""


def run_checked(
    ask: Callable[[Turn], RunningTurn], turn: Turn, accept: Accept, *, may_repair: bool = True
) -> RunningTurn:
    """Run the turn, check its answer, repair it once, and give what was accepted as its events.

    It is a turn like any other: one end, the same deadline, the sum of the usage. An answer that is
    still wrong ends it with the `AnswerInvalid`. Calls of tools are shown as they come, and then
    the text beside them is no answer to check; no text at all is a refusal, and nothing to repair.
    """

    async def drive(outer: RunningTurn) -> None:
        attempt, usages = turn, list[Usage | None]()
        for is_last in (False, True) if may_repair else (True,):
            text, has_calls = await _whole_text(ask(attempt), outer, usages)
            if has_calls or not text:
                if text:
                    outer.emit(TextDelta(text))
                outer.emit(Completed())
                return
            try:
                events = accept(text)
            except AnswerInvalid as problem:
                if is_last:
                    raise
                again = (
                    Message("assistant", text),
                    Message("user", repair_request(text, problem.message)),
                )
                attempt = replace(turn, messages=(*turn.messages, *again))
                continue
            for event in events:
                outer.emit(event)
            outer.emit(Completed())
            return

    return RunningTurn(turn, drive)


async def _whole_text(
    inner: RunningTurn, outer: RunningTurn, usages: list[Usage | None]
) -> tuple[str, bool]:
    """Read one attempt to its end: its text, and whether it called tools. Raises its failure."""
    text, settled, has_calls, is_first = "", 0, False, not usages
    outer.inner = inner
    try:
        async for event in inner:
            match event:
                case TextDelta(piece):
                    text += piece
                case MessageDone(is_commentary=False):
                    settled = len(text)
                case AnswerRestarted():
                    text = text[:settled]
                    outer.emit(event)
                case TurnStarted() if is_first:
                    outer.take_over(inner)
                    outer.emit(event)
                case ToolCalled():
                    has_calls = True
                    outer.emit(event)
                case ReasoningDelta() | ActionRecorded() | MessageDone(is_commentary=True):
                    outer.emit(event)
                case Failed(error):
                    if isinstance(error, AnswerIncomplete) and text:
                        outer.emit(TextDelta(text))
                    raise error
                case Completed():
                    usages.append(inner.usage)
                    if (usage := total_usage(usages)) is not None:
                        outer.emit(UsageReported(usage))
                    return text, has_calls
    finally:
        outer.take_over(inner)
        await inner.aclose()
    raise EngineProtocolError("Codex ended the turn without a result.")
