"""Around every request: its id, and for `/v1/*` its audit record, the body limit, its one close.

An ASGI wrapper and not a middleware, because only here every end is seen: a client that left before
the first byte, a generator that was never started, a server that stops.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack
from ipaddress import ip_address
from typing import Any, Protocol

import orjson

from audit.recorder import Record
from proxy.addresses import client_address
from proxy.cors import Cors, Headers, Permission
from proxy.engines.running import Laps
from proxy.errors import (
    InternalError,
    ProxyError,
    RequestTooLarge,
    ServerUnavailable,
    TurnKilled,
    TurnStopped,
    UnknownUrl,
)

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SCOPE_KEY = "codexsite.request"
WEBSOCKET_REFUSED = 403
"""What a host answers to a handshake that is closed before it is accepted, by ASGI's rule."""


def is_recorded(path: str) -> bool:
    """Return whether requests to this path are those of the API, with a row each."""
    return path == "/v1" or path.startswith("/v1/")


class OpensRecords(Protocol):
    """What this module needs of the audit log."""

    @property
    def is_full(self) -> bool: ...

    def open(self, **fields: Any) -> Record: ...  # noqa: ANN401 - columns


class RequestContext:
    """What belongs to one API request from its first byte to its end.

    `stack` is closed when the request is over, in whatever way; what the request holds (its turn,
    its place under a cap) is pushed there. `error` is what went wrong, once something did.
    """

    def __init__(self, record: Record, stack: AsyncExitStack, *, is_local: bool) -> None:
        self.record = record
        self.stack = stack
        self.is_local = is_local
        self.laps = Laps()
        self.status: int | None = None
        self.error: ProxyError | None = None
        self.before_close: list[Callable[[], None]] = []

    def finish(self) -> None:
        """Close the record with what is known now. The first call counts."""
        while self.before_close:
            try:
                self.before_close.pop(0)()
            except Exception:  # a row with a gap, rather than one that never ends
                log.exception("request %s is noted with gaps", self.record.request_id)
        outcome, error = self._outcome()
        self.record.note(phases=self.laps.ms)
        if isinstance(error, TurnKilled):
            self.record.note(killed_by=error.killed_by, kill_reason=error.kill_reason)
        self.record.close(
            outcome,
            self.status,
            error_code=(error.code or "") if error else "",
            error_message=(getattr(error, "reason", "") or error.message) if error else "",
        )

    def _outcome(self) -> tuple[str, ProxyError | None]:
        if self.error is not None:
            return self.error.outcome, self.error
        if self.status is None:
            gone = TurnStopped("The client left before the answer.", code="client_disconnected")
            return gone.outcome, gone
        return ("ok", None) if self.status < 400 else ("failed", None)

    def abandon(self) -> None:
        """Close the record of a request that ended without its last byte."""
        if self.error is None:
            self.error = TurnStopped(
                "The client left before the end of the answer.", code="client_disconnected"
            )
        self.finish()


def context_of(scope: Scope) -> RequestContext:
    """Return the context that the gateway put there."""
    context: RequestContext = scope[SCOPE_KEY]
    return context


class Gateway:
    """Wraps the application. `audit_log` gives the log to open records in, once it is started."""

    def __init__(
        self,
        app: App,
        *,
        audit_log: Callable[[], OpensRecords],
        max_body_bytes: int,
        trusted_proxies: tuple[Any, ...],
        cors: Cors | None = None,
    ) -> None:
        self._app = app
        self._audit_log = audit_log
        self._max_body_bytes = max_body_bytes
        self._trusted = trusted_proxies
        self._cors = cors or Cors()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Daphne takes it from a header of the client's: a path that we and Django read differently
        # would get by the record, the limits and the origins.
        scope = {**scope, "root_path": ""}
        async with AsyncExitStack() as stack:
            context = self._open(scope, stack)
            is_api = is_recorded(scope["path"])
            scope[SCOPE_KEY] = context
            permission = Permission()
            if is_api:
                stack.callback(context.abandon)
                permission = self._cors.judge(scope["method"], dict(scope["headers"]))
            send = _sender(context, send, is_api=is_api, extra=permission.headers)
            try:
                if permission.is_preflight:
                    await _answer_nothing(send)
                else:
                    await self._serve(scope, receive, send)
            except Exception:
                log.exception("request %s failed", context.record.request_id)
                context.error = context.error or InternalError(
                    "The server failed; its log has the details."
                )
                if context.status is not None:
                    raise
                await refuse(context.error, send)

    async def refuse_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a WebSocket's handshake; one to the API is a request like any other."""
        await receive()
        if is_recorded(scope["path"]):
            async with AsyncExitStack() as stack:
                context = self._open({**scope, "method": "GET"}, stack)
                context.error = UnknownUrl("The API has no WebSockets.")
                context.status = WEBSOCKET_REFUSED
                context.finish()
        await send({"type": "websocket.close"})

    def _open(self, scope: Scope, stack: AsyncExitStack) -> RequestContext:
        headers = dict(scope["headers"])
        forwarded = headers.get(b"x-forwarded-for", b"").decode("latin-1")
        client = (scope.get("client") or [""])[0]
        record = self._audit_log().open(
            endpoint=scope["path"],
            method=scope["method"],
            client_address=client_address(client, forwarded, self._trusted),
            user_agent=headers.get(b"user-agent", b"").decode("latin-1"),
            client_request_id=headers.get(b"x-request-id", b"").decode("latin-1"),
        )
        # A forwarded request is somebody else's, however near its last hop is.
        is_local = _is_loopback(client) and not any(map(_is_of_a_proxy, headers))
        return RequestContext(record, stack, is_local=is_local)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = context_of(scope)
        if is_recorded(scope["path"]) and self._audit_log().is_full:
            context.error = ServerUnavailable("The server cannot write its audit log now.")
            await refuse(context.error, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        is_too_large = declared.isdigit() and int(declared) > self._max_body_bytes
        if not is_recorded(scope["path"]):
            await self._app(scope, receive, send)
            return
        if not is_too_large:
            body = await self._read(receive)
            if body is None:
                return
            is_too_large = len(body) > self._max_body_bytes
            receive = _replay(body, receive)
        if is_too_large:
            megabytes = self._max_body_bytes / 1_000_000
            context.error = RequestTooLarge(f"The request body is above {megabytes:g} MB.")
            await refuse(context.error, send)
            return
        await self._app(scope, receive, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """Return the body, cut off just above the limit; None when the client left."""
        body = bytearray()
        while len(body) <= self._max_body_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return pending.pop() if pending else await receive()

    return again


def _sender(context: RequestContext, send: Send, *, is_api: bool, extra: Headers) -> Send:
    """Return a `send` that adds the request's headers and closes its record before the last byte."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            context.status = message["status"]
            ours = [*extra, (b"x-request-id", str(context.record.request_id).encode())]
            if is_api:
                ours.append((b"openai-processing-ms", b"%d" % context.laps.since_start_ms()))
            message = {**message, "headers": [*message.get("headers", ()), *ours]}
        elif is_api and message["type"] == "http.response.body" and not message.get("more_body"):
            context.finish()
        await send(message)

    return sending


async def _answer_nothing(send: Send) -> None:
    """Answer a browser's preflight: all it wants to know is in the headers."""
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def refuse(error: ProxyError, send: Send) -> None:
    """Answer with an error, without Django."""
    body = orjson.dumps(error.envelope())
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _is_of_a_proxy(header: bytes) -> bool:
    return header.startswith(b"x-forwarded") or header in (b"forwarded", b"via", b"x-real-ip")


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False
