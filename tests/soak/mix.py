"""The kinds of turns of the soak: what each asks, what it must get, what its row must say."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tests.soak.provider import numbers

Json = dict[str, Any]
ANSWER_S = 60.0


@dataclass(frozen=True)
class Server:
    """Where to ask, and with which keys: one for each engine, and one that may use agent mode."""

    port: int
    keys: dict[str, str]


@dataclass(frozen=True)
class Said:
    """An answer: its status, its text, why it ended, and its request id ("" where it was cut)."""

    status: int
    text: str = ""
    finish: str = ""
    request_id: str = ""


@dataclass(frozen=True)
class Kind:
    """One kind of turn; `share` of a thousand. `ask` raises AssertionError for a wrong answer."""

    name: str
    share: int
    outcome: str
    ask: Callable[[Server, int], Awaitable[Said]]


async def post(server: Server, key: str, body: Json, *, hang_up_after: bytes | None = None) -> Said:
    """Ask; with `hang_up_after` leave as soon as these bytes have come (b"": before any)."""
    content = json.dumps({"model": "default", **body}).encode()
    async with asyncio.timeout(ANSWER_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
                b"content-type: application/json\r\nconnection: close\r\n"
                b"authorization: Bearer %b\r\ncontent-length: %d\r\n\r\n"
                % (server.keys[key].encode(), len(content))
                + content
            )
            if hang_up_after is None:
                return _read(await reader.read(), is_stream=bool(body.get("stream")))
            if hang_up_after:
                await reader.readuntil(hang_up_after)
            else:
                await asyncio.sleep(0.05)  # the request is on its way; nothing tells how far
            return Said(0)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def _read(answer: bytes, *, is_stream: bool) -> Said:
    head, _, content = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    request_id = head.lower().partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode()
    if is_stream and status == 200:
        chunks = [
            json.loads(line[6:]) for line in content.split(b"\n") if line.startswith(b"data: {")
        ]
        assert (b"data: [DONE]" in content) != any("error" in chunk for chunk in chunks)
        choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        finish = "".join(choice["finish_reason"] or "" for choice in choices)
        return Said(status, text, finish, request_id)
    body = json.loads(content[content.index(b"{") : content.rindex(b"}") + 1])
    if status != 200:
        return Said(status, request_id=request_id)
    (choice,) = body["choices"]
    return Said(status, choice["message"]["content"] or "", choice["finish_reason"], request_id)


def _asking(text: str, **more: object) -> Json:
    return {"messages": [{"role": "user", "content": text}], **more}


def _answered(
    text: str, expected: str, finish: str = "stop", *, key: str = "app-server", **more: object
) -> Callable[[Server, int], Awaitable[Said]]:
    async def ask(server: Server, number: int) -> Said:
        said = await post(server, key, _asking(text, **more))
        assert (said.status, said.text, said.finish) == (200, expected, finish), said
        return said

    return ask


def _failing(text: str, status: int) -> Callable[[Server, int], Awaitable[Said]]:
    async def ask(server: Server, number: int) -> Said:
        said = await post(server, "app-server", _asking(text))
        assert said.status == status, said
        return said

    return ask


def _leaving(text: str, after: bytes) -> Callable[[Server, int], Awaitable[Said]]:
    async def ask(server: Server, number: int) -> Said:
        return await post(server, "app-server", _asking(text, stream=True), hang_up_after=after)

    return ask


async def _agent(server: Server, number: int) -> Said:
    body = _asking(f"write f{number}", metadata={"agent": "true"})
    said = await post(server, "agent", body)
    assert (said.status, said.text) == (200, numbers(3)), said
    return said


KINDS = (
    Kind("whole", 320, "ok", _answered("numbers 5", numbers(5))),
    Kind("streamed", 320, "ok", _answered("numbers 20", numbers(20), stream=True)),
    Kind("stopped", 100, "ok", _answered("slow 30", numbers(3), stop=["3 "])),
    Kind("cut", 50, "ok", _answered("slow 30", numbers(2), "length", max_tokens=2, stream=True)),
    Kind("left in mid-stream", 60, "cancelled", _leaving("slow 100", b'"content":"0 "')),
    Kind("left before a byte", 40, "cancelled", _leaving("silent", b"")),
    Kind("provider fails", 40, "failed", _failing("fail", 502)),
    Kind("provider breaks off", 30, "failed", _failing("drop", 502)),
    Kind("exec", 20, "ok", _answered("numbers 5", numbers(5), key="exec")),
    Kind("agent", 20, "ok", _agent),
)


def order_of(turns: int) -> list[Kind]:
    """Return so many turns, each kind by its share, spread evenly and the same each time."""
    total = sum(kind.share for kind in KINDS)
    due = dict.fromkeys(KINDS, 0.0)
    order = []
    for _ in range(turns):
        for kind in KINDS:
            due[kind] += kind.share / total
        chosen = max(KINDS, key=due.__getitem__)
        due[chosen] -= 1
        order.append(chosen)
    return order
