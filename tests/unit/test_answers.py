"""What a turn's events add up to: the message, its deltas, its one end."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.answers import Answer, total_usage, usage_body
from proxy.asked import understand
from proxy.engines.base import (
    AnswerRestarted,
    CommandStarted,
    Completed,
    Failed,
    MessageDone,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    ToolCalled,
    TurnStarted,
    Usage,
)
from proxy.engines.failures import broken_off
from proxy.errors import AnswerIncomplete, WorkerDied
from proxy.schemas import ChatCompletionRequest
from proxy.structured import AnswerInvalid

CUT = AnswerIncomplete("Cut.", finish_reason="length")
JSON: dict[str, Any] = {"response_format": {"type": "json_object"}}
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "exec_command")]


def called(call_id: str = "1", name: str = "f", arguments: str = "{}") -> ToolCalled:
    return ToolCalled(ToolCall(call_id, name, arguments))


def new_answer(*, is_checked: bool = False, shows: bool = True, **fields: Any) -> Answer:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    asked = understand(ChatCompletionRequest.model_validate(body), max_choices=4)
    return Answer(asked, is_checked=is_checked, shows_reasoning=shows)


def taken(answer: Answer, *events: Any) -> list[dict[str, Any]]:
    return [delta for event in events for delta in answer.take(event)]


def answer_of(*events: Any, **fields: Any) -> Answer:
    answer = new_answer(**fields)
    taken(answer, *events)
    return answer


def test_answer_is_the_text_and_nothing_else() -> None:
    answer = answer_of(
        TurnStarted(), CommandStarted("1", "ls"), TextDelta("a"), TextDelta("b"), Completed()
    )
    assert answer.message() == {
        "role": "assistant", "content": "ab", "refusal": None, "annotations": [],
    }  # fmt: skip
    assert answer.finish_reason == "stop"


class TestReasoning:
    def test_is_beside_the_text(self) -> None:
        answer = new_answer()
        deltas = taken(answer, ReasoningDelta("h"), ReasoningDelta("m"), TextDelta("a"))
        assert deltas == [
            {"reasoning_content": "h"}, {"reasoning_content": "m"}, {"content": "a"},
        ]  # fmt: skip
        assert (answer.message()["content"], answer.message()["reasoning_content"]) == ("a", "hm")

    def test_is_not_shown_where_it_is_off(self) -> None:
        answer = new_answer(shows=False)
        assert taken(answer, ReasoningDelta("hm")) == []
        assert "reasoning_content" not in answer.message()

    def test_of_a_void_attempt_is_void(self) -> None:
        answer = answer_of(
            ReasoningDelta("one."), MessageDone("one"),
            ReasoningDelta("two"), AnswerRestarted(), ReasoningDelta("two."),
        )  # fmt: skip
        assert answer.reasoning == "one.two."

    def test_is_not_streamed_twice(self) -> None:
        events = [
            ReasoningDelta("hm"), AnswerRestarted(), ReasoningDelta("hm"), TextDelta("a"),
            MessageDone("a"), ReasoningDelta("more"),
        ]  # fmt: skip
        deltas = taken(new_answer(stream=True), *events)
        assert deltas == [
            {"reasoning_content": "hm"}, {"content": "a"}, {"reasoning_content": "more"},
        ]  # fmt: skip


class TestRestart:
    def test_voids_only_the_message_it_breaks(self) -> None:
        answer = answer_of(TextDelta("a"), MessageDone("a"), TextDelta("x"), AnswerRestarted())
        assert (answer.text, answer.is_mid_message) == ("a", False)

    def test_is_in_the_middle_of_a_message_only_before_its_end(self) -> None:
        answer = answer_of(TextDelta("a"))
        assert answer.is_mid_message
        answer.take(MessageDone("a"))
        assert not answer.is_mid_message

    def test_forgets_the_held_beginning_of_a_stop_text(self) -> None:
        answer = answer_of(
            TextDelta("E"), AnswerRestarted(), TextDelta("ND"), Completed(), stop="END"
        )
        assert (answer.text, answer.finish_reason) == ("ND", "stop")

    def test_commentary_settles_nothing(self) -> None:
        answer = answer_of(TextDelta("x"), MessageDone("hm", is_commentary=True), AnswerRestarted())
        assert answer.text == ""

    def test_has_an_error_for_those_who_have_read_the_text(self) -> None:
        assert (broken_off().status, broken_off().code) == (502, "upstream_disconnected")


class TestEnd:
    def test_text_cut_short_is_an_answer(self) -> None:
        assert answer_of(TextDelta("a"), Failed(CUT)).finish_reason == "length"

    def test_answer_cut_before_its_text_is_empty_and_says_why(self) -> None:
        answer = answer_of(Failed(CUT))
        assert (answer.message()["content"], answer.finish_reason) == ("", "length")
        assert answer.refusal is None

    @pytest.mark.parametrize("before", [[], [TextDelta("a")]])
    def test_other_failure_is_raised(self, before: list[Any]) -> None:
        with pytest.raises(WorkerDied):
            answer_of(*before, Failed(WorkerDied("Gone.")))

    def test_no_text_at_all_is_a_refusal(self) -> None:
        answer = new_answer()
        (delta,) = taken(answer, Completed())
        assert delta == {"refusal": answer.refusal}
        assert (answer.message()["content"], answer.finish_reason) == (None, "content_filter")

    def test_nothing_is_taken_after_it(self) -> None:
        answer = answer_of(TextDelta("a"), Completed())
        assert taken(answer, TextDelta("b"), called(), Completed(), Failed(CUT)) == []
        assert answer.text == "a"


class TestStop:
    def test_cuts_and_ends(self) -> None:
        answer = new_answer(stop=["END"])
        assert taken(answer, TextDelta("one E"), TextDelta("ND two")) == [{"content": "one "}]
        assert (answer.text, answer.finish_reason, answer.is_over) == ("one ", "stop", True)

    def test_at_the_start_leaves_an_empty_text_and_no_refusal(self) -> None:
        answer = answer_of(TextDelta("END"), stop="END")
        assert (answer.message()["content"], answer.message()["refusal"]) == ("", None)

    def test_beginning_without_end_is_said_at_the_end(self) -> None:
        answer = new_answer(stop="END")
        assert taken(answer, TextDelta("EN"), Completed()) == [{"content": "EN"}]

    def test_text_held_back_is_enough_for_an_answer_cut_short(self) -> None:
        answer = new_answer(stop="END")
        deltas = taken(answer, TextDelta("a EN"), Failed(CUT))
        assert deltas == [{"content": "a "}, {"content": "EN"}]
        assert answer.finish_reason == "length"

    def test_text_wholly_held_back_is_an_answer_too(self) -> None:
        answer = answer_of(TextDelta("EN"), Failed(CUT), stop="END")
        assert (answer.text, answer.finish_reason) == ("EN", "length")


class TestLimit:
    @pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
    def test_is_counted_in_deltas_and_never_cuts_below(self, name: str) -> None:
        limit: dict[str, Any] = {name: 2}
        answer = new_answer(**limit)
        taken(answer, TextDelta("a "), TextDelta("b "))
        assert not answer.is_over
        assert taken(answer, TextDelta("c")) == []
        assert (answer.text, answer.finish_reason) == ("a b ", "length")

    def test_answer_of_just_that_length_is_whole(self) -> None:
        assert answer_of(TextDelta("a"), Completed(), max_tokens=1).finish_reason == "stop"

    def test_newer_name_wins(self) -> None:
        answer = answer_of(TextDelta("a"), TextDelta("b"), max_tokens=1, max_completion_tokens=5)
        assert not answer.is_over


class TestCalls:
    def test_each_has_a_head_and_its_arguments(self) -> None:
        answer = new_answer(tools=TOOLS)
        first, second, third, fourth = taken(
            answer, called("1", "f", '{"a": 1}'), called("2", "f", "{}"), Completed()
        )
        assert first == {
            "tool_calls": [
                {"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}
            ]
        }  # fmt: skip
        assert second == {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": 1}'}}]}
        assert (third["tool_calls"][0]["index"], third["tool_calls"][0]["id"]) == (1, "2")
        assert fourth == {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]}
        assert answer.finish_reason == "tool_calls"
        assert answer.message()["content"] is None
        assert [call["id"] for call in answer.message()["tool_calls"]] == ["1", "2"]

    def test_none_is_no_field_of_the_message(self) -> None:
        assert "tool_calls" not in answer_of(TextDelta("a"), Completed(), tools=TOOLS).message()

    def test_text_before_them_is_kept(self) -> None:
        message = answer_of(TextDelta("Let me see."), called(), Completed(), tools=TOOLS).message()
        assert message["content"] == "Let me see."

    def test_name_is_the_callers_own(self) -> None:
        answer = answer_of(called(name="client_exec_command"), Completed(), tools=TOOLS)
        assert answer.calls[0].name == "exec_command"

    def test_only_the_first_where_one_is_wanted(self) -> None:
        answer = answer_of(
            called("1"), called("2"), Completed(), tools=TOOLS, parallel_tool_calls=False
        )
        assert [call.id for call in answer.calls] == ["1"]

    @pytest.mark.parametrize("arguments", ["", "{", "[]", "null", "NaN", '"{}"'])
    def test_arguments_that_are_no_object_are_refused(self, arguments: str) -> None:
        with pytest.raises(AnswerInvalid):
            answer_of(called(arguments=arguments), tools=TOOLS)

    def test_legacy_call_is_the_message_s_function_call(self) -> None:
        answer = new_answer(functions=[{"name": "f"}])
        deltas = taken(answer, called("1", "f", '{"a":1}'), called("2"), Completed())
        assert deltas == [{"function_call": {"name": "f", "arguments": '{"a":1}'}}]
        assert answer.message()["function_call"] == {"name": "f", "arguments": '{"a":1}'}
        assert "tool_calls" not in answer.message()
        assert answer.finish_reason == "function_call"


class TestFormat:
    def test_unchecked_text_is_checked_at_its_end(self) -> None:
        with pytest.raises(AnswerInvalid):
            answer_of(TextDelta("not JSON"), Completed(), **JSON)
        assert answer_of(TextDelta("{}"), Completed(), **JSON).finish_reason == "stop"

    def test_checked_text_is_not_checked_again(self) -> None:
        answer = answer_of(TextDelta("mapped"), Completed(), is_checked=True, **JSON)
        assert answer.text == "mapped"

    def test_answer_cut_short_says_so_and_is_not_judged(self) -> None:
        assert answer_of(TextDelta('{"a'), Failed(CUT), **JSON).finish_reason == "length"


def test_total_is_prompt_and_completion() -> None:
    body = usage_body(Usage(10, 4, 3, 2))
    assert body is not None
    assert (body["prompt_tokens"], body["completion_tokens"], body["total_tokens"]) == (10, 3, 13)
    assert body["prompt_tokens_details"]["cached_tokens"] == 4
    assert body["completion_tokens_details"]["reasoning_tokens"] == 2
    assert usage_body(None) is None


def test_usage_of_several_turns_is_their_sum() -> None:
    assert total_usage([Usage(1, 2, 3, 4), Usage(10, 20, 30, 40)]) == Usage(11, 22, 33, 44)


@pytest.mark.parametrize("usages", [[], [None], [Usage(1, 0, 1, 0), None]])
def test_usage_of_which_a_part_is_unknown_is_unknown(usages: list[Usage | None]) -> None:
    assert total_usage(usages) is None
