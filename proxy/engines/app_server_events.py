"""One thread's notifications of `codex app-server` -> events. Pure; it remembers one turn."""

from __future__ import annotations

from typing import Any

from proxy.engines.agent_calls import RefusedCalls, json_text, plain_diff
from proxy.engines.base import (
    AnswerRestarted,
    CommandFinished,
    CommandInput,
    CommandStarted,
    Completed,
    Event,
    Failed,
    FileChange,
    McpCalled,
    MessageDone,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    ToolCalled,
    Usage,
    UsageReported,
    WebSearched,
)
from proxy.engines.failures import broken_off, error_of
from proxy.errors import AnswerIncomplete, TurnStopped

SEPARATOR = "\n\n"


class TurnReader:
    """Turns notifications into events, and keeps what the audit wants: turn id, served model.

    The answer is the text of all messages that are not commentary, a blank line between two. With
    tools of the caller's, the raw items of the model's response are heard too: only they show all
    its calls in order, and its end (`rawResponse/completed`) ends the turn where there were calls.

    A chat (`is_chat`) is one response of the model. Codex gives a broken one its own messages and
    calls as history and asks for more, which is fit for an agent; in a chat it would be two answers
    in one, so the turn ends there.
    """

    def __init__(self, *, is_chat: bool = False) -> None:
        self._is_chat = is_chat
        self._calls = 0
        self._refused = RefusedCalls()
        self.turn_id = ""
        self.rerouted_to = ""
        self.has_ended = False
        self._answers = 0
        self._item = ""
        self._commentary: set[str] = set()

    def read(self, method: str, params: dict[str, Any]) -> list[Event]:
        """Return the events of one notification: none for what nobody needs."""
        item = params.get("item")
        match method:
            case "turn/started":
                self.turn_id = params["turn"]["id"]
            case "item/agentMessage/delta":
                return self._delta(params["itemId"], params["delta"])
            case "item/reasoning/summaryTextDelta":
                return [ReasoningDelta(params["delta"])]
            case "item/started" if isinstance(item, dict):
                return self._item_started(item)
            case "item/commandExecution/terminalInteraction" if params.get("stdin"):
                return [CommandInput(params["itemId"], params["stdin"])]
            case "item/completed" if isinstance(item, dict):
                return self._item_completed(item)
            # What was injected is told as raw items too, under another turn's id.
            case "rawResponseItem/completed" if params.get("turnId") == self.turn_id:
                return self._raw_item(params["item"])
            case "rawResponse/completed" if self._calls:
                self.has_ended = True
                return [*usage_events(params.get("usage")), Completed()]
            case "thread/tokenUsage/updated":
                return usage_events(params["tokenUsage"]["total"])
            case "model/rerouted":
                self.rerouted_to = str(params.get("toModel") or "")
            case "error" if params.get("willRetry"):
                return [self._restart(str(params["error"].get("additionalDetails") or ""))]
            case "turn/completed":
                return [self._end(params["turn"])]
        return []

    def _delta(self, item_id: str, text: str) -> list[Event]:
        if item_id in self._commentary or not text:
            return []
        lead = SEPARATOR if self._answers and item_id != self._item else ""
        self._item = item_id
        return [TextDelta(lead + text)]

    def _restart(self, reason: str) -> Event:
        cause = error_of(reason)
        is_cut = isinstance(cause, AnswerIncomplete)
        if self._is_chat and (self._calls or self._answers or is_cut):
            self.has_ended = True
            return Failed(cause if is_cut else broken_off())
        self._item = ""
        return AnswerRestarted()

    def _raw_item(self, item: dict[str, Any]) -> list[Event]:
        if not self._is_chat:
            return self._refused.read(item)
        if item["type"] != "function_call":
            return []
        self._calls += 1
        return [ToolCalled(ToolCall(item["call_id"], item["name"], item["arguments"]))]

    def _item_started(self, item: dict[str, Any]) -> list[Event]:
        self._refused.carried_out(str(item.get("id")))
        if item["type"] == "agentMessage" and item.get("phase") == "commentary":
            self._commentary.add(item["id"])
        if item["type"] == "commandExecution":
            return [CommandStarted(item["id"], item["command"], item.get("cwd") or "")]
        return []

    def _item_completed(self, item: dict[str, Any]) -> list[Event]:
        self._refused.carried_out(str(item.get("id")))
        match item["type"]:
            case "agentMessage":
                return self._message(item)
            case "commandExecution":
                return [command_finished(item)]
            case "fileChange":
                return file_changes(item)
            case "webSearch":
                return [WebSearched(str(item.get("query") or ""))]
            case "mcpToolCall":
                return [mcp_called(item)]
        return []

    def _message(self, item: dict[str, Any]) -> list[Event]:
        if item.get("phase") == "commentary":
            return [MessageDone(item["text"], is_commentary=True)]
        events: list[Event] = []
        if item["id"] != self._item:  # the message came without deltas
            events = self._delta(item["id"], item["text"])
        self._answers += 1
        return [*events, MessageDone(item["text"])]

    def _end(self, turn: dict[str, Any]) -> Event:
        self.has_ended = True
        if turn["status"] == "completed":
            return Completed()
        if turn["status"] == "interrupted":
            return Failed(TurnStopped("Codex interrupted the turn."))
        error = turn.get("error") or {}
        return Failed(error_of(str(error.get("message") or ""), error.get("codexErrorInfo")))


def usage_events(total: dict[str, Any] | None) -> list[Event]:
    """Return what the thread has used. All zeros means that the provider did not say."""
    if total is None:
        return []
    usage = Usage(
        input_tokens=total["inputTokens"],
        cached_input_tokens=total["cachedInputTokens"],
        output_tokens=total["outputTokens"],
        reasoning_output_tokens=total["reasoningOutputTokens"],
    )
    return [UsageReported(usage)] if usage.input_tokens or usage.output_tokens else []


def command_finished(item: dict[str, Any]) -> CommandFinished:
    return CommandFinished(
        item_id=item["id"],
        command=item["command"],
        status=item["status"],
        exit_code=item.get("exitCode"),
        duration_ms=item.get("durationMs"),
        output=item.get("aggregatedOutput") or "",
        cwd=item.get("cwd") or "",
    )


def file_changes(item: dict[str, Any]) -> list[Event]:
    status = item.get("status") or "completed"
    return [_file_change(change, status) for change in item["changes"]]


def _file_change(change: dict[str, Any], status: str) -> FileChange:
    kind, moved_to = change["kind"]["type"], change["kind"].get("move_path") or ""
    diff = plain_diff(kind, change.get("diff") or "", moved_to)
    return FileChange(change["path"], "move" if moved_to else kind, diff, moved_to, status)


def mcp_called(item: dict[str, Any]) -> McpCalled:
    return McpCalled(
        server=str(item.get("server") or ""),
        tool=str(item.get("tool") or ""),
        arguments=json_text(item.get("arguments")),
        status=str(item.get("status") or ""),
        duration_ms=item.get("durationMs"),
        output=json_text(item.get("error") or item.get("result")),
    )
