"""A client by hand, which can do what clients should not: leave, stall, hang up half, cut a body."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

Json = dict[str, Any]
WAIT_S = 40.0


@dataclass
class Seen:
    """What one caller saw: `text` is the answer's, `error` the code of the error that it got."""

    status: int | None = None
    text: str = ""
    finish: str = ""
    error: str = ""
    is_stream: bool = False
    is_done: bool = False
    took_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def view(self) -> str:
        if self.status is None:
            return "nothing"
        if self.status != 200:
            return f"{self.status} {self.error}"
        if not self.is_stream:
            return f"200, {self.finish}"
        if self.error:
            return f"200 stream, then {self.error}"
        end = f"{self.finish}, [DONE]" if self.is_done else "no end"
        return f"200 stream, {end}"


class Call:
    """One request on a connection of its own, in an `async with` block that hangs up at its end.

    `is_whole` tells whether the server has got all of it: only then it has a row.
    """

    def __init__(self, name: str, url: str, secret: str, body: Json, **headers: str) -> None:
        self.name, self.seen = name, Seen(is_stream=bool(body.get("stream")))
        self.is_whole = True
        self._address = urlsplit(url).netloc.rpartition(":")
        content = json.dumps(body).encode()
        head = {
            "host": "127.0.0.1",
            "authorization": f"Bearer {secret}",
            "content-type": "application/json",
            "content-length": str(len(content)),
            "x-request-id": name,
            **headers,
        }
        lines = ["POST /v1/chat/completions HTTP/1.1", *(f"{k}: {v}" for k, v in head.items())]
        self.request = "\r\n".join([*lines, "", ""]).encode() + content

    async def __aenter__(self) -> Self:
        self._started = time.monotonic()
        self._reader, self._writer = await asyncio.open_connection(
            self._address[0], int(self._address[2]), limit=64 << 20
        )
        content = self.request if self.is_whole else self.request[:-5]
        self._writer.write(content)
        await self._writer.drain()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def hang_up(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        """Break the connection without a goodbye."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def close_half(self) -> None:
        """Say that nothing more will be sent; go on reading."""
        self._writer.write_eof()

    def stop_reading(self) -> None:
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    async def read_head(self) -> None:
        async with asyncio.timeout(WAIT_S):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.splitlines()
        self.seen.status = int(first.split()[1])
        pairs = (line.partition(":") for line in lines if line)
        self.seen.headers = {name.lower(): value.strip() for name, _, value in pairs}

    async def read_first_text(self) -> None:
        """Return once the first words of a stream are there."""
        if self.seen.status is None:
            await self.read_head()
        async with asyncio.timeout(WAIT_S):
            while not self.seen.text:
                piece = await self._chunk()
                assert piece, "the stream ended before its first word"
                self._take(piece)

    async def finish(self) -> Seen:
        """Read all there is and return what was seen, and how long it took since the start."""
        if self.seen.status is None:
            await self.read_head()
        async with asyncio.timeout(WAIT_S):
            if self.seen.headers.get("transfer-encoding") == "chunked":
                content = b""
                with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                    while piece := await self._chunk():
                        content = b"" if self._takes_events else content + piece
                        self._take(piece)
            else:
                content = await self._reader.readexactly(int(self.seen.headers["content-length"]))
        if not self._takes_events:
            self._take_whole(json.loads(content))
        return self.over()

    def over(self) -> Seen:
        self.seen.took_s = time.monotonic() - self._started
        return self.seen

    async def _chunk(self) -> bytes:
        size = int((await self._reader.readuntil(b"\r\n")).strip(), 16)
        content = await self._reader.readexactly(size + 2)
        return content[:-2]

    @property
    def _takes_events(self) -> bool:
        return self.seen.headers.get("content-type", "").startswith("text/event-stream")

    def _take(self, piece: bytes) -> None:
        if not self._takes_events:
            return
        for event in piece.decode().split("\n\n"):
            data = event.removeprefix("data: ")
            if data == "[DONE]":
                self.seen.is_done = True
            elif data.startswith("{"):
                self._take_event(json.loads(data))

    def _take_event(self, event: Json) -> None:
        assert not self.seen.error, "something came after the error"
        if "error" in event:
            self.seen.error = event["error"]["code"]
        for choice in event.get("choices", ()):
            self.seen.text += choice["delta"].get("content") or ""
            self.seen.finish = choice["finish_reason"] or self.seen.finish

    def _take_whole(self, body: Json) -> None:
        if "error" in body:
            self.seen.error = body["error"]["code"]
        else:
            (choice,) = body["choices"]
            self.seen.text, self.seen.finish = choice["message"]["content"], choice["finish_reason"]
