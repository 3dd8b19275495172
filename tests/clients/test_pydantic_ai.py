"""pydantic-ai, whose agents force a tool to get their output: see `scripts/pydantic_ai_agent.py`."""

from __future__ import annotations

import pytest

from tests.clients.conftest import Bench, Outcomes

GREETING = "Hello from the plausible model."


@pytest.fixture(scope="module")
def outcomes(bench: Bench) -> Outcomes:
    return bench.python_script("current", "pydantic_ai_agent.py")


def test_agent_answers_and_counts(outcomes: Outcomes) -> None:
    assert outcomes["text"] == {"text": GREETING, "input_tokens": 111}


def test_agent_streams(outcomes: Outcomes) -> None:
    deltas = outcomes["text_streamed"]
    assert "".join(deltas) == GREETING
    assert len(deltas) > 1


def test_agent_runs_its_tool(outcomes: Outcomes) -> None:
    expected = {"text": "The tool says: sunny in Paris", "requests": 2, "calls": 1}
    assert outcomes["tool_round_trip"] == expected


@pytest.mark.parametrize("mode", ["output_by_tool", "output_native", "output_prompted"])
def test_output_has_its_type_at_the_first_try(outcomes: Outcomes, mode: str) -> None:
    assert outcomes[mode] == {"name": "Ada", "age": 36, "requests": 1}


def test_output_type_beside_a_tool(outcomes: Outcomes) -> None:
    assert outcomes["output_and_tool"] == {"name": "Ada", "age": 36, "requests": 2}


def test_error_is_the_clients_own(outcomes: Outcomes) -> None:
    error = outcomes["unknown_model"]
    assert (error["status"], error["body"]["code"]) == (404, "model_not_found")
