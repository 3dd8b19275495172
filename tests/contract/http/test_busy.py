"""A key's own cap on what runs at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.engines.base import Completed, TextDelta
from proxy.errors import WorkerDied
from tests.asgi import Exchange, question


@pytest.fixture(autouse=True)
async def capped(site: Any) -> asyncio.Event:
    """The key may run one turn, and each turn waits for this event."""
    gate = asyncio.Event()
    await site.change(max_concurrency=1)
    site.engine.script = [TextDelta("a"), gate, Completed()]
    return gate


async def occupied(site: Any, key: str | None = None) -> Exchange:
    """Return a stream that has begun and waits."""
    exchange: Exchange = await site.client.open(
        "POST", "/v1/chat/completions", json=question(stream=True), key=key
    ).start()
    return exchange


@pytest.mark.parametrize("stream", [False, True])
async def test_one_more_request_is_429_at_once(
    site: Any, capped: asyncio.Event, stream: bool
) -> None:
    first = await occupied(site)
    answer = await site.client.ask(stream=stream)
    await site.refused(answer, 429, "key_concurrency_exceeded")
    assert answer.error["type"] == "rate_limit_error"
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert len(site.engine.turns) == 1
    capped.set()
    await first.finish()
    assert [row.outcome for row in await site.rows()] == ["ok", "rejected"]


async def test_place_is_free_after_the_end(site: Any, capped: asyncio.Event) -> None:
    capped.set()
    for _ in range(3):
        await site.recorded(await site.client.ask(), "ok")


@pytest.mark.parametrize("stream", [False, True])
async def test_place_is_free_before_the_client_has_its_last_byte(
    site: Any, capped: asyncio.Event, stream: bool
) -> None:
    site.engine.script = [TextDelta("a"), Completed(), capped]  # an engine that is slow to clean up
    exchange = await site.client.open(
        "POST", "/v1/chat/completions", json=question(stream=stream)
    ).start()
    while not exchange.is_over:
        await exchange.chunk()
    site.engine.script = [TextDelta("b"), Completed()]
    answer = await site.client.ask()
    assert not exchange.task.done()
    assert answer.status == 200, answer.body
    capped.set()
    await exchange.finish()
    await site.recorded(answer, "ok")


async def test_place_is_free_after_the_client_left(site: Any, capped: asyncio.Event) -> None:
    await (await occupied(site)).left()
    capped.set()
    await site.recorded(await site.client.ask(), "ok")


async def test_place_is_free_after_a_failure(site: Any, capped: asyncio.Event) -> None:
    site.engine.script = [WorkerDied("Gone.")]
    for _ in range(2):
        answer = await site.client.ask()
        await site.refused(answer, 502, "engine_crashed", outcome="failed")


async def test_place_is_not_taken_by_a_refused_request(site: Any, capped: asyncio.Event) -> None:
    capped.set()
    await site.refused(await site.client.ask(model="gpt-9"), 404, "model_not_found")
    await site.recorded(await site.client.ask(), "ok")


async def test_other_keys_are_not_concerned(site: Any, capped: asyncio.Event) -> None:
    _, other = await site.issue("other", max_concurrency=1)
    first, second = await occupied(site), await occupied(site, other)
    capped.set()
    await first.finish()
    await second.finish()
    assert {row.key_name: row.outcome for row in await site.rows()} == {
        "laptop": "ok",
        "other": "ok",
    }


async def test_cap_of_two_lets_two_in(site: Any, capped: asyncio.Event) -> None:
    await site.change(max_concurrency=2)
    both = [await occupied(site), await occupied(site)]
    await site.refused(await site.client.ask(), 429, "key_concurrency_exceeded")
    capped.set()
    for exchange in both:
        await exchange.finish()
    assert sorted(row.outcome for row in await site.rows()) == ["ok", "ok", "rejected"]


async def test_models_are_listed_for_a_busy_key(site: Any, capped: asyncio.Event) -> None:
    first = await occupied(site)
    answer = await site.client.get("/v1/models")
    await site.recorded(answer, "ok")
    capped.set()
    await first.finish()


async def test_more_choices_than_the_cap_never_fit(site: Any, capped: asyncio.Event) -> None:
    answer = await site.client.ask(n=2)
    await site.refused(answer, 400, "integer_above_max_value")
    assert answer.error["param"] == "n"


async def test_retry_after_is_how_long_the_key_s_requests_take(
    site: Any, capped: asyncio.Event
) -> None:
    capped.set()
    for _ in range(20):
        await site.client.ask()
    capped.clear()
    first = await occupied(site)
    assert (await site.client.ask()).headers["retry-after"] == "1"
    pace = site.service.runtime._paces[site.key.pk]
    (holder,) = pace._since
    pace._since[holder] -= 20.0  # as if it had begun so long ago
    assert 20 <= int((await site.client.ask()).headers["retry-after"]) <= 40
    capped.set()
    await first.finish()
