"""Bad input is 400 in OpenAI's words, naming the field; never 422, never 500."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.asgi import question

USER = {"role": "user", "content": "hi"}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def says(**message: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", **message}]}


TYPES = {
    "numeric string for stream": ({"stream": "1"}, "stream"),
    "number for stream": ({"stream": 1}, "stream"),
    "number for model": ({"model": 5}, "model"),
    "null for model": ({"model": None}, "model"),
    "text for messages": ({"messages": "hi"}, "messages"),
    "object for messages": ({"messages": USER}, "messages"),
    "null for messages": ({"messages": None}, "messages"),
    "text for a message": ({"messages": ["hi"]}, "messages[0]"),
    "number for content": (says(content=5), "messages[0].content"),
    "object for content": (says(content={"type": "text", "text": "a"}), "messages[0].content"),
    "null for a user's content": (says(content=None), "messages[0].content"),
    "text for a part": (says(content=["a"]), "messages[0].content[0]"),
    "number for a part's text": (
        says(content=[{"type": "text", "text": 5}]),
        "messages[0].content[0].text",
    ),
    "number for a role": ({"messages": [USER, {"role": 5, "content": "a"}]}, "messages[1].role"),
    "text for metadata": ({"metadata": "cwd"}, "metadata"),
    "array for metadata": ({"metadata": []}, "metadata"),
    "number for reasoning_effort": ({"reasoning_effort": 5}, "reasoning_effort"),
    "array for stream_options": ({"stream": True, "stream_options": []}, "stream_options"),
    "text for include_usage": (
        {"stream": True, "stream_options": {"include_usage": "true"}},
        "stream_options.include_usage",
    ),
}
VALUES = {
    "no messages": ({"messages": []}, "messages", "empty_array"),
    "no parts": (says(content=[]), "messages[0].content", "empty_array"),
    "unknown role": (
        {"messages": [{"role": "boss", "content": "a"}]},
        "messages[0].role",
        "invalid_value",
    ),
    "no content": (says(), "messages[0].content", "invalid_type"),
    "part without a type": (
        says(content=[{"type": "text", "text": "a"}, {"text": "b"}]),
        "messages[0].content[1].type",
        "missing_required_parameter",
    ),
    "part without its text": (
        says(content=[{"type": "text"}]),
        "messages[0].content[0].text",
        "missing_required_parameter",
    ),
    "unknown effort": ({"reasoning_effort": "much"}, "reasoning_effort", "invalid_value"),
    "empty effort": ({"reasoning_effort": ""}, "reasoning_effort", "invalid_value"),
    "stream options without stream": (
        {"stream_options": {"include_usage": True}},
        "stream_options",
        "invalid_value",
    ),
}
UNSUPPORTED = {
    "sound": (says(content=[{"type": "input_audio"}]), "messages[0].content[0]"),
    "file": (says(content=[{"type": "file"}]), "messages[0].content[0]"),
    "unknown part": (says(content=[{"type": "x"}]), "messages[0].content[0]"),
    "picture of the system's": (
        {"messages": [{"role": "system", "content": [PICTURE]}, USER]},
        "messages[0].content[0]",
    ),
    "custom tool": ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
    "custom call of the assistant": (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "type": "custom"}]}, USER]},
        "messages[0].tool_calls[0]",
    ),
    "logprobs": ({"logprobs": True}, "logprobs"),
    "top_logprobs": ({"top_logprobs": 3}, "top_logprobs"),
    "audio": ({"audio": {"voice": "alloy"}}, "audio"),
    "web search": ({"web_search_options": {}}, "web_search_options"),
}
UNSUPPORTED_VALUES = {
    "sound as output": ({"modalities": ["text", "audio"]}, "modalities"),
    "effort that the model lacks": ({"reasoning_effort": "xhigh"}, "reasoning_effort"),
}
TOOLS = {
    "tool without a function": ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
    "tool without a name": (
        {"tools": [{"type": "function", "function": {}}]},
        "tools[0].function.name",
        "missing_required_parameter",
    ),
    "bad name": ({"tools": [tool("no spaces")]}, "tools[0].function.name", "invalid_value"),
    "name twice": ({"tools": [tool("f"), tool("f")]}, "tools[1].function.name", "invalid_value"),
    "bad parameters": (
        {"tools": [tool("f", parameters={"type": "nothing"})]},
        "tools[0].function.parameters",
        "invalid_function_parameters",
    ),
    "129 tools": (
        {"tools": [tool(f"f{index}") for index in range(129)]},
        "tools",
        "array_above_max_length",
    ),
    "required without tools": ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    "unknown word": ({"tools": [tool("f")], "tool_choice": "must"}, "tool_choice", "invalid_value"),
    "choice of no tool": (
        {"tools": [tool("f")], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice.function.name",
        "invalid_value",
    ),
    "tools and functions": (
        {"tools": [tool("f")], "functions": [{"name": "f"}]}, "functions", "invalid_value"
    ),
    "legacy call of no function": (
        {"functions": [{"name": "f"}], "function_call": {"name": "g"}},
        "function_call.name",
        "invalid_value",
    ),
}  # fmt: skip
FORMATS = {
    "format without a type": ({}, "response_format.type", "missing_required_parameter"),
    "unknown format": ({"type": "xml"}, "response_format.type", "invalid_value"),
    "format without its schema": (
        {"type": "json_schema"}, "response_format.json_schema", "missing_required_parameter",
    ),
    "schema without a name": (
        {"type": "json_schema", "json_schema": {"schema": {}}},
        "response_format.json_schema.name",
        "missing_required_parameter",
    ),
    "schema with a bad name": (
        {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}},
        "response_format.json_schema.name",
        "invalid_value",
    ),
    "bad schema": (
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "x"}}},
        "response_format.json_schema.schema",
        "invalid_value",
    ),
}  # fmt: skip
HISTORY = {
    "answer to no call": (
        {"messages": [USER, {"role": "tool", "content": "a", "tool_call_id": "1"}]},
        "messages[1].tool_call_id",
        "invalid_value",
    ),
    "answer without an id": (
        {"messages": [USER, {"role": "tool", "content": "a"}]},
        "messages[1].tool_call_id",
        "missing_required_parameter",
    ),
    "legacy answer to no call": (
        {"messages": [USER, {"role": "function", "content": "a", "name": "f"}]},
        "messages[1].name",
        "invalid_value",
    ),
    "call without arguments": (
        {"messages": [{"role": "assistant", "function_call": {"name": "f"}}, USER]},
        "messages[0].function_call.arguments",
        "missing_required_parameter",
    ),
    "call without an id": (
        {"messages": [{"role": "assistant", "tool_calls": [{"type": "function"}]}, USER]},
        "messages[0].tool_calls[0].id",
        "missing_required_parameter",
    ),
    "nothing of the assistant's": (
        {"messages": [{"role": "assistant", "content": None}, USER]},
        "messages[0].content",
        "invalid_type",
    ),
}
RANGES = {
    "temperature": (-0.1, "decimal_below_min_value", 2.1, "decimal_above_max_value"),
    "top_p": (-0.1, "decimal_below_min_value", 1.1, "decimal_above_max_value"),
    "presence_penalty": (-2.1, "decimal_below_min_value", 2.1, "decimal_above_max_value"),
    "frequency_penalty": (-2.1, "decimal_below_min_value", 2.1, "decimal_above_max_value"),
    "n": (0, "integer_below_min_value", 5, "integer_above_max_value"),
    "top_logprobs": (-1, "integer_below_min_value", 21, "integer_above_max_value"),
}
LIMITS = {
    **{f"{name} too low": ({name: low}, name, code) for name, (low, code, _, _) in RANGES.items()},
    **{f"{name} too high": ({name: high}, name, code) for name, (_, _, high, code) in RANGES.items()},
    "max_tokens too low": ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
    "max_completion_tokens too low": (
        {"max_completion_tokens": -1}, "max_completion_tokens", "integer_below_min_value",
    ),
    "safety_identifier too long": (
        {"safety_identifier": "a" * 65}, "safety_identifier", "string_above_max_length",
    ),
    "bias too high": ({"logit_bias": {"5": 101}}, "logit_bias", "decimal_above_max_value"),
    "five stops": ({"stop": list("abcde")}, "stop", "array_above_max_length"),
    "empty stop": ({"stop": [""]}, "stop", "invalid_value"),
    "17 pairs of metadata": (
        {"metadata": {str(i): "a" for i in range(17)}}, "metadata", "object_above_max_properties",
    ),
    "long key of metadata": ({"metadata": {"k" * 65: "a"}}, "metadata", "string_above_max_length"),
    "long value of metadata": ({"metadata": {"k": "a" * 513}}, "metadata", "string_above_max_length"),
    "unknown verbosity": ({"verbosity": "much"}, "verbosity", "invalid_value"),
    "unknown tier": ({"service_tier": "gold"}, "service_tier", "invalid_value"),
}  # fmt: skip
WRONG_TYPES: dict[str, tuple[Any, ...]] = {
    "temperature": ("1", True), "top_p": ("1", []), "presence_penalty": ("0", {}),
    "frequency_penalty": (True,), "n": (1.5, "2", True), "max_tokens": ("5", 1.5, True),
    "max_completion_tokens": ("5", 1.5), "stop": (5, {}), "seed": ("7", 1.5), "user": (5,),
    "safety_identifier": (5,), "prompt_cache_key": (5,), "prompt_cache_retention": (5,),
    "prompt_cache_options": ("a",), "store": ("true", 1), "logit_bias": ([], "a"),
    "prediction": ("a",), "moderation": ("a",), "logprobs": (1, "true"), "top_logprobs": ("1", 1.5),
    "modalities": ("text",), "audio": ("a",), "web_search_options": ("a",), "verbosity": (5,),
    "service_tier": (5,), "tools": ({}, "a"), "tool_choice": (5,), "parallel_tool_calls": ("false", 0),
    "functions": ({},), "function_call": (5,), "response_format": ("json_object", []),
}  # fmt: skip
IN_OPENAIS_WORDS = {
    "tools[0].function.parameters", "response_format.json_schema.schema", "tools[0].type",
    "messages[1].tool_call_id", "messages[1].name",
}  # fmt: skip
"""Fields whose error has a sentence of its own at OpenAI, which clients know."""
BAD = [
    *(
        (f"{name}={value!r}", {name: value}, name, "invalid_type")
        for name, values in WRONG_TYPES.items()
        for value in values
    ),
    *((name, *case) for name, case in (TOOLS | HISTORY | LIMITS).items()),
    *(
        (name, {"response_format": given}, param, code)
        for name, (given, param, code) in FORMATS.items()
    ),
    *((name, fields, param, "invalid_type") for name, (fields, param) in TYPES.items()),
    *((name, fields, param, code) for name, (fields, param, code) in VALUES.items()),
    *(
        (name, fields, param, "unsupported_parameter")
        for name, (fields, param) in UNSUPPORTED.items()
    ),
    *(
        (name, fields, param, "unsupported_value")
        for name, (fields, param) in UNSUPPORTED_VALUES.items()
    ),
]


@pytest.mark.parametrize(
    ("fields", "param", "code"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
async def test_bad_field_is_400_that_names_it(
    site: Any, fields: dict[str, Any], param: str, code: str
) -> None:
    answer = await site.client.post("/v1/chat/completions", json=question(**fields))
    row = await site.refused(answer, 400, code)
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["param"] == param
    assert param in answer.error["message"] or param in IN_OPENAIS_WORDS
    assert row.model_asked in ("default", "")
    assert row.stream is (fields.get("stream") is True)
    assert site.engine.turns == []


@pytest.mark.parametrize("missing", ["model", "messages"])
async def test_missing_field_is_400_that_names_it(site: Any, missing: str) -> None:
    body = question()
    del body[missing]
    answer = await site.client.post("/v1/chat/completions", json=body)
    await site.refused(answer, 400, "missing_required_parameter")
    assert answer.error["param"] == missing
    assert answer.error["message"] == f"Missing required parameter: '{missing}'."


BROKEN = {
    "nothing": b"",
    "spaces": b"   ",
    "half an object": b'{"model": "default", ',
    "two objects": b"{} {}",
    "not JSON": b"model=default",
    "NaN": b'{"model": NaN}',
    "not UTF-8": b'{"model": "\xff"}',
    "UTF-16": '{"model": "default"}'.encode("utf-16"),
    "half a surrogate": b'{"model": "\\ud800"}',
    "nested too deep": b'{"model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
async def test_broken_json_is_400(site: Any, body: bytes) -> None:
    answer = await site.client.post("/v1/chat/completions", body=body)
    row = await site.refused(answer, 400, "invalid_json")
    assert answer.error["param"] is None
    assert (row.model_asked, row.endpoint) == ("", "/v1/chat/completions")


@pytest.mark.parametrize("body", [b"[]", b'"hi"', b"5", b"null", b"true"])
async def test_json_that_is_no_object_is_400(site: Any, body: bytes) -> None:
    answer = await site.client.post("/v1/chat/completions", body=body)
    await site.refused(answer, 400, "invalid_type")


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", ""])
async def test_body_not_declared_as_json_is_415(site: Any, kind: str) -> None:
    answer = await site.client.post(
        "/v1/chat/completions", json=question(), headers={"content-type": kind}
    )
    await site.refused(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "kind",
    ["application/json; charset=utf-8", "application/json;charset=UTF-8", "Application/JSON"],
)
async def test_json_under_any_spelling_is_read(site: Any, kind: str) -> None:
    answer = await site.client.post(
        "/v1/chat/completions", json=question(), headers={"content-type": kind}
    )
    assert answer.status == 200, answer.body
    await site.recorded(answer, "ok")


NULLS = (
    "stream", "stream_options", "metadata", "reasoning_effort", "tools", "tool_choice", "functions",
    "function_call", "response_format", "n", "stop", "logprobs", "top_logprobs", "modalities", "audio",
    "temperature", "top_p", "seed", "user", "max_tokens", "max_completion_tokens", "web_search_options",
)  # fmt: skip
ACCEPTED = {
    "nulls": dict.fromkeys(NULLS),
    "neutral values": {
        "n": 1, "stop": [], "tools": [], "tool_choice": "none", "logprobs": False,
        "modalities": ["text"], "response_format": {"type": "text"}, "parallel_tool_calls": True,
        "top_logprobs": 0,
    },
    "edges of the ranges": {
        "temperature": 2, "top_p": 0, "presence_penalty": -2, "frequency_penalty": 2.0, "max_tokens": 1,
        "logit_bias": {"1": -100, "2": 100.0}, "safety_identifier": "a" * 64, "seed": -(2**63), "n": 4,
        "metadata": {"k" * 64: "a" * 512},
    },
    "hints": {"temperature": 0.2, "top_p": 1, "seed": 7, "user": "u", "max_tokens": 5, "store": True},
    "unknown fields": {"top_k": 5, "chat_template_kwargs": {"a": [1]}, "x": None},
    "metadata for others": {"metadata": {"trace": "1", "deep": {"a": 1}}},
    "obfuscation": {"stream_options": {"include_obfuscation": False}, "stream": True},
    "every role": {
        "messages": [
            {"role": "system", "content": "a"}, {"role": "developer", "content": [{"type": "text", "text": "b"}]},
            {"role": "user", "content": "", "name": "ada"}, {"role": "assistant", "content": "c"}, USER,
        ]
    },
    "a dumped answer": {
        "messages": [
            {"role": "assistant", "content": "a", "refusal": None, "annotations": [], "audio": None,
             "function_call": None, "tool_calls": None, "reasoning_content": "b"}, USER,
        ]
    },
    "a refusal": {"messages": [{"role": "assistant", "content": None, "refusal": "no"}, USER]},
    "a part with more in it": says(
        content=[{"type": "text", "text": "a", "prompt_cache_breakpoint": {"type": "x"}}]
    ),
}  # fmt: skip


@pytest.mark.parametrize("fields", ACCEPTED.values(), ids=ACCEPTED)
async def test_what_clients_also_send_is_accepted(site: Any, fields: dict[str, Any]) -> None:
    answer = await site.client.post("/v1/chat/completions", json=question(**fields))
    assert answer.status == 200, answer.body
    await site.recorded(answer, "ok")


@pytest.mark.parametrize("effort", ["low", "medium", "high"])
async def test_effort_reaches_the_turn(site: Any, effort: str) -> None:
    answer = await site.client.ask(reasoning_effort=effort)
    await site.recorded(answer, "ok")
    assert site.engine.turns[0].effort == effort


async def test_roles_and_parts_reach_the_turn(site: Any) -> None:
    parts = [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": parts}]
    answer = await site.client.post("/v1/chat/completions", json=question(messages=messages))
    await site.recorded(answer, "ok")
    turn = site.engine.turns[0]
    assert [(message.role, message.text) for message in turn.messages] == [
        ("system", "a"),
        ("user", "b\nc"),
    ]


async def test_thousands_of_fields_and_big_numbers_are_no_failure(site: Any) -> None:
    body = question() | {f"x{index}": 2**63 - 1 for index in range(5000)}
    answer = await site.client.post("/v1/chat/completions", body=orjson.dumps(body))
    assert answer.status == 200
    await site.recorded(answer, "ok")


async def test_long_model_name_is_404_and_its_row_fits(site: Any) -> None:
    answer = await site.client.ask(model="m" * 10_000)
    row = await site.refused(answer, 404, "model_not_found")
    assert row.model_asked == "m" * 100
