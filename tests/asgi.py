"""A client that drives an ASGI application in this process, byte by byte.

Unlike httpx's transport it does not collect the body first, and it can leave at any moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson

WAIT_S = 10.0


class Exchange:
    """One request and what has come back so far."""

    def __init__(self, app: Any, scope: dict[str, Any], body: bytes) -> None:
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._inbox.put_nowait({"type": "http.request", "body": body, "more_body": False})
        self.status = 0
        self.headers: dict[str, str] = {}
        self.chunks: list[bytes] = []
        self.is_over = False
        self.task = asyncio.create_task(app(scope, self._inbox.get, self._outbox.put))

    async def _next(self) -> dict[str, Any]:
        getting = asyncio.create_task(self._outbox.get())
        await asyncio.wait(
            {getting, self.task}, timeout=WAIT_S, return_when=asyncio.FIRST_COMPLETED
        )
        if getting.done():
            return getting.result()
        getting.cancel()
        if self.task.done():
            self.task.result()
            if not self._outbox.empty():
                return self._outbox.get_nowait()
            raise EOFError("the application ended without an answer")
        raise TimeoutError("the application said nothing")

    async def start(self) -> Exchange:
        """Wait for status and headers."""
        message = await self._next()
        assert message["type"] == "http.response.start"
        self.status = message["status"]
        self.headers = {k.decode().lower(): v.decode() for k, v in message["headers"]}
        return self

    async def chunk(self) -> bytes:
        """Wait for the next piece of the body; b"" at its end."""
        while not self.is_over:
            message = await self._next()
            self.is_over = not message.get("more_body", False)
            if message.get("body"):
                self.chunks.append(message["body"])
                return bytes(message["body"])
        return b""

    async def finish(self) -> Exchange:
        """Read to the end and wait for the application's clean-up."""
        while await self.chunk():
            pass
        await asyncio.wait_for(asyncio.shield(self.task), WAIT_S)
        return self

    def leave(self) -> None:
        """Pull the plug, as a client that goes away does."""
        self._inbox.put_nowait({"type": "http.disconnect"})

    async def left(self) -> None:
        """Pull the plug and wait for the application's clean-up."""
        self.leave()
        await asyncio.wait_for(asyncio.shield(self.task), WAIT_S)

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json()["error"]
        return error

    def events(self) -> list[Any]:
        """The data of each server-sent event, `[DONE]` as text; comments left out."""
        found: list[Any] = []
        for line in self.body.decode().split("\n\n"):
            if line.startswith("data: "):
                data = line.removeprefix("data: ")
                found.append(data if data == "[DONE]" else orjson.loads(data))
        return found


class AsgiClient:
    """Sends requests with a bearer key to an application."""

    def __init__(self, app: Any, key: str | None = None) -> None:
        self.app, self.key = app, key

    def open(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        client: str = "127.0.0.1",
        key: str | None = None,
    ) -> Exchange:
        """Send a request and return at once."""
        if json is not None:
            body = orjson.dumps(json)
        sent = {"host": "localhost", "content-type": "application/json"}
        sent |= {"content-length": str(len(body))}
        if key or self.key:
            sent["authorization"] = f"Bearer {key or self.key}"
        sent |= headers or {}
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(k.lower().encode(), v.encode()) for k, v in sent.items() if v != ""],
            "client": (client, 50000),
            "server": ("127.0.0.1", 8765),
        }
        return Exchange(self.app, scope, body)

    async def request(self, method: str, path: str, **kwargs: Any) -> Exchange:
        """Send a request and wait for its whole answer."""
        exchange = await self.open(method, path, **kwargs).start()
        return await exchange.finish()

    async def get(self, path: str, **kwargs: Any) -> Exchange:
        return await self.request("GET", path, **kwargs)

    async def post(self, path: str, **kwargs: Any) -> Exchange:
        return await self.request("POST", path, **kwargs)

    async def ask(self, text: str = "hi", **fields: Any) -> Exchange:
        """Ask for a chat completion of one user message."""
        return await self.post("/v1/chat/completions", json=question(text, **fields))


def question(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "default", "messages": [{"role": "user", "content": text}], **fields}


@asynccontextmanager
async def running(application: Any) -> AsyncIterator[Any]:
    """Run an application of `codexsite.asgi.build`; shut it down behind the test."""
    try:
        yield application
    finally:
        await application.shutdown()
