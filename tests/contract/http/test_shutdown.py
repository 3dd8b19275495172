"""The end of the server: what runs may finish, the rest gets a clean end, nothing new begins."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.engines.base import Completed, TextDelta
from tests.asgi import Exchange, question
from tests.contract.http.waiting import until


async def begun(site: Any, *script: Any) -> Exchange:
    """Return a stream that runs."""
    site.engine.script = list(script)
    exchange: Exchange = await site.client.open(
        "POST", "/v1/chat/completions", json=question(stream=True)
    ).start()
    return exchange


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.completions.HEAD_HOLD_S", 0.01)


async def test_running_stream_may_finish_in_the_grace(site: Any) -> None:
    gate = asyncio.Event()
    exchange = await begun(site, TextDelta("a"), gate, TextDelta("b"), Completed())
    ending = asyncio.create_task(site.application.shutdown())
    await until(lambda: site.service.runtime._is_closing)
    gate.set()
    await exchange.finish()
    assert exchange.events()[-1] == "[DONE]"
    await asyncio.wait_for(ending, 5)


async def test_new_request_in_the_grace_is_503(site: Any) -> None:
    gate = asyncio.Event()
    exchange = await begun(site, gate, Completed())
    ending = asyncio.create_task(site.application.shutdown())
    await until(lambda: site.service.runtime._is_closing)
    for answer in (await site.client.ask(), await site.client.get("/v1/models")):
        assert (answer.status, answer.error["code"]) == (503, "server_shutting_down")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        row = (await site.rows())[-1]
        assert (row.http_status, row.error_code) == (503, "server_shutting_down")
    assert len(site.engine.turns) == 1
    gate.set()
    await exchange.finish()
    await asyncio.wait_for(ending, 5)


class TestAfterTheGrace:
    @pytest.fixture(autouse=True)
    def no_grace(self, settings: Any) -> None:
        settings.SHUTDOWN_GRACE_S = 0.05

    @pytest.fixture
    def site(self, no_grace: None, site: Any) -> Any:
        return site

    async def test_running_stream_is_interrupted_with_an_error_object(self, site: Any) -> None:
        exchange = await begun(site, TextDelta("a"), asyncio.Event())
        await asyncio.wait_for(site.application.shutdown(), 5)
        await exchange.finish()
        *_, last = exchange.events()
        assert last["error"]["code"] == "server_shutting_down"
        assert b"[DONE]" not in exchange.body
        assert site.engine.cleaned_up == site.engine.turns
        row = await site.database(site.newest)
        assert (row.outcome, row.error_code) == ("interrupted", "server_shutting_down")
        assert row.http_status == 200

    async def test_request_without_an_answer_yet_gets_503(self, site: Any) -> None:
        site.engine.script = [asyncio.Event()]
        exchange = site.client.open("POST", "/v1/chat/completions", json=question())
        await until(lambda: site.engine.turns)
        await asyncio.wait_for(site.application.shutdown(), 5)
        await exchange.start()
        await exchange.finish()
        assert (exchange.status, exchange.error["code"]) == (503, "server_shutting_down")
        row = await site.database(site.newest)
        assert (row.outcome, row.http_status) == ("interrupted", 503)

    async def test_second_shutdown_waits_for_the_first(self, site: Any) -> None:
        exchange = await begun(site, asyncio.Event())
        both = asyncio.gather(site.application.shutdown(), site.application.shutdown())
        await asyncio.wait_for(both, 5)
        assert exchange.task.done()
        row = await site.database(site.newest)
        assert row.outcome == "interrupted"


async def test_host_that_gives_up_on_the_shutdown_does_not_stop_it(site: Any) -> None:
    gate = asyncio.Event()
    exchange = await begun(site, gate, Completed())
    ending = asyncio.create_task(site.application.shutdown())
    await until(lambda: site.service.runtime._is_closing)
    ending.cancel()
    gate.set()
    await exchange.finish()
    await asyncio.wait_for(site.application.shutdown(), 5)
    row = await site.database(site.newest)
    assert row.outcome == "ok"
