"""Server-sent events of a chat completion: bytes for each moment of a stream. Pure."""

from __future__ import annotations

from typing import Any

import orjson

DONE = b"data: [DONE]\n\n"
KEEPALIVE = b": keepalive\n\n"


def frame(data: dict[str, Any]) -> bytes:
    """Return one event: one data line, no event name (SDKs read meaning into names)."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


class ChunkWriter:
    """Writes the chunks of one stream; id, created and model are the same in all of them.

    `include_usage` adds `usage: null` to every chunk and the usage chunk before the end.
    """

    def __init__(
        self, *, completion_id: str, created: int, model: str, include_usage: bool
    ) -> None:
        self._head = {
            "id": completion_id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
            "service_tier": "default",
            "system_fingerprint": None,
        }
        self._include_usage = include_usage

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        usage = {"usage": None} if self._include_usage else {}
        return frame({**self._head, "choices": [choice], **usage})

    def role(self) -> bytes:
        """The first chunk: the role comes here and nowhere else, since SDKs add strings up."""
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def text(self, text: str) -> bytes:
        return self._chunk({"content": text})

    def refusal(self, text: str) -> bytes:
        return self._chunk({"refusal": text})

    def finish(self, reason: str) -> bytes:
        return self._chunk({}, reason)

    def usage(self, usage: dict[str, Any] | None) -> bytes:
        """The last chunk before the end, without choices; empty where usage was not asked for."""
        if not self._include_usage:
            return b""
        return frame({**self._head, "choices": [], "usage": usage})
