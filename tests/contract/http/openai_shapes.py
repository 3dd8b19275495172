"""What the tests of the chat endpoint ask with, and how they read what comes back."""

from __future__ import annotations

from typing import Any

from proxy.engines.base import ToolCall, ToolCalled
from tests.asgi import Exchange

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}


def tool(name: str = "f", **more: Any) -> dict[str, Any]:
    """A function tool that takes one number."""
    parameters = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def named(name: str = "f") -> dict[str, Any]:
    """The choice of one function."""
    return {"type": "function", "function": {"name": name}}


def called(call_id: str = "call_1", name: str = "f", arguments: str = '{"a": 1}') -> ToolCalled:
    """The model's call of a function."""
    return ToolCalled(ToolCall(call_id, name, arguments))


def chunks_of(answer: Exchange) -> list[dict[str, Any]]:
    """The chunks of a stream that ended well, without `[DONE]`, their head checked."""
    *chunks, done = answer.events()
    assert done == "[DONE]", answer.body
    heads = {(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}
    assert len(heads) == 1
    return chunks


def deltas_of(answer: Exchange, index: int = 0) -> list[dict[str, Any]]:
    """The deltas of one choice behind its role, its one finish checked and left out."""
    choices = [choice for chunk in chunks_of(answer) for choice in chunk["choices"]]
    ours = [choice for choice in choices if choice["index"] == index]
    first, *between, last = ours
    assert first["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert (last["delta"], bool(last["finish_reason"])) == ({}, True)
    assert {choice["finish_reason"] for choice in (first, *between)} == {None}
    assert not [choice for choice in between if "role" in choice["delta"]]
    return [choice["delta"] for choice in between]


def finish_of(answer: Exchange, index: int = 0) -> str:
    """Why one choice ended, streamed or whole."""
    if answer.headers["content-type"].startswith("application/json"):
        reason = answer.json()["choices"][index]["finish_reason"]
    else:
        choices = [choice for chunk in chunks_of(answer) for choice in chunk["choices"]]
        (reason,) = [
            choice["finish_reason"]
            for choice in choices
            if choice["index"] == index and choice["finish_reason"]
        ]
    return str(reason)


def message_of(answer: Exchange, index: int = 0) -> dict[str, Any]:
    """The message of one choice: as it came, or put together from its deltas as SDKs do."""
    assert answer.status == 200, answer.body
    if answer.headers["content-type"].startswith("application/json"):
        choice = answer.json()["choices"][index]
        assert choice["index"] == index
        message: dict[str, Any] = choice["message"]
        return message
    message = {"role": "assistant", "content": None}
    calls: list[dict[str, Any]] = []
    for delta in deltas_of(answer, index):
        for name in ("content", "refusal", "reasoning_content"):
            if name in delta:
                message[name] = (message.get(name) or "") + delta[name]
        if "function_call" in delta:
            message["function_call"] = delta["function_call"]
        for fragment in delta.get("tool_calls", []):
            if fragment["index"] == len(calls):
                assert fragment["id"]
                assert fragment["type"] == "function"
                calls.append(
                    {"id": fragment["id"], "type": "function", "function": {**fragment["function"]}}
                )
            else:
                assert fragment.keys() == {"index", "function"}
                assert fragment["function"].keys() == {"arguments"}
                calls[fragment["index"]]["function"]["arguments"] += fragment["function"][
                    "arguments"
                ]
    if calls:
        message["tool_calls"] = calls
    return message
