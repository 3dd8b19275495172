"""What the use case makes of a request without asking anybody: the turn's form, and the check."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.asked import Asked, understand
from proxy.completions import _accept, _must_check, _with_form
from proxy.engines.base import MessageDone, TextDelta, ToolCalled, Turn
from proxy.schemas import ChatCompletionRequest
from proxy.structured import AnswerInvalid

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
STRICT = {
    "type": "object",
    "properties": {"a": {"type": "string"}},
    "required": ["a"],
    "additionalProperties": False,
}


def asked(*messages: dict[str, Any], **fields: Any) -> Asked:
    body = {"model": "m", "messages": list(messages) or [USER], **fields}
    return understand(ChatCompletionRequest.model_validate(body), max_choices=4)


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}


def turn_for(found: Asked) -> Turn:
    return _with_form(Turn("r", found.messages, "/", 0.0), found)


class TestForm:
    def test_of_a_plain_request_is_none(self) -> None:
        found = asked()
        turn = turn_for(found)
        assert (turn.tools, turn.output_schema, turn.messages) == ((), None, found.messages)
        assert not _must_check(found)

    def test_tools_are_declared(self) -> None:
        turn = turn_for(asked(tools=[TOOL]))
        assert [tool.name for tool in turn.tools] == ["f"]
        assert turn.output_schema is None

    def test_tools_that_may_not_be_called_are_not_declared(self) -> None:
        assert turn_for(asked(tools=[TOOL], tool_choice="none")).tools == ()

    @pytest.mark.parametrize(
        "choice", ["required", {"type": "function", "function": {"name": "f"}}]
    )
    def test_forced_call_is_a_schema_and_words_before_the_conversation(self, choice: Any) -> None:
        found = asked(tools=[TOOL], tool_choice=choice)
        turn = turn_for(found)
        assert turn.tools == ()
        assert turn.output_schema is not None
        said, *rest = turn.messages
        assert said.role == "developer"
        assert "f" in said.text
        assert tuple(rest) == found.messages
        assert _must_check(found)

    def test_schema_of_the_answer_is_the_turns(self) -> None:
        turn = turn_for(asked(response_format=schema_format(STRICT)))
        assert turn.output_schema == STRICT

    def test_format_without_a_schema_is_words(self) -> None:
        turn = turn_for(asked(response_format={"type": "json_object"}))
        assert turn.output_schema is None
        assert turn.messages[0].role == "developer"
        assert "JSON" in turn.messages[0].text


class TestCheck:
    @pytest.mark.parametrize(
        ("fields", "is_checked"),
        [
            ({}, False),
            ({"tools": [TOOL]}, False),
            ({"response_format": {"type": "text"}}, False),
            ({"response_format": {"type": "json_object"}}, True),
            ({"response_format": schema_format({"type": "object"})}, True),
        ],
    )
    def test_holds_the_answer_back_where_it_may_have_to_change(
        self, fields: dict[str, Any], is_checked: bool
    ) -> None:
        assert _must_check(asked(**fields)) is is_checked
        assert _must_check(asked(**fields, stream=True)) is is_checked

    def test_lets_the_models_own_text_stream_where_the_schema_is_strict_already(self) -> None:
        wanted = {"response_format": schema_format(STRICT)}
        assert _must_check(asked(**wanted))
        assert not _must_check(asked(**wanted, stream=True))

    def test_gives_the_text_that_the_caller_asked_for(self) -> None:
        accept = _accept(asked(response_format=schema_format(STRICT)))
        assert accept('{"a": "b"}') == [TextDelta('{"a": "b"}'), MessageDone('{"a": "b"}')]
        with pytest.raises(AnswerInvalid):
            accept('{"a": 1}')

    def test_makes_calls_of_a_forced_answer(self) -> None:
        choice = {"type": "function", "function": {"name": "f"}}
        (event,) = _accept(asked(tools=[TOOL], tool_choice=choice))("{}")
        assert isinstance(event, ToolCalled)
        assert (event.call.name, event.call.arguments) == ("f", "{}")
        assert event.call.id
