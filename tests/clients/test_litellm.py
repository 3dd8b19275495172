"""litellm, in front of so many agents: see `scripts/litellm_calls.py` for what it does."""

from __future__ import annotations

import pytest

from tests.clients.conftest import Bench, Outcomes

GREETING = "Hello from the plausible model."


@pytest.fixture(scope="module")
def outcomes(bench: Bench) -> Outcomes:
    return bench.python_script("older", "litellm_calls.py")


def test_answer_has_text_and_usage(outcomes: Outcomes) -> None:
    assert outcomes["plain"] == {"text": GREETING, "total": 188}
    assert outcomes["plain_async"] == GREETING


def test_stream_is_put_together_again(outcomes: Outcomes) -> None:
    found = outcomes["streamed"]
    assert "".join(each or "" for each in found["deltas"]) == GREETING
    assert (found["text"], found["finish"], found["total"]) == (GREETING, "stop", 188)


def test_tool_is_called_and_its_result_answered(outcomes: Outcomes) -> None:
    found = outcomes["tools"]
    assert found == {"arguments": {"city": "Paris"}, "text": "The tool says: 20 C"}
    assert outcomes["tools_streamed"] == ["get_weather", {"city": "Paris"}]


def test_reasoning_summary_is_read(outcomes: Outcomes) -> None:
    assert outcomes["reasoning"] == "I think"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("no such key", ["AuthenticationError", 401]),
        ("no such model", ["NotFoundError", 404]),
        ("context length", ["ContextWindowExceededError", 400]),
        ("rate limit", ["RateLimitError", 429]),
        ("server login", ["ServiceUnavailableError", 503]),
        ("bad gateway", ["BadGatewayError", 502]),
        ("bad temperature", ["BadRequestError", 400]),
    ],
)
def test_error_is_the_clients_own_class(outcomes: Outcomes, name: str, error: list[object]) -> None:
    assert outcomes["errors"][name] == error


def test_truncated_stream_raises(outcomes: Outcomes) -> None:
    kind, got = outcomes["cut_stream_raises"]
    assert kind.endswith("Error")
    assert got == "word word "
