"""POST /v1/chat/completions: the answer, streamed and whole, and its one row."""

from __future__ import annotations

from typing import Any

from tests.asgi import question


async def test_plain_answer_has_text_usage_and_one_ok_row(site: Any) -> None:
    answer = await site.client.ask("hi")
    assert answer.status == 200
    body = answer.json()
    assert body["choices"][0]["message"]["content"] == "Hello"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["prompt_tokens"] == 111
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 30
    assert body["usage"]["total_tokens"] == 188
    row = await site.row()
    assert (row.outcome, row.http_status, row.key_name, row.key_owner) == (
        "ok",
        200,
        "laptop",
        "ada",
    )
    assert (row.input_tokens, row.output_tokens, row.reasoning_output_tokens) == (111, 77, 20)
    assert (row.cwd, row.root_alias) == (str(site.folder), "project")
    assert answer.headers["x-request-id"] == str(row.request_id)
    assert body["id"] == f"chatcmpl-{row.request_id.hex}"
    assert list(row.phases) == [
        "auth", "policy", "queue_wait", "worker_start", "thread_start", "turn_start",
        "first_event", "first_delta", "answer", "response",
    ]  # fmt: skip


async def test_stream_has_role_once_deltas_finish_usage_and_done(site: Any) -> None:
    asked = question(stream=True, stream_options={"include_usage": True})
    answer = await site.client.post("/v1/chat/completions", json=asked)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = answer.events()
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens_details"]["reasoning_tokens"] == 20
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert [delta.get("role") for delta in deltas] == ["assistant", None, None, None]
    assert [delta.get("content") for delta in deltas] == ["", "Hel", "lo", None]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    row = await site.row()
    assert (row.outcome, row.stream, row.http_status) == ("ok", True, 200)
