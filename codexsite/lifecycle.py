"""The life of the server under any ASGI host: start, drain, stop; and each request's whole end.

Daphne sends no lifespan events, cancels a request's task while its clean-up runs, and on SIGTERM
cancels Django, which then forgets its view. So every request runs here in a task of its own that
nobody but its own end stops: what the host cancels is only the waiting for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from proxy.gateway import App, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

START_BOUND_S = 20.0
"""For a start that the shutdown overtakes."""
AFTER_INTERRUPT_S = 10.0
"""For requests to send their last words, after their turns were interrupted."""
HURRIED_S = 1.0
"""For any wait once a second signal has come."""


class Service(Protocol):
    """What lives as long as the server: the engines and the audit log."""

    async def start(self) -> None: ...
    def refuse_new(self) -> None: ...
    async def interrupt(self) -> None: ...
    async def stop(self) -> None: ...


class Lifecycle:
    """The outermost ASGI application.

    `start` of the service is awaited before the first request is served; where it fails, that is
    told, and tried again with the next request. On shutdown no connection is accepted any more and
    new turns are refused, running ones may finish for `grace_s` seconds, the rest is interrupted so
    that each client gets a clean error, and then the service is stopped. `hurry`, which a second
    signal calls, cuts the waiting short, not the order.
    """

    def __init__(self, app: App, service: Service, *, grace_s: float) -> None:
        self._app, self._service, self._grace_s = app, service, grace_s
        self._requests: dict[asyncio.Task[None], asyncio.Event] = {}
        self._starting: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._hurried = asyncio.Event()
        self._stop_listening: Callable[[], None] = lambda: None

    # The host's side.

    def attach_to_twisted(self) -> None:
        """Start and stop with Twisted's reactor, where that is what runs the server (Daphne)."""
        if "daphne.server" not in sys.modules:
            return
        from twisted.internet import reactor as installed
        from twisted.internet.defer import Deferred

        reactor: Any = installed  # its declared type is that of its interface's methods unbound
        self._stop_listening = lambda: _stop_listening(reactor)
        reactor.callWhenRunning(self._ensure_started)

        def stop() -> Any:  # noqa: ANN401 - Twisted's Deferred, which has a type of its own making
            self._obey_a_second_signal()
            return Deferred.fromFuture(self._ensure_stopping())

        reactor.addSystemEventTrigger("before", "shutdown", stop)

    def _obey_a_second_signal(self) -> None:
        """Take over the signals that Twisted has no more use for, where this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_event_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(self.hurry))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        # Where it fails, the pages still tell why, and the gateway refuses the API.
        await asyncio.wait({self._ensure_started()})
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await self._supervise(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self._ensure_started()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.shutdown()
                await send({"type": "lifespan.shutdown.complete"})
                return

    # Start and stop, once each.

    def _ensure_started(self) -> asyncio.Task[None]:
        if self._starting is None or _has_failed(self._starting):
            self._starting = _own_task(self._start(), "service-start")
        return self._starting

    async def _start(self) -> None:
        try:
            await self._service.start()
        except OSError as error:
            log.error("the service does not start: %s", error)
            raise
        except Exception:
            log.exception("the service does not start")
            raise

    def _ensure_stopping(self) -> asyncio.Task[None]:
        if self._stopping is None:
            self._stopping = _own_task(self._shutdown(), "service-stop")
        return self._stopping

    def hurry(self) -> None:
        """Let no running turn finish any more: whoever stops the server has asked twice."""
        if not self._hurried.is_set():
            log.warning("stopping now, without waiting for the requests that run")
            self._hurried.set()

    async def shutdown(self) -> None:
        """Drain, interrupt, stop; each wait bounded. A second call waits for the first."""
        await asyncio.shield(self._ensure_stopping())

    async def _shutdown(self) -> None:
        self._service.refuse_new()
        self._stop_listening()
        if self._starting is not None:  # or what it starts after our stop would outlive us
            await asyncio.wait({self._starting}, timeout=START_BOUND_S)
        if self._requests:
            log.info("%d requests may finish for %g s", len(self._requests), self._grace_s)
        await self._requests_end_within(self._grace_s, hurried_s=0.0)
        try:
            await self._service.interrupt()
        except Exception:
            log.exception("the running turns could not be interrupted")
        await self._requests_end_within(AFTER_INTERRUPT_S)
        for gone in self._requests.values():
            gone.set()
        await self._requests_end_within(AFTER_INTERRUPT_S)
        for task in self._requests:
            log.error("%s does not end", task.get_name())
        await self._service.stop()

    async def _requests_end_within(self, bound_s: float, *, hurried_s: float = HURRIED_S) -> None:
        """Wait for the requests that there are; `hurried_s` at most from a second signal on."""
        if not self._requests:
            return
        ending = asyncio.ensure_future(asyncio.wait(list(self._requests)))
        hurrying = asyncio.ensure_future(self._hurried.wait())
        try:
            await asyncio.wait(
                {ending, hurrying}, timeout=bound_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not ending.done() and hurrying.done():
                await asyncio.wait({ending}, timeout=min(hurried_s, bound_s))
        finally:
            ending.cancel()
            hurrying.cancel()

    # One request.

    async def _supervise(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.Event()
        task = _own_task(
            self._app(scope, _receive_until(gone, receive), send), f"request {scope['path']}"
        )
        self._requests[task] = gone
        task.add_done_callback(self._requests.pop)
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if task.cancelled():
                    raise
                # The host wants us gone: on shutdown `_shutdown` sees to it, else the client has
                # left and the request knows. Either way its clean-up is bounded and ours to await.
        task.result()


def _stop_listening(reactor: Any) -> None:  # noqa: ANN401 - Twisted's, as above
    """Accept no connection any more; those that are open stay."""
    from twisted.internet import tcp

    ports: list[Any] = [item for item in reactor.getReaders() if isinstance(item, tcp.Port)]
    for port in ports:
        port.stopListening()


def _has_failed(task: asyncio.Task[None]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _receive_until(gone: asyncio.Event, receive: Receive) -> Receive:
    """Return a `receive` that also tells the application when we want its client to be gone."""

    async def receiving() -> Message:
        waiting = asyncio.ensure_future(receive())
        leaving = asyncio.ensure_future(gone.wait())
        try:
            await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return waiting.result() if waiting.done() else {"type": "http.disconnect"}
        finally:
            waiting.cancel()
            leaving.cancel()

    return receiving


def _own_task(work: Awaitable[None], name: str) -> asyncio.Task[None]:
    """Return a task that inherits nothing from whoever asked for it."""

    async def run() -> None:
        await work

    return asyncio.get_event_loop().create_task(run(), name=name, context=contextvars.Context())
