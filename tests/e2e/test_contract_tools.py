"""Issue 3, point 2: the caller's functions, declared to the model and called back, both verbatim."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import openai
import pytest

from proxy.engines.worker import TOOL_PATIENCE_S
from tests.e2e.conftest import LiveSite, children_of, wait_until
from tests.e2e.wire import CODE_MODEL, HI, PLAIN_MODEL, Json, Reply, Streamed, ask, stream
from tests.provider import Answer, BreakOff, FunctionCall, Incomplete, Reasoning, Stall, Text

MODELS = ["gpt-6.1-sol", "gpt-6-astra", "gpt-6-sol", "gpt-6-luna", "gpt-5.6-sol", "gpt-5.6-terra",
          "gpt-5.6-luna", "gpt-5.5"]  # fmt: skip
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
both_wire_forms = pytest.mark.parametrize("model", [PLAIN_MODEL, CODE_MODEL])
either_way = pytest.mark.parametrize("send", [ask, stream], ids=["whole", "streamed"])
USAGE = (111, 77, 188)


def tool(name: str, schema: Json | None = None, description: str = "About it.") -> Json:
    function = {"name": name, "description": description, "parameters": schema or CITY}
    return {"type": "function", "function": function}


def usage_of(reply: Reply | Streamed) -> tuple[int, int, int]:
    usage = reply.body["usage"] if isinstance(reply, Reply) else reply.usage
    assert usage is not None
    return usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]


def finish_of(reply: Reply | Streamed) -> str:
    if isinstance(reply, Reply):
        return str(reply.choice["finish_reason"])
    (finish,) = reply.finishes
    return finish


def question(send: Any, **body: Any) -> Json:
    """A request that tells its usage either way."""
    return {**body, **({"stream_options": {"include_usage": True}} if send is stream else {})}


def test_catalogue_is_the_one_that_is_tested_here(live: LiveSite) -> None:
    assert {model.id for model in live.client().models.list()} == {"default", *MODELS}


@pytest.mark.parametrize("model", MODELS)
def test_every_model_gets_plain_functions_and_nothing_else(live: LiveSite, model: str) -> None:
    tools = [tool("get_weather"), tool("look-up_9", {"type": "object", "properties": {}})]
    reply = ask(
        live, FunctionCall("get_weather", {"city": "Paris"}, "c1"), model=model, tools=tools
    )
    assert [(one["type"], one["name"]) for one in reply.asked.tools()] == [
        ("function", "get_weather"),
        ("function", "look-up_9"),
    ]
    weather = reply.asked.tools()[0]
    assert weather["description"] == "About it."
    assert weather["parameters"] == CITY
    assert reply.calls == [("c1", "get_weather", '{"city": "Paris"}')]
    assert reply.choice["finish_reason"] == "tool_calls"
    assert reply.message["content"] is None
    assert reply.body["model"] == model


@either_way
@both_wire_forms
def test_several_calls_come_in_the_model_s_order_with_their_text_verbatim(
    live: LiveSite, send: Any, model: str
) -> None:
    odd = '{ "city" :"Köln",\n"n": 1.50 }'
    before = len(live.provider.requests)
    reply = send(
        live,
        [
            Text(("I ", "look.")),
            FunctionCall("b", odd, "call_b"),
            FunctionCall("a", {}, "call_a"),
            FunctionCall("b", {"city": "x"}, "call_b2"),
        ],
        **question(send, model=model, tools=[tool("a"), tool("b")]),
    )
    assert reply.calls == [
        ("call_b", "b", odd),
        ("call_a", "a", "{}"),
        ("call_b2", "b", '{"city": "x"}'),
    ]
    assert (finish_of(reply), usage_of(reply)) == ("tool_calls", USAGE)
    text = reply.message["content"] if isinstance(reply, Reply) else reply.text
    assert text == "I look."
    # And the model is not asked again for what Codex would make of it.
    ask(live)
    assert len(live.provider.requests) == before + 2


def test_streamed_calls_have_id_and_name_once(live: LiveSite) -> None:
    reply = stream(
        live, [FunctionCall("a", {"city": "x"}, "1"), FunctionCall("b", "{}", "2")],
        tools=[tool("a"), tool("b")],
    )  # fmt: skip
    pieces = [piece for delta in reply.deltas for piece in delta.get("tool_calls", ())]
    assert [piece["index"] for piece in pieces if "id" in piece] == [0, 1]
    assert [piece["function"]["name"] for piece in pieces if "id" in piece] == ["a", "b"]
    assert all(piece["type"] == "function" for piece in pieces if "id" in piece)
    assert [delta["role"] for delta in reply.deltas if "role" in delta] == ["assistant"]
    assert reply.is_done


def test_official_client_streams_calls_too(live: LiveSite) -> None:
    live.provider.reply([FunctionCall("a", {"city": "x"}, "1"), FunctionCall("a", {}, "2")])
    tools: Any = [tool("a")]
    messages: Any = HI
    with live.client().chat.completions.stream(
        model=CODE_MODEL, messages=messages, tools=tools
    ) as events:
        final = events.get_final_completion()
    calls = final.choices[0].message.tool_calls or []
    assert [(call.id, call.function.arguments) for call in calls] == [
        ("1", '{"city": "x"}'),
        ("2", "{}"),
    ]


@both_wire_forms
def test_results_go_back_and_the_conversation_goes_on(live: LiveSite, model: str) -> None:
    tools = [tool("get_weather"), tool("exec_command")]
    first = ask(
        live, [FunctionCall("get_weather", {"city": "Rome"}), FunctionCall("client_exec_command", {})],
        model=model, tools=tools,
    )  # fmt: skip
    results = [
        {"role": "tool", "tool_call_id": call_id, "content": f"result of {name}"}
        for call_id, name, _ in first.calls
    ]
    second = ask(
        live, Text(("It is ", "sunny.")), model=model, tools=tools,
        messages=[*HI, first.message, *results],
    )  # fmt: skip
    assert second.message["content"] == "It is sunny."
    assert second.choice["finish_reason"] == "stop"
    history = [found for found in second.asked.said() if found[0] != "developer"]
    ids = [call_id for call_id, _, _ in first.calls]
    assert history == [
        ("user", "hi"),
        *[("function_call", call_id) for call_id in ids],
        *[("function_call_output", call_id) for call_id in ids],
    ]
    assert second.asked.tool_outputs() == ["result of get_weather", "result of exec_command"]
    assert [one["name"] for one in second.asked.tools()] == ["get_weather", "client_exec_command"]


@pytest.mark.parametrize("name", ["exec_command", "shell_command", "mcp__files__read"])
@both_wire_forms
def test_names_that_codex_swallows_or_refuses_work(live: LiveSite, model: str, name: str) -> None:
    def call_first(body: Json) -> FunctionCall:
        offered = body.get("tools") or body["input"][0]["tools"][0]["tools"]
        return FunctionCall(offered[0]["name"], {"city": "x"}, "c")

    for send in (ask, stream):
        reply = send(live, call_first, model=model, tools=[tool(name)])
        assert reply.calls == [("c", name, '{"city": "x"}')]


@pytest.mark.parametrize(
    "name", ["shell", "web_search", "update_plan", "apply_patch", "exec", "wait", "view_image",
             "write_stdin", "a" * 64, "request_user_input", "local_shell", "functions"],
)  # fmt: skip
@both_wire_forms
def test_names_of_codex_s_own_tools_are_the_caller_s_here(
    live: LiveSite, model: str, name: str
) -> None:
    reply = ask(live, FunctionCall(name, {"city": "x"}, "c"), model=model, tools=[tool(name)])
    assert [one["name"] for one in reply.asked.tools()] == [name]
    assert reply.calls == [("c", name, '{"city": "x"}')]


def test_constraints_that_codex_drops_reach_the_model_as_words(live: LiveSite) -> None:
    schema = {
        "type": "object",
        "properties": {
            "when": {"type": "string", "format": "date", "description": "The day"},
            "zip": {"type": "string", "pattern": "^[0-9]{5}$", "default": "10115"},
            "count": {"type": "integer", "minimum": 1, "maximum": 9},
            "kind": {"const": 5},
            "home": {"$ref": "#/$defs/place"},
            "any": {"oneOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]},
        },
        "required": ["when"],
        "$defs": {"place": {"type": "object", "properties": {"x": {"type": "number"}}}},
    }
    asked = ask(live, tools=[tool("book", schema)]).asked
    (declared,) = asked.tools()
    seen = declared["parameters"]["properties"]
    assert seen["when"]["description"] == "The day"
    assert seen["kind"]["enum"] == [5]
    assert seen["kind"]["type"] == "integer"
    assert seen["home"]["$ref"].startswith("#/$defs/")
    assert declared["parameters"]["required"] == ["when"]
    for word in ("date", "[0-9]{5}", "10115", "minimum", "maximum", "9", "maxLength"):
        assert word in declared["description"]
    assert declared["description"].startswith("About it.")


STRANGE: dict[str, Json] = {
    "empty": {},
    "no properties": {"type": "object"},
    "type list": {"type": "object", "properties": {"a": {"type": ["string", "null"]}}},
    "mixed enum": {"type": "object", "properties": {"a": {"enum": [1, "x", None, True]}}},
    "anything": {"type": "object", "properties": {"a": True, "b": {}}},
    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "one of": {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
    "all of": {"type": "object", "allOf": [{"properties": {"a": {"type": "string"}}}]},
    "tuple": {
        "type": "object",
        "properties": {"a": {"type": "array", "prefixItems": [{"type": "string"}]}},
    },
    "recursive": {
        "type": "object",
        "properties": {"next": {"$ref": "#"}, "all": {"$ref": "#/$defs/node"}},
        "$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
    },
    "old definitions": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {"a": {"$ref": "#/definitions/thing"}},
        "definitions": {"thing": {"type": "number", "exclusiveMinimum": 0}},
    },
    "deep": {"type": "object", "properties": {"a": {"type": "array", "items": {
        "type": "array", "items": {"type": "object", "properties": {"b": {"type": "string"}}}}}}},
}  # fmt: skip


@both_wire_forms
def test_strange_schemas_are_taken_and_no_function_is_lost(live: LiveSite, model: str) -> None:
    tools = [tool(name.replace(" ", "_"), schema) for name, schema in STRANGE.items()]
    for one, schema in zip(tools, STRANGE.values(), strict=True):
        one["function"]["parameters"] = schema
    del tools[0]["function"]["description"]
    reply = ask(live, FunctionCall("deep", {}, "c"), model=model, tools=tools)
    assert [one["name"] for one in reply.asked.tools()] == [
        name.replace(" ", "_") for name in STRANGE
    ]
    assert all(one["parameters"]["type"] == "object" for one in reply.asked.tools())
    assert reply.calls == [("c", "deep", "{}")]


def test_function_without_parameters_is_one_without_arguments(live: LiveSite) -> None:
    reply = ask(
        live, FunctionCall("f", {}, "c"), tools=[{"type": "function", "function": {"name": "f"}}]
    )
    (declared,) = reply.asked.tools()
    assert declared["parameters"]["properties"] == {}
    assert reply.calls == [("c", "f", "{}")]


@both_wire_forms
def test_as_many_functions_as_openai_takes_reach_the_model(live: LiveSite, model: str) -> None:
    tools = [tool(f"f{number}", description="é" * 1024) for number in range(128)]
    asked = ask(live, model=model, tools=tools).asked
    assert [one["name"] for one in asked.tools()] == [f"f{number}" for number in range(128)]
    assert asked.tools()[127]["description"] == "é" * 1024


def test_choice_none_hides_the_tools(live: LiveSite) -> None:
    reply = ask(live, tools=[tool("a")], tool_choice="none")
    assert reply.asked.tools() == []
    assert reply.message["content"] == "Hello world"


@either_way
def test_required_call_is_asked_for_as_a_form_and_checked(live: LiveSite, send: Any) -> None:
    answer = {"calls": [{"tool": "b", "arguments": {"city": "Oslo"}}]}
    reply = send(
        live, Text((json.dumps(answer),)),
        **question(send, tools=[tool("a"), tool("exec_command"), tool("b")], tool_choice="required"),
    )  # fmt: skip
    ((call_id, name, arguments),) = reply.calls
    assert (name, json.loads(arguments)) == ("b", {"city": "Oslo"})
    assert call_id.startswith("call_")
    assert (finish_of(reply), usage_of(reply)) == ("tool_calls", USAGE)
    (asked,) = reply.upstream
    assert asked.tools() == []
    form = asked.body["text"]["format"]
    assert (form["type"], form["strict"]) == ("json_schema", True)
    assert "exec_command" in json.dumps(form["schema"])
    assert any("exec_command" in text for text in asked.texts("developer"))


@either_way
@both_wire_forms
def test_named_function_is_the_one_that_is_called(live: LiveSite, send: Any, model: str) -> None:
    named = {"type": "function", "function": {"name": "b"}}
    reply = send(
        live, Text(('{"city":', ' "Oslo"}')), model=model,
        tools=[tool("a"), tool("b")], tool_choice=named,
    )  # fmt: skip
    assert [call[1:] for call in reply.calls] == [("b", '{"city": "Oslo"}')]
    (asked,) = reply.upstream
    assert asked.body["text"]["format"]["schema"]["properties"].keys() == {"city"}


def test_forced_call_is_asked_for_once_more_where_it_does_not_fit(live: LiveSite) -> None:
    named = {"type": "function", "function": {"name": "a"}}
    reply = ask(
        live, Text(('{"town": 1}',)), Text(('{"city": "Rome"}',)),
        tools=[tool("a")], tool_choice=named,
    )  # fmt: skip
    assert [call[1:] for call in reply.calls] == [("a", '{"city": "Rome"}')]
    first, second = reply.upstream
    assert second.texts("assistant")[-1:] == ['{"town": 1}']
    assert len(second.texts("user")) == len(first.texts("user")) + 1
    assert usage_of(reply) == (222, 154, 376)


def test_forced_call_that_never_fits_is_an_error_and_no_call(live: LiveSite) -> None:
    wrong = Text(("I would rather not.",))
    reply = ask(live, wrong, wrong, tools=[tool("a")], tool_choice="required")
    assert (reply.status, len(reply.upstream)) == (502, 2)
    assert reply.error["code"] == "invalid_structured_output"


@either_way
def test_forced_call_that_was_cut_short_shows_nothing_of_our_form(
    live: LiveSite, send: Any
) -> None:
    cut = Incomplete("max_output_tokens", ('{"calls": [{"tool": "a"',))
    reply = send(live, cut, tools=[tool("a")], tool_choice="required")
    assert finish_of(reply) == "length"
    text = reply.text if isinstance(reply, Streamed) else reply.message["content"]
    assert text == ""
    assert len(reply.upstream) == 1


FORM = {
    "type": "json_schema",
    "json_schema": {"name": "place", "strict": True, "schema": CITY},
}


@either_way
@pytest.mark.parametrize("form", [FORM, {"type": "json_object"}], ids=["schema", "object"])
def test_tools_and_a_form_of_the_answer_go_together(live: LiveSite, send: Any, form: Json) -> None:
    """The model may call, or answer in the form: as with OpenAI."""
    body: Json = {"tools": [tool("a")], "response_format": form}
    called = send(live, FunctionCall("a", {"city": "x"}, "1"), **body)
    assert called.calls == [("1", "a", '{"city": "x"}')]
    assert finish_of(called) == "tool_calls"
    (asked,) = called.upstream
    assert [one["name"] for one in asked.tools()] == ["a"]
    if form is FORM:
        assert asked.body["text"]["format"]["schema"] == CITY
    answered = send(live, Text(('{"city":', ' "Rome"}')), **body)
    text = answered.text if isinstance(answered, Streamed) else answered.message["content"]
    assert json.loads(text) == {"city": "Rome"}
    assert finish_of(answered) == "stop"


def test_several_choices_may_all_call(live: LiveSite) -> None:
    reply = ask(
        live, FunctionCall("a", {}, "1"), FunctionCall("a", {}, "2"), tools=[tool("a")], n=2
    )
    found = [choice["message"]["tool_calls"][0]["id"] for choice in reply.body["choices"]]
    assert sorted(found) == ["1", "2"]
    assert {choice["finish_reason"] for choice in reply.body["choices"]} == {"tool_calls"}


def test_allowed_tools_are_the_only_ones_offered(live: LiveSite) -> None:
    choice = {
        "type": "allowed_tools",
        "allowed_tools": {
            "mode": "auto",
            "tools": [{"type": "function", "function": {"name": "b"}}],
        },
    }
    tools = [tool("a"), tool("b")]
    reply = ask(live, FunctionCall("b", {}, "c"), tools=tools, tool_choice=choice)
    assert [one["name"] for one in reply.asked.tools()] == ["b"]
    assert reply.calls == [("c", "b", "{}")]


@either_way
def test_without_parallel_calls_one_comes_back(live: LiveSite, send: Any) -> None:
    reply = send(
        live, [FunctionCall("a", {}, "1"), FunctionCall("a", {}, "2")],
        tools=[tool("a")], parallel_tool_calls=False,
    )  # fmt: skip
    assert reply.calls == [("1", "a", "{}")]


@either_way
def test_legacy_functions_get_a_legacy_answer(live: LiveSite, send: Any) -> None:
    reply = send(live, FunctionCall("a", {"city": "x"}), functions=[tool("a")["function"]])
    assert finish_of(reply) == "function_call"
    if isinstance(reply, Reply):
        assert reply.message["function_call"] == {"name": "a", "arguments": '{"city": "x"}'}
    else:
        (call,) = [d["function_call"] for d in reply.deltas if "function_call" in d]
        assert call == {"name": "a", "arguments": '{"city": "x"}'}


@either_way
@pytest.mark.parametrize("arguments", ['{"city": "Par', "nonsense", "[1]", '"text"', ""])
def test_broken_arguments_are_an_error_and_never_reach_the_caller(
    live: LiveSite, send: Any, arguments: str
) -> None:
    reply = send(live, FunctionCall("a", arguments), tools=[tool("a")])
    assert reply.error is not None
    assert reply.error["code"] == "invalid_structured_output"
    assert len(reply.upstream) <= 2  # Codex may have begun to ask again, and was cut
    row = live.row_of(str(reply.headers["x-request-id"]))
    assert (row["outcome"], row["error_code"]) == ("failed", "invalid_structured_output")


@either_way
@pytest.mark.parametrize("allowed", [False, True])
def test_call_of_a_function_that_was_not_offered_is_an_error(
    live: LiveSite, send: Any, allowed: bool
) -> None:
    one = {"type": "function", "function": {"name": "a"}}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [one]}}
    reply = send(
        live, FunctionCall("b", {}),
        tools=[tool("a"), tool("b")] if allowed else [tool("a")],
        tool_choice=choice if allowed else "auto",
    )  # fmt: skip
    assert reply.error is not None
    assert reply.error["code"] == "invalid_structured_output"
    assert len(reply.upstream) <= 2


def test_reasoning_and_text_come_before_the_calls(live: LiveSite) -> None:
    reply = stream(
        live, [Reasoning(("Hm", "m")), Text(("So ", "then")), FunctionCall("a", {}, "1")],
        tools=[tool("a")],
    )  # fmt: skip
    kinds = [next(iter(delta)) for delta in reply.deltas if delta and "role" not in delta]
    assert kinds == ["reasoning_content"] * 2 + ["content"] * 2 + ["tool_calls"] * 2
    assert reply.text == "So then"


def test_answer_without_a_call_is_an_answer(live: LiveSite) -> None:
    for send in (ask, stream):
        reply = send(live, Text(("No ", "need.")), tools=[tool("a")])
        assert finish_of(reply) == "stop"


def test_tools_in_agent_mode_are_a_400(live: LiveSite) -> None:
    reply = ask(live, tools=[tool("a")], metadata={"agent": "true"})
    assert (reply.status, reply.error["param"], reply.upstream) == (400, "tools", [])


# What a turn with a call leaves behind: nothing.


def test_connection_lost_after_a_call_is_an_error(live: LiveSite) -> None:
    """The calls may not have been all: a part is not passed off as the whole."""
    reply = stream(live, BreakOff([FunctionCall("a", {}, "1")]), tools=[tool("a")])
    assert reply.error is not None
    assert reply.error["code"] == "upstream_disconnected"
    assert (reply.finishes, reply.is_done) == ([], False)


def test_call_that_the_model_is_slow_to_write_is_waited_for(live: LiveSite) -> None:
    before = len(live.provider.requests)
    slow = Text(("a", "b"), pause_s=TOOL_PATIENCE_S + 1)
    reply = ask(
        live, [FunctionCall("a", {}, "1"), slow, FunctionCall("a", {}, "2")], tools=[tool("a")]
    )
    assert [call[0] for call in reply.calls] == ["1", "2"]
    assert usage_of(reply) == USAGE
    assert len(live.provider.requests) <= before + 2  # at worst one more, and cut


def test_thirty_turns_with_calls_leave_nothing_behind(live: LiveSite) -> None:
    ask(live, FunctionCall("a", {}), tools=[tool("a")])
    worker = app_server(live)
    children, before = set(children_of(worker)), len(live.provider.requests)
    threads = threads_of(worker)
    for number in range(30):
        reply = ask(live, FunctionCall("a", {"n": number}, f"c{number}"), tools=[tool("a")])
        assert reply.calls == [(f"c{number}", "a", f'{{"n": {number}}}')]
    assert app_server(live) == worker
    assert set(children_of(worker)) == children
    assert threads_of(worker) <= threads + 4
    assert len(live.provider.requests) == before + 30


def app_server(live: LiveSite) -> int:
    """The one worker of the app-server engine, by its longest life."""
    return children_of(live.server.process.pid)[0]


def threads_of(pid: int) -> int:
    """How many threads it has; 0 where the system does not tell."""
    folder = Path(f"/proc/{pid}/task")
    return len(list(folder.iterdir())) if folder.exists() else 0


def test_calls_at_once_on_one_worker_do_not_mix(live: LiveSite) -> None:
    live.provider.default = echo_call
    replies: dict[int, Any] = {}

    def one(number: int) -> None:
        messages: Any = [{"role": "user", "content": f"number {number}"}]
        tools: Any = [tool("a")]
        replies[number] = live.client().chat.completions.create(
            model=CODE_MODEL, messages=messages, tools=tools
        )

    threads = [threading.Thread(target=one, args=(number,)) for number in range(12)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        live.provider.default = Answer()
    for number, reply in replies.items():
        (call,) = reply.choices[0].message.tool_calls
        assert json.loads(call.function.arguments) == {"said": f"number {number}"}
    assert len(replies) == 12


def echo_call(body: Json) -> FunctionCall:
    said = body["input"][-1]["content"][0]["text"]
    return FunctionCall("a", {"said": said})


def test_client_that_leaves_in_a_turn_with_tools_stops_it(live: LiveSite) -> None:
    gone = live.provider.disconnects
    live.provider.reply(Stall(after=2))
    messages: Any = HI
    tools: Any = [tool("a")]
    client: openai.OpenAI = live.client()
    running = client.chat.completions.create(
        model=CODE_MODEL, messages=messages, tools=tools, stream=True
    )
    next(iter(running))
    running.close()
    live.provider.wait_for_disconnect(gone + 1)
    wait_until(lambda: live.rows()[-1]["outcome"] == "cancelled")
