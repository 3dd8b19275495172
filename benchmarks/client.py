"""One small HTTP client for everything that is measured over HTTP, so that its cost is the same."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from benchmarks.bare import ANSWER_TIMEOUT_S, Answer

Json = dict[str, Any]


class RequestFailed(RuntimeError):
    """The server answered with something else than a completion."""


async def complete(
    port: int, key: str, text: str, *, stream: bool, model: str = "codex-local"
) -> Answer:
    """Ask a chat completions endpoint; raises `RequestFailed`. Times are seconds from the call."""
    asked = time.monotonic()
    message = {"role": "user", "content": text}
    question = {"model": model, "messages": [message], "stream": stream}
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        reader, writer = await _send(port, "POST", "/v1/chat/completions", question, key)
        try:
            status = (await reader.readline()).split(b" ", 2)[1]
            if status != b"200":
                _, _, body = (await reader.read()).decode(errors="replace").partition("\r\n\r\n")
                raise RequestFailed(f"{status.decode()} {body[-500:]}")
            return await (_read_stream(reader, asked) if stream else _read_whole(reader))
        finally:
            writer.close()


async def fetch_json(
    port: int, method: str, path: str, body: Json | None = None, key: str = ""
) -> Json:
    """Return what the benchmark's own provider, or a server, answers."""
    reader, writer = await _send(port, method, path, body or {}, key)
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        answer: Json = json.loads(await reader.readexactly(size))
        return answer
    finally:
        writer.close()


async def _send(
    port: int, method: str, path: str, body: Json, key: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    content = json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n"
        "connection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + content)
    return reader, writer


async def _read_stream(reader: asyncio.StreamReader, asked: float) -> Answer:
    # The sizes of chunks stand on lines of their own and are none of ours.
    answer = Answer()
    while line := await reader.readline():
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            raise RequestFailed(str(event["error"]))
        text = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
        if text:
            answer.arrivals_s.append(time.monotonic() - asked)
        answer.text += text
    return answer


async def _read_whole(reader: asyncio.StreamReader) -> Answer:
    content = await reader.read()
    body = json.loads(content[content.index(b"{") : content.rindex(b"}") + 1])
    return Answer(text=body["choices"][0]["message"]["content"])
