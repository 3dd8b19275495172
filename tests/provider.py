"""A scripted stand-in for the model provider: what the real codex asks, and what it is told.

It speaks the Responses API over SSE on a free loopback port, from a thread of its own. A test
queues what each request gets, and reads back what codex sent:

    with ScriptedProvider() as provider:
        provider.reply(FunctionCall("exec_command", {"cmd": "ls"}), Text(("done",)))
        ...                                  # run codex with `provider.overrides`
        provider.wait_for_request(2).body    # what the second request said
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from proxy.demo import overrides

Json = dict[str, Any]

USAGE: Json = {
    "input_tokens": 111,
    "input_tokens_details": {"cached_tokens": 30},
    "output_tokens": 77,
    "output_tokens_details": {"reasoning_tokens": 20},
    "total_tokens": 188,
}
WAIT_S = 10.0
GATE_POLL_S = 0.01


@dataclass(frozen=True)
class Request:
    """One request as codex sent it; `size` is that of the body in bytes."""

    body: Json
    headers: Mapping[str, str]
    size: int

    def texts(self, role: str) -> list[str]:
        """Return the texts of all messages of `role` in its input, in order."""
        return [
            "".join(part.get("text", "") for part in item["content"])
            for item in self.body["input"]
            if item.get("type") == "message" and item["role"] == role
        ]

    def tool_outputs(self) -> list[Any]:
        """Return what the tools answered, in order."""
        return [i["output"] for i in self.body["input"] if i["type"].endswith("_call_output")]

    def tools(self) -> list[Json]:
        """Return every tool that was offered, wherever the model's wire form puts it."""
        offered = list(self.body.get("tools") or [])
        for item in self.body["input"]:
            if item.get("type") == "additional_tools":
                offered += item["tools"]
        plain = [tool for tool in offered if tool["type"] != "namespace"]
        return plain + [tool for one in offered for tool in one.get("tools", ())]

    def said(self) -> list[tuple[str, str]]:
        """Return the history as the model reads it: who, and the text, call id or kind of item."""
        found = []
        for item in self.body["input"]:
            if item["type"] == "message":
                parts = (p.get("text") or f"<{p['type']}>" for p in item["content"])
                found.append((item["role"], "|".join(parts)))
            elif item["type"] != "additional_tools":
                found.append((item["type"], item.get("call_id", "")))
        return found

    def images(self) -> list[str]:
        """Return the data URLs of all images, in order."""
        return [
            part["image_url"]
            for item in self.body["input"]
            if item["type"] == "message"
            for part in item["content"]
            if part["type"] == "input_image"
        ]


# What a response may hold, one after the other.


@dataclass(frozen=True)
class Text:
    """A message in deltas. Between two deltas it pauses, or waits until `gate` is set."""

    deltas: Sequence[str] = ("Hello", " world")
    pause_s: float = 0.0
    gate: threading.Event | None = None
    phase: str | None = None

    async def play(self, out: Response) -> None:
        item = {"type": "message", "id": out.new_id("msg"), "role": "assistant", "content": []}
        if self.phase:
            item["phase"] = self.phase
        await out.begin(item)
        for position, delta in enumerate(self.deltas):
            if position:
                await out.rest(self.pause_s, self.gate)
            await out.send("response.output_text.delta", item_id=item["id"], delta=delta)
        text = "".join(self.deltas)
        await out.end({**item, "content": [{"type": "output_text", "text": text}]})


@dataclass(frozen=True)
class Reasoning:
    """A reasoning item with one summary part, in deltas."""

    deltas: Sequence[str] = ("Let me ", "think")

    async def play(self, out: Response) -> None:
        item = {"type": "reasoning", "id": out.new_id("rs"), "summary": []}
        place = {"item_id": item["id"], "summary_index": 0}
        await out.begin(item)
        await out.send("response.reasoning_summary_part.added", **place)
        for delta in self.deltas:
            await out.send("response.reasoning_summary_text.delta", **place, delta=delta)
        summary = [{"type": "summary_text", "text": "".join(self.deltas)}]
        await out.end({**item, "summary": summary})


