"""The Vercel AI SDK: see `scripts/vercel.mjs` for what it does."""

from __future__ import annotations

import pytest

from tests.clients.conftest import Bench, Outcomes

GREETING = "Hello from the plausible model."


@pytest.fixture(scope="module")
def outcomes(bench: Bench) -> Outcomes:
    return bench.node_script("vercel.mjs")


def test_text_has_usage_and_reason(outcomes: Outcomes) -> None:
    expected = {"text": GREETING, "finishReason": "stop", "input": 111, "output": 77}
    assert outcomes["text"] == expected


def test_streamed_text_comes_in_parts_with_usage(outcomes: Outcomes) -> None:
    found = outcomes["textStreamed"]
    assert "".join(found["deltas"]) == GREETING
    assert len(found["deltas"]) > 1
    assert (found["finish"], found["output"]) == ("stop", 77)


def test_reasoning_summary_is_read(outcomes: Outcomes) -> None:
    assert outcomes["reasoning"] == {"text": GREETING, "reasoning": "I think"}


def test_tool_is_run_and_its_result_answered(outcomes: Outcomes) -> None:
    found = outcomes["tool"]
    assert found["text"] == "The tool says: sunny in Paris"
    assert found["finishes"] == ["tool-calls", "stop"]


def test_streamed_tool_call_is_run(outcomes: Outcomes) -> None:
    found = outcomes["toolStreamed"]
    assert found["text"] == "The tool says: sunny in Paris"
    assert {"tool-call", "tool-result", "text-delta"} <= set(found["kinds"])
    assert "error" not in found["kinds"]


def test_required_tool_is_called(outcomes: Outcomes) -> None:
    assert outcomes["toolRequired"] == [["get_weather", {"city": "Paris"}]]


@pytest.mark.parametrize("scenario", ["object", "objectWithoutSchema", "objectStreamed"])
def test_object_has_its_shape(outcomes: Outcomes, scenario: str) -> None:
    assert outcomes[scenario] == {"name": "Ada", "age": 36}


@pytest.mark.parametrize(
    ("name", "status", "is_retryable"),
    [
        ("no such key", 401, False),
        ("no such model", 404, False),
        ("rate limit", 429, True),
        ("server login", 503, True),
    ],
)
def test_error_is_the_clients_own(
    outcomes: Outcomes, name: str, status: int, is_retryable: bool
) -> None:
    error = outcomes["errors"][name]
    assert error["name"] == "AI_APICallError"
    assert (error["statusCode"], error["isRetryable"]) == (status, is_retryable)
    assert len(error["message"].split()) > 2  # our own words, not the bare reason of the status


def test_failure_is_retried(outcomes: Outcomes) -> None:
    assert outcomes["retry"] == GREETING


def test_truncated_stream_is_an_error(outcomes: Outcomes) -> None:
    assert "error" in outcomes["cutStream"]
