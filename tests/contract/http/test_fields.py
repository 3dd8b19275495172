"""What the README's table says of each request field is what happens."""

from __future__ import annotations

from typing import Any

import pytest

from tests.test_readme import FIELDS

FUNCTION = {"name": "f", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": FUNCTION}]
SAMPLES: dict[str, Any] = {
    "model": "default",
    "messages": [{"role": "developer", "content": "hi"}],
    "stream": True,
    "stream_options": {"include_usage": True},
    "tools": TOOLS,
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "functions": [FUNCTION],
    "function_call": "auto",
    "response_format": {"type": "text"},
    "n": 2,
    "stop": ["END"],
    "max_completion_tokens": 100,
    "max_tokens": 100,
    "reasoning_effort": "medium",
    "verbosity": "low",
    "service_tier": "default",
    "metadata": {"trace": "1"},
    "modalities": ["text"],
    "audio": {"voice": "alloy", "format": "wav"},
    "web_search_options": {},
    "logprobs": True,
    "top_logprobs": 2,
    "temperature": 0.5,
    "top_p": 1,
    "presence_penalty": -2,
    "frequency_penalty": 2,
    "logit_bias": {"50256": -100},
    "seed": -(2**40),
    "user": "u",
    "safety_identifier": "s" * 64,
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {},
    "store": True,
    "prediction": {"type": "content", "content": "x"},
    "moderation": {},
}
BESIDE: dict[str, dict[str, Any]] = {
    "stream_options": {"stream": True},
    "tool_choice": {"tools": TOOLS},
    "parallel_tool_calls": {"tools": TOOLS},
    "function_call": {"functions": [FUNCTION]},
    "top_logprobs": {"logprobs": True},
}


@pytest.mark.parametrize("field", FIELDS)
async def test_field_meets_the_fate_that_the_readme_says(site: Any, field: str) -> None:
    fields = {**BESIDE.get(field, {}), field: SAMPLES[field]}
    answer = await site.client.ask(**fields)
    if FIELDS[field] == "refused":
        row = await site.refused(answer, 400, "unsupported_parameter")
        assert answer.error["param"] in (field, "logprobs")
        assert site.engine.turns == []
        return
    assert answer.status == 200, answer.body
    row = await site.recorded(answer, "ok")
    ignored = field if FIELDS[field] == "ignored" else ""
    assert answer.headers.get("x-ignored-params", "") == ignored
    assert row.ignored_params == ignored


@pytest.mark.parametrize("field", [field for field, fate in FIELDS.items() if fate == "ignored"])
async def test_strict_key_refuses_what_would_be_ignored(site: Any, field: str) -> None:
    await site.change(is_strict=True)
    answer = await site.client.ask(**{field: SAMPLES[field]})
    await site.refused(answer, 400, "unsupported_parameter")
    assert answer.error["param"] == field


@pytest.mark.parametrize("field", [field for field in FIELDS if field not in ("model", "messages")])
async def test_null_is_the_same_as_leaving_a_field_out(site: Any, field: str) -> None:
    answer = await site.client.ask(**{field: None})
    assert answer.status == 200, answer.body
    assert "x-ignored-params" not in answer.headers
    await site.recorded(answer, "ok")


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("n", 0, "integer_below_min_value"),
        ("n", 5, "integer_above_max_value"),
        ("stop", list("12345"), "array_above_max_length"),
        ("stop", "", "invalid_value"),
        ("max_tokens", 0, "integer_below_min_value"),
        ("max_completion_tokens", 1.5, "invalid_type"),
        ("temperature", 2.1, "decimal_above_max_value"),
        ("temperature", "1", "invalid_type"),
        ("top_p", -0.1, "decimal_below_min_value"),
        ("presence_penalty", 3, "decimal_above_max_value"),
        ("frequency_penalty", True, "invalid_type"),
        ("seed", "1", "invalid_type"),
        ("user", 1, "invalid_type"),
        ("safety_identifier", "s" * 65, "string_above_max_length"),
        ("store", 1, "invalid_type"),
        ("top_logprobs", 21, "integer_above_max_value"),
        ("verbosity", "loud", "invalid_value"),
        ("service_tier", "gold", "invalid_value"),
        ("modalities", ["audio"], "unsupported_value"),
        ("metadata", {str(n): "" for n in range(17)}, "object_above_max_properties"),
        ("metadata", {"k" * 65: ""}, "string_above_max_length"),
        ("stream_options", {"include_usage": True}, "invalid_value"),
    ],
)
async def test_value_out_of_its_range_is_refused_by_name(
    site: Any, field: str, value: Any, code: str
) -> None:
    answer = await site.client.ask(**{field: value})
    await site.refused(answer, 400, code)
    assert answer.error["param"] == field
