"""The model provider of the benchmarks: a process of its own, so that it takes no one's CPU time.

    python benchmarks/provider.py        # prints its port, serves until its input is closed

`POST /v1/responses` streams as many pieces as set, with the set pause before each but the first. A
piece is `tag.number.time `: the tag is what the question asked for (`ask-TAG`, else `-`), the time
is the system's monotonic clock in milliseconds when it was sent. So whoever gets the pieces can tell
whether they are all there, in order, its own, and how long they took to arrive.
`POST /pace {"deltas": 2, "pause_s": 0}` sets both; `GET /seen` tells how many requests came and how
large the body of the last one was.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import Any

ASKED = re.compile(rb"ask-(\d+)")

Json = dict[str, Any]


def event(kind: str, **fields: object) -> bytes:
    data = {"type": kind, "output_index": 0, "content_index": 0, **fields}
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


MESSAGE: Json = {"type": "message", "id": "msg_1", "role": "assistant", "content": []}
BEGIN = event("response.created", response={"id": "resp_1"}) + event(
    "response.output_item.added", item=MESSAGE
)


def piece(tag: str, number: int) -> str:
    return f"{tag}.{number}.{time.monotonic() * 1000:.1f} "


def delta(text: str) -> bytes:
    return event("response.output_text.delta", item_id="msg_1", delta=text)


def end(pieces: list[str]) -> bytes:
    item = {**MESSAGE, "content": [{"type": "output_text", "text": "".join(pieces)}]}
    count = len(pieces)
    usage = {"input_tokens": 10, "output_tokens": count, "total_tokens": 10 + count}
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
            # The last one: what came before may be an example in somebody's instructions.
            asked = ASKED.findall(body)
            await self._stream(writer, asked[-1].decode() if asked else "-")
        elif target == "/pace":
            pace = json.loads(body)
            self.deltas, self.pause_s = pace["deltas"], pace["pause_s"]
            writer.write(plain({}))
        elif target == "/seen":
            writer.write(plain({"requests": self.requests, "last_bytes": self.last_bytes}))
        else:
            writer.write(plain({"object": "list", "data": [], "models": []}))
        await writer.drain()

    async def _stream(self, writer: asyncio.StreamWriter, tag: str) -> None:
        count, pause_s = self.deltas, self.pause_s
        pieces = [piece(tag, 0)]
        if not pause_s:
            pieces += [piece(tag, number) for number in range(1, count)]
            content = BEGIN + b"".join(map(delta, pieces)) + end(pieces)
            writer.write(STREAM_HEAD + chunk(content) + b"0\r\n\r\n")
            return
        started = asyncio.get_running_loop().time()
        writer.write(STREAM_HEAD + chunk(BEGIN + delta(pieces[0])))
        for number in range(1, count):
            # By the clock, so that a late one does not put off all that follow it.
            due = started + number * pause_s - asyncio.get_running_loop().time()
            await asyncio.sleep(max(due, 0))
            pieces.append(piece(tag, number))
            writer.write(chunk(delta(pieces[-1])))
            await writer.drain()
        writer.write(chunk(end(pieces)) + b"0\r\n\r\n")


async def main() -> None:
    server = await asyncio.start_server(Provider().connection, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    # Whoever started it holds the other end of its input: it cannot outlive the benchmark.
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
