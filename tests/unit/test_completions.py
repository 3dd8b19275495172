"""The pure parts of a completion: what was asked, and what a turn's events add up to."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.completions import Answer, conversation_of, refuse_unsupported, usage_body, wish_of
from proxy.engines.base import (
    AnswerRestarted,
    CommandStarted,
    Completed,
    Failed,
    MessageDone,
    ReasoningDelta,
    TextDelta,
    Usage,
)
from proxy.errors import AnswerIncomplete, InvalidRequest, UnsupportedParameter, WorkerDied
from proxy.schemas import ChatCompletionRequest, ChatMessage

USER = {"role": "user", "content": "hi"}
CUT = AnswerIncomplete("Cut.", finish_reason="length")


def request(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate({"model": "m", "messages": [USER], **fields})


def test_plain_request_is_supported() -> None:
    refuse_unsupported(request())


@pytest.mark.parametrize("word", ["none", [], {"type": "text"}])
def test_word_that_is_neutral_for_one_field_is_not_so_for_another(word: object) -> None:
    for name in ("audio", "web_search_options", "logprobs"):
        with pytest.raises(UnsupportedParameter) as refused:
            refuse_unsupported(request(**{name: word}))
        assert refused.value.param == name


def test_parts_are_joined_by_lines() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    (message,) = conversation_of([ChatMessage.model_validate({"role": "user", "content": parts})])
    assert (message.role, message.text) == ("user", "a\nb")


def test_refusal_of_the_assistant_is_its_text() -> None:
    refusal = {"role": "assistant", "content": None, "refusal": "no"}
    (message,) = conversation_of([ChatMessage.model_validate(refusal)])
    assert (message.role, message.text) == ("assistant", "no")


@pytest.mark.parametrize(
    ("metadata", "cwd", "agent"),
    [
        (None, None, None),
        ({}, None, None),
        ({"cwd": "x", "agent": True}, "x", True),
        ({"agent": "False"}, None, False),
    ],
)
def test_wish_is_read_from_the_metadata(metadata: Any, cwd: str | None, agent: bool | None) -> None:
    wish = wish_of(metadata)
    assert (wish.cwd, wish.agent) == (cwd, agent)


@pytest.mark.parametrize("metadata", [{"cwd": 1}, {"agent": 1}, {"agent": "yes"}])
def test_wish_of_another_kind_is_refused(metadata: Any) -> None:
    with pytest.raises(InvalidRequest):
        wish_of(metadata)


def answer_of(*events: Any) -> Answer:
    answer = Answer()
    for event in events:
        answer.take(event)
    return answer


def test_answer_is_the_text_and_nothing_else() -> None:
    answer = answer_of(
        ReasoningDelta("hm"), CommandStarted("1", "ls"), TextDelta("a"), TextDelta("b"), Completed()
    )
    assert (answer.text, answer.finish_reason, answer.refusal) == ("ab", "stop", None)


def test_restart_voids_only_the_message_it_breaks() -> None:
    answer = answer_of(TextDelta("a"), MessageDone("a"), TextDelta("x"), AnswerRestarted())
    assert (answer.text, answer.is_mid_message) == ("a", False)


def test_commentary_settles_nothing() -> None:
    answer = answer_of(TextDelta("x"), MessageDone("hm", is_commentary=True), AnswerRestarted())
    assert answer.text == ""


def test_text_cut_short_is_an_answer() -> None:
    assert answer_of(TextDelta("a"), Failed(CUT)).finish_reason == "length"


@pytest.mark.parametrize("error", [CUT, WorkerDied("Gone.")])
def test_failure_without_text_is_raised(error: Any) -> None:
    with pytest.raises(type(error)):
        answer_of(Failed(error))


def test_no_text_at_all_is_a_refusal() -> None:
    answer = answer_of(Completed())
    assert answer.refusal
    assert answer.finish_reason == "content_filter"


def test_total_is_prompt_and_completion() -> None:
    body = usage_body(Usage(10, 4, 3, 2))
    assert body is not None
    assert (body["prompt_tokens"], body["completion_tokens"], body["total_tokens"]) == (10, 3, 13)
    assert usage_body(None) is None
