"""Server-sent events: chunks in order, one end, and what happens when there is none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.engines.base import (
    AnswerRestarted,
    CommandStarted,
    Completed,
    Failed,
    MessageDone,
    ReasoningDelta,
    TextDelta,
    Turn,
    Usage,
    UsageReported,
)
from proxy.engines.running import RunningTurn
from proxy.errors import AnswerIncomplete, RateLimited, TurnFailed, WorkerDied
from tests.asgi import Exchange, question

CUT = AnswerIncomplete("Cut.", finish_reason="length")
FILTERED = AnswerIncomplete("Filtered.", finish_reason="content_filter")


async def streamed(site: Any, *script: Any, **fields: Any) -> Exchange:
    if script:
        site.engine.script = list(script)
    exchange: Exchange = await site.client.ask(stream=True, **fields)
    return exchange


def text_of(answer: Exchange) -> str:
    chunks = [
        event for event in answer.events() if isinstance(event, dict) and event.get("choices")
    ]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def finish_reasons(answer: Exchange) -> list[str]:
    chunks = [
        event for event in answer.events() if isinstance(event, dict) and event.get("choices")
    ]
    return [reason for chunk in chunks if (reason := chunk["choices"][0]["finish_reason"])]


async def cut_off(site: Any, answer: Exchange, code: str, outcome: str = "failed") -> Any:
    """Check a stream that failed after its first byte: one error object, the last thing said."""
    assert answer.status == 200
    *chunks, last = answer.events()
    assert list(last) == ["error"]
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert last["error"]["code"] == code
    assert not [chunk for chunk in chunks if "error" in chunk]
    assert finish_reasons(answer) == []
    assert b"[DONE]" not in answer.body
    return await site.recorded(answer, outcome, code)


async def test_stream_ends_with_finish_and_done_and_one_ok_row(site: Any) -> None:
    answer = await streamed(site)
    assert text_of(answer) == "Hello"
    assert finish_reasons(answer) == ["stop"]
    assert answer.events()[-1] == "[DONE]"
    assert answer.body.endswith(b"data: [DONE]\n\n")
    row = await site.recorded(answer, "ok")
    assert (row.stream, row.output_tokens) == (True, 77)
    assert row.first_delta_ms is not None
    assert row.first_delta_ms <= row.total_ms


async def test_head_of_a_stream_keeps_proxies_from_buffering(site: Any) -> None:
    answer = await streamed(site)
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert "content-length" not in answer.headers
    await site.recorded(answer, "ok")


async def test_role_is_said_once(site: Any) -> None:
    answer = await streamed(site)
    assert answer.body.count(b'"role"') == 1
    await site.recorded(answer, "ok")


async def test_usage_is_not_sent_unasked(site: Any) -> None:
    for options in (None, {"include_usage": False}, {}):
        answer = await streamed(site, stream_options=options)
        assert b'"usage"' not in answer.body
        assert all(chunk["choices"] for chunk in answer.events()[:-1])
        row = await site.recorded(answer, "ok")
        assert row.input_tokens == 111


async def test_unknown_usage_is_null_and_not_zero(site: Any) -> None:
    answer = await streamed(
        site, TextDelta("a"), Completed(), stream_options={"include_usage": True}
    )
    *chunks, usage, _ = answer.events()
    assert (usage["choices"], usage["usage"]) == ([], None)
    assert {chunk["usage"] for chunk in chunks} == {None}
    row = await site.recorded(answer, "ok")
    assert (row.input_tokens, row.output_tokens) == (None, None)


async def test_each_delta_is_sent_as_it_comes(site: Any) -> None:
    gate = asyncio.Event()
    site.engine.script = [TextDelta("first"), gate, TextDelta("second"), Completed()]
    exchange = await site.client.open(
        "POST", "/v1/chat/completions", json=question(stream=True)
    ).start()
    while b"first" not in exchange.body:
        await exchange.chunk()
    assert b"second" not in exchange.body
    gate.set()
    await exchange.finish()
    assert text_of(exchange) == "firstsecond"
    await site.recorded(exchange, "ok")


async def test_text_of_any_kind_arrives_unchanged(site: Any) -> None:
    text = 'data: [DONE]\n\n: x\r\n"\\ \x00 \u2028 😀 ' + "é" * 70_000
    answer = await streamed(site, TextDelta(text), Completed())
    assert text_of(answer) == text
    await site.recorded(answer, "ok")


class TestKeepalive:
    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("proxy.completions.HEAD_HOLD_S", 0.01)
        monkeypatch.setattr("proxy.completions.KEEPALIVE_S", 0.03)

    @staticmethod
    async def opened(site: Any, *script: Any, path: str = "/v1/chat/completions") -> Exchange:
        site.engine.script = list(script)
        body = question(stream=True, prompt="hi")
        del body["messages" if path == "/v1/completions" else "prompt"]
        exchange = site.client.open("POST", path, json=body)
        started: Exchange = await exchange.start()
        return started

    async def test_comments_come_while_the_model_thinks(self, site: Any) -> None:
        gate = asyncio.Event()
        exchange = await self.opened(site, gate, TextDelta("a"), Completed())
        while exchange.body.count(b": keepalive\n\n") < 3:
            await exchange.chunk()
        gate.set()
        await exchange.finish()
        assert text_of(exchange) == "a"
        row = await site.recorded(exchange, "ok")
        assert row.first_delta_ms > 60

    @pytest.mark.parametrize(
        ("path", "reasoning"), [("/v1/chat/completions", False), ("/v1/completions", True)]
    )
    async def test_comments_come_while_reasoning_is_not_shown(
        self, site: Any, monkeypatch: pytest.MonkeyPatch, path: str, reasoning: bool
    ) -> None:
        async def think() -> None:
            while not is_enough.is_set():
                running.emit(ReasoningDelta("hm"))
                await asyncio.sleep(0.005)

        is_enough = asyncio.Event()
        taken: list[RunningTurn] = []
        run = site.engine.run

        def remember(turn: Turn) -> RunningTurn:
            taken.append(run(turn))
            return taken[-1]

        monkeypatch.setattr(site.engine, "run", remember)
        await site.set_options(reasoning=reasoning)
        exchange = await self.opened(site, is_enough, TextDelta("a"), Completed(), path=path)
        (running,) = taken
        thinking = asyncio.create_task(think())
        while exchange.body.count(b": keepalive\n\n") < 3:
            await exchange.chunk()
        is_enough.set()
        await thinking
        await exchange.finish()
        assert b"hm" not in exchange.body
        assert b'"a"' in exchange.body
        await site.recorded(exchange, "ok")

    async def test_failure_after_a_comment_is_an_error_object(self, site: Any) -> None:
        gate = asyncio.Event()
        exchange = await self.opened(site, gate, RateLimited("Slow down."))
        while b": keepalive" not in exchange.body:
            await exchange.chunk()
        gate.set()
        await exchange.finish()
        await cut_off(site, exchange, "rate_limit_exceeded")


@pytest.mark.parametrize("error", [RateLimited("Slow down."), WorkerDied("Gone.")])
async def test_failure_before_the_first_event_has_its_own_status(site: Any, error: Any) -> None:
    answer = await streamed(site, UsageReported(Usage(5, 0, 1, 1)), error)
    row = await site.refused(answer, error.status, error.code, outcome="failed")
    assert (row.stream, row.input_tokens, row.first_delta_ms) == (True, 5, None)


async def test_failure_after_text_is_one_error_object_and_no_end(site: Any) -> None:
    answer = await streamed(site, TextDelta("half"), WorkerDied("Codex ended."))
    assert text_of(answer) == "half"
    row = await cut_off(site, answer, "engine_crashed")
    assert (row.http_status, row.error_message) == (200, "Codex ended.")


async def test_failure_after_a_command_is_an_error_object(site: Any) -> None:
    answer = await streamed(site, CommandStarted("1", "ls"), TurnFailed("No."))
    await cut_off(site, answer, "upstream_error")


async def test_restart_before_any_text_is_not_seen(site: Any) -> None:
    answer = await streamed(site, AnswerRestarted(), TextDelta("a"), Completed())
    assert (text_of(answer), finish_reasons(answer)) == ("a", ["stop"])
    await site.recorded(answer, "ok")


async def test_restart_after_text_is_an_error_object(site: Any) -> None:
    answer = await streamed(site, TextDelta("a"), AnswerRestarted(), TextDelta("a"), Completed())
    assert text_of(answer) == "a"
    await cut_off(site, answer, "upstream_disconnected")


@pytest.mark.parametrize("stream", [True, False])
async def test_restart_after_a_whole_message_voids_nothing(site: Any, stream: bool) -> None:
    site.engine.script = [
        TextDelta("one"), MessageDone("one"), AnswerRestarted(),
        TextDelta(" two"), MessageDone("two"), Completed(),
    ]  # fmt: skip
    answer = await site.client.ask(stream=stream)
    text = text_of(answer) if stream else answer.json()["choices"][0]["message"]["content"]
    assert text == "one two"
    await site.recorded(answer, "ok")


async def test_whole_answer_holds_restarted_text_once(site: Any) -> None:
    site.engine.script = [TextDelta("he"), AnswerRestarted(), TextDelta("hello"), Completed()]
    answer = await site.client.ask()
    assert answer.json()["choices"][0]["message"]["content"] == "hello"
    await site.recorded(answer, "ok")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("text", ["half", ""])
@pytest.mark.parametrize("error", [CUT, FILTERED])
async def test_answer_cut_short_is_an_answer_that_says_so(
    site: Any, error: AnswerIncomplete, text: str, stream: bool
) -> None:
    said = [TextDelta(text)] if text else []
    site.engine.script = [*said, UsageReported(Usage(5, 0, 1, 0)), Failed(error)]
    answer = await site.client.ask(stream=stream)
    assert answer.status == 200
    if stream:
        assert (text_of(answer), finish_reasons(answer)) == (text, [error.finish_reason])
        assert answer.events()[-1] == "[DONE]"
    else:
        (choice,) = answer.json()["choices"]
        assert choice["message"]["content"] == text
        assert choice["finish_reason"] == error.finish_reason
    row = await site.recorded(answer, "ok")
    assert (row.input_tokens, row.output_tokens) == (5, 1)


@pytest.mark.parametrize("stream", [True, False])
async def test_turn_without_text_is_a_refusal_and_not_an_empty_success(
    site: Any, stream: bool
) -> None:
    site.engine.script = [Completed()]
    answer = await site.client.ask(stream=stream)
    if stream:
        deltas = [chunk["choices"][0]["delta"] for chunk in answer.events()[:-1]]
        assert [delta["refusal"] for delta in deltas if delta.get("refusal")]
        assert finish_reasons(answer) == ["content_filter"]
    else:
        (choice,) = answer.json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (None, "content_filter")
        assert choice["message"]["refusal"]
    await site.recorded(answer, "ok")


async def test_bug_while_streaming_ends_in_an_error_object_and_a_failed_row(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr("proxy.sse.ChunkWriter.finish", fail)
    answer = await streamed(site)
    row = await cut_off(site, answer, "internal_error")
    assert b"secret" not in answer.body
    assert "secret" not in row.error_message
