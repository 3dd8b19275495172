"""Server-sent events of a completion: bytes for each moment of a stream. Pure."""

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

    object = "chat.completion.chunk"
    whole_object = "chat.completion"
    """What the same answer is called when it is not streamed."""

    def __init__(
        self,
        *,
        completion_id: str,
        created: int,
        model: str,
        include_usage: bool,
        service_tier: str = "default",
    ) -> None:
        self._head = {
            "id": completion_id,
            "object": self.object,
            "created": created,
            "model": model,
            "service_tier": service_tier,
            "system_fingerprint": None,
        }
        self._include_usage = include_usage

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        usage = {"usage": None} if self._include_usage else {}
        return frame({**self._head, "choices": [choice], **usage})

    def role(self, index: int = 0) -> bytes:
        """The first chunk of a choice: the role comes here and nowhere else, as SDKs add strings up."""
        return self.delta({"role": "assistant", "content": "", "refusal": None}, index)

    def delta(self, delta: dict[str, Any], index: int = 0) -> bytes:
        """More of a choice, in OpenAI's words."""
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return self._chunk(choice)

    def action(self, action: dict[str, Any], index: int = 0) -> bytes:
        """What an agent did, beside an empty delta: a client that does not know it sees nothing."""
        usage = {"usage": None} if self._include_usage else {}
        return frame(
            {**self._head, "choices": [self._nothing(index)], **usage, "codex_action": action}
        )

    @staticmethod
    def _nothing(index: int) -> dict[str, Any]:
        return {"index": index, "delta": {}, "logprobs": None, "finish_reason": None}

    def finish(self, reason: str, index: int = 0) -> bytes:
        """The one end of a choice."""
        choice = {"index": index, "delta": {}, "logprobs": None, "finish_reason": reason}
        return self._chunk(choice)

    def usage(self, usage: dict[str, Any] | None) -> bytes:
        """The last chunk before the end, without choices; empty where usage was not asked for."""
        if not self._include_usage:
            return b""
        return frame({**self._head, "choices": [], "usage": usage})


class TextChunkWriter(ChunkWriter):
    """The same for the legacy endpoint, which knows text only and says no role."""

    object = whole_object = "text_completion"

    def role(self, index: int = 0) -> bytes:
        return b""

    def delta(self, delta: dict[str, Any], index: int = 0) -> bytes:
        text = delta.get("content")
        return self._chunk(self._choice(text, index, None)) if text else b""

    def finish(self, reason: str, index: int = 0) -> bytes:
        return self._chunk(self._choice("", index, reason))

    @staticmethod
    def _nothing(index: int) -> dict[str, Any]:
        return TextChunkWriter._choice("", index, None)

    @staticmethod
    def _choice(text: str, index: int, reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