@dataclass(frozen=True)
class FunctionCall:
    """A call of a function tool; `arguments` as text are sent as they are, broken or not."""

    name: str
    arguments: Json | str
    call_id: str = ""

    async def play(self, out: Response) -> None:
        given = self.arguments
        item = {
            "type": "function_call",
            "id": out.new_id("fc"),
            "call_id": self.call_id or out.new_id("call"),
            "name": self.name,
            "arguments": given if isinstance(given, str) else json.dumps(given),
        }
        await out.begin(item)
        await out.end(item)


@dataclass(frozen=True)
class CustomToolCall:
    """A call of a tool that takes plain text, such as `apply_patch` or code mode's `exec`."""

    name: str
    input: str

    async def play(self, out: Response) -> None:
        item = {
            "type": "custom_tool_call",
            "id": out.new_id("ctc"),
            "call_id": out.new_id("call"),
            "name": self.name,
            "input": self.input,
        }
        await out.begin(item)
        await out.end(item)


@dataclass(frozen=True)
class Refusal:
    """A message that is nothing but a refusal."""

    text: str = "I will not do that."

    async def play(self, out: Response) -> None:
        item = {"type": "message", "id": out.new_id("msg"), "role": "assistant", "content": []}
        await out.begin(item)
        await out.send("response.refusal.delta", item_id=item["id"], delta=self.text)
        await out.end({**item, "content": [{"type": "refusal", "refusal": self.text}]})


Part = Text | Reasoning | FunctionCall | CustomToolCall | Refusal


# Whole behaviours.


class Behaviour(Protocol):
    """How one request is treated from its arrival to the end of its connection."""

    async def run(self, out: Response) -> None: ...


@dataclass(frozen=True)
class Answer:
    """A response that goes well: its parts, then `response.completed` with the usage."""

    parts: Sequence[Part] = (Text(),)
    usage: Json | None = field(default_factory=lambda: USAGE)
    headers: Mapping[str, str] = field(default_factory=dict)

    async def run(self, out: Response) -> None:
        await out.start(self.headers)
        for part in self.parts:
            await part.play(out)
        await out.finish("completed", usage=self.usage)


@dataclass(frozen=True)
class Fail:
    """An HTTP error instead of a stream. A body as text is sent as it is."""

    status: int
    body: Json | str = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    async def run(self, out: Response) -> None:
        content = self.body if isinstance(self.body, str) else json.dumps(self.body)
        await out.head(self.status, {"content-type": "application/json", **self.headers})
        await out.write(content.encode())


@dataclass(frozen=True)
class SseFailed:
    """`response.failed` after some text."""

    code: str
    message: str = "it failed"
    deltas: Sequence[str] = ()

    async def run(self, out: Response) -> None:
        await out.start()
        if self.deltas:
            await Text(self.deltas).play(out)
        await out.finish("failed", error={"code": self.code, "message": self.message})


@dataclass(frozen=True)
class Incomplete:
    """Text, then `response.incomplete` for a reason such as `max_output_tokens`."""

    reason: str
    deltas: Sequence[str] = ("Hello",)

    async def run(self, out: Response) -> None:
        await out.start()
        await Text(self.deltas).play(out)
        details = {"reason": self.reason}
        await out.finish("incomplete", incomplete_details=details, usage=USAGE)


@dataclass(frozen=True)
class Disconnect:
    """The provider hangs up in the middle of a message, after so many deltas."""

    after: int = 1

    async def run(self, out: Response) -> None:
        await _begin_message(out, self.after)


