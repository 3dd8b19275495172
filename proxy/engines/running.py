"""One turn while it runs: the task that drives it, its events, its phases, its one end.

An engine only writes a coroutine that emits events; what all engines promise is kept here once:
exactly one end, the absolute deadline, typed failure, and a close that waits for the clean-up.
The driving task belongs to the turn and not to the request's task, so that a client who leaves,
even twice, can never cut the clean-up short.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

from proxy.engines import mountpoints
from proxy.engines.base import (
    CommandStarted,
    Completed,
    Event,
    Failed,
    FileChange,
    TextDelta,
    Turn,
    TurnStarted,
    Usage,
    UsageReported,
)
from proxy.errors import (
    EngineError,
    EngineProtocolError,
    EngineTimeout,
    ShuttingDown,
    TurnStopped,
    WorkerDied,
)

log = logging.getLogger(__name__)

CLOSE_BOUND_S = 15.0
"""More than the sum of the bounds of any engine's own clean-up; reached only by a bug."""

Drive = Callable[["RunningTurn"], Awaitable[None]]
Preparation = Callable[[], Awaitable[None]]


class Laps:
    """Phases of one thing, in order: milliseconds since the lap before, on a monotonic clock."""

    def __init__(self) -> None:
        self.started = self._last = time.monotonic()
        self.ms: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """End the phase that runs now and name it."""
        now = time.monotonic()
        self.ms[name] = round(self.ms.get(name, 0.0) + (now - self._last) * 1000, 3)
        self._last = now

    def adopt(self, other: Laps) -> None:
        """Take another's phases as ours, and go on from now."""
        for name, spent_ms in other.ms.items():
            self.ms.setdefault(name, spent_ms)
        self._last = time.monotonic()

    def since_start_ms(self) -> float:
        return round((time.monotonic() - self.started) * 1000, 3)


