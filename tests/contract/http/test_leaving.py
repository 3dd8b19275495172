"""A client that goes away: its turn ends within a second, and the row tells the truth."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from proxy.engines.base import Completed, TextDelta, Usage, UsageReported
from tests.asgi import Exchange, question
from tests.contract.http.waiting import until


def opened(site: Any, *, stream: bool) -> Exchange:
    exchange: Exchange = site.client.open(
        "POST", "/v1/chat/completions", json=question(stream=stream)
    )
    return exchange


async def leave(site: Any, exchange: Exchange) -> None:
    """Pull the plug and check that the turn is over within a second."""
    before = time.monotonic()
    await exchange.left()
    assert time.monotonic() - before < 1
    assert site.engine.cleaned_up == site.engine.turns


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_before_the_first_event_stops_the_turn(site: Any, stream: bool) -> None:
    site.engine.script = [asyncio.Event()]
    exchange = opened(site, stream=stream)
    await until(lambda: site.engine.turns)
    await leave(site, exchange)
    assert len(site.engine.turns) == 1
    row = await site.recorded(exchange, "cancelled", "client_disconnected")
    assert (row.http_status, row.stream, row.model_served) == (None, stream, "scripted-1")


async def test_leaving_mid_stream_stops_the_turn_and_keeps_the_status(site: Any) -> None:
    usage = UsageReported(Usage(5, 0, 1, 0))
    site.engine.script = [TextDelta("a"), usage, asyncio.Event(), Completed()]
    exchange = await opened(site, stream=True).start()
    while b'"a"' not in exchange.body:
        await exchange.chunk()
    await leave(site, exchange)
    row = await site.recorded(exchange, "cancelled", "client_disconnected")
    assert (row.http_status, row.input_tokens, row.engine) == (200, 5, "app-server")
    assert row.first_delta_ms is not None
    assert row.engine_ms is not None


async def test_leaving_while_the_model_thinks_stops_the_turn(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.completions.HEAD_HOLD_S", 0.01)
    site.engine.script = [asyncio.Event()]
    exchange = await opened(site, stream=True).start()
    await leave(site, exchange)
    row = await site.recorded(exchange, "cancelled", "client_disconnected")
    assert (row.http_status, row.first_delta_ms) == (200, None)


async def test_leaving_mid_answer_stops_the_turn(site: Any) -> None:
    site.engine.script = [TextDelta("a"), asyncio.Event(), Completed()]
    exchange = opened(site, stream=False)
    await until(lambda: site.engine.turns)
    await leave(site, exchange)
    row = await site.recorded(exchange, "cancelled", "client_disconnected")
    assert row.http_status is None


async def test_leaving_with_the_request_half_sent_is_cancelled(site: Any) -> None:
    exchange = opened(site, stream=False)
    exchange._inbox.get_nowait()
    exchange._inbox.put_nowait({"type": "http.request", "body": b'{"mod', "more_body": True})
    await exchange.left()
    row = await site.recorded(exchange, "cancelled", "client_disconnected", who="")
    assert (row.http_status, row.key_id) == (None, None)
    assert site.engine.turns == []


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_at_once_leaves_one_cancelled_row(site: Any, stream: bool) -> None:
    exchange = opened(site, stream=stream)
    await leave(site, exchange)
    row = await site.row()
    assert (row.outcome, row.error_code) == ("cancelled", "client_disconnected")
    assert row.http_status is None


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_after_the_end_changes_nothing(site: Any, stream: bool) -> None:
    exchange = await opened(site, stream=stream).start()
    while await exchange.chunk():
        pass
    exchange.leave()
    await exchange.finish()
    row = await site.recorded(exchange, "ok")
    assert (row.http_status, row.output_tokens) == (200, 77)


async def test_leaving_before_done_is_read_changes_nothing(site: Any) -> None:
    exchange = await opened(site, stream=True).start()
    while b'"finish_reason":"stop"' not in exchange.body:
        await exchange.chunk()
    await exchange.left()
    await site.recorded(exchange, "ok")


async def test_one_client_leaving_does_not_touch_another(site: Any) -> None:
    gate = asyncio.Event()
    site.engine.script = [TextDelta("a"), gate, Completed()]
    leaving, staying = opened(site, stream=True), opened(site, stream=True)
    await leaving.start()
    await staying.start()
    await leaving.left()
    gate.set()
    await staying.finish()
    assert staying.events()[-1] == "[DONE]"
    outcomes = {str(row.request_id): row.outcome for row in await site.rows()}
    assert outcomes == {
        leaving.headers["x-request-id"]: "cancelled",
        staying.headers["x-request-id"]: "ok",
    }


async def test_host_that_cancels_twice_does_not_cut_the_clean_up(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_cleaning, may_end = asyncio.Event(), asyncio.Event()
    take = site.engine._take

    async def slow_to_stop(step: Any, running: Any) -> None:
        try:
            await take(step, running)
        finally:
            is_cleaning.set()
            await may_end.wait()

    monkeypatch.setattr(site.engine, "_take", slow_to_stop)
    site.engine.script = [asyncio.Event()]
    exchange = opened(site, stream=True)
    await until(lambda: site.engine.turns)
    exchange.leave()
    await asyncio.wait_for(is_cleaning.wait(), 5)
    for _ in range(2):
        exchange.task.cancel()
        await asyncio.sleep(0)
    assert site.engine.cleaned_up == []
    may_end.set()
    await asyncio.wait({exchange.task}, timeout=5)
    assert site.engine.cleaned_up == site.engine.turns
    row = await site.row()
    assert (row.outcome, row.http_status) == ("cancelled", None)
