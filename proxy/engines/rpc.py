"""The JSON-RPC peer of `codex app-server`, without I/O: bytes in, facts out, bytes to send.

One JSON object a line, no `jsonrpc` member. Both sides count their own requests from small
integers, so the two id spaces overlap: a frame with `method` and `id` is the server's request, one
with `id` alone answers ours. Answers and notifications are not ordered relative to each other.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Answer:
    """The server answered our request `id`, with a result or an error."""

    id: int
    result: Any = None
    error: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Notification:
    """The server tells something; `thread_id` is empty where it is about no thread."""

    method: str
    params: dict[str, Any]
    thread_id: str


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """The server asks something and waits until it is answered: an unanswered one hangs the turn."""

    id: int | str
    method: str
    params: dict[str, Any]


Frame = Answer | Notification | ServerRequest


class Peer:
    """Numbers our requests, encodes what we say, decodes what the server says."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)

    def request(self, method: str, params: dict[str, Any]) -> tuple[int, bytes]:
        """Return the id under which the answer will come, and the line to send."""
        number = next(self._ids)
        return number, _line({"id": number, "method": method, "params": params})

    def notify(self, method: str) -> bytes:
        return _line({"method": method})

    def reply(self, request: ServerRequest) -> bytes:
        """Return our answer to a request of the server: always no.

        The approval policy is `never`, so none should come; what comes all the same is declined,
        and what has no decision is answered with an error, which Codex takes as a refusal.
        """
        if request.method.endswith("/requestApproval") and "permissions" not in request.method:
            return _line({"id": request.id, "result": {"decision": "decline"}})
        error = {"code": -32601, "message": f"{request.method} is not offered here"}
        return _line({"id": request.id, "error": error})

    def receive(self, line: bytes) -> Frame | None:
        """Return what one line says, or None for what is not a frame of this protocol."""
        try:
            frame = orjson.loads(line)
        except orjson.JSONDecodeError:
            return None
        if not isinstance(frame, dict):
            return None
        method, number = frame.get("method"), frame.get("id")
        if isinstance(method, str):
            params = frame.get("params")
            params = params if isinstance(params, dict) else {}
            if isinstance(number, int | str):
                return ServerRequest(number, method, params)
            return Notification(method, params, str(params.get("threadId") or ""))
        if isinstance(number, int):
            return Answer(number, frame.get("result"), frame.get("error"))
        return None


def _line(frame: dict[str, Any]) -> bytes:
    return orjson.dumps(frame) + b"\n"
