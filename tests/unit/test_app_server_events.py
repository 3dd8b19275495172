from __future__ import annotations

from typing import Any

import pytest

from proxy.engines.app_server_events import TurnReader
from proxy.engines.base import (
    AnswerRestarted,
    CommandFinished,
    CommandStarted,
    Completed,
    Event,
    Failed,
    FileChange,
    MessageDone,
    ReasoningDelta,
    TextDelta,
    ToolCalled,
    Usage,
    UsageReported,
)
from proxy.errors import AnswerIncomplete, RateLimited, TurnFailed, TurnStopped

Note = tuple[str, dict[str, Any]]


def read(*notes: Note) -> list[Event]:
    reader = TurnReader()
    return [event for note in notes for event in reader.read(*note)]


def started(item_id: str, phase: str | None = None) -> Note:
    return "item/started", {
        "item": {"type": "agentMessage", "id": item_id, "text": "", "phase": phase}
    }


def delta(item_id: str, text: str) -> Note:
    return "item/agentMessage/delta", {"itemId": item_id, "delta": text}


def done(item_id: str, text: str, phase: str | None = None) -> Note:
    item = {"type": "agentMessage", "id": item_id, "text": text, "phase": phase}
    return "item/completed", {"item": item}


def ended(status: str, error: object = None) -> Note:
    return "turn/completed", {"turn": {"id": "u", "status": status, "error": error}}


RETRY: Note = ("error", {"willRetry": True, "error": {"message": "Reconnecting... 1/5"}})


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def test_deltas_are_given_as_they_come():
    assert read(started("m"), delta("m", "Hel"), delta("m", "lo"), done("m", "Hello")) == [
        TextDelta("Hel"),
        TextDelta("lo"),
        MessageDone("Hello"),
    ]


def test_a_message_without_deltas_is_given_whole():
    assert read(started("m"), done("m", "Hello")) == [TextDelta("Hello"), MessageDone("Hello")]


def test_an_empty_message_gives_no_delta():
    assert read(started("m"), done("m", "")) == [MessageDone("")]


def test_two_messages_are_parted_by_a_blank_line():
    notes = [
        delta("a", "one"),
        done("a", "one"),
        delta("b", "tw"),
        delta("b", "o"),
        done("b", "two"),
    ]
    assert text_of(read(*notes)) == "one\n\ntwo"


def test_an_empty_first_delta_does_not_glue_two_messages():
    notes = [
        delta("a", "one"),
        done("a", "one"),
        delta("b", ""),
        delta("b", "two"),
        done("b", "two"),
    ]
    assert text_of(read(*notes)) == "one\n\ntwo"


@pytest.mark.parametrize("phase", [None, "final_answer"])
def test_commentary_is_no_part_of_the_answer(phase: str | None):
    events = read(
        started("a", "commentary"),
        delta("a", "looking"),
        done("a", "looking", "commentary"),
        started("b", phase),
        delta("b", "found"),
        done("b", "found", phase),
    )
    assert events == [
        MessageDone("looking", is_commentary=True),
        TextDelta("found"),
        MessageDone("found"),
    ]


def test_an_answer_that_begins_again_says_so():
    notes = [delta("a", "Hel"), RETRY, delta("b", "Hel"), delta("b", "lo"), done("b", "Hello")]
    assert read(*notes) == [
        TextDelta("Hel"),
        AnswerRestarted(),
        TextDelta("Hel"),
        TextDelta("lo"),
        MessageDone("Hello"),
    ]


def test_a_second_message_that_begins_again_is_parted_from_the_first_once_more():
    notes = [delta("a", "one"), done("a", "one"), delta("b", "tw"), RETRY, delta("c", "two")]
    events = read(*notes)
    after = events[events.index(AnswerRestarted()) :]
    assert text_of(after) == "\n\ntwo"


def test_reasoning_commands_and_patches_are_told():
    command = {"type": "commandExecution", "id": "c", "command": "ls", "status": "inProgress"}
    result = {"status": "failed", "exitCode": 2, "durationMs": 7, "aggregatedOutput": None}
    change = {"path": "/w/a", "kind": {"type": "update"}, "diff": "+x"}
    assert read(
        ("item/reasoning/summaryTextDelta", {"delta": "plan"}),
        ("item/started", {"item": command}),
        ("item/completed", {"item": {**command, **result}}),
        ("item/completed", {"item": {"type": "fileChange", "id": "f", "changes": [change]}}),
    ) == [
        ReasoningDelta("plan"),
        CommandStarted("c", "ls"),
        CommandFinished("c", "ls", "failed", 2, 7, ""),
        FileChange("/w/a", "update", "+x"),
    ]


