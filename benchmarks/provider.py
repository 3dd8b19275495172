"""The model provider of the benchmarks: a process of its own, so that it takes no one's CPU time.

    python benchmarks/provider.py        # prints its port, serves until its input is closed

`POST /v1/responses` streams `0 1 2 ` and so on, as many as set, each after the set pause but the first,
so that a lost, doubled or reordered one shows.
`POST /pace {"deltas": 2, "pause_s": 0}` sets both; `GET /seen` tells how many requests came and how
large the body of the last one was.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

Json = dict[str, Any]


def event(kind: str, **fields: object) -> bytes:
    data = {"type": kind, "output_index": 0, "content_index": 0, **fields}
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


MESSAGE: Json = {"type": "message", "id": "msg_1", "role": "assistant", "content": []}
BEGIN = event("response.created", response={"id": "resp_1"}) + event(
    "response.output_item.added", item=MESSAGE
)


def text_of(deltas: int) -> str:
    """Return the whole answer."""
    return "".join(f"{number} " for number in range(deltas))


def delta(number: int) -> bytes:
    return event("response.output_text.delta", item_id="msg_1", delta=f"{number} ")


def end(deltas: int) -> bytes:
    item = {**MESSAGE, "content": [{"type": "output_text", "text": text_of(deltas)}]}
    usage = {"input_tokens": 10, "output_tokens": deltas, "total_tokens": 10 + deltas}
    return event("response.output_item.done", item=item) + event(
        "response.completed", response={"id": "resp_1", "usage": usage}
    )


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


def plain(payload: Json) -> bytes:
    content = json.dumps(payload).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(content) + content


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


class Provider:
    def __init__(self) -> None:
        self.deltas, self.pause_s = 2, 0.0
        self.requests, self.last_bytes = 0, 0

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one kept-alive connection until the client closes it."""
        try:
            while True:
                await self._request(reader, writer)
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        target = head.split(" ", 2)[1]
        _, found, rest = head.partition("\r\ncontent-length:")
        body = await reader.readexactly(int(rest.partition("\r\n")[0]) if found else 0)
        if target.startswith("/v1/responses"):
            self.requests, self.last_bytes = self.requests + 1, len(body)
            await self._stream(writer)
        elif target == "/pace":
            pace = json.loads(body)
            self.deltas, self.pause_s = pace["deltas"], pace["pause_s"]
            writer.write(plain({}))
        elif target == "/seen":
            writer.write(plain({"requests": self.requests, "last_bytes": self.last_bytes}))
        else:
            writer.write(plain({"object": "list", "data": [], "models": []}))
        await writer.drain()

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        deltas, pause_s = self.deltas, self.pause_s
        if not pause_s:
            everything = BEGIN + b"".join(map(delta, range(deltas))) + end(deltas)
            writer.write(STREAM_HEAD + chunk(everything) + b"0\r\n\r\n")
            return
        writer.write(STREAM_HEAD + chunk(BEGIN + delta(0)))
        for number in range(1, deltas):
            await asyncio.sleep(pause_s)
            writer.write(chunk(delta(number)))
            await writer.drain()
        writer.write(chunk(end(deltas)) + b"0\r\n\r\n")


async def main() -> None:
    server = await asyncio.start_server(Provider().connection, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    # Whoever started it holds the other end of its input: it cannot outlive the benchmark.
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
