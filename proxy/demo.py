"""A stand-in for the model provider, so that `--demo` shows the whole chain without an account.

It speaks as much of OpenAI's Responses API over SSE as Codex uses, on loopback only. Its answers
say that they come from the demo, echo the question and stream word by word; offered a tool that
runs commands, it runs one harmless command first and then quotes what that printed. Nothing of
what it reads is logged or kept.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from proxy.engines.conversation import EXEC_PREAMBLE

NOTICE = "This is the codexsite demo: no model was asked."
COMMAND = 'echo "hello from the codexsite demo" && pwd && ls'
CLIENT_TIMEOUT_S = 60.0
MAX_BODY_BYTES = 64 * 2**20
# At one word every 20 ms a long echo would take minutes, and the reader knows the text already.
MAX_ECHO_CHARS = 600
MAX_OUTPUT_CHARS = 2000
# User messages that Codex writes itself; the question is the last of the others.
WRITTEN_BY_CODEX = ("<environment_context>", "# AGENTS.md instructions", "<turn_aborted>")

Body = dict[str, Any]
Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Say:
    """A text as the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool as the answer."""

    item: Item


def overrides(base_url: str) -> tuple[str, ...]:
    """Return the `key=value` overrides that make Codex ask the provider at `base_url`."""
    provider = (
        f'{{name="codexsite demo",base_url="{base_url}",wire_api="responses",'
        "supports_websockets=false,request_max_retries=0,stream_max_retries=0}"
    )
    return ('model_provider="demo"', f"model_providers.demo={provider}")


class DemoProvider:
    """Serves the demo's model provider on a free loopback port, from `start` until `close`.

    `word_pause_s` is the pause after each streamed word, in seconds; `reply` decides what it answers
    to a request. The threads are daemons: a
    server that dies without `close` is not held up by them.
    """

    def __init__(
        self, *, word_pause_s: float = 0.02, reply: Callable[[Body], Say | Call] | None = None
    ) -> None:
        self._word_pause_s, self._reply = word_pause_s, reply or demo_reply
        self._server: _Server | None = None

    def start(self) -> None:
        """Listen, and serve in a thread. Raises `OSError` where no port can be had."""
        if self._server is not None:
            raise RuntimeError("the demo provider runs already")
        self._server = _Server(self._word_pause_s, self._reply)
        # The poll interval is what close() waits for at most.
        threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="demo-provider", daemon=True
        ).start()

    @property
    def base_url(self) -> str:
        """`http://127.0.0.1:<port>/v1`; raises `RuntimeError` while it does not run."""
        if self._server is None:
            raise RuntimeError("the demo provider does not run")
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        """Stop listening and cut the running answers short. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.closing.set()
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, word_pause_s: float, reply: Callable[[Body], Say | Call]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.word_pause_s, self.reply = word_pause_s, reply
        self.closing = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent: what breaks here is a client that left, and prompts must not be logged."""


class _BadRequest(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = CLIENT_TIMEOUT_S

    def do_GET(self) -> None:
        if self._path() == "/v1/models":
            # `models` is the key that Codex looks for, `data` the one of OpenAI's public API.
            self._answer_json(200, {"object": "list", "data": [], "models": []})
        else:
            self._answer_error(404, "There is nothing here.")

    def do_POST(self) -> None:
        if self._path() != "/v1/responses":
            self._answer_error(404, "There is nothing here.")
            return
        try:
            body, size = self._read_body()
        except _BadRequest as error:
            self._answer_error(error.status, str(error))
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("cache-control", "no-store")
        self.end_headers()
        for event in _events(self.server.reply(body), body, size):
            self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            is_word = event["type"] == "response.output_text.delta"
            if is_word and self.server.closing.wait(self.server.word_pause_s):
                return

    def _path(self) -> str:
        return self.path.partition("?")[0]

    def _read_body(self) -> tuple[Body, int]:
        try:
            size = int(self.headers["content-length"])
        except (TypeError, ValueError):
            raise _BadRequest(411, "A content-length is needed.") from None
        if not 0 <= size <= MAX_BODY_BYTES:
            raise _BadRequest(413, "The body is too large.")
        try:
            body = json.loads(self.rfile.read(size))
        except (ValueError, RecursionError):
            raise _BadRequest(400, "The body is not JSON.") from None
        if not isinstance(body, dict):
            raise _BadRequest(400, "The body is not a JSON object.")
        return body, size

    def _answer_error(self, status: int, message: str) -> None:
        self._answer_json(status, {"error": {"message": message, "type": "demo_error"}})

    def _answer_json(self, status: int, payload: Body) -> None:
        content = json.dumps(payload).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet: the audit log has every request."""


# What it answers.


def _events(reply: Say | Call, body: Body, size: int) -> Iterator[Body]:
    """Yield the events of the response to `body`, which came in `size` bytes."""
    response: Body = {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "model": body.get("model"),
        "output": [],
    }
    yield {"type": "response.created", "response": {**response, "status": "in_progress"}}
    if isinstance(reply, Say):
        item = _message(reply.text)
        yield from _message_events(item, reply.text)
        said = reply.text
    else:
        item = reply.item
        yield {"type": "response.output_item.added", "output_index": 0, "item": item}
        yield {"type": "response.output_item.done", "output_index": 0, "item": item}
        said = json.dumps(item)
    usage = _usage(size, len(said.encode()))
    done = {**response, "status": "completed", "output": [item], "usage": usage}
    yield {"type": "response.completed", "response": done}


