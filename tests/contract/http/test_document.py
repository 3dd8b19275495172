"""Answers are what the OpenAPI document says: those that a stand-in for a model does not give."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest

from proxy.api import api
from proxy.engines.base import (
    Completed,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    ToolCalled,
    Usage,
    UsageReported,
)
from proxy.errors import AnswerIncomplete

DOCUMENT = json.loads(json.dumps(api.get_openapi_schema(path_prefix="")))
END = [UsageReported(Usage(10, 5, 7, 2)), Completed()]
CALLS = [ToolCalled(ToolCall(f"call_{n}", "f", '{"a": 1}')) for n in range(2)]
FUNCTION = {"name": "f", "parameters": {"type": "object"}}
TOOLS = {"tools": [{"type": "function", "function": FUNCTION}]}


def judge(name: str) -> Any:
    reference = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    return jsonschema_rs.validator_for(reference)


@pytest.mark.parametrize(
    ("script", "fields", "reason"),
    [
        ([TextDelta("Hi"), *END], {}, "stop"),
        ([ReasoningDelta("Hm."), TextDelta("Hi"), *END], {"n": 2}, "stop"),
        ([TextDelta("H"), TextDelta("i"), *END], {"max_tokens": 1}, "length"),
        ([*CALLS, *END], TOOLS, "tool_calls"),
        ([TextDelta("I call."), *CALLS, *END], TOOLS, "tool_calls"),
        ([*CALLS, *END], {"functions": [FUNCTION]}, "function_call"),
        ([*END], {}, "content_filter"),
        ([TextDelta("Hi"), AnswerIncomplete("Cut.", finish_reason="length")], {}, "length"),
    ],
)
async def test_answer_and_stream_are_as_documented(
    site: Any, script: list[Any], fields: dict[str, Any], reason: str
) -> None:
    site.engine.script = script
    whole = await site.client.ask(**fields)
    assert whole.status == 200, whole.body
    judge("ChatCompletion").validate(whole.json())
    assert {choice["finish_reason"] for choice in whole.json()["choices"]} == {reason}
    options = {"include_usage": True}
    stream = await site.client.ask(stream=True, stream_options=options, **fields)
    *chunks, end = stream.events()
    assert end == "[DONE]"
    for chunk in chunks:
        judge("ChatCompletionChunk").validate(chunk)
    assert reason in {choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/models", "ModelList"),
        ("/v1/models/default", "Model"),
        ("/health", "Health"),
        ("/ready", "Readiness"),
        ("/metrics", "Metrics"),
    ],
)
async def test_what_the_server_says_of_itself_is_as_documented(
    site: Any, path: str, name: str
) -> None:
    judge(name).validate((await site.client.get(path)).json())


async def test_legacy_completion_is_as_documented(site: Any) -> None:
    for fields in ({}, {"stream": True}):
        body = {"model": "default", "prompt": "hi", **fields}
        answer = await site.client.post("/v1/completions", json=body)
        assert answer.status == 200
        for found in answer.events()[:-1] or [answer.json()]:
            judge("TextCompletion").validate(found)
