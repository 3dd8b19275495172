"""Several processes as one: they show each other's requests and pass on that there are orders.

Only where a Redis is configured. Nothing is decided by what comes in here: it is shown to people who
may see it anyway, and an order to kill counts as a row of the database only. Where Redis is away the
board shows the rows that the database has, and orders are found by looking (`kills`).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from proxy.board import Board

log = logging.getLogger(__name__)

GROUP = "processes"
ASK_EVERY_S = 0.5
RETRY_S = 2.0


class Relay:
    """Talks to the other processes over a channel layer; owned by the service."""

    def __init__(self, board: Board, layer: Any) -> None:  # noqa: ANN401 - it has no types
        self._board = board
        self._layer = layer
        self._is_failing = False

    async def run(self) -> None:
        """Listen, ask and announce until cancelled; begin again where Redis was away."""
        while True:
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._listen())
                    tasks.create_task(self._ask())
                    tasks.create_task(self._announce())
            except* Exception as failures:  # noqa: BLE001 - whatever Redis or its client raise
                if not self._is_failing:
                    log.warning("Redis does not answer: %s", failures.exceptions[0])
                self._is_failing = True
            await asyncio.sleep(RETRY_S)

    async def close(self) -> None:
        """Let go of the connections."""
        try:
            await self._layer.flush()
        except Exception as error:  # noqa: BLE001 - it is gone anyway
            log.info("the connection to Redis did not close cleanly: %s", error)

    async def _listen(self) -> None:
        channel = await self._layer.new_channel()
        await self._layer.group_add(GROUP, channel)
        if self._is_failing:
            log.warning("Redis answers again")
        self._is_failing = False
        # Orders may have been given while nobody could tell us.
        self._board.look_at_orders()
        while True:
            await self._take(await self._layer.receive(channel))

    async def _take(self, message: dict[str, Any]) -> None:
        if message.get("from") == self._board.boot:
            return
        match message.get("type"):
            case "board.ask":
                await self._say("board.rows", rows=self._board.rows())
            case "board.rows":
                self._board.note_other(message["from"], message["rows"])
            case "kill.look":
                self._board.look_at_orders()

    async def _ask(self) -> None:
        """Ask for the others' requests, but only while somebody looks at the board."""
        while True:
            await self._board.is_watched.wait()
            await self._say("board.ask")
            await asyncio.sleep(ASK_EVERY_S)

    async def _announce(self) -> None:
        while True:
            await self._board.has_announcement.wait()
            self._board.has_announcement.clear()
            await self._say("kill.look")

    async def _say(self, kind: str, **content: object) -> None:
        message = {"type": kind, "from": self._board.boot, **content}
        await self._layer.group_send(GROUP, message)
