"""Ending what runs: a person orders it, and the process in which it runs carries it out.

An order is a row, so it reaches a request wherever it is, and it is on record who gave it and why.
Each process looks for orders about once a second while it has turns that run; the one in which the
order is given looks at once, and so do the others where Redis tells them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.db.models import Q

from audit.models import Outcome, RequestRecord
from proxy import runtime
from proxy.board import Board, Entry
from proxy.dbthreads import read
from proxy.errors import ServerUnavailable, TurnKilled
from proxy.models import AgentGrant, ApiKey, KillOrder

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
LOOK_AGAIN_S = 5.0
"""While the database does not answer."""
KILLED = "An operator of this server ended this request."


def kill_request(request_id: UUID, *, by: Any, reason: str) -> KillOrder:  # noqa: ANN401 - a user
    """Order the end of one request."""
    return _order(KillOrder(request_id=request_id, ordered_by=by, reason=reason))


def kill_under(revoked: ApiKey | AgentGrant, *, by: Any, reason: str) -> KillOrder:  # noqa: ANN401
    """Order the end of all that runs under a key or grant which was revoked.

    The order stays in force: what began just before the key was closed is ended as well.
    """
    order = KillOrder(ordered_by=by, reason=reason)
    if isinstance(revoked, ApiKey):
        order.key_id = revoked.pk
    else:
        order.grant_id = revoked.pk
    return _order(order)


def _order(order: KillOrder) -> KillOrder:
    order.save()
    runtime.announce_orders()
    return order


def running_under(policy: ApiKey | AgentGrant) -> int:
    """Return how many requests run under a key or a grant now, in every process."""
    column = "key_id" if isinstance(policy, ApiKey) else "grant_id"
    rows = RequestRecord.objects.filter(**{column: policy.pk}, outcome=Outcome.RUNNING)
    return rows.count()


class KillWatch:
    """Carries out the orders that concern this process; owned by the service."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._is_failing = False

    async def run(self) -> None:
        """Look for orders until cancelled, whatever happens: who kills must be obeyed."""
        while True:
            await self._board.is_busy.wait()
            pause_s = LOOK_AGAIN_S if self._is_failing else LOOK_EVERY_S
            await self._board.orders_may_have_come(pause_s)
            try:
                await self.look()
                self._is_failing = False
            except ServerUnavailable:
                self._is_failing = True  # whoever read in vain has said so in the log
            except Exception:
                log.exception("orders to kill could not be carried out; they are looked for again")
                self._is_failing = True

    async def look(self) -> None:
        """Carry out what was ordered for the requests of this process."""
        entries = self._board.entries()
        if not entries:
            return
        orders = await read(_orders_for, entries)
        for order, name in orders:
            for entry in entries:
                if _is_meant(entry, order):
                    entry.kill(TurnKilled(KILLED, killed_by=name, kill_reason=order.reason))


def _orders_for(entries: Sequence[Entry]) -> list[tuple[KillOrder, str]]:
    """Return the orders that concern some of these requests, with who gave each."""
    condition = Q(request_id__in=[entry.record.request_id for entry in entries])
    condition |= Q(key_id__in={entry.key_id for entry in entries} - {None})
    condition |= Q(grant_id__in={entry.grant_id for entry in entries} - {None})
    orders = KillOrder.objects.filter(condition).select_related("ordered_by").order_by("id")
    return [(order, _name_of(order)) for order in orders]


def _name_of(order: KillOrder) -> str:
    return order.ordered_by.get_username() if order.ordered_by else "unknown"


def _is_meant(entry: Entry, order: KillOrder) -> bool:
    if order.request_id is not None:
        return entry.record.request_id == order.request_id
    if order.key_id is not None:
        return entry.key_id == order.key_id
    return order.grant_id is not None and entry.grant_id == order.grant_id


async def end_tasks(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel tasks that run until cancelled, and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