@dataclass(frozen=True)
class BreakOff:
    """Whole parts, then no end: the stream just stops, or (`is_abrupt`) the connection is reset."""

    parts: Sequence[Part] = (Text(),)
    is_abrupt: bool = False

    async def run(self, out: Response) -> None:
        await out.start()
        for part in self.parts:
            await part.play(out)
        if self.is_abrupt:
            out.reset()


@dataclass(frozen=True)
class Stall:
    """So many deltas, then silence until `release` is set, then the rest of a good answer."""

    after: int = 1
    release: threading.Event = field(default_factory=threading.Event)

    async def run(self, out: Response) -> None:
        item = await _begin_message(out, self.after)
        await out.rest(0, self.release)
        text = "word " * self.after
        await out.end({**item, "content": [{"type": "output_text", "text": text}]})
        await out.finish("completed", usage=USAGE)


@dataclass(frozen=True)
class Garbage:
    """The head of an event stream, then lines that are no events, and the end of the connection."""

    lines: Sequence[bytes] = (b"\x00\xff{]", b"data: {not json", b"event: nonsense", b"")

    async def run(self, out: Response) -> None:
        await out.start()
        for line in self.lines:
            await out.write(line + b"\n")


@dataclass(frozen=True)
class Hang:
    """Not even a status line until `release` is set; then the default answer."""

    release: threading.Event = field(default_factory=threading.Event)

    async def run(self, out: Response) -> None:
        await out.rest(0, self.release)
        await Answer().run(out)


async def _begin_message(out: Response, deltas: int) -> Json:
    item = {"type": "message", "id": out.new_id("msg"), "role": "assistant", "content": []}
    await out.start()
    await out.begin(item)
    for _ in range(deltas):
        await out.send("response.output_text.delta", item_id=item["id"], delta="word ")
    return item


Reply = Behaviour | Part | Sequence[Part]
Script = Reply | Callable[[Json], Reply]


def _behaviour(script: Script, body: Json) -> Behaviour:
    reply = script(body) if callable(script) else script
    if isinstance(reply, Part):
        return Answer((reply,))
    if isinstance(reply, Sequence):
        return Answer(reply)
    return reply


