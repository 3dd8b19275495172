"""A plausible model: answers what codex asks as a real one would, so that whole clients can run.

It reads the request's instructions, tools and schema. Offered tools it calls those that the user
talks about, with arguments that fit their schemas; told to answer in a schema it does; given a
tool's output it quotes it; else it says something. `Please fail: NAME` makes it fail (`FAILURES`),
`Please fail once: NAME` only the first time that it is asked with the very same text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.provider import (
    Answer,
    Behaviour,
    Disconnect,
    Fail,
    FunctionCall,
    Incomplete,
    Reasoning,
    Reply,
    SseFailed,
    Text,
)

Json = dict[str, Any]

FAILURES: dict[str, Callable[[], Behaviour]] = {
    "bad gateway": lambda: Fail(502, "<html>bad gateway</html>"),
    "rate limit": lambda: Fail(429, {"error": {"message": "slow down"}}),
    "usage limit": lambda: Fail(429, {"error": {"type": "usage_limit_reached", "message": "no"}}),
    "server login": lambda: Fail(401, {"error": {"message": "bad key sk-verysecret123"}}),
    "context length": lambda: SseFailed("context_length_exceeded"),
    "cut": lambda: Disconnect(after=2),
    "token limit": lambda: Incomplete("max_output_tokens"),
}
SLOW_WORDS, SLOW_PAUSE_S = 200, 0.1
LATE_S = 4.0
GREETING = ("Hello", " from", " the", " plausible", " model.")
MAX_DEPTH = 12


class PlausibleModel:
    """The default script of a `ScriptedProvider`. It remembers only which failures it has shown."""

    def __init__(self) -> None:
        self._failed: set[str] = set()

    def __call__(self, body: Json) -> Reply:
        chat = _Chat(body)
        if failure := self._failure(chat.user_text):
            return failure
        if chat.schema is not None:
            return Text((json.dumps(_Filler(chat, chat.schema).value(), ensure_ascii=False),))
        if chat.outputs:
            return Text(("The tool says: ", *chat.outputs))
        if calls := _calls(chat):
            return calls
        return _words(chat)

    def _failure(self, text: str) -> Behaviour | None:
        found = re.search(r"Please fail( once)?: ([a-z ]+)", text)
        if found is None or (found[1] and text in self._failed):
            return None
        self._failed.add(text)
        return FAILURES[found[2].strip()]()


class _Chat:
    """What one request asks: the last user's text, the tools, the schema, what tools have said."""

    def __init__(self, body: Json) -> None:
        items = body["input"]
        self.user_text = _last_text(items, "user")
        self.instructions = _texts(items, "developer")
        self.tools = list(_tools(body))
        self.has_image = '"input_image"' in json.dumps(items)
        self.called = {item["name"] for item in items if item.get("type") == "function_call"}
        users = [i for i, item in enumerate(items) if item.get("role") == "user"]
        since_asked = items[users[-1] :] if users else items
        self.outputs = [
            _output_text(item["output"])
            for item in since_asked
            if item.get("type") == "function_call_output"
        ]
        self.schema = self._schema(body)

    def _schema(self, body: Json) -> Json | None:
        form = body.get("text", {}).get("format", {})
        if form.get("type") == "json_schema":
            schema: Json = form["schema"]
            return schema
        told = "\n".join(self.instructions)
        if "JSON" not in told and "JSON" not in self.user_text:
            return None
        return _schema_told(told) or _schema_told(self.user_text) or _keys_told(self.user_text)


def _texts(items: list[Json], role: str) -> list[str]:
    return [
        "\n".join(part.get("text", "") for part in item["content"])
        for item in items
        if item.get("type") == "message" and item["role"] == role
    ]


def _last_text(items: list[Json], role: str) -> str:
    return next(reversed(_texts(items, role)), "")


def _output_text(output: str | list[Json]) -> str:
    if isinstance(output, str):
        return output
    return "".join(part.get("text", "an image") for part in output)


def _tools(body: Json) -> Iterator[Json]:
    """The functions on offer: codex sends them plain, or as one namespace in the first item."""
    places = [body.get("tools", [])]
    places += [item["tools"] for item in body["input"] if item.get("type") == "additional_tools"]
    for tools in places:
        for tool in tools:
            yield from tool["tools"] if tool["type"] == "namespace" else [tool]


