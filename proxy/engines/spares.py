"""Threads opened before anybody asks for them, so that a turn need not wait for its thread.

Opening a thread takes Codex as long as all the rest of what it does before it asks the model. What
a chat thread is opened with depends on the model and the tools, never on the conversation; so after
a turn the next thread of the same kind can be opened while nobody waits for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson

from proxy.errors import EngineError

log = logging.getLogger(__name__)

KINDS = 8
"""Kinds that are remembered; a kind is prepared for once it has been asked for twice."""

Params = dict[str, Any]
Start = Callable[[Params], Awaitable[Params]]


@dataclass(frozen=True, slots=True)
class Spare:
    """An open thread that nobody has used; `answer` is Codex's to `thread/start`."""

    kind: bytes
    answer: Params

    @property
    def id(self) -> str:
        return str(self.answer["thread"]["id"])


class Spares:
    """The spare threads of one worker. `start` opens one, `drop` lets go of one nobody wants.

    At most `ahead` are open in all, of one to two megabytes each; those of the kind that is asked
    for now push out others.
    """

    def __init__(self, ahead: int, start: Start, drop: Callable[[str], None]) -> None:
        self._ahead, self._start, self._drop = ahead, start, drop
        self._ready: deque[Spare] = deque()
        self._asked: Counter[bytes] = Counter()
        self._opening: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._ready)

    def take(self, params: Params) -> Params | None:
        """Return Codex's answer for a thread opened with these parameters, if one is there."""
        kind = _kind_of(params)
        self._asked[kind] += 1
        if len(self._asked) > KINDS:
            del self._asked[min(self._asked, key=lambda known: (known == kind, self._asked[known]))]
        for spare in self._ready:
            if spare.kind == kind:
                self._ready.remove(spare)
                return spare.answer
        return None

    def restock(self, params: Params) -> None:
        """Open threads of this kind, if it is one that is asked for again, until enough wait."""
        kind = _kind_of(params)
        if self._asked[kind] >= 2:
            self.prepare(params)

    def prepare(self, params: Params) -> None:
        """Open threads of this kind until enough wait. Returns at once; a failure is no harm."""
        if self._is_closed or self._opening:
            return
        task = asyncio.get_running_loop().create_task(
            self._fill(_kind_of(params), params),
            name="spare-threads",
            context=contextvars.Context(),
        )
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _fill(self, kind: bytes, params: Params) -> None:
        try:
            while sum(spare.kind == kind for spare in self._ready) < self._ahead:
                self._ready.append(Spare(kind, await self._start(params)))
                while len(self._ready) > self._ahead:
                    others = [spare for spare in self._ready if spare.kind != kind]
                    self._ready.remove(others[0])
                    self._drop(others[0].id)
        except (EngineError, KeyError, TypeError) as error:
            log.debug("no spare thread: %r", error)  # the next turn opens its own and says why

    async def aclose(self) -> None:
        """Open no more; the threads end with their worker."""
        self._is_closed = True
        for task in self._opening:
            task.cancel()
        if self._opening:
            await asyncio.wait(self._opening)


def _kind_of(params: Params) -> bytes:
    return orjson.dumps(params, option=orjson.OPT_SORT_KEYS)
