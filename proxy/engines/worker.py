"""One `codex app-server` process: its handshake, its calls, and its threads.

A worker serves many threads at once; what the server says is routed by thread id to the thread's
inbox. When the process ends, every pending call and every inbox learns it at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from pathlib import Path
from typing import Any

import psutil

from proxy import __version__
from proxy.engines import scratch
from proxy.engines.base import EngineConfig, Inspection, Model
from proxy.engines.child import Child
from proxy.engines.launch import arguments, environment, overrides_of
from proxy.engines.rpc import Answer, Notification, Peer, ServerRequest
from proxy.engines.spares import Spares
from proxy.errors import EngineError, EngineProtocolError, EngineUnavailable, WorkerDied

log = logging.getLogger(__name__)

HANDSHAKE_BOUND_S = 20.0
CALL_BOUND_S = 30.0
CLEAN_UP_BOUND_S = 2.0
INSPECTION_BOUND_S = 5.0
WEIGHING_EVERY_S = 5.0
STARTS_AT_ONCE = 16
"""Above this many starts in flight Codex answers -32001 (overloaded) to some of them."""
OVERLOADED = -32001
FIRST_RETRY_S, LAST_RETRY_S = 0.05, 1.0

TOOL_CALL = "item/tool/call"
TOOL_PATIENCE_S = 10.0
"""Silence after a tool call before Codex gets an answer to it. Normally the model's response ends
first, and the turn with it; but while a call is open Codex does not tell that the response broke
off. An answer is no harm to one that goes on."""

UNHEARD = [
    "thread/started",
    "thread/status/changed",
    "account/rateLimits/updated",
    "remoteControl/status/changed",
]


class RpcRefused(Exception):
    """app-server answered a call with an error; where it says that it is overloaded, try again."""

    def __init__(self, method: str, error: dict[str, Any]) -> None:
        self.code = error.get("code")
        self.reason = str(error.get("message") or "")
        super().__init__(f"{method}: {self.code} {self.reason}")


class Inbox:
    """What one thread's server says, in order, for one reader; ended by the worker's end."""

    def __init__(self) -> None:
        self._items: deque[Notification] = deque()
        self._news = asyncio.Event()
        self._died: EngineError | None = None

    def put(self, item: Notification) -> None:
        self._items.append(item)
        self._news.set()

    def end(self, error: EngineError) -> None:
        self._died = error
        self._news.set()

    async def get(self) -> Notification:
        """Return the next one. Raises `WorkerDied` after the last. Safe to cancel."""
        while not self._items:
            if self._died is not None:
                raise self._died
            self._news.clear()
            await self._news.wait()
        return self._items.popleft()


class Worker:
    """Owns one app-server process. Made by `start`, ended by `stop`."""

    def __init__(self, config: EngineConfig, number: int) -> None:
        self.name = f"app-server-{number}"
        self.config = config
        self.starts = asyncio.Semaphore(STARTS_AT_ONCE)
        self._peer = Peer()
        self._lines_heard = 0
        self._pending: dict[int, tuple[str, asyncio.Future[Any]]] = {}
        self._inboxes: dict[str, Inbox] = {}
        self._child: Child | None = None
        self._died: EngineError | None = None
        self._gone = asyncio.Event()
        self._is_retired = False
        self._databases: Path | None = None
        self._started_at = self._weighed_at = asyncio.get_running_loop().time()
        self._is_heavy = False
        self.spares = Spares(config.spare_threads, self.start_thread, self._drop_thread)
        self.version = ""
        self.inspection = Inspection("", (), None, True)

    @classmethod
    async def start(cls, config: EngineConfig, number: int, catalogue: Path | None) -> Worker:
        """Spawn app-server and shake hands.

        Raises `EngineUnavailable` with a reason; cancelling leaves no process.
        """
        worker = cls(config, number)
        try:
            async with asyncio.timeout(HANDSHAKE_BOUND_S):
                await worker._spawn(catalogue)
                worker.inspection = await worker.inspect()
        except BaseException as error:
            await worker.stop()
            if isinstance(error, EngineUnavailable) or not isinstance(error, Exception):
                raise
            log.error("%s cannot start: %s; it said: %s", worker.name, error, worker._last_words())
            raise EngineUnavailable(
                "Codex cannot be started; the server's log says why."
            ) from error
        log.info("%s runs as pid %s, codex %s", worker.name, worker.pid, worker.version)
        return worker

    async def _spawn(self, catalogue: Path | None) -> None:
        # Its log database grows with every turn, so it gets none that outlives it.
        self._databases = scratch.new_folder(self.config.scratch_dir)
        own: dict[str, Any] = {"sqlite_home": str(self._databases)}
        if catalogue is not None:
            own["model_catalog_json"] = str(catalogue)
        self._child = await Child.spawn(
            arguments(self.config, "app-server", "--stdio", overrides=overrides_of(own)),
            env=environment(self.config),
            cwd=self.config.scratch_dir,
            on_line=self._receive,
            on_end=self._end,
            user=self.config.user,
        )
        answer = await self.call(
            "initialize",
            {
                "clientInfo": {"name": "codexsite", "title": "codexsite", "version": __version__},
                "capabilities": {
                    "experimentalApi": True,
                    "optOutNotificationMethods": UNHEARD,
                },
            },
        )
        self._child.write(self._peer.notify("initialized"))
        self.version = str(answer["userAgent"]).partition("/")[2].partition(" ")[0]

    async def check(self) -> Inspection:
        """Ask it anew. Raises `EngineUnavailable`, and retires it, where it does not answer in time."""
        try:
            async with asyncio.timeout(INSPECTION_BOUND_S):
                self.inspection = await self.inspect()
        except TimeoutError as error:
            self.retire()
            raise EngineUnavailable("Codex runs, but does not answer.") from error
        return self.inspection

    async def inspect(self) -> Inspection:
        """Ask for the catalogue and the login."""
        models = await self.call("model/list", {})
        account = await self.call("account/read", {})
        login = account.get("account")
        return Inspection(
            codex_version=self.version,
            models=tuple(_model(entry) for entry in models["data"]),
            account=login["type"] if login else None,
            needs_login=bool(account.get("requiresOpenaiAuth")),
        )

    @property
    def pid(self) -> int:
        return self._child.pid if self._child else 0

    @property
    def is_usable(self) -> bool:
        return self._child is not None and self._died is None and not self._is_retired

    @property
    def is_worn(self) -> bool:
        """Whether its memory or its databases are past their limit, or it is too old.

        Looks every few seconds.
        """
        now = asyncio.get_running_loop().time()
        if now - self._weighed_at >= WEIGHING_EVERY_S:
            self._weighed_at = now
            heaviest = max(self._resident_mb(), self._databases_mb())
            self._is_heavy = heaviest > self.config.worker_max_mb
        return self._is_heavy or now - self._started_at > self.config.worker_max_age_s

    def _resident_mb(self) -> float:
        try:
            return float(psutil.Process(self.pid).memory_info().rss) / 2**20
        except psutil.Error:
            return 0.0  # it has just gone, which is told otherwise

    def _databases_mb(self) -> float:
        return scratch.size_mb(self._databases) if self._databases else 0.0

    async def gone(self) -> None:
        """Wait until the process has ended."""
        await self._gone.wait()

    def retire(self) -> None:
        """Give it no more turns: one of them is not known to be over, or another takes its place."""
        self._is_retired = True

    async def call(self, method: str, params: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON
        """Return the result. Raises `RpcRefused`, `WorkerDied`, or `EngineProtocolError` after 30 s.

        Cancelling forgets the answer, not the call: Codex still carries it out.
        """
        return await self.answer_to(self.send(method, params), method)

    def send(self, method: str, params: dict[str, Any]) -> asyncio.Future[Any]:
        """Send a request at once and return the future of its result."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        # An abandoned call must not end as "exception was never retrieved".
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        if self._died is not None or self._child is None:
            future.set_exception(self._died or WorkerDied("Codex is not running."))
            return future
        number, line = self._peer.request(method, params)
        self._pending[number] = (method, future)
        self._child.write(line)
        return future

    async def answer_to(self, future: asyncio.Future[Any], method: str) -> Any:  # noqa: ANN401 - JSON
        """Wait for the result of `send`, at most 30 s; the future itself survives a cancel."""
        try:
            async with asyncio.timeout(CALL_BOUND_S):
                return await asyncio.shield(future)
        except TimeoutError as error:
            self.retire()
            raise EngineProtocolError(f"Codex did not answer {method} in time.") from error

    def open_inbox(self, thread_id: str) -> Inbox:
        inbox = self._inboxes.setdefault(thread_id, Inbox())
        if self._died is not None:
            inbox.end(self._died)
        return inbox

    def close_inbox(self, thread_id: str) -> None:
        self._inboxes.pop(thread_id, None)

    async def start_thread(self, params: dict[str, Any]) -> dict[str, Any]:
        """Open a thread and its inbox, and return Codex's answer; no more than 16 starts at once.

        Tries again while Codex says that it is overloaded. Raises `RpcRefused` or an `EngineError`.
        If it is cancelled the thread is let go of as soon as it is there.
        """
        pause_s = FIRST_RETRY_S
        while True:
            async with self.starts:
                opening = self.send("thread/start", params)
                try:
                    answer: dict[str, Any] = await self.answer_to(opening, "thread/start")
                    self.open_inbox(answer["thread"]["id"])
                    return answer
                except RpcRefused as refused:
                    if refused.code != OVERLOADED:
                        raise
                except asyncio.CancelledError:
                    opening.add_done_callback(self._drop_opened)
                    self._suspect(opening)
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LAST_RETRY_S)

    def _suspect(self, opening: asyncio.Future[Any]) -> None:
        """Retire the worker if it says nothing at all from now on, this answer neither.

        Else one that hangs would get every new turn, for as long as each gives up before the bound
        of a call. A busy one is not slow to say something to somebody.
        """
        heard = self._lines_heard

        def judge() -> None:
            if self._lines_heard == heard and not opening.done() and self.is_usable:
                log.warning("%s says nothing any more: it gets no more turns", self.name)
                self.retire()

        asyncio.get_running_loop().call_later(3 * CLEAN_UP_BOUND_S, judge)

    def _drop_opened(self, opening: asyncio.Future[Any]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            self._drop_thread(opening.result()["thread"]["id"])

    def _drop_thread(self, thread_id: str) -> None:
        """Let a thread be unloaded on which nothing runs."""
        self.close_inbox(thread_id)
        _ = self.send("thread/unsubscribe", {"threadId": thread_id})

    # What the child calls.

    def _receive(self, line: bytes) -> None:
        self._lines_heard += 1
        frame = self._peer.receive(line)
        if isinstance(frame, Notification):
            inbox = self._inboxes.get(frame.thread_id)
            if inbox is not None:
                inbox.put(frame)
        elif isinstance(frame, Answer):
            self._settle(frame)
        elif isinstance(frame, ServerRequest) and frame.method == TOOL_CALL:
            # The caller runs the tool and asks again with its result, so this turn ends here.
            inbox = self._inboxes.get(str(frame.params.get("threadId")))
            if inbox is not None:
                inbox.put(Notification(TOOL_CALL, {"request": frame}, ""))
        elif isinstance(frame, ServerRequest):
            log.warning("%s: refused a request of the server: %s", self.name, frame.method)
            self.refuse(frame)
        elif line.strip():
            log.warning("%s: a line that is no frame, %d bytes", self.name, len(line))

    def refuse(self, request: ServerRequest) -> None:
        """Answer a request of the server's with no."""
        if self._child is not None:
            self._child.write(self._peer.reply(request))

    def _settle(self, answer: Answer) -> None:
        method, future = self._pending.pop(answer.id, ("", None))
        if future is None or future.done():
            return
        if answer.error is not None:
            future.set_exception(RpcRefused(method, answer.error))
        else:
            future.set_result(answer.result)

    def _end(self) -> None:
        self._died = WorkerDied("The codex process ended in the middle of the turn.")
        if not self._is_retired:
            log.error("%s ended; it said: %s", self.name, self._last_words())
        for _, future in self._pending.values():
            if not future.done():
                future.set_exception(self._died)
        self._pending.clear()
        for inbox in self._inboxes.values():
            inbox.end(self._died)
        self._gone.set()

    def _last_words(self) -> str:
        return self._child.stderr_tail[-1000:] if self._child else ""

    async def stop(self) -> None:
        """End the process and all it started, and remove its databases. Idempotent, bounded."""
        self._is_retired = True
        await self.spares.aclose()
        if self._child is not None:
            await self._child.stop()
        if self._databases is not None:
            scratch.remove(self._databases)


def _model(entry: dict[str, Any]) -> Model:
    return Model(
        id=entry["model"],
        display_name=entry["displayName"],
        efforts=tuple(item["reasoningEffort"] for item in entry["supportedReasoningEfforts"]),
        is_default=bool(entry["isDefault"]),
        service_tiers=tuple(tier["id"] for tier in entry.get("serviceTiers") or ()),
        takes_images="image" in (entry.get("inputModalities") or ["image"]),
    )


class Thread:
    """One ephemeral thread on a worker: opened, asked once, closed whatever happened.

    Closing knows three states: nothing started, a turn's start still in flight, a turn that runs. It
    interrupts what runs, waits until Codex says that it is over, and lets the thread be unloaded; a
    worker on which that cannot be learnt in time is retired.
    """

    def __init__(self, worker: Worker, *, is_agent: bool) -> None:
        self._worker = worker
        self._is_agent = is_agent
        self._starting: asyncio.Future[Any] | None = None
        self._inbox: Inbox | None = None
        self._calls: list[ServerRequest] = []
        self.id = ""
        self.turn_id = ""
        self.is_over = False

    async def open(self, params: dict[str, Any]) -> dict[str, Any]:
        """Start the thread, or take one that waits, and return Codex's answer to its start.

        Raises `RpcRefused` or an `EngineError`.
        """
        answer = None if self._is_agent else self._worker.spares.take(params)
        answer = answer or await self._worker.start_thread(params)
        self.id = answer["thread"]["id"]
        self._inbox = self._worker.open_inbox(self.id)
        return answer

    async def inject(self, items: list[dict[str, Any]]) -> None:
        """Give the thread its history."""
        if items:
            params = {"threadId": self.id, "items": items}
            await self._worker.call("thread/inject_items", params)

    async def ask(self, params: dict[str, Any]) -> None:
        """Start the turn on what was injected."""
        turn = {"threadId": self.id, "input": [], **params}
        self._starting = self._worker.send("turn/start", turn)
        answer = await self._worker.answer_to(self._starting, "turn/start")
        self.turn_id = answer["turn"]["id"]

    async def next(self) -> Notification:
        """Return what Codex says next on this thread. Raises `WorkerDied`."""
        assert self._inbox is not None  # noqa: S101 - opened before
        while True:
            try:
                async with asyncio.timeout(TOOL_PATIENCE_S if self._calls else None):
                    note = await self._inbox.get()
            except TimeoutError:
                self._refuse_calls()
                continue
            if note.method != TOOL_CALL:
                self._watch(note)
                return note
            self._calls.append(note.params["request"])

    def _refuse_calls(self) -> None:
        for call in self._calls:
            self._worker.refuse(call)
        self._calls.clear()

    def _watch(self, note: Notification) -> None:
        if note.method == "turn/started":
            self.turn_id = note.params["turn"]["id"]
        elif note.method == "turn/completed":
            self.is_over = True

    async def close(self) -> None:
        """End the turn if it runs and let go of the thread, within a few seconds.

        Cancelling retires the worker, as everything does that leaves the turn's end unknown.
        """
        is_known = False
        try:
            async with asyncio.timeout(3 * CLEAN_UP_BOUND_S):
                await self._close()
            is_known = True
        except (TimeoutError, RpcRefused, EngineError, KeyError, TypeError) as error:
            if self._worker.is_usable:
                log.warning("%s: a turn is not known to be over: %r", self._worker.name, error)
        finally:
            if not is_known:
                self._worker.retire()
            self._worker.close_inbox(self.id)

    async def _close(self) -> None:
        if not self.id:
            return
        if self._starting is not None and not self.is_over:
            await self._interrupt()
        if self._is_agent:
            await self._worker.call("thread/backgroundTerminals/clean", {"threadId": self.id})
        await self._worker.call("thread/unsubscribe", {"threadId": self.id})

    async def _interrupt(self) -> None:
        if not self.turn_id:  # the turn's start is in flight: without its id nothing can stop it
            try:
                assert self._starting is not None  # noqa: S101 - the caller has looked
                self.turn_id = (await asyncio.shield(self._starting))["turn"]["id"]
            except RpcRefused:
                return
        params = {"threadId": self.id, "turnId": self.turn_id}
        # Its answer says less than the turn's own end, which is waited for instead.
        _ = self._worker.send("turn/interrupt", params)
        while not self.is_over:
            await self.next()
