"""Each way in which an engine fails: its status, its code, its outcome, its one row."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from proxy import errors
from proxy.engines.base import Failed, TextDelta
from proxy.errors import AnswerIncomplete, EngineError
from proxy.structured import AnswerInvalid
from tests.asgi import question

TREE = {
    "EngineError": (502, "engine_error", "failed"),
    "EngineUnavailable": (503, "engine_unavailable", "failed"),
    "ShuttingDown": (503, "server_shutting_down", "interrupted"),
    "NotLoggedIn": (503, "codex_not_logged_in", "failed"),
    "UpstreamRefusedLogin": (503, "upstream_auth_failed", "failed"),
    "UpstreamOverloaded": (503, "server_overloaded", "failed"),
    "EngineBusy": (429, "server_busy", "rejected"),
    "KeyQueueFull": (429, "key_concurrency_exceeded", "rejected"),
    "UsageLimited": (429, "insufficient_quota", "failed"),
    "RateLimited": (429, "rate_limit_exceeded", "failed"),
    "EngineTimeout": (504, "upstream_timeout", "timed_out"),
    "WorkerDied": (502, "engine_crashed", "failed"),
    "TurnFailed": (502, "upstream_error", "failed"),
    "ContextTooLong": (400, "context_length_exceeded", "failed"),
    "PromptRefused": (400, "invalid_prompt", "failed"),
    "AnswerInvalid": (502, "invalid_structured_output", "failed"),
    "EngineProtocolError": (502, "engine_protocol_error", "failed"),
    "TurnStopped": (499, "turn_stopped", "cancelled"),
    "TurnKilled": (403, "turn_killed", "cancelled"),
    "WorkspaceMoved": (403, "workspace_denied", "rejected"),
}
TYPES: dict[Any, str] = {
    400: "invalid_request_error", 403: "permission_error", 429: "rate_limit_error", "insufficient_quota": "insufficient_quota",
    **dict.fromkeys((499, 502, 503, 504), "server_error"),
}  # fmt: skip


def kinds(base: type[EngineError] = EngineError) -> Iterator[type[EngineError]]:
    yield base
    for kind in base.__subclasses__():
        yield from kinds(kind)


def made(name: str) -> EngineError:
    kind = AnswerInvalid if name == "AnswerInvalid" else getattr(errors, name)
    error: EngineError = kind("Why.")
    return error


def test_every_engine_error_is_in_the_table() -> None:
    # An answer cut short is none of them: it is an answer that says so.
    assert set(kinds()) - {AnswerIncomplete} == {type(made(name)) for name in TREE}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", TREE)
async def test_failure_has_its_status_code_and_outcome(site: Any, name: str, stream: bool) -> None:
    status, code, outcome = TREE[name]
    site.engine.script = [made(name)]
    answer = await site.client.ask(stream=stream)
    row = await site.refused(answer, status, code, outcome=outcome)
    assert answer.error["message"] == "Why."
    # What did not match an answer may name a key of it, which is not for the log.
    assert row.error_message == (AnswerInvalid.reason if name == "AnswerInvalid" else "Why.")
    assert (row.worker, row.codex_version, row.sandbox) == ("scripted", "0.0.0", "read-only")
    assert row.engine_ms is not None
    assert answer.error["param"] is None
    assert answer.error["type"] == TYPES.get(code, TYPES[status])
    if status in (429, 503):
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    is_final = status == 504 or name == "TurnKilled"
    assert answer.headers.get("x-should-retry") == ("false" if is_final else None)


@pytest.mark.parametrize("name", TREE)
async def test_failure_after_text_keeps_status_200_and_says_so(site: Any, name: str) -> None:
    _, code, outcome = TREE[name]
    site.engine.script = [TextDelta("half"), Failed(made(name))]
    answer = await site.client.ask(stream=True)
    assert answer.events()[-1]["error"]["code"] == code
    assert b"[DONE]" not in answer.body
    row = await site.recorded(answer, outcome, code)
    assert row.http_status == 200


async def test_bug_of_an_engine_is_502_without_its_text(site: Any) -> None:
    def fail(_: object) -> Any:
        raise RuntimeError("/secret/path")

    site.engine.script = [fail]
    answer = await site.client.ask()
    row = await site.refused(answer, 502, "engine_error", outcome="failed")
    assert b"secret" not in answer.body
    assert "secret" not in row.error_message


@pytest.mark.parametrize("stream", [False, True])
async def test_deadline_is_504_and_timed_out(site: Any, stream: bool) -> None:
    await site.set_options(timeout_seconds=0.05)
    site.engine.script = [asyncio.Event()]
    answer = await site.client.ask(stream=stream)
    row = await site.refused(answer, 504, "upstream_timeout", outcome="timed_out")
    assert row.total_ms >= 50
    assert site.engine.cleaned_up == site.engine.turns


async def test_deadline_mid_stream_is_an_error_object(site: Any) -> None:
    await site.set_options(timeout_seconds=0.1)
    site.engine.script = [TextDelta("a"), asyncio.Event()]
    answer = await site.client.post("/v1/chat/completions", json=question(stream=True))
    assert answer.events()[-1]["error"]["code"] == "upstream_timeout"
    row = await site.recorded(answer, "timed_out", "upstream_timeout")
    assert row.http_status == 200


async def test_deadline_covers_the_start_of_codex(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was seen to wait as long as the start took, which is 20 s where nothing answers."""
    await site.set_options(timeout_seconds=0.1)

    is_over, kind = asyncio.Event(), type(site.engine)
    usual = kind.inspect

    async def inspect_late(self: Any) -> Any:
        await is_over.wait()
        return await usual(self)

    monkeypatch.setattr(kind, "inspect", inspect_late)
    async with asyncio.timeout(5):
        answer = await site.client.ask()
    is_over.set()
    assert (answer.status, answer.json()["error"]["code"]) == (504, "upstream_timeout")
    (row,) = await site.rows()
    assert row.outcome == "timed_out"