def _message(text: str) -> Item:
    return {
        "type": "message",
        "id": f"msg_{uuid.uuid4().hex}",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": text, "annotations": []}],
    }


def _message_events(item: Item, text: str) -> Iterator[Body]:
    place = {"output_index": 0, "content_index": 0, "item_id": item["id"]}
    begun = {**item, "status": "in_progress", "content": []}
    part = {"type": "output_text", "text": "", "annotations": []}
    yield {"type": "response.output_item.added", "output_index": 0, "item": begun}
    yield {"type": "response.content_part.added", **place, "part": part}
    for word in re.findall(r"\S+\s*|\s+", text):
        yield {"type": "response.output_text.delta", **place, "delta": word}
    yield {"type": "response.output_text.done", **place, "text": text}
    yield {"type": "response.content_part.done", **place, "part": item["content"][0]}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}


def _usage(input_bytes: int, output_bytes: int) -> Body:
    """Four bytes a token: a rough measure, but of what was really read and said."""
    read, said = max(1, input_bytes // 4), max(1, output_bytes // 4)
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": said,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + said,
    }


def demo_reply(body: Body) -> Say | Call:
    """Return the demo's own answer."""
    items = _input_items(body)
    output = _tool_output(items)
    if output is not None:
        # Codex puts a few lines of its own (wall time, exit code) above what a command printed.
        preamble, found, printed = output.partition("\nOutput:\n")
        shown = _shorten((printed if found else preamble).strip(), MAX_OUTPUT_CHARS)
        return Say(f"{NOTICE} What was run on its behalf answered:\n\n```\n{shown}\n```")
    call = command_call(body, {"cmd": COMMAND})
    if call is not None:
        return Call(call)
    question = _shorten(_question(items), MAX_ECHO_CHARS)
    return Say(f"{NOTICE} You said: {question}" if question else f"{NOTICE} You said nothing.")


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"


# How it reads the request.


def _input_items(body: Body) -> list[Item]:
    given = body.get("input")
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    return _dicts(given)


def _dicts(value: object) -> list[Item]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(str(part["text"]) for part in _dicts(content) if "text" in part)


def _is_question(item: Item) -> bool:
    if item.get("role") != "user":
        return False
    return not _text(item.get("content")).lstrip().startswith(WRITTEN_BY_CODEX)


def _question(items: list[Item]) -> str:
    """Return the last text of the user."""
    for item in reversed(items):
        if _is_question(item):
            text = _text(item.get("content")).strip()
            if text.startswith(EXEC_PREAMBLE):
                return _question(_messages_of(text.removeprefix(EXEC_PREAMBLE)))
            return text
    return ""


def _messages_of(listing: str) -> list[Item]:
    """Return the conversation that our exec engine has written as JSON."""
    try:
        return _dicts(json.loads(listing))
    except (ValueError, RecursionError):
        return []


def _tool_output(items: list[Item]) -> str | None:
    """Return what a tool has answered since the last question, or None."""
    for item in reversed(items):
        if str(item.get("type")).endswith("_call_output"):
            return _text(item.get("output"))
        if _is_question(item):
            return None
    return None


def tool_outputs(body: Body) -> list[str]:
    """Return everything that tools have answered in this conversation, in order."""
    items = _input_items(body)
    return [
        _text(item.get("output"))
        for item in items
        if str(item.get("type")).endswith("_call_output")
    ]


def _offered_tools(body: Body, items: list[Item]) -> list[Item]:
    """Return all tools, whether they came in `tools` or, as lite models get them, as an item."""
    offered = _dicts(body.get("tools"))
    for item in items:
        if item.get("type") == "additional_tools":
            offered += _dicts(item.get("tools"))
    nested = [tool for namespace in offered for tool in _dicts(namespace.get("tools"))]
    return offered + nested


def command_call(body: Body, arguments: dict[str, Any]) -> Item | None:
    """Return the call of `exec_command` with these arguments, or None where no tool runs commands."""
    call_id = f"call_{uuid.uuid4().hex}"
    for tool in _offered_tools(body, _input_items(body)):
        if tool.get("type") == "function" and tool.get("name") == "exec_command":
            return {
                "type": "function_call",
                "id": f"fc_{uuid.uuid4().hex}",
                "call_id": call_id,
                "name": "exec_command",
                "arguments": json.dumps(arguments),
            }
        # Code mode: one tool that runs JavaScript. It is there without a shell too; what the
        # script may call is declared in its description.
        can_run = "exec_command(args" in str(tool.get("description"))
        if tool.get("type") == "custom" and tool.get("name") == "exec" and can_run:
            return {
                "type": "custom_tool_call",
                "id": f"ctc_{uuid.uuid4().hex}",
                "call_id": call_id,
                "name": "exec",
                "input": f"const r = await tools.exec_command({json.dumps(arguments)});\n"
                "text(r.output ?? r);",
            }
    return None
