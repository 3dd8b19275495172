"""A retry of a request that still runs joins it: one turn is paid for, and both get the answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.engines.base import Completed, TextDelta, Usage, UsageReported
from proxy.errors import RateLimited
from tests.asgi import Exchange, question
from tests.contract.http.openai_shapes import CHAT, finish_of, message_of
from tests.contract.http.waiting import until

KEY = {"idempotency-key": "k"}
RETRY = {"x-stainless-retry-count": "1"}
both = pytest.mark.parametrize("stream", [False, True])
each_mark = pytest.mark.parametrize(
    ("first_has", "second_has"), [(KEY, KEY), (KEY, KEY | RETRY), ({}, RETRY), (KEY, RETRY)]
)


@pytest.fixture
def gate(site: Any) -> asyncio.Event:
    """Every turn says something, waits for this, and ends."""
    found = asyncio.Event()
    usage = UsageReported(Usage(10, 0, 5, 0))
    site.engine.script = [TextDelta("Hel"), found, TextDelta("lo"), usage, Completed()]
    return found


def sent(
    site: Any, headers: dict[str, str], *, stream: bool = False, key: str | None = None, **body: Any
) -> Exchange:
    exchange: Exchange = site.client.open(
        "POST", CHAT, json=question(stream=stream, **body), headers=headers, key=key
    )
    return exchange


async def running(site: Any, headers: dict[str, str], **more: Any) -> Exchange:
    """Send a request and wait until its turn runs."""
    before = len(site.engine.turns)
    exchange = sent(site, headers, **more)
    await until(lambda: len(site.engine.turns) > before)
    return exchange


async def joined(site: Any, headers: dict[str, str], **more: Any) -> Exchange:
    """Send a request and wait until it reads the turn that runs already."""
    found = next(iter(site.service.runtime.joins._running.values()))[0]
    before = found.feed._readers
    exchange = sent(site, headers, **more)
    await until(lambda: found.feed._readers > before)
    return exchange


async def finished(*exchanges: Exchange) -> None:
    for exchange in exchanges:
        await exchange.start()
        await exchange.finish()


@both
@each_mark
async def test_retry_joins_and_both_answers_are_complete(
    site: Any, gate: asyncio.Event, first_has: Any, second_has: Any, stream: bool
) -> None:
    first = await running(site, first_has, stream=stream)
    second = await joined(site, second_has, stream=stream)
    gate.set()
    await finished(first, second)
    for answer in (first, second):
        assert (message_of(answer)["content"], finish_of(answer)) == ("Hello", "stop")
    assert len(site.engine.turns) == 1
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    rows = {str(row.request_id): row for row in await site.rows()}
    original, retry = (rows[answer.headers["x-request-id"]] for answer in (first, second))
    assert (original.outcome, original.joined_to, original.output_tokens) == ("ok", None, 5)
    assert (retry.outcome, retry.joined_to) == ("ok", original.request_id)
    assert (retry.input_tokens, retry.output_tokens, retry.engine_ms) == (None, None, None)
    assert (retry.model_served, retry.worker) == ("scripted-1", "scripted")


@pytest.mark.parametrize(
    ("first_has", "second_has", "body"),
    [
        ({}, {}, {}),
        (KEY, {}, {}),
        ({}, KEY, {}),
        ({}, {"x-stainless-retry-count": "0"}, {}),
        ({}, {"x-stainless-retry-count": "many"}, {}),
        ({}, RETRY, {"n": 2}),
        (KEY, {"idempotency-key": "other"}, {}),
        (KEY, {"idempotency-key": "other"} | RETRY, {}),
    ],
)
async def test_what_is_no_retry_is_never_merged(
    site: Any, gate: asyncio.Event, first_has: Any, second_has: Any, body: Any
) -> None:
    first = await running(site, first_has)
    second = await running(site, second_has, **body)
    gate.set()
    await finished(first, second)
    assert len(site.engine.turns) == 2 + (body.get("n", 1) - 1)
    assert {row.joined_to for row in await site.rows()} == {None}


@pytest.mark.parametrize("headers", [KEY, RETRY])
async def test_another_key_never_joins(
    site: Any, gate: asyncio.Event, headers: dict[str, str]
) -> None:
    _, other = await site.issue("other")
    first = await running(site, headers)
    second = await running(site, headers, key=other)
    gate.set()
    await finished(first, second)
    assert len(site.engine.turns) == 2
    assert {row.joined_to for row in await site.rows()} == {None}


async def test_key_with_another_body_is_400(site: Any, gate: asyncio.Event) -> None:
    first = await running(site, KEY)
    answer = await site.client.post(CHAT, json=question("something else"), headers=KEY)
    await site.refused(answer, 400, "idempotency_key_reused")
    gate.set()
    await finished(first)
    assert len(site.engine.turns) == 1
    answer = await site.client.post(CHAT, json=question("something else"), headers=KEY)
    await site.recorded(answer, "ok")  # the first one is over, and nothing of it is kept


async def test_ended_request_is_not_joined(site: Any, gate: asyncio.Event) -> None:
    gate.set()
    for _ in range(2):
        answer = await site.client.post(CHAT, json=question(), headers=KEY | RETRY)
        row = await site.recorded(answer, "ok")
        assert row.joined_to is None
    assert len(site.engine.turns) == 2


@both
async def test_first_client_leaving_does_not_cut_the_joined_one(
    site: Any, gate: asyncio.Event, stream: bool
) -> None:
    first = await running(site, KEY, stream=stream)
    second = await joined(site, KEY, stream=stream)
    await first.left()
    assert site.engine.cleaned_up == []
    gate.set()
    await finished(second)
    assert message_of(second)["content"] == "Hello"
    rows = await site.rows()
    outcomes = [(row.outcome, row.joined_to is None) for row in rows]
    assert outcomes == [("cancelled", True), ("ok", False)]
    assert [row.input_tokens for row in rows] == [None, 10]
    assert len(site.engine.turns) == 1


async def test_retry_of_a_client_that_hung_up_first_still_finds_the_turn(
    site: Any, gate: asyncio.Event
) -> None:
    first = await running(site, KEY)
    found = next(iter(site.service.runtime.joins._running.values()))[0]
    first.leave()
    await until(lambda: found.feed._readers == 0)
    second = await joined(site, KEY)
    gate.set()
    await finished(second)
    assert message_of(second)["content"] == "Hello"
    assert len(site.engine.turns) == 1


@both
async def test_joined_client_leaving_does_not_cut_the_first(
    site: Any, gate: asyncio.Event, stream: bool
) -> None:
    first = await running(site, {}, stream=stream)
    second = await joined(site, RETRY, stream=stream)
    await second.left()
    gate.set()
    await finished(first)
    assert message_of(first)["content"] == "Hello"
    assert [row.outcome for row in await site.rows()] == ["ok", "cancelled"]


@both
async def test_both_leaving_stops_the_turn(site: Any, gate: asyncio.Event, stream: bool) -> None:
    first = await running(site, KEY, stream=stream)
    second = await joined(site, KEY, stream=stream)
    await first.left()
    await second.left()
    assert site.engine.cleaned_up == site.engine.turns
    assert [row.outcome for row in await site.rows()] == ["cancelled", "cancelled"]


async def test_stream_that_joins_late_gets_everything(site: Any, gate: asyncio.Event) -> None:
    first = await (await running(site, KEY, stream=True)).start()
    while b'"Hel"' not in first.body:
        await first.chunk()
    second = await joined(site, KEY, stream=True)
    gate.set()
    await first.finish()
    await finished(second)
    assert message_of(first)["content"] == message_of(second)["content"] == "Hello"
    assert {row.outcome for row in await site.rows()} == {"ok"}


async def test_failure_is_told_to_both(site: Any, gate: asyncio.Event) -> None:
    site.engine.script = [gate, RateLimited("Slow.")]
    first = await running(site, KEY)
    second = await joined(site, KEY)
    gate.set()
    await finished(first, second)
    assert [first.status, second.status] == [429, 429]
    assert {row.error_code for row in await site.rows()} == {"rate_limit_exceeded"}


async def test_retry_needs_no_place_of_the_key(site: Any, gate: asyncio.Event) -> None:
    await site.change(max_concurrency=1)
    first = await running(site, KEY)
    second = await joined(site, KEY)
    gate.set()
    await finished(first, second)
    assert {row.outcome for row in await site.rows()} == {"ok"}


async def test_n_and_stop_are_carried_out_for_both(site: Any, gate: asyncio.Event) -> None:
    site.engine.script = [gate, TextDelta("a.b"), asyncio.Event()]
    first = await running(site, KEY, n=2, stop=".")
    second = await joined(site, KEY, n=2, stop=".")
    gate.set()
    await finished(first, second)
    for answer in (first, second):
        assert [message_of(answer, index)["content"] for index in (0, 1)] == ["a", "a"]
    assert len(site.engine.turns) == 2
    assert {row.outcome for row in await site.rows()} == {"ok"}


async def test_absurd_key_is_400(site: Any) -> None:
    answer = await site.client.post(CHAT, json=question(), headers={"idempotency-key": "k" * 256})
    await site.refused(answer, 400, "invalid_value")
