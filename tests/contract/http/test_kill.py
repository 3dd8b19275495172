"""Ending what runs: at any moment of its life, with a clean error, and with who and why in the row."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest

from proxy.engines.base import CommandStarted, Completed, TextDelta, Usage, UsageReported
from proxy.engines.gate import Gate
from proxy.errors import ServerUnavailable
from proxy.kills import KillWatch, kill_request, kill_under, running_under
from proxy.models import AgentGrant, KillOrder
from tests.asgi import Exchange, question
from tests.contract.http.waiting import until

WHY = "It runs in circles."


def opened(site: Any, **fields: Any) -> Exchange:
    exchange: Exchange = site.client.open(
        "POST", "/v1/chat/completions", json=question(**fields), headers=fields.pop("headers", None)
    )
    return exchange


def running(site: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = site.service.runtime.board.rows()
    return rows


async def begun(site: Any, number: int = 1) -> list[UUID]:
    """Return the ids of the requests that run, once so many turns do."""
    await until(lambda: len(site.engine.turns) + len(site.exec_engine.turns) >= number)
    return [UUID(row["request_id"]) for row in running(site)]


async def kill(site: Any, request_id: UUID) -> None:
    await site.database(kill_request, request_id, by=site.owner, reason=WHY)


async def killed(site: Any, answer: Exchange, **expected: Any) -> Any:
    row = await site.refused(answer, 403, "turn_killed", outcome="cancelled")
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    assert (row.killed_by, row.kill_reason) == ("ada", WHY)
    assert WHY not in str(answer.body)
    return row


@pytest.mark.parametrize("engine", ["app-server", "exec"])
async def test_a_request_that_waits_for_the_model_is_ended(site: Any, engine: str) -> None:
    await site.change(engine=engine)
    site.engine.script = site.exec_engine.script = [asyncio.Event()]
    answer = opened(site)
    (request_id,) = await begun(site)

    await kill(site, request_id)

    await killed(site, await (await answer.start()).finish())
    assert site.engine.cleaned_up == site.engine.turns
    assert site.exec_engine.cleaned_up == site.exec_engine.turns
    assert running(site) == []


async def test_a_stream_ends_with_one_clean_error(site: Any) -> None:
    site.engine.script = [TextDelta("a"), asyncio.Event(), Completed()]
    exchange = await opened(site, stream=True).start()
    while b'"a"' not in exchange.body:
        await exchange.chunk()
    (request_id,) = await begun(site)

    await kill(site, request_id)

    await exchange.finish()
    last = exchange.body.decode().strip().split("\n\n")[-1]
    assert orjson.loads(last.removeprefix("data: "))["error"]["code"] == "turn_killed"
    assert exchange.body.count(b'"error"') == 1
    row = await site.recorded(exchange, "cancelled", "turn_killed")
    assert (row.http_status, row.killed_by, row.kill_reason) == (200, "ada", WHY)


async def test_a_request_in_the_queue_is_ended_and_leaves_it(site: Any) -> None:
    go_on = asyncio.Event()
    site.engine.gate = Gate(capacity=1, max_queue=5, queue_timeout_s=30.0)
    site.engine.script = [go_on, TextDelta("fine")]
    first = opened(site)
    await begun(site)
    second = opened(site)
    await until(lambda: len(running(site)) == 2 and site.engine.gate.waiting == 1)
    assert [row["phase"] for row in running(site)] == ["waiting for the model", "in the queue"]

    await kill(site, UUID(running(site)[1]["request_id"]))

    await killed(site, await (await second.start()).finish())
    assert site.engine.gate.waiting == 0
    go_on.set()
    assert (await (await first.start()).finish()).status == 200


async def test_a_request_that_is_being_admitted_never_starts(site: Any) -> None:
    may_go_on, asked = asyncio.Event(), asyncio.Event()
    inspect = site.engine.inspect

    async def slowly() -> Any:
        asked.set()
        await may_go_on.wait()
        return await inspect()

    await asyncio.sleep(0)
    site.engine.inspect = slowly
    for seat in site.service.runtime._seats.values():
        seat.inspection = None
    answer = opened(site)
    await until(lambda: running(site) and asked.is_set())
    assert running(site)[0]["phase"] == "being admitted"

    await kill(site, UUID(running(site)[0]["request_id"]))
    await until(lambda: running(site)[0]["phase"] == "being ended")
    may_go_on.set()

    await killed(site, await (await answer.start()).finish())
    assert site.engine.turns == []


async def test_all_choices_are_ended(site: Any) -> None:
    site.engine.script = [asyncio.Event()]
    answer = opened(site, n=3)
    (request_id,) = await begun(site, 3)

    await kill(site, request_id)

    await killed(site, await (await answer.start()).finish())
    assert len(site.engine.cleaned_up) == 3


async def test_a_checked_answer_is_ended(site: Any) -> None:
    site.engine.script = [TextDelta("{"), UsageReported(Usage(7, 0, 3, 0)), asyncio.Event()]
    answer = opened(site, response_format={"type": "json_object"})
    (request_id,) = await begun(site)
    await until(lambda: running(site)[0]["input_tokens"] == 7)

    await kill(site, request_id)

    await killed(site, await (await answer.start()).finish())


async def test_retries_that_joined_are_ended_with_it(site: Any) -> None:
    site.engine.script = [asyncio.Event()]
    mark = {"headers": {"idempotency-key": "one"}}
    body = question()
    first = site.client.open("POST", "/v1/chat/completions", json=body, **mark)
    (request_id,) = await begun(site)
    second = site.client.open("POST", "/v1/chat/completions", json=body, **mark)
    await until(lambda: len(running(site)) == 2)
    await until(lambda: {row["phase"] for row in running(site)} == {"waiting for the model"})

    await kill(site, request_id)

    for answer in (first, second):
        await (await answer.start()).finish()
        assert (answer.status, answer.error["code"]) == (403, "turn_killed")
    rows = await site.rows()
    assert [(row.killed_by, row.kill_reason) for row in rows] == [("ada", WHY)] * 2
    assert len(site.engine.turns) == 1


async def test_an_order_for_another_request_ends_nothing(site: Any) -> None:
    go_on = asyncio.Event()
    site.engine.script = [go_on, TextDelta("fine"), Completed()]
    answer = opened(site)
    await begun(site)

    await kill(site, uuid4())
    go_on.set()

    assert (await (await answer.start()).finish()).status == 200


async def test_revoking_a_key_ends_what_runs_under_it_and_nothing_else(site: Any) -> None:
    go_on = asyncio.Event()
    site.engine.scripts = [[asyncio.Event()], [go_on]]
    mine = opened(site)
    await begun(site)
    _, secret = await site.issue("other")
    others = site.client.open("POST", "/v1/chat/completions", json=question(), key=secret)
    await begun(site, 2)
    await asyncio.to_thread(site.service.audit_log.flush)
    assert await site.database(running_under, site.key) == 1

    await site.database(site.key.revoke, site.owner)
    await site.database(kill_under, site.key, by=site.owner, reason=WHY)

    await (await mine.start()).finish()
    assert (mine.status, mine.error["code"]) == (403, "turn_killed")
    go_on.set()
    assert (await (await others.start()).finish()).status == 200


async def test_revoking_a_grant_ends_what_runs_under_it(site: Any) -> None:
    def give() -> AgentGrant:
        grant = AgentGrant.objects.create(key=site.key, reason="x")
        grant.roots.add(site.root)
        return grant

    grant = await site.database(give)
    usage = UsageReported(Usage(5, 0, 2, 0))
    script = [CommandStarted("1", "ls"), usage, asyncio.Event()]
    site.engine.scripts = [script, [asyncio.Event()]]
    agent = opened(site, metadata={"agent": "true"})
    await begun(site)
    await until(lambda: running(site)[0]["input_tokens"])
    (row,) = running(site)
    assert (row["grant_id"], row["actions"], row["agent_mode"]) == (grant.pk, 1, True)
    assert (row["root_alias"], row["cwd"]) == ("project", str(site.folder))
    assert (row["input_tokens"], row["output_tokens"], row["phase"]) == (5, 2, "working")
    chat = opened(site)
    await begun(site, 2)

    await site.database(kill_under, grant, by=site.owner, reason=WHY)

    await (await agent.start()).finish()
    assert (agent.status, agent.error["code"]) == (403, "turn_killed")
    assert [row["agent_mode"] for row in running(site)] == [False]
    await chat.left()


async def test_an_order_that_nobody_told_of_is_found_by_looking(site: Any) -> None:
    """As one is that was given in another process."""
    site.engine.script = [asyncio.Event()]
    answer = opened(site)
    (request_id,) = await begun(site)

    order = KillOrder(request_id=request_id, ordered_by=site.owner, reason=WHY)
    await site.database(order.save)

    await killed(site, await (await answer.start()).finish())


async def test_trouble_with_the_orders_does_not_end_the_watch(
    site: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("proxy.kills.LOOK_EVERY_S", 0.01)
    monkeypatch.setattr("proxy.kills.LOOK_AGAIN_S", 0.01)
    failures = iter([ServerUnavailable("away"), ValueError("odd")])
    look = KillWatch.look

    async def fails_first(watch: KillWatch) -> None:
        for failure in failures:
            raise failure
        await look(watch)

    monkeypatch.setattr(KillWatch, "look", fails_first)
    site.engine.script = [asyncio.Event()]
    answer = opened(site)
    (request_id,) = await begun(site)

    await kill(site, request_id)

    await killed(site, await (await answer.start()).finish())
    assert caplog.text.count("could not be carried out") == 1
