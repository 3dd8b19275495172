"""The official Node client: see `scripts/openai_node.mjs` for what it does."""

from __future__ import annotations

import json

import pytest

from tests.clients.conftest import Bench, Outcomes

GREETING = "Hello from the plausible model."


@pytest.fixture(scope="module")
def outcomes(bench: Bench) -> Outcomes:
    return bench.node_script("openai_node.mjs")


def test_answer_has_text_usage_and_request_id(outcomes: Outcomes) -> None:
    answer = outcomes["create"]
    assert answer["choices"][0]["message"]["content"] == GREETING
    assert answer["usage"]["total_tokens"] == 188
    assert answer["requestID"]


def test_stream_adds_up_to_the_answer_with_usage_last(outcomes: Outcomes) -> None:
    chunks = outcomes["stream"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == GREETING
    assert chunks[-1]["usage"]["total_tokens"] == 188


def test_stream_helper_makes_the_whole_completion(outcomes: Outcomes) -> None:
    choice = outcomes["streamHelper"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (GREETING, "stop")


@pytest.mark.parametrize("scenario", ["parse", "parseStreamed"])
def test_parsed_answer_has_its_shape(outcomes: Outcomes, scenario: str) -> None:
    assert outcomes[scenario] == {"name": "Ada", "age": 36}


def test_tool_is_called_and_its_result_answered(outcomes: Outcomes) -> None:
    assert outcomes["toolsRoundTrip"] == {
        "arguments": {"city": "Paris"},
        "finishes": ["tool_calls", "stop"],
        "text": "The tool says: 20 C",
    }


def test_streamed_tool_call_is_whole(outcomes: Outcomes) -> None:
    name, arguments, finish = outcomes["toolsStreamed"]
    assert (name, json.loads(arguments)) == ("get_weather", {"city": "Paris"})
    assert finish == "tool_calls"


def test_run_tools_runs_the_callers_function(outcomes: Outcomes) -> None:
    expected = {"text": "The tool says: sunny in Paris", "asked": ["Paris"]}
    assert outcomes["runTools"] == expected


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("no such key", ("AuthenticationError", 401, "invalid_api_key")),
        ("model not allowed", ("PermissionDeniedError", 403, "model_not_allowed")),
        ("no such model", ("NotFoundError", 404, "model_not_found")),
        ("no messages", ("BadRequestError", 400, "empty_array")),
        ("context length", ("BadRequestError", 400, "context_length_exceeded")),
        ("rate limit", ("RateLimitError", 429, "rate_limit_exceeded")),
        ("server login", ("InternalServerError", 503, "upstream_auth_failed")),
    ],
)
def test_error_is_the_clients_own_class(
    outcomes: Outcomes, name: str, error: tuple[str, int, str]
) -> None:
    found = outcomes["errors"][name]
    assert (found["class"], found["status"], found["code"]) == error
    assert found["requestID"]


def test_failure_is_retried_with_the_count(outcomes: Outcomes) -> None:
    expected = {"counts": ["0", "1"], "statuses": [502, 200], "text": GREETING}
    assert outcomes["retries"] == expected


def test_truncated_stream_throws(outcomes: Outcomes) -> None:
    expected = {"got": "word word ", "class": "APIError", "code": "upstream_disconnected"}
    assert outcomes["cutStreamThrows"] == expected
