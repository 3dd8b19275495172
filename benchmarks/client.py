"""One small HTTP client for everything that is measured over HTTP, so that its cost is the same.

Connections are kept and used again where the server allows it, as the clients of users do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson

from benchmarks.bare import ANSWER_TIMEOUT_S, Answer

Json = dict[str, Any]
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class RequestFailed(RuntimeError):
    """The server answered with something else than a completion."""


@dataclass(frozen=True)
class Head:
    """The beginning of an answer."""

    status: int
    headers: dict[str, str]

    @property
    def size(self) -> int:
        return int(self.headers.get("content-length", "0"))

    @property
    def is_chunked(self) -> bool:
        return self.headers.get("transfer-encoding", "").lower() == "chunked"


class Client:
    """Asks one server; each request has a connection of its own while it runs."""

    def __init__(self, port: int, key: str = "") -> None:
        self._port, self._key = port, key
        self._idle: list[Connection] = []

    async def complete(self, question: Json) -> Answer:
        """Ask the chat completions endpoint; raises `RequestFailed`."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            connection = await self._connect()
            try:
                head = await self._ask(connection, "POST", "/v1/chat/completions", question)
                if head.status != 200:
                    said = b"".join([part async for part in _body(connection[0], head)])
                    raise RequestFailed(f"{head.status} {said[-500:].decode(errors='replace')}")
                if question["stream"]:
                    answer = await _read_stream(_body(connection[0], head))
                else:
                    answer = await _read_whole(_body(connection[0], head))
            except BaseException:
                connection[1].close()
                raise
        if head.headers.get("connection", "").lower() == "close":
            connection[1].close()
        else:
            self._idle.append(connection)
        return answer

    async def fetch(self, method: str, path: str, body: Json | None = None) -> Json:
        """Return what an address answers, as JSON."""
        connection = await self._connect()
        try:
            head = await self._ask(connection, method, path, body or {})
            content = b"".join([part async for part in _body(connection[0], head)])
        finally:
            connection[1].close()
        answer: Json = orjson.loads(content)
        return answer

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()

    async def _connect(self) -> Connection:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def _ask(self, connection: Connection, method: str, path: str, body: Json) -> Head:
        reader, writer = connection
        content = orjson.dumps(body)
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{self._port}\r\n"
            f"authorization: Bearer {self._key}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\n\r\n"
        )
        writer.write(head.encode() + content)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = (line.partition(":") for line in lines[1:] if line)
        return Head(
            int(lines[0].split(" ", 2)[1]),
            {name.lower(): value.strip() for name, _, value in headers},
        )


async def _body(reader: asyncio.StreamReader, head: Head) -> AsyncIterator[bytes]:
    if not head.is_chunked:
        yield await reader.readexactly(head.size)
        return
    while size := int(await reader.readline(), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readline()


async def _read_stream(body: AsyncIterator[bytes]) -> Answer:
    answer, rest = Answer(), b""
    async for part in body:
        now = time.monotonic()
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if not line.startswith(b"data: {"):
                continue
            event = orjson.loads(line[6:])
            if "error" in event:
                raise RequestFailed(str(event["error"]))
            if text := "".join(choice["delta"].get("content") or "" for choice in event["choices"]):
                answer.pieces.append((now, text))
    answer.text = "".join(text for _, text in answer.pieces)
    return answer


async def _read_whole(body: AsyncIterator[bytes]) -> Answer:
    content = orjson.loads(b"".join([part async for part in body]))
    return Answer(text=content["choices"][0]["message"]["content"])
