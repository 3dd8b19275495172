"""What Codex is told about a request's tools, and how the model's calls are read."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.engines.base import ToolCall
from proxy.errors import InvalidRequest, ProxyError, UnsupportedParameter
from proxy.structured import AnswerInvalid
from proxy.tools import check_arguments, read_tools

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["C", "F"]}},
    "required": ["city"],
}
FREE = {"type": "object", "additionalProperties": True}


def function(name: str, parameters: object = None, **more: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [named(name) for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


WEATHER = function("weather", CITY, description="Tells the weather")
NOTE = function("note", FREE)
BOTH = [WEATHER, NOTE]


def refused(*args: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read_tools(*args)
    assert caught.value.status == 400
    return caught.value


# What Codex is told.


@pytest.mark.parametrize("tools", [None, []])
def test_no_tools_are_no_plan(tools: object) -> None:
    plan = read_tools(tools, "auto", True)
    assert (plan.declared, plan.mode, plan.forced_names) == ((), "none", ())


def test_tools_are_declared_in_order_with_their_schema() -> None:
    plan = read_tools(BOTH)
    assert plan.mode == "auto"
    assert [tool.name for tool in plan.declared] == ["weather", "note"]
    assert plan.declared[0].parameters == CITY
    assert plan.declared[0].description == "Tells the weather"
    assert plan.allows_many


def test_a_function_without_parameters_takes_none() -> None:
    (tool,) = read_tools([function("now")]).declared
    assert tool.parameters == {"type": "object", "properties": {}}
    plan = read_tools([function("now")], named("now"))
    schema, _ = plan.forced_format()
    assert schema is not None
    assert schema["properties"] == {}
    assert plan.read_forced("{}")[0].arguments == "{}"


def test_none_declares_nothing() -> None:
    plan = read_tools(BOTH, "none")
    assert (plan.declared, plan.mode) == ((), "none")


def test_allowed_tools_declare_only_those() -> None:
    plan = read_tools(BOTH, allowed("auto", "note"))
    assert [tool.name for tool in plan.declared] == ["note"]
    assert plan.mode == "auto"


def test_no_parallel_calls_is_one_call_at_most() -> None:
    assert not read_tools(BOTH, None, False).allows_many


def test_legacy_functions_are_tools_answered_one_at_a_time() -> None:
    plan = read_tools(None, None, None, [WEATHER["function"]], "auto")
    assert plan.is_legacy
    assert not plan.allows_many
    assert [tool.name for tool in plan.declared] == ["weather"]
    assert read_tools(None, None, None, [WEATHER["function"]], "none").declared == ()
    forced = read_tools(None, None, None, [WEATHER["function"]], {"name": "weather"})
    assert (forced.mode, forced.forced_names) == ("forced", ("weather",))


@pytest.mark.parametrize("name", ["exec_command", "shell_command", "mcp__x", "mcp__" + "y" * 59])
def test_a_name_that_codex_would_lose_is_mapped_there_and_back(name: str) -> None:
    plan = read_tools([function(name), function("weather")])
    alias = plan.declared[0].name
    assert alias != name
    assert not alias.startswith("mcp__")
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", alias)
    assert plan.name_for_codex(name) == alias
    assert plan.name_for_client(alias) == name
    assert plan.name_for_client("weather") == "weather"
    # A later request of the same conversation, with no tools any more.
    assert read_tools(None).name_for_codex(name) == alias


def test_an_alias_never_meets_a_name_of_the_callers() -> None:
    tools = [function("client_exec_command"), function("exec_command")]
    plan = read_tools(tools)
    aliases = [tool.name for tool in plan.declared]
    assert len(set(aliases)) == 2
    assert [plan.name_for_client(alias) for alias in aliases] == [
        "client_exec_command",
        "exec_command",
    ]


def test_what_codex_drops_from_a_schema_is_told_in_the_description() -> None:
    parameters = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {
            "day": {"type": "string", "format": "date", "description": "When"},
            "count": {"const": 5, "default": 5},
            "tags": {"type": "array", "items": {"type": "string", "pattern": "^a"}, "minItems": 1},
            "who": {"$ref": "#/definitions/Who"},
            "or": {"oneOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["day"],
        "additionalProperties": False,
        "definitions": {"Who": {"type": "object", "properties": {"age": {"minimum": 1}}}},
    }
    (tool,) = read_tools([function("f", parameters, description="Does it")]).declared
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "day": {"type": "string", "description": "When"},
            "count": {"type": "integer", "enum": [5]},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            "who": {"$ref": "#/$defs/Who"},
            "or": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["day"],
        "additionalProperties": False,
        "$defs": {"Who": {"type": "object", "properties": {"age": {}}}},
    }
    assert tool.description == (
        'Does it\nRules for the arguments: day: format: "date"; count: default: 5; '
        'tags[]: pattern: "^a"; Who.age: minimum: 1'
    )


def test_combined_parts_of_a_schema_are_merged_into_what_codex_keeps() -> None:
    parameters = {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "string"}}},
            {"properties": {"b": {"type": "integer"}}, "required": ["b"]},
        ]
    }
    (tool,) = read_tools([function("f", parameters)]).declared
    assert tool.parameters["properties"] == {"a": {"type": "string"}, "b": {"type": "integer"}}
    assert tool.parameters["required"] == ["b"]


def test_a_schema_that_unfolds_without_end_goes_as_it_is() -> None:
    parameters = {
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/x"}},
        "$defs": {
            "x": {
                "allOf": [
                    {"properties": {"c": {"$ref": "#/$defs/x"}}, "minProperties": 1},
                    {"properties": {"c": {"$ref": "#/$defs/x", "maxProperties": 2}}},
                ]
            }
        },
    }
    (tool,) = read_tools([function("f", parameters)]).declared
    assert tool.parameters == parameters
    assert "minProperties" in tool.description


# What is refused.


@pytest.mark.parametrize(
    ("tools", "code", "param"),
    [
        ({}, "invalid_type", "tools"),
        ([1], "invalid_type", "tools[0]"),
        ([{}], "missing_required_parameter", "tools[0].type"),
        ([{"type": "retrieval"}], "invalid_value", "tools[0].type"),
        ([{"type": "function"}], "missing_required_parameter", "tools[0].function"),
        ([{"type": "function", "function": 1}], "invalid_type", "tools[0].function"),
        ([named(None)], "missing_required_parameter", "tools[0].function.name"),  # type: ignore[arg-type]
        ([WEATHER, named("a.b")], "invalid_value", "tools[1].function.name"),
        ([named("x" * 65)], "invalid_value", "tools[0].function.name"),
        ([WEATHER, WEATHER], "invalid_value", "tools[1].function.name"),
        ([function("f", [])], "invalid_type", "tools[0].function.parameters"),
        ([function("f", {}, strict=1)], "invalid_type", "tools[0].function.strict"),
        ([function("f", {}, description=1)], "invalid_type", "tools[0].function.description"),
        (
            [function("f", {"type": "array"})],
            "invalid_function_parameters",
            "tools[0].function.parameters",
        ),
        (
            [function("f", {"properties": {"a": {"$ref": "http://x/"}}})],
            "invalid_function_parameters",
            "tools[0].function.parameters",
        ),
        ([function(f"f{i}") for i in range(129)], "array_above_max_length", "tools"),
    ],
)
def test_a_wrong_tool_is_named(tools: object, code: str, param: str) -> None:
    error = refused(tools)
    assert (error.code, error.param) == (code, param)


def test_custom_tools_are_unsupported() -> None:
    error = refused([{"type": "custom", "custom": {"name": "x"}}])
    assert isinstance(error, UnsupportedParameter)
    assert error.param == "tools[0].type"


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        (None, "required", "tool_choice"),
        ([], "required", "tool_choice"),
        (BOTH, "maybe", "tool_choice"),
        (BOTH, 1, "tool_choice"),
        (BOTH, {}, "tool_choice.type"),
        (BOTH, {"type": "x"}, "tool_choice.type"),
        (BOTH, {"type": "custom", "custom": {"name": "x"}}, "tool_choice.type"),
        (BOTH, {"type": "function"}, "tool_choice.function"),
        (BOTH, named("other"), "tool_choice.function.name"),
        (None, named("weather"), "tool_choice.function.name"),
        (BOTH, {"type": "allowed_tools"}, "tool_choice.allowed_tools"),
        (BOTH, allowed("maybe", "note"), "tool_choice.allowed_tools.mode"),
        (BOTH, allowed("auto"), "tool_choice.allowed_tools.tools"),
        (BOTH, allowed("auto", "x"), "tool_choice.allowed_tools.tools[0].function.name"),
    ],
)
def test_a_wrong_choice_is_named(tools: object, choice: object, param: str) -> None:
    assert refused(tools, choice).param == param


def test_the_legacy_fields_do_not_mix_with_todays() -> None:
    old = [WEATHER["function"]]
    assert refused(BOTH, None, None, old).param == "functions"
    assert refused(BOTH, None, None, None, "none").param == "function_call"
    assert refused(None, "required", None, old).param == "tool_choice"
    assert refused(None, None, None, old, {"name": "x"}).param == "function_call.name"
    assert refused(None, None, None, None, {"name": "x"}).param == "function_call.name"
    assert refused(None, None, None, [{}]).param == "functions[0].name"
    assert refused(BOTH, None, "yes").param == "parallel_tool_calls"


# A demanded call.


def test_a_named_function_is_asked_for_by_its_arguments() -> None:
    plan = read_tools(BOTH, named("weather"))
    assert (plan.declared, plan.mode, plan.forced_names) == ((), "forced", ("weather",))
    assert not plan.allows_many
    schema, instruction = plan.forced_format()
    assert schema is not None
    assert schema["required"] == ["city", "unit"]
    assert "Tells the weather" in instruction
    assert json.dumps(CITY, separators=(",", ":")) in instruction
    (call,) = plan.read_forced('{"city": "Paris", "unit": null}')
    assert call.name == "weather"
    assert json.loads(call.arguments) == {"city": "Paris"}
    assert re.fullmatch("call_[0-9a-f]{24}", call.id)


def test_arguments_that_need_no_change_stay_the_models_text() -> None:
    plan = read_tools(BOTH, named("weather"))
    (call,) = plan.read_forced('{ "city": "Paris", "unit": "C" }')
    assert call.arguments == '{ "city": "Paris", "unit": "C" }'


def test_required_asks_for_a_list_of_calls() -> None:
    plan = read_tools(BOTH, "required")
    schema, instruction = plan.forced_format()
    assert schema is not None
    assert schema["properties"]["calls"]["minItems"] == 1
    assert "Function: weather" in instruction
    assert "Function: note" in instruction
    answer = {
        "calls": [
            {"tool": "weather", "arguments": {"city": "Rome", "unit": None}},
            {"tool": "note", "arguments": {"entries": [{"key": "k", "value": [1]}]}},
        ]
    }
    calls = plan.read_forced(json.dumps(answer))
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [
        ("weather", {"city": "Rome"}),
        ("note", {"k": [1]}),
    ]
    assert calls[0].id != calls[1].id


@pytest.mark.parametrize("choice", ["required", allowed("required", "weather", "note")])
def test_required_without_parallel_calls_asks_for_one(choice: object) -> None:
    plan = read_tools(BOTH, choice, False)
    assert not plan.allows_many
    assert plan.forced_names == ("weather", "note")
    answer = {"call": {"tool": "weather", "arguments": {"city": "Rome", "unit": "C"}}}
    (call,) = plan.read_forced(json.dumps(answer))
    assert call.name == "weather"


def test_one_required_function_is_one_plain_call() -> None:
    plan = read_tools([WEATHER], "required", False)
    answer = {"tool": "weather", "arguments": {"city": "Rome", "unit": None}}
    (call,) = plan.read_forced(json.dumps(answer))
    assert json.loads(call.arguments) == {"city": "Rome"}


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I would rather not.",
        "[]",
        "{}",
        '{"calls": []}',
        '{"calls": [1]}',
        '{"calls": [{"tool": "other", "arguments": {}}]}',
        '{"calls": [{"tool": "weather"}]}',
        '{"calls": [{"tool": "weather", "arguments": {"city": 1, "unit": null}}]}',
        '{"calls": [{"tool": ["weather"], "arguments": {}}]}',
    ],
)
def test_an_answer_that_is_no_call_is_invalid(answer: str) -> None:
    with pytest.raises(AnswerInvalid) as caught:
        read_tools(BOTH, "required").read_forced(answer)
    assert caught.value.status == 502


def test_parameters_beyond_strict_mode_are_asked_for_in_words_and_checked() -> None:
    deep: dict[str, Any] = {"type": "integer"}
    for _ in range(12):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"]}
    plan = read_tools([function("deep", deep)], named("deep"))
    schema, instruction = plan.forced_format()
    assert schema is None
    assert '"required":["a"]' in instruction
    right = '{"a":' * 12 + "1" + "}" * 12
    assert plan.read_forced(f"```json\n{right}\n```")[0].arguments == right
    with pytest.raises(AnswerInvalid):
        plan.read_forced(right.replace("1", '"1"'))


@pytest.mark.parametrize("arguments", ["{}", '{"a": 1}', ' {"a": [1, 2]} '])
def test_arguments_that_are_an_object_pass(arguments: str) -> None:
    check_arguments(ToolCall("c1", "f", arguments))


@pytest.mark.parametrize("arguments", ["", "[]", '{"a": 1', "null", "{'a': 1}", '{"a": NaN}'])
def test_arguments_that_are_no_object_are_invalid(arguments: str) -> None:
    with pytest.raises(AnswerInvalid):
        check_arguments(ToolCall("c1", "f", arguments))


# Anything at all.

words = st.sampled_from(
    ["type", "function", "name", "parameters", "properties", "allowed_tools", "mode", "tools",
     "description", "strict", "$ref", "items", "allOf"]
)  # fmt: skip
wild = st.sampled_from(
    [None, True, 1, "", "function", "object", "auto", "required", "weather", "allowed_tools", "#"]
)
soup: st.SearchStrategy[Any] = st.recursive(
    wild,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)
tool_soup = st.lists(
    soup | st.builds(function, st.sampled_from(["a", "b", "exec_command"]), soup), max_size=3
)
some = st.one_of(st.none(), soup)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.just(BOTH), tool_soup, some),
    st.one_of(st.sampled_from(["required", named("weather"), allowed("required", "note")]), some),
    st.one_of(st.none(), st.booleans(), soup),
    st.one_of(st.none(), st.just([WEATHER["function"]]), soup),
    some,
    st.one_of(st.text(max_size=10), soup.map(json.dumps)),
)
def test_nothing_raises_anything_but_our_own_errors(
    tools: Any, choice: Any, parallel: Any, functions: Any, function_call: Any, answer: str
) -> None:
    try:
        plan = read_tools(tools, choice, parallel, functions, function_call)
        for tool in plan.declared:
            assert plan.name_for_codex(plan.name_for_client(tool.name)) == tool.name
        if plan.mode == "forced":
            json.dumps(plan.forced_format())
            for call in plan.read_forced(answer):
                check_arguments(call)
    except (InvalidRequest, AnswerInvalid) as error:
        assert_told(error)


def assert_told(error: ProxyError) -> None:
    assert error.message
    assert error.param is not None or isinstance(error, AnswerInvalid)
