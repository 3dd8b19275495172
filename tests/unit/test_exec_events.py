from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.engines.base import (
    CommandFinished,
    CommandStarted,
    Completed,
    Event,
    Failed,
    FileChange,
    McpCalled,
    MessageDone,
    ReasoningDelta,
    TextDelta,
    Usage,
    UsageReported,
    WebSearched,
)
from proxy.engines.exec_events import LineReader
from proxy.errors import AnswerIncomplete, EngineProtocolError, RateLimited, TurnFailed

USAGE = {
    "input_tokens": 111,
    "cached_input_tokens": 30,
    "cache_write_input_tokens": 0,
    "output_tokens": 77,
    "reasoning_output_tokens": 20,
}
DONE = {"type": "turn.completed", "usage": USAGE}


def item(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "item.completed", "item": {"id": "i", "type": kind, **fields}}


def said(text: str) -> dict[str, Any]:
    return item("agent_message", text=text)


def read(*frames: dict[str, Any]) -> list[Event]:
    reader = LineReader()
    return [event for frame in frames for event in reader.read(json.dumps(frame).encode())]


def test_the_message_is_the_answer_and_usage_comes_before_the_end():
    assert read(said("hi"), DONE) == [
        TextDelta("hi"),
        MessageDone("hi"),
        UsageReported(Usage(111, 30, 77, 20)),
        Completed(),
    ]


def test_of_several_messages_the_last_one_is_the_answer():
    events = read(said("first"), said("second"), said("third"), DONE)
    assert [event for event in events if isinstance(event, MessageDone)] == [
        MessageDone("first", is_commentary=True),
        MessageDone("second", is_commentary=True),
        MessageDone("third"),
    ]
    assert [event for event in events if isinstance(event, TextDelta)] == [TextDelta("third")]


def test_a_turn_without_a_message_completes():
    assert read({"type": "turn.completed", "usage": None}) == [Completed()]


def test_a_usage_of_nothing_is_unknown():
    nothing = dict.fromkeys(USAGE, 0)
    assert read({"type": "turn.completed", "usage": nothing}) == [Completed()]


def test_reasoning_commands_and_patches_are_told():
    started = {"id": "c", "type": "command_execution", "command": "ls", "status": "in_progress"}
    done = {**started, "status": "failed", "exit_code": 2, "aggregated_output": "no"}
    changes = [{"path": "/w/a", "kind": "update"}, {"path": "/w/b", "kind": "add"}]
    assert read(
        item("reasoning", text="plan"),
        {"type": "item.started", "item": started},
        {"type": "item.completed", "item": done},
        item("file_change", changes=changes),
    ) == [
        ReasoningDelta("plan"),
        CommandStarted("c", "ls"),
        CommandFinished("c", "ls", "failed", 2, None, "no"),
        FileChange("/w/a", "update"),
        FileChange("/w/b", "add"),
    ]


def test_a_failed_turn_is_typed_by_its_text():
    message = "exceeded retry limit, last status: 429 Too Many Requests"
    (end,) = read({"type": "turn.failed", "error": {"message": message}})
    assert isinstance(end, Failed)
    assert isinstance(end.error, RateLimited)


@pytest.mark.parametrize("error", [None, {}, {"message": None}])
def test_a_failure_without_a_message_is_a_failure(error: object):
    (end,) = read({"type": "turn.failed", "error": error})
    assert isinstance(end, Failed)
    assert isinstance(end.error, TurnFailed)


def test_an_answer_cut_short_keeps_its_text():
    message = "Incomplete response returned, reason: max_output_tokens"
    events = read(said("half"), {"type": "turn.failed", "error": {"message": message}})
    assert events[:2] == [TextDelta("half"), MessageDone("half")]
    assert isinstance(events[-1], Failed)
    assert isinstance(events[-1].error, AnswerIncomplete)


def test_searches_and_mcp_calls_of_an_agent_are_told():
    call = {"server": "calc", "tool": "add", "arguments": {"a": 2}, "status": "failed"}
    assert read(
        item("web_search", query="weather"),
        item("mcp_tool_call", **call, result=None, error={"message": "no"}),
    ) == [
        WebSearched("weather"),
        McpCalled("calc", "add", '{"a":2}', "failed", None, '{"message":"no"}'),
    ]


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "thread.started", "thread_id": "t"},
        {"type": "error", "message": "Reconnecting... 1/5 (lost)"},
        {"type": "nobody.knows"},
        {"type": "item.started", "item": {"type": "todo_list", "items": []}},
        {"type": "item.updated", "item": {"type": "todo_list", "items": []}},
        item("error", message="Model metadata not found."),
        item("todo_list", items=[]),
    ],
)
def test_what_nobody_needs_is_passed_over(frame: dict[str, Any]):
    reader = LineReader()
    assert reader.read(json.dumps(frame).encode()) == []
    assert not reader.has_started
    assert not reader.has_ended


@pytest.mark.parametrize("end", [DONE, {"type": "turn.failed", "error": {"message": "no"}}])
def test_start_and_end_are_remembered(end: dict[str, Any]):
    reader = LineReader()
    reader.read(b'{"type": "turn.started"}')
    assert (reader.has_started, reader.has_ended) == (True, False)
    reader.read(json.dumps(end).encode())
    assert reader.has_ended


@pytest.mark.parametrize(
    "line",
    [
        b"hello",
        b"{",
        b"[]",
        b"7",
        b"{}",
        b'{"type": "item.completed"}',
        b'{"type": "item.completed", "item": {"type": "agent_message"}}',
        b'{"type": "turn.failed", "error": "text"}',
        b"\xff",
    ],
)
def test_what_is_not_understood_is_a_protocol_error(line: bytes):
    with pytest.raises(EngineProtocolError):
        LineReader().read(line)