class Response:
    """What a behaviour writes to: one HTTP response, closed at its end."""

    def __init__(self, number: int, writer: asyncio.StreamWriter) -> None:
        self._number = number
        self._ids = 0
        self._index = -1
        self._writer = writer

    def new_id(self, kind: str) -> str:
        """Return an id that no other item of any response has."""
        self._ids += 1
        return f"{kind}_{self._number}_{self._ids}"

    async def head(self, status: int, headers: Mapping[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} -", *(f"{k}: {v}" for k, v in headers.items())]
        await self.write("\r\n".join([*lines, "connection: close", "", ""]).encode())

    async def start(self, headers: Mapping[str, str] | None = None) -> None:
        """Send the head of an event stream and `response.created`."""
        await self.head(200, {"content-type": "text/event-stream", **(headers or {})})
        await self.send("response.created", response=self._response("in_progress"))

    async def begin(self, item: Json) -> None:
        self._index += 1
        await self.send("response.output_item.added", item=item)

    async def end(self, item: Json) -> None:
        await self.send("response.output_item.done", item=item)

    async def finish(self, status: str, **fields: object) -> None:
        """Send the stream's last event: `completed`, `failed` or `incomplete`."""
        await self.send(f"response.{status}", response={**self._response(status), **fields})

    def _response(self, status: str) -> Json:
        return {"id": f"resp_{self._number}", "status": status}

    async def send(self, event: str, **fields: object) -> None:
        data = {"type": event, "output_index": max(self._index, 0), "content_index": 0, **fields}
        await self.write(f"event: {event}\ndata: {json.dumps(data)}\n\n".encode())

    def reset(self) -> None:
        """Break the connection, as a crash or a network does."""
        self._writer.transport.abort()

    async def write(self, content: bytes) -> None:
        self._writer.write(content)
        await self._writer.drain()

    async def rest(self, pause_s: float, gate: threading.Event | None) -> None:
        """Wait for `pause_s` seconds, and for the gate of another thread where there is one."""
        if pause_s:
            await asyncio.sleep(pause_s)
        while gate is not None and not gate.is_set():  # noqa: ASYNC110 - it is set by a thread
            await asyncio.sleep(GATE_POLL_S)


class ScriptedProvider:
    """The provider, listening inside a `with` block. Everything public is thread-safe.

    `default` treats the requests for which nothing is queued: a reply, or a function that is given
    the request's body and returns one.
    """

    def __init__(self, default: Script = Answer()) -> None:
        self.default = default
        self.disconnected = threading.Event()
        self._disconnects = 0
        self._requests: list[Request] = []
        self._queue: deque[Script] = deque()
        self._news = threading.Condition()
        self._ready = threading.Event()
        self._port = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    # For the test.

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(WAIT_S):
            raise TimeoutError("the scripted provider did not start")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT_S)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def overrides(self) -> tuple[str, ...]:
        """The `key=value` overrides that make codex ask this provider."""
        return overrides(self.base_url)

    @property
    def requests(self) -> list[Request]:
        """A copy of everything asked so far."""
        with self._news:
            return list(self._requests)

    @property
    def disconnects(self) -> int:
        """How many clients have left before their response was over."""
        with self._news:
            return self._disconnects

    def reply(self, *scripts: Script) -> None:
        """Queue replies, one per request, first come first served."""
        with self._news:
            self._queue.extend(scripts)

    def clear(self) -> None:
        """Forget what is queued and not yet asked for."""
        with self._news:
            self._queue.clear()

    def wait_for_request(self, number: int = 1, timeout_s: float = WAIT_S) -> Request:
        """Return the request of that number, counted from 1, once it has come."""
        with self._news:
            if not self._news.wait_for(lambda: len(self._requests) >= number, timeout_s):
                raise TimeoutError(f"{len(self._requests)} requests came, not {number}")
            return self._requests[number - 1]

    def wait_for_disconnect(self, number: int = 1, timeout_s: float = WAIT_S) -> None:
        """Return once so many clients have left before their response was over."""
        with self._news:
            if not self._news.wait_for(lambda: self._disconnects >= number, timeout_s):
                raise TimeoutError(f"{self._disconnects} clients left, not {number}")

    # In the provider's own thread.

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=256)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._treat(reader, writer)
        except (OSError, EOFError):
            pass  # It left before it had asked.
        finally:
            self._connections.discard(task)
            writer.close()

    async def _treat(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.splitlines()
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines if line)
        }
        content = await reader.readexactly(int(headers.get("content-length", "0")))
        if not first.startswith("POST /v1/responses"):
            body: Json = {"object": "list", "data": [], "models": []}
            await Fail(200 if "/models" in first else 404, body).run(Response(0, writer))
            return
        number, behaviour = self._record(Request(json.loads(content), headers, len(content)))
        if not await _run_while_connected(behaviour, Response(number, writer), reader):
            with self._news:
                self._disconnects += 1
                self._news.notify_all()
            self.disconnected.set()

    def _record(self, request: Request) -> tuple[int, Behaviour]:
        with self._news:
            self._requests.append(request)
            self._news.notify_all()
            script = self._queue.popleft() if self._queue else self.default
            number = len(self._requests)
        return number, _behaviour(script, request.body)


async def _run_while_connected(
    behaviour: Behaviour, out: Response, reader: asyncio.StreamReader
) -> bool:
    """Run the behaviour to its end, or until the client leaves; return whether it stayed."""
    running = asyncio.ensure_future(behaviour.run(out))
    leaving = asyncio.ensure_future(reader.read(1))
    try:
        await asyncio.wait({running, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            return False
        running.result()
        return True
    except OSError:
        return False
    finally:
        running.cancel()
        leaving.cancel()
        await asyncio.gather(running, leaving, return_exceptions=True)
