"""One JSON line of `codex exec --json` -> events. Pure; it remembers one turn.

There are no deltas: messages come whole, and which of several is the answer is known at the end
only. So all but the last become commentary, and the last one is the answer, given at once.

What they do not show of an agent's actions: where a command ran and how long, what was typed into
it, the text of a patch and where it moved a file to, and anything that Codex refused to do.
"""

from __future__ import annotations

from typing import Any

import orjson

from proxy.engines.agent_calls import json_text
from proxy.engines.base import (
    CommandFinished,
    CommandStarted,
    Completed,
    Event,
    Failed,
    FileChange,
    McpCalled,
    MessageDone,
    ReasoningDelta,
    TextDelta,
    Usage,
    UsageReported,
    WebSearched,
)
from proxy.engines.failures import error_of
from proxy.errors import EngineProtocolError


class LineReader:
    """Turns the lines of one run into events."""

    def __init__(self) -> None:
        self.has_started = False
        self.has_ended = False
        self._last_message: str | None = None

    @property
    def holds_message(self) -> bool:
        """Whether a message is held back until it is known to be the last one, the answer."""
        return self._last_message is not None

    def read(self, line: bytes) -> list[Event]:
        """Return the events of one line. Raises `EngineProtocolError` for what is not JSON."""
        try:
            frame: Any = orjson.loads(line)
            return self._read(frame)
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise EngineProtocolError(
                "codex exec wrote a line that this version does not know."
            ) from error

    def _read(self, frame: dict[str, Any]) -> list[Event]:
        match frame["type"]:
            case "turn.started":
                self.has_started = True
            case "item.started" if frame["item"]["type"] == "command_execution":
                return [CommandStarted(frame["item"]["id"], frame["item"]["command"])]
            case "item.completed":
                return self._item(frame["item"])
            case "turn.completed":
                self.has_ended = True
                return [*self._answer(), *_usage(frame.get("usage") or {}), Completed()]
            case "turn.failed":
                self.has_ended = True
                failed = Failed(error_of(str((frame.get("error") or {}).get("message") or "")))
                return [*self._answer(), failed]
        return []

    def _item(self, item: dict[str, Any]) -> list[Event]:
        match item["type"]:
            case "agent_message":
                remark, self._last_message = self._last_message, item["text"]
                return [MessageDone(remark, is_commentary=True)] if remark is not None else []
            case "reasoning":
                return [ReasoningDelta(item["text"])]
            case "command_execution":
                return [_command(item)]
            case "file_change":
                status = item.get("status") or "completed"
                return [
                    FileChange(change["path"], change["kind"], status=status)
                    for change in item["changes"]
                ]
            case "web_search":
                return [WebSearched(str(item.get("query") or ""))]
            case "mcp_tool_call":
                return [_mcp_called(item)]
        return []

    def _answer(self) -> list[Event]:
        text = self._last_message
        return [TextDelta(text), MessageDone(text)] if text else []


def _command(item: dict[str, Any]) -> CommandFinished:
    return CommandFinished(
        item_id=item["id"],
        command=item["command"],
        status=item["status"],
        exit_code=item.get("exit_code"),
        duration_ms=None,
        output=item.get("aggregated_output") or "",
    )


def _mcp_called(item: dict[str, Any]) -> McpCalled:
    return McpCalled(
        server=str(item.get("server") or ""),
        tool=str(item.get("tool") or ""),
        arguments=json_text(item.get("arguments")),
        status=str(item.get("status") or ""),
        duration_ms=None,
        output=json_text(item.get("error") or item.get("result")),
    )


def _usage(usage: dict[str, Any]) -> list[Event]:
    if not usage.get("input_tokens") and not usage.get("output_tokens"):
        return []
    return [
        UsageReported(
            Usage(
                input_tokens=usage["input_tokens"],
                cached_input_tokens=usage.get("cached_input_tokens", 0),
                output_tokens=usage["output_tokens"],
                reasoning_output_tokens=usage.get("reasoning_output_tokens", 0),
            )
        )
    ]
