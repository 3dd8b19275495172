"""Two processes' boards over one channel layer, in this one; and a layer that fails."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from channels.layers import InMemoryChannelLayer

from proxy.board import COLUMNS, FRESH_S, Board
from proxy.kills import end_tasks
from proxy.relay import Relay


class OnRecord:
    def __init__(self, name: str) -> None:
        self.request_id = uuid.uuid4()
        self.fields: dict[str, Any] = {**dict.fromkeys(COLUMNS), "key_name": name}


@pytest.fixture
async def boards(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Board, Board]]:
    monkeypatch.setattr("proxy.relay.ASK_EVERY_S", 0.01)
    layer, first, second = InMemoryChannelLayer(), Board(), Board()
    tasks = []
    for number, board in enumerate((first, second)):
        board.attach(f"boot-{number}")
        tasks.append(asyncio.create_task(Relay(board, layer).run()))
    yield first, second
    await end_tasks(tasks)


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the other side must not know of the test
            await asyncio.sleep(0.001)


async def test_one_shows_what_runs_in_the_other_while_somebody_looks(
    boards: tuple[Board, Board], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = boards
    with second.entry(OnRecord("there")):
        await asyncio.sleep(0.05)
        assert first.others() == {}, "nobody looks"
        with first.watcher():
            await until(lambda: first.others().get("boot-1"))
            (row,) = first.others()["boot-1"]
            assert (row["key_name"], row["is_here"], row["phase"]) == (
                "there",
                False,
                "being admitted",
            )
    with first.watcher():
        await until(lambda: first.others().get("boot-1") == [])
    monkeypatch.setattr("proxy.board.time.monotonic", lambda: 1e12 + FRESH_S)
    assert first.others() == {}, "it is silent: it may be gone"


async def test_an_order_is_announced_to_the_other(boards: tuple[Board, Board]) -> None:
    first, second = boards
    for board in boards:  # each has looked once, when its relay began
        await board.orders_may_have_come(5)
    waiting = asyncio.create_task(second.orders_may_have_come(30))
    await asyncio.sleep(0)

    first.announce_orders()

    async with asyncio.timeout(5):
        await waiting


async def test_a_layer_that_fails_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("proxy.relay.RETRY_S", 0.001)

    class Flaky(InMemoryChannelLayer):  # type: ignore[misc] # channels has no types
        failures = 3

        async def group_add(self, group: str, channel: str) -> None:
            if self.failures:
                self.failures -= 1
                raise ConnectionError("away")
            await super().group_add(group, channel)

    board = Board()
    board.attach("boot")
    task = asyncio.create_task(Relay(board, Flaky()).run())
    await board.orders_may_have_come(5)
    await end_tasks([task])

    said = [record.message for record in caplog.records]
    assert said == ["Redis does not answer: away", "Redis answers again"]
