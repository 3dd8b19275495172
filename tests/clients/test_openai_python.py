"""The official Python client, sync and async: see `scripts/openai_python.py` for what it does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.clients.conftest import Bench, Outcomes

GREETING = "Hello from the plausible model."


@pytest.fixture(scope="module")
def outcomes(bench: Bench) -> Outcomes:
    return bench.python_script("current", "openai_python.py")


def test_answer_has_every_field_that_the_client_types(outcomes: Outcomes) -> None:
    answer = outcomes["create"]
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == GREETING
    assert (choice["finish_reason"], choice["message"]["tool_calls"]) == ("stop", None)
    assert answer["usage"]["total_tokens"] == 188
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 30
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 20
    assert answer["request_id"]


def test_stream_adds_up_to_the_answer_with_usage_last(outcomes: Outcomes) -> None:
    chunks = outcomes["stream"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert "".join(delta["content"] or "" for delta in deltas) == GREETING
    assert [delta["role"] for delta in deltas if delta["role"]] == ["assistant"]
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], 188)
    finishes = [each["choices"][0]["finish_reason"] for each in chunks[:-1]]
    assert [each for each in finishes if each] == ["stop"]


def test_stream_helper_makes_the_whole_completion(outcomes: Outcomes) -> None:
    found = outcomes["stream_helper"]
    assert (found["text"], found["finish"]) == (GREETING, "stop")
    assert {"chunk", "content.delta", "content.done"} <= set(found["kinds"])


def test_async_client_gets_the_same(outcomes: Outcomes) -> None:
    assert outcomes["create_async"] == GREETING
    assert "".join(each or "" for each in outcomes["stream_async"]) == GREETING


@pytest.mark.parametrize("scenario", ["parse", "parse_async_stream"])
def test_parsed_answer_is_the_callers_model(outcomes: Outcomes, scenario: str) -> None:
    assert outcomes[scenario] == {"name": "Ada", "age": 36}


def test_rich_schema_is_parsed(outcomes: Outcomes) -> None:
    team = outcomes["parse_rich_schema"]
    assert (team["name"], team["kind"], team["is_open"]) == ("Ada", "chess", True)
    assert [member.keys() for member in team["members"]] == [{"name", "age"}]


def test_json_object_is_an_object(outcomes: Outcomes) -> None:
    assert outcomes["json_object"].keys() == {"city", "land"}


def test_tool_is_called_and_its_result_answered(outcomes: Outcomes) -> None:
    found = outcomes["tools_round_trip"]
    (choice,) = found["first"]["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    (call,) = choice["message"]["tool_calls"]
    assert call["id"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    assert found["first"]["usage"]["total_tokens"] == 188
    assert (found["text"], found["finish"]) == ("The tool says: 20 C", "stop")
    assert found["later_calls"] == 0


def test_two_calls_come_in_the_models_order_and_both_results_go_back(outcomes: Outcomes) -> None:
    found = outcomes["two_calls_at_once"]
    names, arguments = zip(*found["calls"], strict=True)
    assert names == ("get_weather", "get_time")
    assert [json.loads(each) for each in arguments] == [{"city": "Rome"}, {}]
    assert len(set(found["ids"])) == 2
    assert found["text"] == f"The tool says: {''.join(found['ids'])}"


def test_streamed_tool_call_is_whole(outcomes: Outcomes) -> None:
    assert outcomes["tools_streamed"] == {
        "name": "get_weather",
        "parsed": {"city": "Paris"},
        "finish": "tool_calls",
        "total": 188,
    }


def test_two_streamed_calls_stay_apart(outcomes: Outcomes) -> None:
    calls = [[name, json.loads(arguments)] for name, arguments in outcomes["two_calls_streamed"]]
    assert calls == [["get_weather", {"city": "Rome"}], ["get_time", {}]]


def test_tool_choice_is_kept(outcomes: Outcomes) -> None:
    found = outcomes["tool_choices"]
    assert found["none"] == [GREETING, []]
    assert found["required"][0] is None
    assert found["required"][1]
    assert found["named"] == [None, ["get_time"]]
    assert found["not parallel"] == [None, ["get_weather"]]


def test_tools_work_on_every_model_under_its_own_name(outcomes: Outcomes) -> None:
    found = outcomes["tools_on_every_model"]
    assert len(found) > 5
    assert {name for _, name in found.values()} == {"get_weather"}
    assert all(served == asked for asked, (served, _) in found.items() if asked != "default")


def test_ignored_fields_are_named(outcomes: Outcomes) -> None:
    assert sorted(outcomes["ignored_fields"].split(",")) == ["seed", "temperature", "top_k"]


def test_stop_and_n_are_kept_and_hints_do_no_harm(outcomes: Outcomes) -> None:
    expected = [[0, "one two ", "stop"], [1, "one two ", "stop"]]
    assert outcomes["more_fields"] == {"whole": expected, "streamed": expected}


def test_answer_cut_by_the_model_says_length(outcomes: Outcomes) -> None:
    assert outcomes["cut_by_the_model"] == ["Hello", "length"]


def test_legacy_completion_answers_a_prompt(outcomes: Outcomes) -> None:
    assert outcomes["legacy_completion"] == GREETING


def test_image_reaches_the_model(outcomes: Outcomes) -> None:
    assert outcomes["image"] == "I see an image."


def test_models_are_listed_and_described(outcomes: Outcomes) -> None:
    found = outcomes["models"]
    assert found["names"][0] == "default"
    assert found["one"] == found["names"][-1]


ERRORS = {
    "no such key": ("AuthenticationError", 401, "invalid_api_key", None),
    "model not allowed": ("PermissionDeniedError", 403, "model_not_allowed", "model"),
    "no such model": ("NotFoundError", 404, "model_not_found", "model"),
    "no messages": ("BadRequestError", 400, "empty_array", "messages"),
    "wrong type": ("BadRequestError", 400, "invalid_type", "temperature"),
    "logprobs": ("BadRequestError", 400, "unsupported_parameter", "logprobs"),
    "context length": ("BadRequestError", 400, "context_length_exceeded", "messages"),
    "rate limit": ("RateLimitError", 429, "rate_limit_exceeded", None),
    "usage limit": ("RateLimitError", 429, "insufficient_quota", None),
    "server login": ("InternalServerError", 503, "upstream_auth_failed", None),
    "bad gateway": ("InternalServerError", 502, "upstream_error", None),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_is_the_clients_own_class(outcomes: Outcomes, bench: Bench, name: str) -> None:
    error: dict[str, Any] = outcomes["errors"][name]
    assert tuple(error[key] for key in ("class", "status", "code", "param")) == ERRORS[name]
    if error["status"] in (429, 503):
        assert 1 <= int(error["retry_after"]) <= 60
    assert "verysecret" not in error["message"]
    assert bench.site.row_of(error["id"])["error_code"] == error["code"]


def test_truncated_stream_raises(outcomes: Outcomes) -> None:
    found = outcomes["cut_stream_raises"]
    assert (found["class"], found["code"]) == ("APIError", "upstream_disconnected")
    assert "".join(each or "" for each in found["got"]) == "word word "


def test_failure_is_retried_with_the_count(outcomes: Outcomes) -> None:
    found = outcomes["retry_after_a_failure"]
    assert (found["statuses"], found["counts"]) == ([502, 200], ["0", "1"])
    assert found["text"] == GREETING


def test_429_is_retried_when_it_said(outcomes: Outcomes) -> None:
    found = outcomes["retry_after_429"]
    assert (found["statuses"], found["counts"]) == ([429, 200], ["0", "1"])
    assert found["text"] == GREETING
    assert found["took_s"] >= int(found["retry_after"][0])


def test_retry_of_what_still_runs_joins_it(outcomes: Outcomes, bench: Bench) -> None:
    assert outcomes["retry_of_what_still_runs"] == "better late than never"
    asked = [request.texts("user") for request in bench.site.provider.requests]
    assert asked.count(["You may be late"]) == 1
