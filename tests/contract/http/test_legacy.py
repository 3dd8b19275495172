"""POST /v1/completions: one prompt, on the same path as a chat."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.engines.base import Completed, ReasoningDelta, TextDelta
from proxy.errors import WorkerDied
from tests.asgi import Exchange

PATH = "/v1/completions"


async def completed(site: Any, prompt: Any = "Say it", **fields: Any) -> Exchange:
    body = {"model": "default", "prompt": prompt, **fields}
    answer: Exchange = await site.client.post(PATH, json=body)
    return answer


@pytest.mark.parametrize("prompt", ["Say it", ["Say it"]])
async def test_answer_is_text_with_usage_and_one_row(site: Any, prompt: Any) -> None:
    answer = await completed(site, prompt)
    body = answer.json()
    assert body["object"] == "text_completion"
    assert body["choices"] == [
        {"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}
    ]
    assert body["usage"]["total_tokens"] == 188
    row = await site.recorded(answer, "ok")
    assert (row.endpoint, row.model_asked, row.output_tokens) == (PATH, "default", 77)
    (message,) = site.engine.turns[0].messages
    assert (message.role, message.text) == ("user", "Say it")


async def test_stream_is_text_then_one_finish_then_usage(site: Any) -> None:
    answer = await completed(site, stream=True, stream_options={"include_usage": True})
    *chunks, usage, done = answer.events()
    assert done == "[DONE]"
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["Hel", "lo", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert {chunk["object"] for chunk in (*chunks, usage)} == {"text_completion"}
    assert len({chunk["id"] for chunk in (*chunks, usage)}) == 1
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 188)
    assert b"role" not in answer.body
    await site.recorded(answer, "ok")


@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_is_no_text(site: Any, stream: bool) -> None:
    site.engine.script = [ReasoningDelta("hm"), TextDelta("a"), Completed()]
    answer = await completed(site, stream=stream)
    assert b"hm" not in answer.body
    await site.recorded(answer, "ok")


async def test_stop_limit_and_n_are_carried_out(site: Any) -> None:
    answer = await completed(site, stop="l", n=2)
    assert [choice["text"] for choice in answer.json()["choices"]] == ["He", "He"]
    await site.recorded(answer, "ok")
    answer = await completed(site, max_tokens=1)
    (choice,) = answer.json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("Hel", "length")
    await site.recorded(answer, "ok")


async def test_hints_are_named(site: Any) -> None:
    answer = await completed(site, temperature=0, seed=1, store="anything", top_k=1)
    assert answer.headers["x-ignored-params"] == "temperature,seed,store,top_k"
    await site.recorded(answer, "ok")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": ["a", "b"]}, "prompt", "unsupported_parameter"),
        ({"prompt": []}, "prompt", "unsupported_parameter"),
        ({"prompt": [1, 2]}, "prompt[0]", "invalid_type"),
        ({"prompt": 5}, "prompt", "invalid_type"),
        ({"prompt": None}, "prompt", "invalid_type"),
        ({"suffix": "a"}, "suffix", "unsupported_parameter"),
        ({"echo": True}, "echo", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"logprobs": 2}, "logprobs", "unsupported_parameter"),
        ({"messages": []}, "messages", "unsupported_parameter"),
        ({"tools": 5}, "tools", "unsupported_parameter"),
        ({"temperature": 3}, "temperature", "decimal_above_max_value"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"n": 5}, "n", "integer_above_max_value"),
        ({"stream_options": {}}, "stream_options", "invalid_value"),
    ],
)
async def test_bad_field_is_400_that_names_it(
    site: Any, fields: dict[str, Any], param: str, code: str
) -> None:
    answer = await site.client.post(PATH, json={"model": "default", "prompt": "a", **fields})
    await site.refused(answer, 400, code)
    assert answer.error["param"] == param
    assert site.engine.turns == []


async def test_missing_prompt_is_400(site: Any) -> None:
    answer = await site.client.post(PATH, json={"model": "default"})
    await site.refused(answer, 400, "missing_required_parameter")
    assert answer.error["param"] == "prompt"


@pytest.mark.parametrize("stream", [False, True])
async def test_failure_has_its_status(site: Any, stream: bool) -> None:
    site.engine.script = [WorkerDied("Gone.")]
    await site.refused(
        await completed(site, stream=stream), 502, "engine_crashed", outcome="failed"
    )


async def test_failure_after_text_is_an_error_object(site: Any) -> None:
    site.engine.script = [TextDelta("a"), WorkerDied("Gone.")]
    answer = await completed(site, stream=True)
    assert answer.events()[-1]["error"]["code"] == "engine_crashed"
    await site.recorded(answer, "failed", "engine_crashed")


async def test_refusal_is_not_an_ordinary_end(site: Any) -> None:
    site.engine.script = [Completed()]
    answer = await completed(site)
    assert answer.json()["choices"][0]["finish_reason"] == "content_filter"
    await site.recorded(answer, "ok")


async def test_wrong_method_and_no_key_are_refused(site: Any) -> None:
    await site.refused(await site.client.get(PATH), 405, "method_not_supported", who="")
    answer = await site.client.post(PATH, json={}, headers={"authorization": ""})
    await site.refused(answer, 401, "missing_api_key", who="")
