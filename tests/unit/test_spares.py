from __future__ import annotations

import asyncio
from typing import Any

from proxy.engines.spares import KINDS, Spares
from proxy.errors import WorkerDied

CHAT, OTHER = {"model": "a"}, {"model": "b"}


class Opener:
    """Opens threads, numbered; fails or waits where a test says so."""

    def __init__(self) -> None:
        self.opened: list[dict[str, Any]] = []
        self.dropped: list[str] = []
        self.fails = False
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, params: dict[str, Any]) -> dict[str, Any]:
        await self.go.wait()
        if self.fails:
            raise WorkerDied("gone")
        self.opened.append(params)
        return {"thread": {"id": f"t{len(self.opened)}"}}


def made(ahead: int = 2) -> tuple[Spares, Opener]:
    opener = Opener()
    return Spares(ahead, opener, opener.dropped.append), opener


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_what_was_prepared_is_taken_once_and_oldest_first():
    spares, opener = made()
    spares.prepare(CHAT)
    await settled()
    assert len(spares) == len(opener.opened) == 2
    taken = [spares.take(CHAT) for _ in range(3)]
    assert [answer and answer["thread"]["id"] for answer in taken] == ["t1", "t2", None]


async def test_a_thread_of_another_kind_is_never_given():
    spares, _ = made()
    spares.prepare(CHAT)
    await settled()
    assert spares.take(OTHER) is None
    assert spares.take({**CHAT, "dynamicTools": []}) is None
    assert spares.take(dict(reversed(CHAT.items()))) is not None


async def test_a_kind_is_restocked_once_it_was_asked_for_twice():
    spares, opener = made()
    spares.take(CHAT)
    spares.restock(CHAT)
    await settled()
    assert opener.opened == []
    spares.take(CHAT)
    spares.restock(CHAT)
    await settled()
    assert opener.opened == [CHAT, CHAT]


async def test_the_kind_that_is_asked_for_pushes_others_out_and_they_are_let_go():
    spares, opener = made()
    spares.prepare(CHAT)
    await settled()
    spares.prepare(OTHER)
    await settled()
    assert len(spares) == 2
    assert opener.dropped == ["t1", "t2"]
    assert spares.take(OTHER) is not None


async def test_kinds_that_come_once_are_forgotten_and_a_new_one_can_still_become_usual():
    spares, opener = made()
    for number in range(5 * KINDS):
        spares.take({"model": str(number)})
    for _ in range(2):
        spares.take(CHAT)
    spares.restock(CHAT)
    await settled()
    assert opener.opened == [CHAT, CHAT]


async def test_none_ahead_opens_none():
    spares, opener = made(0)
    spares.prepare(CHAT)
    await settled()
    assert opener.opened == []


async def test_a_worker_that_dies_meanwhile_is_no_error_here():
    spares, opener = made()
    opener.fails = True
    spares.prepare(CHAT)
    await settled()
    assert len(spares) == 0
    opener.fails = False
    spares.prepare(CHAT)
    await settled()
    assert len(spares) == 2


async def test_closing_ends_an_opening_and_begins_no_other():
    spares, opener = made()
    opener.go.clear()
    spares.prepare(CHAT)
    await asyncio.sleep(0)
    await spares.aclose()
    spares.prepare(CHAT)
    opener.go.set()
    await settled()
    assert opener.opened == []
    assert asyncio.all_tasks() == {asyncio.current_task()}
