"""The queue before the engine: fair between keys, bounded, honest, and visible in /metrics."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from proxy import schemas
from proxy.engines.base import Completed, TextDelta, Turn
from proxy.engines.gate import Gate
from tests.asgi import Exchange, question
from tests.contract.http.openai_shapes import CHAT
from tests.contract.http.waiting import until


class Places(asyncio.Event):
    """Holds each turn in its place until it is told to let so many go, the first ones first."""

    def __init__(self) -> None:
        super().__init__()
        self._allowed = asyncio.Semaphore(0)

    async def wait(self) -> bool:  # type: ignore[override]
        await self._allowed.acquire()
        return True

    def let_go(self, count: int) -> None:
        for _ in range(count):
            self._allowed.release()


class Hall:
    """The engine of the site with two places and a short queue, and what happens there."""

    def __init__(self, site: Any) -> None:
        self.site, self.places, self.began = site, Places(), list[str]()
        self.gate = site.engine.gate = Gate(capacity=2, max_queue=8, queue_timeout_s=60.0)
        site.engine.script = [self._note, self.places, Completed()]

    def _note(self, turn: Turn) -> TextDelta:
        self.began.append(turn.messages[-1].text)
        return TextDelta("hi")

    def ask(self, text: str, key: str | None = None, **more: Any) -> Exchange:
        exchange: Exchange = self.site.client.open(
            "POST", CHAT, json=question(text), key=key, **more
        )
        return exchange

    async def fill(self, count: int, key: str | None = None) -> list[Exchange]:
        """Ask so often that places and queue hold so many."""
        made = [self.ask("fill", key) for _ in range(count)]
        await until(lambda: self.gate.inside + self.gate.waiting == count)
        return made

    async def queue(self) -> Any:
        body = (await self.site.client.get("/metrics")).json()
        schemas.Metrics.model_validate(body, strict=True)
        return body["queue"]

    async def empty(self, *exchanges: Exchange) -> None:
        """Let all go, and wait for the end of these."""
        self.places.let_go(len(exchanges))
        for exchange in exchanges:
            await exchange.start()
            await exchange.finish()


@pytest.fixture
async def hall(site: Any) -> Hall:
    return Hall(site)


async def test_one_request_is_served_within_a_round_of_500_of_another_key(
    site: Any, hall: Hall
) -> None:
    _, other = await site.issue("other")
    flood = [hall.ask("a") for _ in range(500)]

    def refused() -> int:
        return sum(exchange.task.done() for exchange in flood)

    await until(lambda: refused() == 490, within_s=45)
    one = hall.ask("b", other)
    await until(lambda: refused() == 491)  # the newest gave way
    assert hall.began == ["a", "a"]
    hall.places.let_go(2)
    await until(lambda: len(hall.began) == 4)
    assert hall.began[2:].count("b") == 1
    await hall.empty(*flood, one)
    assert one.status == 200
    assert Counter(exchange.status for exchange in flood) == {200: 9, 429: 491}
    for exchange in flood:
        if exchange.status == 429:
            assert exchange.error["code"] == "server_busy"
            assert 1 <= int(exchange.headers["retry-after"]) <= 60
    rows = Counter((row.key_name, row.outcome) for row in await site.rows())
    assert rows == {("laptop", "ok"): 9, ("laptop", "rejected"): 491, ("other", "ok"): 1}
    assert (hall.gate.inside, hall.gate.waiting) == (0, 0)


async def test_who_waits_too_long_gets_429(site: Any, hall: Hall) -> None:
    hall.gate.queue_timeout_s = 0.01
    those = [hall.ask("fill") for _ in range(2)]
    await until(lambda: hall.gate.inside == 2)
    answer = await site.client.ask()
    row = await site.refused(answer, 429, "server_busy")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert row.phases["queue_wait"] >= 10
    await hall.empty(*those)


async def test_the_deadline_holds_in_the_queue(site: Any, hall: Hall) -> None:
    those = await hall.fill(2)
    await site.set_options(timeout_seconds=0.1)
    answer = await site.client.ask()
    await site.refused(answer, 504, "upstream_timeout", outcome="timed_out")
    assert hall.gate.waiting == 0
    await hall.empty(*those)


@pytest.mark.parametrize("headers", [{}, {"x-stainless-retry-count": "0"}])
async def test_a_caller_that_leaves_the_queue_frees_its_place_at_once(
    site: Any, hall: Hall, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.completions.RETRY_GRACE_S", 60.0)  # that of a turn that has begun
    those = await hall.fill(2)
    leaving = hall.ask("gone", headers=headers)
    await until(lambda: hall.gate.waiting == 1)
    await leaving.left()
    assert hall.gate.waiting == 0
    assert "gone" not in hall.began
    row = (await site.rows())[-1]
    assert (row.outcome, row.http_status) == ("cancelled", None)
    await hall.empty(*those)


async def test_no_more_of_a_key_wait_than_its_own_cap(site: Any, hall: Hall) -> None:
    await site.change(max_queued=1)
    _, other = await site.issue("other")
    those = await hall.fill(3)
    answer = await site.client.ask()
    await site.refused(answer, 429, "key_concurrency_exceeded")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    those.append(hall.ask("b", other))
    await until(lambda: hall.gate.waiting == 2)
    await hall.empty(*those)
    assert {exchange.status for exchange in those} == {200}


async def test_metrics_tell_who_waits_where(site: Any, hall: Hall) -> None:
    _, other = await site.issue("other")
    those = await hall.fill(4)
    those.append(hall.ask("b", other))
    await until(lambda: hall.gate.waiting == 3)
    queue = await hall.queue()
    assert (queue["queued"], queue["running"], queue["capacity"]) == (3, 2, 2)
    waiting = queue.pop("waiting")
    assert [one["position"] for one in waiting] == [1, 2, 3]
    assert {one["engine"] for one in waiting} == {"scripted"}
    assert queue["longest_wait_seconds"] == max(one["waited_seconds"] for one in waiting) > 0
    lines = (await site.client.get("/metrics?format=prometheus")).body.decode().splitlines()
    assert "codexsite_queue_length 3.0" in lines
    assert "codexsite_turns_running 2.0" in lines
    assert "codexsite_turns_capacity 2.0" in lines
    (oldest,) = [line for line in lines if line.startswith("codexsite_queue_oldest_seconds ")]
    assert float(oldest.split()[1]) >= queue["longest_wait_seconds"]
    await hall.empty(*those)
    ids = {str(row.request_id): row.key_name for row in await site.rows()}
    assert [ids[one["request_id"]] for one in waiting] == ["laptop", "other", "laptop"]
    assert (await hall.queue())["waiting"] == []


async def test_metrics_name_neither_key_nor_owner_nor_folder(site: Any, hall: Hall) -> None:
    those = await hall.fill(3)
    for path in ("/metrics", "/metrics?format=prometheus"):
        text = (await site.client.get(path)).body.decode()
        for secret in ("laptop", "ada", str(site.folder), site.key.prefix):
            assert secret not in text
    await hall.empty(*those)


async def test_turns_on_a_replaced_engine_are_counted(site: Any, hall: Hall) -> None:
    those = await hall.fill(3)
    await site.set_options(workers=2)
    await site.client.get("/v1/models")  # builds the engine of the new options
    # In the tests both are one engine, so what it holds is counted once for each.
    assert (await hall.queue())["running"] == 4
    await hall.empty(*those)
    await until(lambda: not site.service.runtime._leaving)


async def test_row_tells_how_long_it_waited(site: Any, hall: Hall) -> None:
    those = await hall.fill(2)
    last = hall.ask("late")
    await until(lambda: hall.gate.waiting == 1)
    await until(lambda: hall.gate.waiters()[0].waited_s >= 0.05)
    await hall.empty(*those, last)
    waits = [row.phases["queue_wait"] for row in await site.rows()]
    assert waits[-1] >= 50 > min(waits)
