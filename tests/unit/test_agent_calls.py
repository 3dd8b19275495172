"""What an agent was refused, from raw items; and what app-server says of its patches."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from proxy.engines.agent_calls import files_of_patch, plain_diff
from proxy.engines.app_server_events import TurnReader
from proxy.engines.base import (
    CommandInput,
    CommandStarted,
    Event,
    FileChange,
    McpCalled,
    Refused,
    WebSearched,
)

Note = tuple[str, dict[str, Any]]


def raw(turn_id: str = "t", **item: Any) -> Note:
    return "rawResponseItem/completed", {"turnId": turn_id, "item": item}


def call(name: str, given: Any, call_id: str = "c", turn_id: str = "t") -> Note:
    text = given if isinstance(given, str) else orjson.dumps(given).decode()
    return raw(turn_id, type="function_call", name=name, arguments=text, call_id=call_id)


def patch(text: str, call_id: str = "c") -> Note:
    return raw(type="custom_tool_call", name="apply_patch", input=text, call_id=call_id)


def output(text: str, call_id: str = "c") -> Note:
    return raw(type="function_call_output", output=text, call_id=call_id)


def item(kind: str, **fields: Any) -> Note:
    return "item/completed", {"item": {"type": kind, "id": "c", **fields}}


def read(*notes: Note) -> list[Event]:
    reader = TurnReader()
    reader.read("turn/started", {"turn": {"id": "t"}})
    return [event for note in notes for event in reader.read(*note)]


def test_call_that_is_carried_out_is_no_refusal():
    command = {"type": "commandExecution", "id": "c", "command": "ls", "cwd": "/w"}
    events = read(
        call("exec_command", {"cmd": "ls"}), ("item/started", {"item": command}), output("a.txt")
    )
    assert events == [CommandStarted("c", "ls", "/w")]


def test_escalation_is_told_with_its_reason():
    wish = {"cmd": "id", "sandbox_permissions": "require_escalated", "justification": "please"}
    (event,) = read(call("exec_command", {**wish, "workdir": "/w"}), output("you cannot ask"))
    assert event == Refused("escalation", "id", "you cannot ask (asked for: please)", "/w")


def test_forbidden_command_is_told():
    assert read(call("exec_command", {"cmd": "rm -rf x"}), output("rejected")) == [
        Refused("command", "rm -rf x", "rejected")
    ]


@pytest.mark.parametrize("given", ["{broken", "7", '{"cmd": 7}', ""])
def test_arguments_of_any_form_are_told_as_they_are(given: str):
    (event,) = read(call("exec_command", given), output("failed to parse"))
    assert isinstance(event, Refused)
    assert event.reason == "failed to parse"


def test_patch_that_does_not_apply_is_told_by_tool_and_by_shell():
    text = "*** Begin Patch\n*** Add File: /etc/evil\n+x\n*** End Patch\n"
    heredoc = f"apply_patch <<'EOF'\n{text}EOF"
    assert read(patch(text), output("rejected")) == [Refused("patch", text, "rejected")]
    assert read(call("exec_command", {"cmd": heredoc}), output("no")) == [
        Refused("patch", heredoc, "no")
    ]


def test_calls_of_the_history_and_of_harmless_tools_are_none():
    assert read(call("exec_command", {"cmd": "x"}, turn_id="old"), output("y")) == []
    assert read(call("update_plan", {}), output("unsupported call")) == []
    assert read(raw(type="tool_search_call_output"), raw(type=None), raw()) == []


def test_searches_mcp_calls_and_typing_are_told():
    assert read(
        item("webSearch", query="weather"),
        item("mcpToolCall", server="calc", tool="add", arguments={"a": 2}, status="completed",
             durationMs=3, result={"content": []}, error=None),
        ("item/commandExecution/terminalInteraction", {"itemId": "c", "stdin": "ls\n"}),
    ) == [
        WebSearched("weather"),
        McpCalled("calc", "add", '{"a":2}', "completed", 3, '{"content":[]}'),
        CommandInput("c", "ls\n"),
    ]  # fmt: skip


def test_changes_of_a_patch_are_diffs():
    kinds = [
        {"path": "/w/a", "kind": {"type": "add"}, "diff": "one\ntwo\n"},
        {"path": "/w/d", "kind": {"type": "delete"}, "diff": "x"},
        {"path": "/w/m", "kind": {"type": "update", "move_path": "/w/n"},
         "diff": "@@ -1 +1 @@\n-m\n+n\n\n\nMoved to: /w/n"},
    ]  # fmt: skip
    assert read(item("fileChange", changes=kinds, status="failed")) == [
        FileChange("/w/a", "add", "+one\n+two\n", "", "failed"),
        FileChange("/w/d", "delete", "-x\n", "", "failed"),
        FileChange("/w/m", "move", "@@ -1 +1 @@\n-m\n+n\n", "/w/n", "failed"),
    ]


def test_plain_diff_of_nothing_is_nothing():
    assert plain_diff("add", "", "") == ""


def test_files_of_a_patch_are_named_in_order():
    text = "*** Update File: a b.txt\n*** Move to: c\n@@\n-*** Add File: no\n*** Delete File: d\n"
    assert files_of_patch(text) == ["a b.txt", "c", "d"]
