"""The kinds of turns of the soak: what each asks, what it must get, what its row must say."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tests.soak.provider import SoakProvider, numbers

Json = dict[str, Any]
Until = Callable[[asyncio.StreamReader], Awaitable[object]]
ANSWER_S = 60.0


@dataclass(frozen=True)
class Server:
    """Where to ask, with which keys (one for each engine, one for agents), and who answers."""

    port: int
    keys: dict[str, str]
    provider: SoakProvider


@dataclass(frozen=True)
class Said:
    """An answer: its status, its text, why it ended, and the code of its error."""

    status: int
    text: str = ""
    finish: str = ""
    code: str = ""


@dataclass(frozen=True, eq=False)
class Kind:
    """One kind of turn; `share` of a thousand. `ask` raises AssertionError for a wrong answer.

    `row` holds what the row must say: its columns, by name.
    """

    name: str
    share: int
    row: Json
    ask: Callable[[Server, int], Awaitable[None]]


def mark_of(number: int) -> str:
    """Return the request id that the client gives a turn: by it its row is found."""
    return f"soak-{number}"


async def post(
    server: Server, key: str, number: int, body: Json, *, until: Until | None = None
) -> Said:
    """Ask and return the answer; with `until` leave, without an answer, once that has returned."""
    content = json.dumps({"model": "default", **body}).encode()
    async with asyncio.timeout(ANSWER_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
                b"content-type: application/json\r\nconnection: close\r\n"
                b"authorization: Bearer %b\r\nx-request-id: %b\r\ncontent-length: %d\r\n\r\n"
                % (server.keys[key].encode(), mark_of(number).encode(), len(content))
                + content
            )
            await writer.drain()
            if until is None:
                return _read(await reader.read(), is_stream=bool(body.get("stream")))
            await until(reader)
            return Said(0)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def _read(answer: bytes, *, is_stream: bool) -> Said:
    head, _, content = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if is_stream and status == 200:
        return _read_stream(content)
    body = json.loads(content[content.index(b"{") : content.rindex(b"}") + 1])
    if status != 200:
        return Said(status, code=body["error"]["code"])
    (choice,) = body["choices"]
    return Said(status, choice["message"]["content"] or "", choice["finish_reason"])


def _read_stream(content: bytes) -> Said:
    chunks = [json.loads(line[6:]) for line in content.split(b"\n") if line.startswith(b"data: {")]
    codes = [chunk["error"]["code"] for chunk in chunks if "error" in chunk]
    assert content.count(b"data: [DONE]") + len(codes) == 1, content[-500:]
    choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    finish = "".join(choice["finish_reason"] or "" for choice in choices)
    return Said(200, text, finish, "".join(codes))


def _asking(text: str, **more: object) -> Json:
    return {"messages": [{"role": "user", "content": text}], **more}


def _asks(
    text: str, expected: Said, *, key: str = "app-server", **more: object
) -> Callable[[Server, int], Awaitable[None]]:
    """Return what asks this and must get exactly that; `{}` in the text is the turn's number."""

    async def ask(server: Server, number: int) -> None:
        said = await post(server, key, number, _asking(text.format(number), **more))
        assert said == expected, said

    return ask


async def _leave_in_mid_stream(server: Server, number: int) -> None:
    async def until(reader: asyncio.StreamReader) -> None:
        await reader.readuntil(b'"content":"0 "')

    await post(server, "app-server", number, _asking("slow 100", stream=True), until=until)


async def _leave_the_silent(server: Server, number: int) -> None:
    """Leave once the provider has been asked: the turn runs, and nothing of it has come."""

    async def until(_: asyncio.StreamReader) -> None:
        await server.provider.reached(number)

    await post(server, "app-server", number, _asking(f"silent {number}"), until=until)


async def _leave_at_once(server: Server, number: int) -> None:
    """Send the whole request and leave: how far it gets is as it happens."""

    async def until(_: asyncio.StreamReader) -> None:
        return

    await post(server, "app-server", number, _asking("slow 100", stream=True), until=until)


_OK: Json = {"outcome": "ok", "http_status": 200, "error_code": "", "engine": "app-server",
             "agent_mode": 0, "input_tokens": 10, "output_tokens": 5}  # fmt: skip
_CUT: Json = {name: _OK[name] for name in ("outcome", "http_status", "error_code", "engine")}
_LEFT: Json = {"outcome": "cancelled"}
_FAILED: Json = {"outcome": "failed", "http_status": 502, "error_code": "upstream_error"}
_BROKEN: Json = {**_FAILED, "error_code": "upstream_disconnected"}
_ERROR = Said(502, code="upstream_error")
_FIVE = Said(200, numbers(5), "stop")

KINDS = (
    Kind("whole", 320, {**_OK, "stream": 0}, _asks("numbers 5", _FIVE)),
    Kind("streamed", 320, {**_OK, "stream": 1},
         _asks("numbers 20", Said(200, numbers(20), "stop"), stream=True)),
    Kind("stopped", 100, _CUT, _asks("slow 30", Said(200, numbers(3), "stop"), stop=["3 "])),
    Kind("cut", 50, _CUT,
         _asks("slow 30", Said(200, numbers(2), "length"), max_tokens=2, stream=True)),
    Kind("left in mid-stream", 50, _LEFT, _leave_in_mid_stream),
    Kind("left before a byte", 35, _LEFT, _leave_the_silent),
    Kind("left at once", 15, _LEFT, _leave_at_once),
    Kind("provider fails", 20, _FAILED, _asks("fail", _ERROR)),
    Kind("provider fails a stream", 20, _FAILED, _asks("fail", _ERROR, stream=True)),
    Kind("provider breaks off", 15, _BROKEN,
         _asks("drop", Said(502, code="upstream_disconnected"))),
    Kind("provider breaks off a stream", 15, {**_BROKEN, "http_status": 200},
         _asks("drop", Said(200, numbers(3), "", "upstream_disconnected"), stream=True)),
    Kind("exec", 20, {**_OK, "engine": "exec"}, _asks("numbers 5", _FIVE, key="exec")),
    Kind("agent", 20, {"outcome": "ok", "http_status": 200, "agent_mode": 1,
                       "sandbox": "codexsite_write"},
         _asks("write f{}", Said(200, numbers(3), "stop"), key="agent", metadata={"agent": "true"})),
)  # fmt: skip


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
