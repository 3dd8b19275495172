"""The composition root: everything that lives as long as the server is made and joined here.

Lifecycle          start, drain, stop; each request in a task of its own
  Gateway          request id, audit record, body limit
    /v1 /health /ready /metrics    Django with the API's one middleware
    everything else                Django with its usual ones: admin, docs, front page
  websockets         the board of what runs, for those who are logged in
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "codexsite.settings")

import django
from django.core.exceptions import ImproperlyConfigured

try:
    django.setup(set_prefix=False)
except ImproperlyConfigured as error:  # in one line under a server of another's, as in manage.py
    sys.exit(f"codexsite cannot start: {error}")

import asyncio
import contextvars
import logging
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from asgiref.sync import ThreadSensitiveContext
from channels.auth import AuthMiddlewareStack
from channels.layers import get_channel_layer
from channels.routing import ProtocolTypeRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler

from audit.writer import AuditLog
from codexsite.lifecycle import Lifecycle
from proxy import runtime
from proxy.consumers import BoardConsumer
from proxy.cors import Cors
from proxy.dbthreads import read
from proxy.errors import ServerUnavailable
from proxy.gateway import Gateway, Receive, Scope, Send, is_recorded
from proxy.kills import KillWatch, end_tasks
from proxy.models import ApiKey, ApprovalRule
from proxy.relay import Relay
from proxy.runtime import Runtime

log = logging.getLogger(__name__)

SERVER_PATHS = ("/health", "/ready", "/metrics")
BOARD_PATH = "/admin/running/live"


class ApiHandler(ASGIHandler):
    """Django's own handler with the API's short list: each usual middleware costs thread hops.

    What is left for a thread (Django's own signals around a request) goes to one that stays, where
    Django would start one for each request. No view of the API works there: the ORM has threads of
    its own (`proxy.dbthreads`).
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="api-signals")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        async with ThreadSensitiveContext(executor=self._thread):
            await self.handle(scope, receive, send)

    def load_middleware(self, is_async: bool = False) -> None:
        usual, settings.MIDDLEWARE = settings.MIDDLEWARE, settings.API_MIDDLEWARE
        try:
            super().load_middleware(is_async=is_async)
        finally:
            settings.MIDDLEWARE = usual


def by_path(api: ASGIHandler, pages: ASGIHandler) -> Any:  # noqa: ANN401 - an ASGI application
    """Return the application that gives the API's paths to one handler and the rest to the other."""

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        is_api = is_recorded(scope["path"]) or scope["path"] in SERVER_PATHS
        handler = api if is_api else pages
        await handler(scope, receive, send)  # type: ignore[arg-type]

    return dispatch


def note_last_used(rows: Sequence[dict[str, Any]]) -> None:
    """Write behind when each key was last used; runs in the audit log's thread."""
    last: dict[int, datetime] = {}
    for row in rows:
        if row.get("key_id") is not None:
            last[row["key_id"]] = max(row["created_at"], last.get(row["key_id"], row["created_at"]))
    for key_id, when in last.items():
        ApiKey.objects.filter(pk=key_id).update(last_used_at=when)


def websockets(gateway: Gateway) -> Any:  # noqa: ANN401 - an ASGI application
    """Return the application for websockets: there is one, and any other path is refused."""
    board = AllowedHostsOriginValidator(AuthMiddlewareStack(BoardConsumer.as_asgi()))

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        chosen = board if scope["path"] == BOARD_PATH else gateway.refuse_websocket
        await chosen(scope, receive, send)

    return dispatch


class Service:
    """The audit log, the engines, and who looks after them; ended in the other order."""

    def __init__(self, engines: Runtime, *, spool: Path) -> None:
        self.audit_log = AuditLog(
            spool,
            settings.INSTANCE_ID,
            after_commit=note_last_used,
            max_bytes=settings.SPOOL_BYTES,
        )
        self.runtime = engines
        self._relay: Relay | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        runtime.install(self.runtime)  # first: `/ready` tells what does not start
        await asyncio.to_thread(self.audit_log.start)
        self._look_after()
        await _note_approval_rule()
        await self.runtime.start()

    def _look_after(self) -> None:
        if self._tasks:  # since an earlier start, which failed further on
            return
        board = self.runtime.board
        board.attach(self.audit_log.boot)
        self._run(KillWatch(board).run())
        if settings.REDIS_URL:
            self._relay = Relay(board, get_channel_layer())
            self._run(self._relay.run())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.append(task)

    def refuse_new(self) -> None:
        self.runtime.refuse_new()

    async def interrupt(self) -> None:
        await self.runtime.aclose()

    async def stop(self) -> None:
        await self.runtime.aclose()
        await end_tasks(self._tasks)
        if self._relay is not None:
            await self._relay.close()
        runtime.install(None)
        await asyncio.to_thread(self.audit_log.close)


async def _note_approval_rule() -> None:
    """Put on record since when grants need a second person. A database that is away may miss it."""
    try:
        await read(ApprovalRule.objects.note, is_needed=settings.GRANTS_NEED_APPROVAL)
    except ServerUnavailable:
        log.warning("whether grants need approval could not be put on record")


def build(service: Service) -> Lifecycle:
    """Return the whole application around a service."""
    gateway = Gateway(
        by_path(ApiHandler(), ASGIHandler()),
        audit_log=lambda: service.audit_log,
        max_body_bytes=settings.MAX_BODY_BYTES,
        trusted_proxies=settings.TRUSTED_PROXIES,
        cors=Cors(settings.CORS_ORIGINS),
    )
    router = ProtocolTypeRouter({"http": gateway, "websocket": websockets(gateway)})
    return Lifecycle(router, service, grace_s=settings.SHUTDOWN_GRACE_S)


application = build(Service(Runtime(), spool=settings.DATA_DIR.spool))
application.attach_to_twisted()
