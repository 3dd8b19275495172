"""A model provider that does what the question says; many at once, in the test's own loop.

numbers 5            five deltas, `0 ` to `4 `          slow 50      fifty, 20 ms apart
fail                 status 500                         drop         the connection breaks off
silent N             nothing, until the asker goes      write NAME   an agent writes a file first
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from proxy.demo import overrides

Json = dict[str, Any]
PAUSE_S = 0.02


def numbers(count: int) -> str:
    return "".join(f"{number} " for number in range(count))


def _event(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def _done(item: Json) -> bytes:
    usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
    return _event("response.output_item.done", output_index=0, item=item) + _event(
        "response.completed", response={"id": "resp_1", "usage": usage}
    )


_MESSAGE: Json = {"type": "message", "id": "msg_1", "role": "assistant", "content": []}
_BEGIN = _event("response.created", response={"id": "resp_1"})


def _question(body: Json) -> list[str]:
    texts = [
        part.get("text", "")
        for item in body["input"]
        if item.get("type") == "message" and item.get("role") == "user"
        for part in item["content"]
    ]
    return str(texts[-1]).split()


def _has_acted(body: Json) -> bool:
    return any(str(item.get("type")).endswith("_call_output") for item in body["input"])


class SoakProvider:
    """Serves connections that are closed after one answer each."""

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        """How many are open now."""
        self._reached: dict[int, asyncio.Event] = {}

    async def reached(self, number: int) -> None:
        """Return once `silent number` has been asked."""
        await self._silent(number).wait()
        del self._reached[number]

    def _silent(self, number: int) -> asyncio.Event:
        return self._reached.setdefault(number, asyncio.Event())

    @property
    def overrides(self) -> tuple[str, ...]:
        return overrides(f"http://127.0.0.1:{self.port}/v1")

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[SoakProvider]:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=256)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, EOFError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            _, found, rest = head.lower().partition("\r\ncontent-length:")
            body = await reader.readexactly(int(rest.partition("\r\n")[0]) if found else 0)
            if "/v1/responses" in head.split("\r\n", 1)[0]:
                await self._answer(json.loads(body), reader, writer)
            else:
                _write(writer, 200, b'{"object":"list","data":[],"models":[]}', "application/json")
            await writer.drain()
        self.connections -= 1
        writer.close()

    async def _answer(
        self, body: Json, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        verb, *arguments = _question(body)
        if verb == "fail":
            _write(writer, 500, b'{"error":{"message":"as told"}}', "application/json")
            return
        if verb == "silent":
            self._silent(int(arguments[0])).set()
            await reader.read()
            return
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
        )
        writer.write(_BEGIN)
        if verb == "write" and not _has_acted(body):
            arguments_text = json.dumps({"cmd": f"printf {arguments[0]} > {arguments[0]}"})
            call = {"type": "function_call", "id": "fc_1", "call_id": f"call-{arguments[0]}"}
            writer.write(_done({**call, "name": "exec_command", "arguments": arguments_text}))
            return
        count = int(arguments[0]) if verb in ("numbers", "slow") else 3
        await _deltas(writer, count, PAUSE_S if verb == "slow" else 0.0)
        if verb != "drop":
            content = [{"type": "output_text", "text": numbers(count)}]
            writer.write(_done({**_MESSAGE, "content": content}))


async def _deltas(writer: asyncio.StreamWriter, count: int, pause_s: float) -> None:
    writer.write(_event("response.output_item.added", output_index=0, item=_MESSAGE))
    for number in range(count):
        await asyncio.sleep(pause_s)
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        writer.write(_event("response.output_text.delta", **place, delta=f"{number} "))
        await writer.drain()


def _write(writer: asyncio.StreamWriter, status: int, content: bytes, kind: str) -> None:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(content)}\r\n"
    writer.write(head.encode() + b"connection: close\r\n\r\n" + content)