def _schema_told(text: str) -> Json | None:
    """A JSON schema that stands in the text."""
    for start in re.finditer(r"\{", text):
        try:
            found, _ = json.JSONDecoder().raw_decode(text, start.start())
        except ValueError:
            continue
        if isinstance(found, dict) and ("properties" in found or "$ref" in found):
            return found
    return None


def _keys_told(text: str) -> Json:
    keys = re.findall(r"'(\w+)'|\"(\w+)\"", text)
    return {"type": "object", "properties": {a or b: {"type": "string"} for a, b in keys}}


def _calls(chat: _Chat) -> list[FunctionCall]:
    """All tools that the user names, else the one whose description sounds most like the text."""
    named = [tool for tool in chat.tools if re.search(rf"\b{tool['name']}\b", chat.user_text)]
    if not named and chat.tools:
        best = max(chat.tools, key=lambda tool: _likeness(chat, json.dumps(tool)))
        named = [best] if _likeness(chat, json.dumps(best)) else []
    return [
        FunctionCall(tool["name"], json.dumps(_Filler(chat, tool["parameters"]).value()))
        for tool in named
    ]


def _words(chat: _Chat) -> Reply:
    if "slowly" in chat.user_text:
        return Text(("word ",) * SLOW_WORDS, pause_s=SLOW_PAUSE_S)
    if "late" in chat.user_text:
        return Text(("better late", " than never"), pause_s=LATE_S)
    if quoted := re.search(r"Say exactly: (.*)", chat.user_text):
        return Text(re.findall(r"\S+\s*", quoted[1]))
    if chat.has_image:
        return Text(("I see", " an image."))
    if "Think" in chat.user_text:
        return Answer((Reasoning(("I ", "think")), Text(GREETING)))
    return Text(GREETING)


def _likeness(chat: _Chat, text: str) -> int:
    """How many of the user's longer words occur in the text; what was called already comes last."""
    said = set(re.findall(r"[a-z]{4,}", chat.user_text.lower()))
    score = len(said & set(re.findall(r"[a-z]{4,}", text.lower().replace("_", " "))))
    return score - 100 * any(f'"{name}"' in text for name in chat.called)


class _Filler:
    """Makes a value for a schema, from the numbers, quotations and places in the user's text."""

    def __init__(self, chat: _Chat, schema: Json) -> None:
        self._chat = chat
        self._root = schema
        text = chat.user_text
        self._numbers = iter(re.findall(r"\d+", text))
        quoted = [a or b for a, b in re.findall(r"'([^']+)'|\"([^\"]+)\"", text)]
        self._names = iter(quoted or re.findall(r"\bin ([A-Z]\w+(?: [A-Z]\w+)*)", text))

    def value(self) -> Any:
        return self._value(self._root, "", 0)

    def _value(self, schema: Json, name: str, depth: int) -> Any:
        if "$ref" in schema:
            return self._value(self._definition(schema["$ref"]), name, depth + 1)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            told = [each for each in schema["enum"] if str(each) in self._chat.user_text]
            return (told or schema["enum"])[0]
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self._value(self._best(schema[key], depth), name, depth)
        if "allOf" in schema:
            return self._value(schema["allOf"][0], name, depth)
        return self._plain(schema, name, depth)

    def _plain(self, schema: Json, name: str, depth: int) -> Any:
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            kind = next(each for each in kind if each != "null")
        if kind == "object":
            return {
                key: self._value(child, key, depth + 1)
                for key, child in schema.get("properties", {}).items()
            }
        if kind == "array":
            items = schema.get("items", {})
            return [self._value(items, name, depth + 1) for _ in range(schema.get("minItems", 1))]
        if kind in ("integer", "number"):
            number = int(next(self._numbers, schema.get("minimum", 1)))
            return min(max(number, schema.get("minimum", number)), schema.get("maximum", number))
        if kind == "boolean":
            return True
        if schema.get("format") == "date":
            return "2026-11-22"
        return None if kind == "null" else next(self._names, f"some {name}".strip())

    def _best(self, choices: list[Json], depth: int) -> Json:
        real = [each for each in choices if each.get("type") != "null"]
        if depth > MAX_DEPTH:  # a schema that contains itself ends here
            return choices[-1]
        return max(real, key=lambda each: _likeness(self._chat, json.dumps(each)))

    def _definition(self, ref: str) -> Json:
        found: Any = self._root
        for step in ref.removeprefix("#/").split("/"):
            found = found[step]
        return dict(found)