def tokens(**counts: int) -> Note:
    total = {
        "inputTokens": 0,
        "cachedInputTokens": 0,
        "outputTokens": 0,
        "reasoningOutputTokens": 0,
    }
    return "thread/tokenUsage/updated", {
        "tokenUsage": {"total": {**total, **counts}, "last": {"inputTokens": 1}}
    }


def test_usage_is_the_total_of_the_thread():
    (event,) = read(
        tokens(inputTokens=111, cachedInputTokens=30, outputTokens=77, reasoningOutputTokens=20)
    )
    assert event == UsageReported(Usage(111, 30, 77, 20))


def test_a_usage_of_nothing_is_unknown():
    assert read(tokens(totalTokens=258_400)) == []


def test_a_completed_turn_is_completed():
    assert read(ended("completed")) == [Completed()]


def test_an_interrupted_turn_is_a_stopped_one():
    (end,) = read(ended("interrupted"))
    assert isinstance(end, Failed)
    assert isinstance(end.error, TurnStopped)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "rate limit exceeded: x", "codexErrorInfo": "rateLimitExceeded"}, RateLimited),
        ({"message": "what?", "codexErrorInfo": "other"}, TurnFailed),
        ({}, TurnFailed),
        (None, TurnFailed),
    ],
)
def test_a_failed_turn_is_a_typed_failure(error: object, kind: type):
    (end,) = read(ended("failed", error))
    assert isinstance(end, Failed)
    assert type(end.error) is kind


def test_an_error_that_is_not_retried_waits_for_the_end_of_the_turn():
    assert read(("error", {"willRetry": False, "error": {"message": "no"}})) == []


def test_the_end_turn_and_model_are_remembered():
    reader = TurnReader()
    reader.read("turn/started", {"turn": {"id": "u1"}})
    reader.read("model/rerouted", {"fromModel": "a", "toModel": "b"})
    assert (reader.turn_id, reader.rerouted_to, reader.has_ended) == ("u1", "b", False)
    reader.read(*ended("completed"))
    assert reader.has_ended


@pytest.mark.parametrize(
    "note",
    [
        ("nobody/knows", {}),
        ("item/started", {}),
        ("item/completed", {"item": None}),
        ("item/started", {"item": {"type": "novelty", "id": "n"}}),
        ("item/completed", {"item": {"type": "novelty", "id": "n"}}),
        ("item/completed", {"item": {"type": "userMessage", "id": "u", "content": []}}),
        ("thread/status/changed", {"status": {"type": "idle"}}),
    ],
)
def test_what_nobody_needs_is_passed_over(note: Note):
    assert read(note) == []


@pytest.mark.parametrize(
    "note",
    [
        ("item/completed", {"item": {"type": "agentMessage"}}),
        ("item/agentMessage/delta", {}),
        ("turn/completed", {}),
        ("thread/tokenUsage/updated", {"tokenUsage": {}}),
    ],
)
def test_a_known_notification_without_its_fields_is_noticed(note: Note):
    with pytest.raises((KeyError, TypeError)):
        read(note)


# A chat that may call the caller's functions.

BEGUN: Note = ("turn/started", {"turn": {"id": "t"}})
ENDED: Note = ("rawResponse/completed", {"turnId": "t", "usage": None})
CUT: Note = (
    "error",
    {
        "willRetry": True,
        "error": {"additionalDetails": "Incomplete response returned, reason: content_filter"},
    },
)


def raw_call(call_id: str, turn_id: str = "t") -> Note:
    item = {"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}"}
    return "rawResponseItem/completed", {"turnId": turn_id, "item": item}


def read_chat(*notes: Note) -> list[Event]:
    reader = TurnReader(is_chat=True)
    return [event for note in notes for event in reader.read(*note)]


def test_calls_of_the_model_end_the_turn_and_those_of_the_history_are_not_heard():
    notes = [raw_call("old", "auto-compact-0"), BEGUN, raw_call("a"), raw_call("b"), ENDED]
    *calls, end = read_chat(*notes)
    assert [event.call.id for event in calls if isinstance(event, ToolCalled)] == ["a", "b"]
    assert len(calls) == 2
    assert isinstance(end, Completed)


def test_response_without_a_call_does_not_end_the_turn():
    assert read_chat(raw_call("old", "auto-compact-0"), BEGUN, ENDED) == []


@pytest.mark.parametrize("before", [raw_call("a"), done("m", "one")])
def test_chat_that_would_go_on_after_a_call_or_an_answer_fails(before: Note):
    (end,) = [event for event in read_chat(BEGUN, before, RETRY) if isinstance(event, Failed)]
    assert end.error.code == "upstream_disconnected"


def test_filtered_chat_is_not_tried_again():
    (end,) = read_chat(BEGUN, CUT)
    assert isinstance(end, Failed)
    assert isinstance(end.error, AnswerIncomplete)
