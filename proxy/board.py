"""What runs in this process now: for the page that shows it, and for whoever must end some of it.

A request costs one entry in a dictionary here and nothing for each event: what the page shows is
read from the request's own record and turns, when somebody looks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol
from uuid import UUID

from proxy.engines.running import RunningTurn
from proxy.errors import TurnKilled
from proxy.feed import Feed

Row = dict[str, Any]
"""One line of the board, as JSON carries it."""

FRESH_S = 3.0
"""How long another process's word about itself counts."""

SHOWN = 200
"""Lines of the board: more than anybody reads, and a bound on its cost."""

PHASES = {
    "queue_wait": "starting",
    "worker_start": "opening a thread",
    "process_spawn": "starting the turn",
    "thread_start": "starting the turn",
    "turn_start": "waiting for the model",
    "first_event": "working",
    "first_delta": "answering",
    "answer": "ending",
}
"""What goes on once a phase of `RunningTurn.laps` is over."""

COLUMNS = (
    "key_id", "key_name", "key_prefix", "key_owner", "root_alias", "cwd", "engine", "agent_mode",
    "level", "grant_id", "stream", "model_asked", "endpoint",
)  # fmt: skip


class OnRecord(Protocol):
    """What the board needs of a request's record."""

    request_id: UUID

    @property
    def fields(self) -> Mapping[str, Any]: ...


class Entry:
    """One request that runs: its record, and its turns once there are some."""

    def __init__(self, record: OnRecord) -> None:
        self.record = record
        self.feed: Feed | None = None
        self.since = time.monotonic()
        self._killed: TurnKilled | None = None

    @property
    def key_id(self) -> int | None:
        key_id: int | None = self.record.fields["key_id"]
        return key_id

    @property
    def grant_id(self) -> int | None:
        grant_id: int | None = self.record.fields["grant_id"]
        return grant_id

    def kill(self, error: TurnKilled) -> None:
        """End its turns now, or keep it from starting any. What has ended stays as it is."""
        if self.feed is not None and self.feed.has_ended:
            return
        self._killed = self._killed or error
        for turn in self.feed.turns if self.feed else ():
            turn.stop(error)

    def run(self, feed: Feed) -> None:
        """Show these turns from now on."""
        self.feed = feed

    def refuse_when_killed(self) -> None:
        """Raise the `TurnKilled` that came before there was a turn to end."""
        if self._killed is not None:
            raise self._killed

    def row(self) -> Row:
        """Return its line of the board."""
        fields = self.record.fields
        turns = [_front(turn) for turn in self.feed.turns] if self.feed else []
        usages = [turn.usage for turn in turns if turn.usage is not None]
        return {
            "request_id": str(self.record.request_id),
            **{name: fields[name] for name in COLUMNS},
            "phase": self._phase(turns),
            "seconds": round(time.monotonic() - self.since, 1),
            "input_tokens": sum(usage.input_tokens for usage in usages) if usages else None,
            "output_tokens": sum(usage.output_tokens for usage in usages) if usages else None,
            "actions": sum(turn.action_count for turn in turns),
            "is_here": True,
        }

    def _phase(self, turns: list[RunningTurn]) -> str:
        if self._killed is not None:
            return "being ended"
        if not turns:
            return "being admitted"
        running = [turn for turn in turns if not turn.is_over]
        if not running:
            return "sending the rest"
        laps = list(running[0].laps.ms)
        return PHASES.get(laps[-1], "working") if laps else "in the queue"


def _front(turn: RunningTurn) -> RunningTurn:
    """Return the turn that does the work: one that checks or records has another do it."""
    while turn.inner is not None:
        turn = turn.inner
    return turn


class Board:
    """The requests of this process that run, and what other processes say of theirs."""

    def __init__(self) -> None:
        self.boot = ""
        self.watchers = 0
        self.is_watched = asyncio.Event()
        self.is_busy = asyncio.Event()
        self.has_announcement = asyncio.Event()
        self._has_orders = asyncio.Event()
        self._entries: dict[UUID, Entry] = {}
        self._others: dict[str, tuple[float, list[Row]]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self, boot: str) -> None:
        """Belong to the loop that runs, in the process of this boot."""
        self._loop = asyncio.get_running_loop()
        self.boot = boot

    @contextmanager
    def entry(self, record: OnRecord) -> Iterator[Entry]:
        """Show a request for as long as it runs."""
        entry = self._entries[record.request_id] = Entry(record)
        self.is_busy.set()
        try:
            yield entry
        finally:
            del self._entries[record.request_id]
            if not self._entries:
                self.is_busy.clear()

    def entries(self) -> list[Entry]:
        return list(self._entries.values())

    def rows(self) -> list[Row]:
        """Return the lines of this process, the oldest request first."""
        return [entry.row() for entry in self.entries()[:SHOWN]]

    # Orders to kill.

    def announce_orders(self) -> None:
        """Have this process and the others look at the orders now. Safe from any thread."""
        self._call_soon(self._has_orders.set)
        self._call_soon(self.has_announcement.set)

    def look_at_orders(self) -> None:
        """Have this process look at the orders now."""
        self._has_orders.set()

    def _call_soon(self, function: Any) -> None:  # noqa: ANN401 - a callable without arguments
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function)

    async def orders_may_have_come(self, timeout_s: float) -> None:
        """Wait until somebody says that there are orders, or until the time has passed."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._has_orders.wait()
        except TimeoutError:
            return
        finally:
            self._has_orders.clear()

    # Who looks.

    @contextmanager
    def watcher(self) -> Iterator[None]:
        """Be looked at by one more; only while there is one do processes ask one another."""
        self.watchers += 1
        self.is_watched.set()
        try:
            yield
        finally:
            self.watchers -= 1
            if not self.watchers:
                self.is_watched.clear()

    def note_other(self, boot: str, rows: list[Row]) -> None:
        """Keep what another process says of itself."""
        if boot != self.boot:
            self._others[boot] = (time.monotonic(), [{**row, "is_here": False} for row in rows])

    def others(self) -> dict[str, list[Row]]:
        """Return what other processes said of themselves lately, by their boot."""
        oldest = time.monotonic() - FRESH_S
        self._others = {
            boot: (when, rows) for boot, (when, rows) in self._others.items() if when >= oldest
        }
        return {boot: rows for boot, (_, rows) in self._others.items()}