class RunningTurn:
    """Owns the task that drives one turn, and hands its events to one reader.

    Attributes for the audit row: `laps` (queue_wait, worker_start or process_spawn, thread_start,
    turn_start, first_event, first_delta, answer), `worker`, `codex_version`, `served_model`.
    """

    def __init__(self, turn: Turn, drive: Drive) -> None:
        self.turn = turn
        self.laps = Laps()
        self.engine_ms: float | None = None
        self.worker = ""
        self.codex_version = ""
        self.served_model = turn.model or ""
        self.usage: Usage | None = None
        self.preparation: Preparation | None = None
        """What must have happened before Codex is told of the turn; whoever runs it sets this."""
        self.has_produced = False
        """Whether the model has been heard of: words, thoughts, calls, actions."""
        self.action_count = 0
        self.inner: RunningTurn | None = None
        """The turn that works for this one now, where one does."""
        self._events: deque[Event] = deque()
        self._news = asyncio.Event()
        self._ended = False
        loop = asyncio.get_running_loop()
        # A fresh context: nothing of the request (its database thread, say) is inherited.
        self._task = loop.create_task(
            self._run(drive), name=f"turn-{turn.request_id}", context=contextvars.Context()
        )
        late = EngineTimeout("The turn did not finish before its deadline.")
        alarm = loop.call_at(turn.deadline, self.stop, late, context=contextvars.Context())
        self.when_over(alarm.cancel)

    def when_over(self, callback: Callable[[], None]) -> None:
        """Call back once the turn has ended and its engine has cleaned up behind it."""
        self._task.add_done_callback(lambda _: callback())

    # For the engine that drives it.

    async def prepare(self) -> None:
        """Let the turn's preparation happen; called when it has its place in the engine."""
        if self.preparation is not None:
            await self.preparation()
            self.laps.lap("workspace_before")

    def emit(self, event: Event) -> None:
        """Give the reader one event. After the end everything is dropped."""
        if self._ended:
            return
        self._time(event)
        if isinstance(event, UsageReported):
            self.usage = event.usage
        elif isinstance(event, CommandStarted | FileChange):
            self.action_count += 1
        self._ended = isinstance(event, Completed | Failed)
        if not isinstance(event, TurnStarted | UsageReported):
            self.has_produced = True
        self._events.append(event)
        self._news.set()

    def _time(self, event: Event) -> None:
        if isinstance(event, TurnStarted):
            return
        seen = self.laps.ms
        if "first_event" not in seen and "turn_start" in seen:
            self.laps.lap("first_event")
        if isinstance(event, TextDelta) and "first_delta" not in seen:
            self.laps.lap("first_delta")
        if isinstance(event, Completed | Failed):
            if "turn_start" in seen:
                self.laps.lap("answer")
            self.engine_ms = self.laps.since_start_ms()

    async def _run(self, drive: Drive) -> None:
        try:
            await drive(self)
            self.emit(Failed(EngineProtocolError("Codex ended the turn without a result.")))
        except EngineError as error:
            self.emit(Failed(error))
        except TimeoutError:
            log.exception("turn %s: a wait inside the engine timed out", self.turn.request_id)
            self.emit(Failed(EngineProtocolError("Codex did not answer in time.")))
        except asyncio.CancelledError:
            self.emit(Failed(TurnStopped("The turn was stopped.")))  # nothing new after `stop`
        except Exception:
            log.exception("turn %s: the engine failed", self.turn.request_id)
            self.emit(Failed(EngineError("The engine failed; the server's log has the details.")))

    def take_over(self, inner: RunningTurn) -> None:
        """Take for ours what another turn, which works for this one, knows of itself."""
        self.worker, self.codex_version = inner.worker, inner.codex_version
        self.served_model = inner.served_model
        self.laps.adopt(inner.laps)

    # For its reader.

    @property
    def is_over(self) -> bool:
        """Whether it has come to its end, read or not."""
        return self._ended

    def share_news(self, news: asyncio.Event) -> None:
        """Announce events by this one of the reader's, who reads several turns with `pop_event`."""
        self._news = news
        if self._events:
            news.set()

    def pop_event(self) -> Event | None:
        """Return the next event if there is one now."""
        return self._events.popleft() if self._events else None

    async def next_event(self, timeout_s: float | None = None) -> Event | None:
        """Return the next event, or None when `timeout_s` seconds pass without one.

        After the end there is no next event: asking for one is a mistake of the caller. Safe to
        cancel: no event is lost.
        """
        if not self._events:
            if self._ended:
                raise RuntimeError("the turn has ended and its end was read")
            self._news.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._news.wait()
            except TimeoutError:
                return None
        return self._events.popleft()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            event = await self.next_event()
            assert event is not None  # noqa: S101 - no timeout was given
            yield event
            if isinstance(event, Completed | Failed):
                return

    def stop(self, error: EngineError) -> None:
        """End the turn with `error`, if it has not ended: at its deadline, at shutdown.

        The reader learns it now and the engine cleans up behind it. Only the first stop cancels, so
        that no later one cuts the clean-up short.
        """
        if not self._ended:
            self.emit(Failed(error))
            self._task.cancel()

    async def aclose(self) -> None:
        """Stop the turn if it runs, and wait until its engine has cleaned up behind it.

        Idempotent. The wait is bounded; cancelling the caller does not cut the clean-up short.
        """
        self.stop(TurnStopped("The turn was stopped."))
        _, late = await asyncio.wait({self._task}, timeout=CLOSE_BOUND_S)
        if late:
            log.error("turn %s: clean-up is stuck", self.turn.request_id)


async def with_second_try(running: RunningTurn, attempt: Drive) -> None:
    """Run the turn; where its process dies before the model was heard of, once more on another.

    An agent is not given a second turn once Codex has taken the first: a command tells of itself
    late, and may have run. Raises what the last attempt raises.
    """
    try:
        await attempt(running)
    except WorkerDied:
        may_have_acted = running.turn.is_agent and "turn_start" in running.laps.ms
        if running.has_produced or may_have_acted:
            raise
        log.warning("turn %s: its process died first; it is tried again", running.turn.request_id)
        await attempt(running)


class Turns:
    """The turns that run on one engine, ended together."""

    def __init__(self) -> None:
        self._running: set[RunningTurn] = set()
        self.is_closed = False

    def run(self, turn: Turn, drive: Drive) -> RunningTurn:
        """Start the turn; after `aclose` it fails at once, and `drive` is never called."""
        running = RunningTurn(turn, drive)
        self._running.add(running)
        running.when_over(lambda: self._running.discard(running))
        if turn.confinement is not None:
            running.when_over(mountpoints.enter(turn.confinement))
        if self.is_closed:
            running.stop(ShuttingDown("The server is shutting down."))
        return running

    async def aclose(self) -> None:
        """Fail every turn that runs and wait until its engine has cleaned up behind it."""
        self.is_closed = True
        running = list(self._running)
        for turn in running:
            turn.stop(ShuttingDown("The server is shutting down."))
        await asyncio.gather(*(turn.aclose() for turn in running))
