"""The board, live: what runs, twice a second, to those who may see it, for as long as they look."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import Any
from urllib.parse import urlsplit

import orjson
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings
from django.contrib.auth.models import User
from django.urls import reverse
from django.utils import timezone

from audit.models import Outcome, RequestRecord
from proxy import runtime
from proxy.board import COLUMNS, SHOWN, Board, Row
from proxy.dbthreads import read
from proxy.errors import ServerUnavailable

log = logging.getLogger(__name__)

EVERY_S = 0.5
CHECK_EVERY = 10
"""Looks between two checks that the watcher may still look."""

SEE = "audit.view_requestrecord"
KILL = "proxy.kill_request"
TRY_LATER, FAILED = 1013, 1011
FORBIDDEN = 4403


def may_see(user: Any) -> bool:  # noqa: ANN401 - somebody, or nobody
    return bool(user.is_active and user.is_staff and user.has_perm(SEE))


def is_own_page(origin: str, host: str) -> bool:
    """Tell whether a page of this site, and no other of this machine, wants to look.

    Cookies know no ports, and so a page of another server on the same host would bring ours.
    """
    is_same = bool(host) and urlsplit(origin).netloc == host
    return is_same or origin in settings.CSRF_TRUSTED_ORIGINS


class BoardConsumer(AsyncWebsocketConsumer):  # type: ignore[misc] # channels has no types
    """Sends the board to one watcher. It reads nothing that the watcher sends."""

    # It needs no channel of its own: processes talk to each other through `relay` alone, and the
    # board works on where Redis is away.
    channel_layer_alias = "none"

    def __init__(self) -> None:
        super().__init__()
        self._showing: asyncio.Task[None] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Also where the server cancels us, and no disconnect is ever delivered.
            if self._showing is not None:
                self._showing.cancel()

    async def connect(self) -> None:
        headers = dict(self.scope["headers"])
        origin = headers.get(b"origin", b"").decode("latin-1")
        host = headers.get(b"host", b"").decode("latin-1")
        user = self.scope["user"]
        if not is_own_page(origin, host) or not await read(may_see, user):
            await self.close(FORBIDDEN)
            return
        if (board := runtime.find_board()) is None:
            await self.close(TRY_LATER)
            return
        await self.accept()
        self._showing = asyncio.get_running_loop().create_task(
            self._show(board, user.pk), name="board", context=contextvars.Context()
        )

    async def _show(self, board: Board, user_id: int) -> None:
        """Send what runs until nobody looks any more, or the watcher no longer may."""
        try:
            with board.watcher():
                while await self._may_still(user_id):
                    for _ in range(CHECK_EVERY):
                        rows = await all_rows(board)
                        message = {"rows": rows, "is_cut": len(rows) >= SHOWN}
                        await self.send(text_data=orjson.dumps(message).decode())
                        await asyncio.sleep(EVERY_S)
            await self.close(FORBIDDEN)
        except Exception:
            log.exception("the board could not be shown")
            await self.close(FAILED)  # the page then connects again

    async def _may_still(self, user_id: int) -> bool:
        """Whether the login still stands and may still see this."""
        session = self.scope["session"]

        def look() -> bool:
            user = User.objects.filter(pk=user_id).first()
            return user is not None and may_see(user) and session.exists(session.session_key)

        try:
            return await read(look)
        except ServerUnavailable:
            return True  # what is shown then comes from memory, and is looked at again soon


async def all_rows(board: Board) -> list[Row]:
    """Return what runs in this process, what others said, and what the database has beside it."""
    others = board.others()
    try:
        stored = await read(stored_rows, {board.boot, *others})
    except ServerUnavailable:
        stored = []
    rows = [*board.rows(), *(row for rows in others.values() for row in rows), *stored]
    return [with_links(row) for row in rows[:SHOWN]]


def stored_rows(known_boots: set[str]) -> list[Row]:
    """Return what runs in processes that did not tell themselves; the database knows the start."""
    running = RequestRecord.objects.filter(outcome=Outcome.RUNNING).order_by("-id")[:SHOWN]
    now = timezone.now()
    return [
        {
            "request_id": str(record.request_id),
            **{name: getattr(record, name) for name in COLUMNS},
            "phase": "running",
            "seconds": round((now - record.created_at).total_seconds(), 1),
            "input_tokens": None,
            "output_tokens": None,
            "actions": record.action_count,
            "is_here": False,
        }
        for record in reversed(running)
        if record.boot not in known_boots
    ]


def with_links(row: Row) -> Row:
    return {
        **row,
        "page": reverse("request_by_id", args=[row["request_id"]]),
        "kill": reverse("kill_request", args=[row["request_id"]]),
    }
