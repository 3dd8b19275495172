"""Function calling: what the turn is told, and the model's calls in OpenAI's shape."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.engines.base import Completed, TextDelta, Usage, UsageReported
from tests.contract.http.openai_shapes import (
    USER,
    called,
    deltas_of,
    finish_of,
    message_of,
    named,
    tool,
)

USAGE = UsageReported(Usage(10, 2, 5, 1))
both = pytest.mark.parametrize("stream", [False, True])


def names_of(message: dict[str, Any]) -> list[str]:
    return [call["function"]["name"] for call in message["tool_calls"]]


class TestAuto:
    @both
    async def test_calls_come_in_the_models_order_with_null_content(
        self, site: Any, stream: bool
    ) -> None:
        site.engine.script = [called("a"), called("b", "g", '{"a":  2}'), USAGE, Completed()]
        answer = await site.client.ask(tools=[tool("f"), tool("g")], stream=stream)
        message = message_of(answer)
        assert message["content"] is None
        assert message["tool_calls"] == [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": '{"a":  2}'}},
        ]
        assert finish_of(answer) == "tool_calls"
        row = await site.recorded(answer, "ok")
        assert (row.input_tokens, row.output_tokens) == (10, 5)
        assert row.asked["tools"] == 2

    async def test_tools_reach_the_turn(self, site: Any) -> None:
        site.engine.script = [called()]
        answer = await site.client.ask(tools=[tool("f", description="Does f.")])
        await site.recorded(answer, "ok")
        (turn,) = site.engine.turns
        (declared,) = turn.tools
        assert (declared.name, declared.description) == ("f", "Does f.")
        assert declared.parameters["properties"] == {"a": {"type": "integer"}}
        assert turn.output_schema is None

    async def test_whole_message_has_openais_fields(self, site: Any) -> None:
        site.engine.script = [called(), USAGE, Completed()]
        answer = await site.client.ask(tools=[tool()])
        assert message_of(answer) == {
            "role": "assistant", "content": None, "refusal": None, "annotations": [],
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
            ],
        }  # fmt: skip
        assert answer.json()["usage"]["total_tokens"] == 15
        await site.recorded(answer, "ok")

    async def test_deltas_have_identity_once_and_contiguous_indices(self, site: Any) -> None:
        site.engine.script = [called("x"), called("y")]
        answer = await site.client.ask(tools=[tool()], stream=True)
        fragments = [delta["tool_calls"][0] for delta in deltas_of(answer)]
        assert [fragment["index"] for fragment in fragments] == [0, 0, 1, 1]
        assert [fragment.get("id") for fragment in fragments] == ["x", None, "y", None]
        assert [fragment.get("type") for fragment in fragments] == ["function", None] * 2
        assert [fragment["function"].get("name") for fragment in fragments] == ["f", None] * 2
        assert fragments[0]["function"]["arguments"] == ""
        await site.recorded(answer, "ok")

    @both
    async def test_answer_may_be_text(self, site: Any, stream: bool) -> None:
        answer = await site.client.ask(tools=[tool()], stream=stream)
        assert (message_of(answer)["content"], finish_of(answer)) == ("Hello", "stop")
        assert "tool_calls" not in message_of(answer)
        await site.recorded(answer, "ok")

    @both
    async def test_text_before_a_call_is_kept(self, site: Any, stream: bool) -> None:
        site.engine.script = [TextDelta("Let me see."), called()]
        answer = await site.client.ask(tools=[tool()], stream=stream)
        assert (message_of(answer)["content"], finish_of(answer)) == ("Let me see.", "tool_calls")
        await site.recorded(answer, "ok")

    @both
    async def test_one_call_where_they_may_not_be_parallel(self, site: Any, stream: bool) -> None:
        site.engine.script = [called("a"), called("b")]
        answer = await site.client.ask(tools=[tool()], parallel_tool_calls=False, stream=stream)
        assert [call["id"] for call in message_of(answer)["tool_calls"]] == ["a"]
        await site.recorded(answer, "ok")

    @pytest.mark.parametrize("name", ["exec_command", "shell_command", "mcp__x"])
    async def test_names_that_codex_swallows_are_mapped_there_and_back(
        self, site: Any, name: str
    ) -> None:
        site.engine.script = [lambda turn: called(name=turn.tools[0].name)]
        history = [
            {"role": "assistant", "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": name, "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "done"},
        ]  # fmt: skip
        answer = await site.client.ask(tools=[tool(name)], messages=[USER, *history])
        (turn,) = site.engine.turns
        assert turn.tools[0].name != name
        assert turn.messages[1].tool_calls[0].name == turn.tools[0].name
        assert names_of(message_of(answer)) == [name]
        await site.recorded(answer, "ok")

    @pytest.mark.parametrize("arguments", ["{", "[]", "", "nothing"])
    async def test_arguments_that_are_no_json_object_are_502(
        self, site: Any, arguments: str
    ) -> None:
        site.engine.script = [called(arguments=arguments)]
        answer = await site.client.ask(tools=[tool()])
        await site.refused(answer, 502, "invalid_structured_output", outcome="failed")

    async def test_bad_arguments_in_a_stream_are_an_error_object(self, site: Any) -> None:
        site.engine.script = [called(arguments="{")]
        answer = await site.client.ask(tools=[tool()], stream=True)
        assert answer.events()[-1]["error"]["code"] == "invalid_structured_output"
        assert b'"tool_calls"' not in answer.body
        await site.recorded(answer, "failed", "invalid_structured_output")

    async def test_choice_of_none_declares_none(self, site: Any) -> None:
        answer = await site.client.ask(tools=[tool()], tool_choice="none")
        await site.recorded(answer, "ok")
        assert site.engine.turns[0].tools == ()

    async def test_allowed_tools_alone_are_declared(self, site: Any) -> None:
        allowed = {"mode": "auto", "tools": [named("g")]}
        choice = {"type": "allowed_tools", "allowed_tools": allowed}
        answer = await site.client.ask(tools=[tool("f"), tool("g")], tool_choice=choice)
        await site.recorded(answer, "ok")
        assert [declared.name for declared in site.engine.turns[0].tools] == ["g"]

    @both
    async def test_tools_and_a_format_do_not_get_in_each_others_way(
        self, site: Any, stream: bool
    ) -> None:
        fields = {"tools": [tool()], "response_format": {"type": "json_object"}, "stream": stream}
        site.engine.script = [called()]
        answer = await site.client.ask(**fields)
        assert (names_of(message_of(answer)), finish_of(answer)) == (["f"], "tool_calls")
        await site.recorded(answer, "ok")
        site.engine.script = [TextDelta('{"b": 2}')]
        answer = await site.client.ask(**fields)
        assert (message_of(answer)["content"], finish_of(answer)) == ('{"b": 2}', "stop")
        await site.recorded(answer, "ok")
        assert len(site.engine.turns) == 2

    async def test_tools_in_agent_mode_are_400(self, site: Any) -> None:
        answer = await site.client.ask(tools=[tool()], metadata={"agent": "true"})
        await site.refused(answer, 400, "unsupported_parameter")
        assert answer.error["param"] == "tools"
        assert "agent" in answer.error["message"]
        assert site.engine.turns == []


class TestForced:
    """`required` and a named function: an answer that cannot be anything but a call."""

    CHOICES = pytest.mark.parametrize("choice", ["required", named()])

    @both
    @CHOICES
    async def test_json_of_the_answer_becomes_the_call(
        self, site: Any, choice: Any, stream: bool
    ) -> None:
        text = '{"a": 1}' if choice != "required" else '{"calls": [{"tool": "f", "arguments": {"a": 1}}]}'  # fmt: skip
        site.engine.script = [TextDelta(text[:4]), TextDelta(text[4:]), USAGE, Completed()]
        answer = await site.client.ask(tools=[tool()], tool_choice=choice, stream=stream)
        message = message_of(answer)
        (call,) = message["tool_calls"]
        assert message["content"] is None
        assert call["id"]
        assert call["function"]["name"] == "f"
        assert json.loads(call["function"]["arguments"]) == {"a": 1}
        assert finish_of(answer) == "tool_calls"
        row = await site.recorded(answer, "ok")
        assert (row.asked["tool_choice"], row.output_tokens) == ("forced", 5)

    @CHOICES
    async def test_turn_gets_a_schema_and_words_and_no_tools(self, site: Any, choice: Any) -> None:
        site.engine.script = [TextDelta("{}")]
        await site.client.ask(tools=[tool()], tool_choice=choice)
        turn = site.engine.turns[0]
        assert turn.tools == ()
        assert turn.output_schema["type"] == "object"
        assert [message.role for message in turn.messages] == ["developer", "user"]
        assert "f" in turn.messages[0].text

    async def test_several_calls_have_ids_of_their_own(self, site: Any) -> None:
        calls = [{"tool": name, "arguments": {"a": 1}} for name in ("g", "f")]
        site.engine.script = [TextDelta(json.dumps({"calls": calls}))]
        answer = await site.client.ask(tools=[tool("f"), tool("g")], tool_choice="required")
        message = message_of(answer)
        assert names_of(message) == ["g", "f"]
        assert len({call["id"] for call in message["tool_calls"]}) == 2
        await site.recorded(answer, "ok")

    @both
    async def test_wrong_answer_is_repaired_once_and_the_usage_is_the_sum(
        self, site: Any, stream: bool
    ) -> None:
        site.engine.scripts = [
            [TextDelta('{"a": "one"}'), USAGE, Completed()],
            [TextDelta('{"a": 1}'), USAGE, Completed()],
        ]
        answer = await site.client.ask(
            tools=[tool()], tool_choice=named(), stream=stream, **_usage(stream)
        )
        assert json.loads(message_of(answer)["tool_calls"][0]["function"]["arguments"]) == {"a": 1}
        first, second = site.engine.turns
        assert second.messages[: len(first.messages)] == first.messages
        wrong, request = second.messages[len(first.messages) :]
        assert (wrong.role, wrong.text) == ("assistant", '{"a": "one"}')
        assert request.role == "user"
        assert second.output_schema == first.output_schema
        row = await site.recorded(answer, "ok")
        assert (row.input_tokens, row.cached_input_tokens, row.output_tokens) == (20, 4, 10)
        usage = answer.events()[-2]["usage"] if stream else answer.json()["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (20, 10)

    async def test_answer_that_stays_wrong_is_502(self, site: Any) -> None:
        site.engine.script = [TextDelta("I cannot."), USAGE, Completed()]
        answer = await site.client.ask(tools=[tool()], tool_choice="required")
        row = await site.refused(answer, 502, "invalid_structured_output", outcome="failed")
        assert b"I cannot." not in answer.body
        assert (len(site.engine.turns), row.output_tokens) == (2, 10)

    async def test_model_that_says_nothing_has_refused(self, site: Any) -> None:
        site.engine.script = [Completed()]
        answer = await site.client.ask(tools=[tool()], tool_choice="required")
        assert (message_of(answer)["content"], finish_of(answer)) == (None, "content_filter")
        assert message_of(answer)["refusal"]
        await site.recorded(answer, "ok")


class TestLegacy:
    @both
    async def test_call_is_the_message_s_function_call(self, site: Any, stream: bool) -> None:
        site.engine.script = [called(), called("2")]
        functions = [tool()["function"]]
        answer = await site.client.ask(functions=functions, stream=stream)
        message = message_of(answer)
        assert message["content"] is None
        assert message["function_call"] == {"name": "f", "arguments": '{"a": 1}'}
        assert "tool_calls" not in message
        assert finish_of(answer) == "function_call"
        await site.recorded(answer, "ok")

    async def test_named_function_is_forced(self, site: Any) -> None:
        site.engine.script = [TextDelta('{"a": 1}')]
        functions = [tool()["function"]]
        answer = await site.client.ask(functions=functions, function_call={"name": "f"})
        assert message_of(answer)["function_call"]["name"] == "f"
        await site.recorded(answer, "ok")
        assert site.engine.turns[0].output_schema is not None


class TestHistory:
    async def test_every_role_reaches_the_turn_in_its_place(self, site: Any) -> None:
        calls = [
            {"id": call_id, "type": "function", "function": {"name": "f", "arguments": arguments}}
            for call_id, arguments in (("x1", '{"a":  1}'), ("x2", "broken"))
        ]
        messages = [
            {"role": "system", "content": "s1"}, {"role": "developer", "content": "d"},
            {"role": "user", "content": [{"type": "text", "text": "u"}]},
            {"role": "assistant", "content": None, "tool_calls": calls, "refusal": None, "audio": None},
            {"role": "tool", "tool_call_id": "x2", "content": "t2", "name": "f"},
            {"role": "tool", "tool_call_id": "x1", "content": [{"type": "text", "text": "t1"}]},
            {"role": "system", "content": "s2"},
            {"role": "assistant", "content": "a", "function_call": {"name": "g", "arguments": "{}"}},
            {"role": "function", "name": "g", "content": "fn"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        ]  # fmt: skip
        answer = await site.client.ask(messages=messages)
        row = await site.recorded(answer, "ok")
        sent = site.engine.turns[0].messages
        assert [(message.role, message.text) for message in sent] == [
            ("system", "s1"), ("developer", "d"), ("user", "u"), ("assistant", ""), ("tool", "t2"),
            ("tool", "t1"), ("system", "s2"), ("assistant", "a"), ("tool", "fn"), ("assistant", "no"),
        ]  # fmt: skip
        made = [(call.id, call.name, call.arguments) for call in sent[3].tool_calls]
        assert made == [("x1", "f", '{"a":  1}'), ("x2", "f", "broken")]
        assert [sent[4].tool_call_id, sent[5].tool_call_id] == ["x2", "x1"]
        assert sent[8].tool_call_id == sent[7].tool_calls[0].id
        assert row.asked == {"messages": 10}

    async def test_results_continue_the_conversation(self, site: Any) -> None:
        site.engine.scripts = [[called("abc")]]
        first = await site.client.ask(tools=[tool()])
        history = [
            USER, message_of(first), {"role": "tool", "tool_call_id": "abc", "content": "42"},
        ]  # fmt: skip
        second = await site.client.ask(tools=[tool()], messages=history)
        assert message_of(second)["content"] == "Hello"
        await site.recorded(second, "ok")
        _, call, result = site.engine.turns[1].messages
        assert (call.tool_calls[0].id, result.tool_call_id, result.text) == ("abc", "abc", "42")


def _usage(stream: bool) -> dict[str, Any]:
    return {"stream_options": {"include_usage": True}} if stream else {}
