"""What Codex refused to do for an agent, read from the raw items of the model's responses. Pure.

A call that Codex carries out has an item of its own with the call's id, begun before its output
comes. A refused escalation, a forbidden command and a patch that does not apply have none: only
the model is told. So a call whose output comes without an item was refused.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from proxy.engines.base import Event, Refused

CALLS = ("function_call", "custom_tool_call")
SHELL_TOOLS = ("exec_command", "shell_command", "shell", "local_shell")
PATCH_TOOL = "apply_patch"
FILE_OF_PATCH = re.compile(
    r"^\*\*\* (?:Add|Update|Delete) File: (.+)$|^\*\*\* Move to: (.+)$", re.M
)


class RefusedCalls:
    """Remembers the calls of one turn until it is known what became of each."""

    def __init__(self) -> None:
        self._asked: dict[str, dict[str, Any]] = {}
        self._carried_out: set[str] = set()

    def carried_out(self, item_id: str) -> None:
        """Codex began to do what the call of this id asked for."""
        self._carried_out.add(item_id)

    def read(self, item: dict[str, Any]) -> list[Event]:
        """Take one raw item and return the refusal that it shows, if it shows one."""
        kind, call_id = str(item.get("type")), str(item.get("call_id"))
        if kind in CALLS:
            self._asked[call_id] = item
        if not kind.endswith("_call_output"):
            return []
        call = self._asked.pop(call_id, None)
        if call is None or call_id in self._carried_out:
            return []
        return _refused(call, json_text(item.get("output")))


def _refused(call: dict[str, Any], reason: str) -> list[Event]:
    given = str(call.get("arguments") or call.get("input") or "")
    if call.get("name") == PATCH_TOOL:
        return [Refused("patch", given, reason)]
    if call.get("name") not in SHELL_TOOLS:
        return []  # it touches nothing, or there is no such tool
    asked = _arguments(given)
    command = asked.get("cmd") or asked.get("command") or given
    command = command if isinstance(command, str) else json_text(command)
    cwd = str(asked.get("workdir") or "")
    if asked.get("sandbox_permissions") not in (None, "use_default"):
        wish = str(asked.get("justification") or "")
        return [Refused("escalation", command, f"{reason} (asked for: {wish})", cwd)]
    is_patch = command.lstrip().startswith(PATCH_TOOL)
    return [Refused("patch" if is_patch else "command", command, reason, cwd)]


def _arguments(text: str) -> dict[str, Any]:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def files_of_patch(patch: str) -> list[str]:
    """Return the paths that a patch in Codex's form names, in order."""
    return [(one or other).strip() for one, other in FILE_OF_PATCH.findall(patch)]


def plain_diff(kind: str, diff: str, moved_to: str) -> str:
    """Return app-server's text of a change as a diff: of a new or deleted file it is the content."""
    if moved_to:
        diff = diff.removesuffix(f"\n\nMoved to: {moved_to}")
    sign = {"add": "+", "delete": "-"}.get(kind)
    if sign is None or not diff:
        return diff
    lines = diff.removesuffix("\n").split("\n")
    return "".join(f"{sign}{line}\n" for line in lines)


def json_text(value: Any) -> str:  # noqa: ANN401 - JSON
    """Return a value as text: text as it is, nothing for None, else JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    return orjson.dumps(value).decode()
