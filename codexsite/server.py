"""Daphne's server, made fit for many streams at once and quiet while all is well."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import daphne.server
from daphne.http_protocol import WebRequest
from django.conf import settings

BACKLOG = 4096
"""Connections that wait to be accepted. At Twisted's 50, bursts of clients wait a second or more."""
CLOSE_TIMEOUT_S = 60
"""Daphne cancels a request this long after its client left; cleaning up must get there first."""

access = logging.getLogger("codexsite.access")


class ListenFailed(OSError):
    """The server could not listen on its address; the text says why."""


class Server(daphne.server.Server):  # type: ignore[misc] # daphne has no types
    """Serves an ASGI application in this process, from `run` until a signal or `stop`."""

    def __init__(
        self,
        application: Any,  # noqa: ANN401 - Daphne's own signature, and the next
        endpoints: list[str],
        *,
        ready_callable: Callable[[], None] = lambda: None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        self._failure: ListenFailed | None = None
        self._tell_ready = ready_callable
        super().__init__(
            application,
            endpoints=[_with_backlog(endpoint) for endpoint in endpoints],
            ready_callable=self._get_ready,
            **{
                "application_close_timeout": CLOSE_TIMEOUT_S,
                "action_logger": log_access,
                **options,
            },
        )

    def run(self) -> None:
        """Serve until told to stop. Raises `ListenFailed`, before anything was served."""
        super().run()
        if self._failure is not None:
            raise self._failure

    def _get_ready(self) -> None:
        """Prepare this process for a long life, now that the server listens."""
        # What is loaded by now stays; without this each collection walks all of it, in which time
        # no request is served: p95 at 16 clients fell from 50 ms to 10.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
        _read_no_forms(self.http_factory)
        if self.signal_handlers:
            _end_with_the_terminal()
        # Then the reactor has its signal handlers, and whoever is told may end it cleanly at once.
        from twisted.internet import reactor

        reactor.callWhenRunning(self._tell_ready)

    def listen_error(self, failure: Any) -> None:  # noqa: ANN401 - Twisted's Failure
        reason = getattr(failure.value, "socketError", failure.value)
        self._failure = ListenFailed(getattr(reason, "strerror", None) or str(reason))
        self.stop()


class Request(WebRequest):  # type: ignore[misc] # daphne has no types
    """A request whose body is not kept beyond what the application would take of it.

    Twisted puts a body on disk before the application sees the request, however long it is: so
    anybody could fill the disk. A body of one byte too many is refused like a longer one.
    """

    def handleContentChunk(self, data: bytes) -> None:
        room = settings.MAX_BODY_BYTES + 1 - self.content.tell()
        if room > 0:
            super().handleContentChunk(data[:room])


def _read_no_forms(factory: Any) -> None:  # noqa: ANN401 - Daphne has no types
    """Keep Twisted from parsing forms: the application does, and answers bad ones in its own words.

    Twisted would end the connection of a malformed one with a bare 400, on no record.
    """
    build = factory.buildProtocol

    def build_protocol(address: object) -> Any:  # noqa: ANN401
        protocol = build(address)
        protocol.requestFactory = partial(Request, parsePOSTFormSubmission=False)
        return protocol

    factory.buildProtocol = build_protocol


def log_access(protocol: str, action: str, details: dict[str, Any]) -> None:
    """Log one line for a request that is over, at debug: the audit log has the whole story."""
    if protocol == "http" and action == "complete":
        access.debug("%(client)s %(method)s %(path)s %(status)s %(time_taken).3fs", details)


def _with_backlog(endpoint: str) -> str:
    is_bare = endpoint.startswith("tcp:") and "backlog=" not in endpoint
    return f"{endpoint}:backlog={BACKLOG}" if is_bare else endpoint


def _end_with_the_terminal() -> None:
    """Stop as cleanly when the terminal closes as on SIGTERM, unless run under nohup."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
