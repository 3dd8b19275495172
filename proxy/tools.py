"""OpenAI's `tools` and `tool_choice`: what Codex is told, and the model's calls back. Pure.

Codex lets a model call tools or not; it can neither forbid nor demand. So `none` declares no tools,
and a demanded call is asked for as structured output: no tools, and an output schema that fits
nothing but a call (`ToolPlan.forced_format`). A caller sees no difference.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from proxy.callerschema import BadSchema, CallerSchema, dump_json, read_schema
from proxy.engines.base import Tool, ToolCall
from proxy.errors import InvalidRequest, UnsupportedParameter
from proxy.strict import (
    Choice,
    Inexpressible,
    Listing,
    Node,
    Plain,
    Property,
    Record,
    Shape,
    Shaper,
    flattened,
    notes,
)
from proxy.structured import (
    AnswerInvalid,
    answer_json,
    as_flag,
    as_list,
    as_name,
    as_object,
    as_text,
    missing,
    unfenced,
)

MAX_TOOLS = 128
MAX_NAME = 64

# Codex takes the first two and never tells the model about them; the prefix it refuses.
_SWALLOWED = ("exec_command", "shell_command")
_RESERVED_PREFIX = "mcp__"
_ALIAS = "client_"

# What Codex keeps of a parameter's schema; the rest it drops without a word.
_KEPT = ("type", "properties", "required", "items", "enum", "anyOf", "$ref", "$defs",
         "additionalProperties", "minItems")  # fmt: skip
_MAX_NOTES = 3_000

Mode = Literal["auto", "none", "forced"]


@dataclass(frozen=True, slots=True, eq=False)
class ToolPlan:
    """What a request's tools come to.

    `declared` is for Codex, under its names. `mode` is `forced` where the answer must be a call to
    one of `forced_names`; then nothing is declared and `forced_format` says what to ask for.
    `allows_many` is False where at most one call may be returned. `is_legacy` asks for the answer
    as `message.function_call`.
    """

    declared: tuple[Tool, ...] = ()
    mode: Mode = "none"
    forced_names: tuple[str, ...] = ()
    allows_many: bool = True
    is_legacy: bool = False
    _aliases: dict[str, str] = field(default_factory=dict)
    _forced: _ForcedCall | None = None

    def name_for_codex(self, name: str) -> str:
        """Return what Codex calls the caller's function; for calls in the history too."""
        return self._aliases.get(name) or _alias(name, taken=())

    def name_for_client(self, alias: str) -> str:
        """Return the caller's own name of a function that the model called."""
        return next((name for name, known in self._aliases.items() if known == alias), alias)

    def check_offered(self, call: ToolCall) -> None:
        """Raise `AnswerInvalid` for a call of a function that the model may not call."""
        if self.mode != "forced" and call.name not in {tool.name for tool in self.declared}:
            raise AnswerInvalid("The model called a function that was not offered to it.")

    def forced_format(self) -> tuple[dict[str, Any] | None, str]:
        """Return the output schema (None where strict mode cannot say it) and the developer text.

        Only where `mode` is `forced`.
        """
        forced = self._must_force()
        return (forced.shape.schema if forced.shape else None), forced.instruction

    def read_forced(self, text: str) -> tuple[ToolCall, ...]:
        """Return the calls in an answer to `forced_format`; raises `AnswerInvalid`.

        The arguments match the function's own schema. They are the model's text where that is
        possible, and always its values.
        """
        return self._must_force().read(text)

    def _must_force(self) -> _ForcedCall:
        if self._forced is None:
            raise RuntimeError("nothing is forced here")  # a bug of ours, no input leads here
        return self._forced


@dataclass(frozen=True, slots=True, eq=False)
class _Function:
    tool: Tool
    schema: CallerSchema


@dataclass(frozen=True, slots=True, eq=False)
class _Chosen:
    mode: Mode
    names: tuple[str, ...]
    is_single: bool = False


def read_tools(
    tools: object,
    tool_choice: object = None,
    parallel_tool_calls: object = None,
    functions: object = None,
    function_call: object = None,
) -> ToolPlan:
    """Check a request's tools, in today's words or the legacy ones, and plan for them.

    Raises `InvalidRequest` with OpenAI's param (`tools[0].function.name`), `UnsupportedParameter`
    for custom tools.
    """
    allows_many = as_flag(parallel_tool_calls, "parallel_tool_calls") is not False
    is_legacy = functions is not None and tools is None
    if functions is not None and tools is not None:
        raise InvalidRequest("'functions' and 'tools' cannot be used together.", param="functions")
    if is_legacy:
        entries = as_list(functions, "functions", most=MAX_TOOLS)
        known = [_function(entry, f"functions[{i}]") for i, entry in enumerate(entries)]
        places = [f"functions[{i}]" for i in range(len(known))]
    else:
        entries = [] if tools is None else as_list(tools, "tools", most=MAX_TOOLS)
        known = [_tool(entry, f"tools[{i}]") for i, entry in enumerate(entries)]
        places = [f"tools[{i}].function" for i in range(len(known))]
    by_name: dict[str, _Function] = {}
    for function, place in zip(known, places, strict=True):
        name = function.tool.name
        if name in by_name:
            raise InvalidRequest(
                f"Invalid '{place}.name': the name '{name}' is used twice.", param=f"{place}.name"
            )
        by_name[name] = function
    if is_legacy or (function_call is not None and not by_name):
        _refuse_other(tool_choice, "tool_choice", "tools")
        chosen = _function_call(function_call, by_name)
    else:
        _refuse_other(function_call, "function_call", "functions")
        chosen = _tool_choice(tool_choice, by_name)
    return _plan(by_name, chosen, allows_many, is_legacy)


def check_arguments(call: ToolCall) -> None:
    """Raise `AnswerInvalid` unless the arguments are a JSON object; clients parse them unasked."""
    if not isinstance(answer_json(call.arguments), dict):
        raise AnswerInvalid(
            f"The model called '{call.name}' with arguments that are not a JSON object."
        )


def _plan(
    by_name: dict[str, _Function], chosen: _Chosen, allows_many: bool, is_legacy: bool
) -> ToolPlan:
    aliases: dict[str, str] = {}
    for name in by_name:
        aliases[name] = _alias(name, taken={*by_name, *aliases.values()} - {name})
    allows_many = allows_many and not chosen.is_single and not is_legacy
    functions = [by_name[name] for name in chosen.names]
    if chosen.mode == "forced":
        forced = _ForcedCall(functions, is_single=chosen.is_single, allows_many=allows_many)
        return ToolPlan((), "forced", chosen.names, allows_many, is_legacy, aliases, forced)
    declared: tuple[Tool, ...] = ()
    if chosen.mode == "auto":
        declared = tuple(_declared(function, aliases) for function in functions)
    mode: Mode = "auto" if declared else "none"
    return ToolPlan(declared, mode, (), allows_many, is_legacy, aliases)


# Reading the request.


def _refuse_other(given: object, name: str, partner: str) -> None:
    if given is not None:
        raise InvalidRequest(
            f"'{name}' is only allowed when '{partner}' are specified.", param=name
        )


def _tool(given: object, at: str) -> _Function:
    entry = as_object(given, at)
    kind = as_text(entry.get("type"), f"{at}.type", is_required=True)
    if kind == "custom":
        raise UnsupportedParameter(
            "Custom tools are not supported here; use tools of type 'function'.", param=f"{at}.type"
        )
    if kind != "function":
        raise InvalidRequest(f"Invalid value: '{at}.type' must be 'function'.", param=f"{at}.type")
    if entry.get("function") is None:
        raise missing(f"{at}.function")
    return _function(entry["function"], f"{at}.function")


def _function(given: object, at: str) -> _Function:
    entry = as_object(given, at)
    name = as_name(entry.get("name"), f"{at}.name")
    description = as_text(entry.get("description"), f"{at}.description")
    as_flag(entry.get("strict"), f"{at}.strict")
    parameters: dict[str, Any] = {"type": "object", "properties": {}}
    if entry.get("parameters") is not None:
        parameters = as_object(entry["parameters"], f"{at}.parameters")
        if "type" not in parameters:
            parameters = {"type": "object", **parameters}
    try:
        if parameters["type"] != "object":
            raise BadSchema("its type must be 'object'")
        if parameters.keys() <= {"type", "description", "$schema"}:
            parameters = {**parameters, "properties": {}}
        schema = read_schema(parameters)
    except BadSchema as error:
        raise InvalidRequest(
            f"Invalid schema for function '{name}': {error}.",
            param=f"{at}.parameters",
            code="invalid_function_parameters",
        ) from error
    return _Function(Tool(name, description, parameters), schema)


def _tool_choice(given: object, by_name: dict[str, _Function]) -> _Chosen:
    every = tuple(by_name)
    if given is None or given == "auto":
        return _Chosen("auto", every)
    if given == "none":
        return _Chosen("none", ())
    if given == "required":
        if not by_name:
            raise InvalidRequest(
                "'tool_choice' is only allowed when 'tools' are specified.", param="tool_choice"
            )
        return _Chosen("forced", every)
    if isinstance(given, str):
        raise InvalidRequest(
            "Invalid value: 'tool_choice' must be 'none', 'auto', 'required' or an object.",
            param="tool_choice",
        )
    choice = as_object(given, "tool_choice")
    kind = as_text(choice.get("type"), "tool_choice.type", is_required=True)
    if kind == "function":
        return _Chosen("forced", (_named(choice, "tool_choice", by_name),), is_single=True)
    if kind == "allowed_tools":
        return _allowed_tools(choice.get("allowed_tools"), by_name)
    if kind == "custom":
        raise UnsupportedParameter("Custom tools are not supported here.", param="tool_choice.type")
    raise InvalidRequest(
        "Invalid value: 'tool_choice.type' must be 'function' or 'allowed_tools'.",
        param="tool_choice.type",
    )


def _allowed_tools(given: object, by_name: dict[str, _Function]) -> _Chosen:
    at = "tool_choice.allowed_tools"
    if given is None:
        raise missing(at)
    allowed = as_object(given, at)
    mode = as_text(allowed.get("mode"), f"{at}.mode", is_required=True)
    if mode not in ("auto", "required"):
        raise InvalidRequest(
            f"Invalid value: '{at}.mode' must be 'auto' or 'required'.", param=f"{at}.mode"
        )
    if allowed.get("tools") is None:
        raise missing(f"{at}.tools")
    entries = as_list(allowed["tools"], f"{at}.tools", most=MAX_TOOLS)
    if not entries:
        raise InvalidRequest(
            f"Invalid '{at}.tools': expected at least one tool.",
            param=f"{at}.tools",
            code="empty_array",
        )
    names = [
        _named(as_object(entry, f"{at}.tools[{i}]"), f"{at}.tools[{i}]", by_name)
        for i, entry in enumerate(entries)
    ]
    return _Chosen("forced" if mode == "required" else "auto", tuple(dict.fromkeys(names)))


def _named(choice: dict[str, Any], at: str, by_name: dict[str, _Function]) -> str:
    """The function that `{type, function: {name}}` means."""
    if choice.get("type") != "function":
        raise InvalidRequest(f"Invalid value: '{at}.type' must be 'function'.", param=f"{at}.type")
    if choice.get("function") is None:
        raise missing(f"{at}.function")
    function = as_object(choice["function"], f"{at}.function")
    return _known(function, f"{at}.function", by_name, "tools")


def _known(entry: dict[str, Any], at: str, by_name: dict[str, _Function], where: str) -> str:
    name = as_text(entry.get("name"), f"{at}.name", is_required=True)
    if name not in by_name:
        raise InvalidRequest(
            f"Invalid value: '{at}.name' is not one of the functions in '{where}'.",
            param=f"{at}.name",
        )
    return name


def _function_call(given: object, by_name: dict[str, _Function]) -> _Chosen:
    if given is None or given == "auto":
        return _Chosen("auto", tuple(by_name))
    if given == "none":
        return _Chosen("none", ())
    if isinstance(given, str):
        raise InvalidRequest(
            "Invalid value: 'function_call' must be 'none', 'auto' or an object.",
            param="function_call",
        )
    call = as_object(given, "function_call")
    name = _known(call, "function_call", by_name, "functions")
    return _Chosen("forced", (name,), is_single=True)


# What Codex gets.


def _alias(name: str, taken: Iterable[str]) -> str:
    """The name for Codex: the same on every request, since histories come back from anywhere."""
    if name not in _SWALLOWED and not name.startswith(_RESERVED_PREFIX):
        return name
    alias, mark = f"{_ALIAS}{name}", name
    while len(alias) > MAX_NAME or alias in taken:
        mark = hashlib.sha256(mark.encode()).hexdigest()[:8]
        alias = f"{_ALIAS}{name[: MAX_NAME - len(_ALIAS) - 9]}_{mark}"
    return alias


def _declared(function: _Function, aliases: dict[str, str]) -> Tool:
    parameters, lost = _Declaration(function.schema).make()
    description = function.tool.description
    if lost:
        rules = f"Rules for the arguments: {'; '.join(lost)}"
        rules = rules if len(rules) <= _MAX_NOTES else f"{rules[:_MAX_NOTES]}…"
        description = f"{description}\n{rules}" if description else rules
    return Tool(aliases[function.tool.name], description, parameters)


class _Declaration:
    """One function's parameters in the words that Codex keeps, and what got lost, by path."""

    def __init__(self, schema: CallerSchema) -> None:
        self._schema = schema
        self._lost: list[str] = []
        self._names: dict[str, str] = {}
        self._shaper = Shaper()

    def make(self) -> tuple[dict[str, Any], list[str]]:
        """Return both; a schema too tangled for Codex's words goes as it is, and as text."""
        try:
            return self._make(), self._lost
        except Inexpressible:
            root = self._schema.root
            return root, [f"they must match {dump_json(root)}"]

    def _make(self) -> dict[str, Any]:
        root = self._part(self._schema.root, "")
        definitions: dict[str, Any] = {}
        while waiting := [ref for ref, name in self._names.items() if name not in definitions]:
            for ref in waiting:
                name = self._names[ref]
                definitions[name] = self._part(self._schema.resolve(ref), name)
        if definitions:
            root["$defs"] = definitions
        return {**root, "type": "object"}

    def _part(self, schema: Any, path: str) -> Any:  # noqa: ANN401 - a schema: object or boolean
        if not isinstance(schema, dict):
            return schema
        self._shaper.spend(path.count(".") + path.count("[]"))
        schema = self._in_its_words(schema)
        found = notes(schema, _KEPT)
        if found:
            self._lost.append(f"{path or 'all'}: {', '.join(found)}")
        part = {
            key: schema[key] for key in ("type", "required", "enum", "minItems") if key in schema
        }
        if isinstance(schema.get("description"), str):
            part["description"] = schema["description"]
        if "$ref" in schema:
            part["$ref"] = f"#/$defs/{self._name(schema['$ref'])}"
        if "properties" in schema:
            part["properties"] = {
                name: self._part(child, f"{path}.{name}" if path else name)
                for name, child in schema["properties"].items()
            }
        if "anyOf" in schema:
            part["anyOf"] = [self._part(child, path) for child in schema["anyOf"]]
        for key, suffix in (("items", "[]"), ("additionalProperties", ".*")):
            if key in schema:
                part[key] = self._part(schema[key], f"{path}{suffix}")
        return part

    def _in_its_words(self, schema: dict[str, Any]) -> dict[str, Any]:
        """The same with the keywords that Codex knows, as far as they can say it."""
        said = flattened(schema, self._schema, self._shaper) if "allOf" in schema else dict(schema)
        if "const" in said:
            said.setdefault("enum", [said.pop("const")])
        if "enum" in said and "type" not in said:  # it would become a string
            kinds = list(dict.fromkeys(_kind(value) for value in said["enum"]))
            said["type"] = kinds[0] if len(kinds) == 1 else kinds
        if "oneOf" in said and "anyOf" not in said:
            said["anyOf"] = said.pop("oneOf")
        if isinstance(said.get("items"), list):
            said["prefixItems"] = said.pop("items")
        return said

    def _name(self, ref: str) -> str:
        if ref not in self._names:
            last = "".join(c if c.isalnum() and c.isascii() else "_" for c in ref.rsplit("/")[-1])
            name, number = last or "root", 2
            while name in self._names.values():
                name, number = f"{last}_{number}", number + 1
            self._names[ref] = name
        return self._names[ref]


def _kind(value: object) -> str:
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
    return "null" if value is None else kinds.get(type(value), "object")


# A demanded call, as structured output.


class _ForcedCall:
    """Asks for calls as an answer. Three forms, so that each is as plain as it can be:

    one named function: its arguments; one call of several: {tool, arguments}; many: {calls: [...]}.
    """

    def __init__(self, functions: list[_Function], *, is_single: bool, allows_many: bool) -> None:
        self._functions = {function.tool.name: function for function in functions}
        self._is_single = is_single
        self._allows_many = allows_many
        self.shape = self._shape()
        self.instruction = self._instruction()

    def _shape(self) -> Shape | None:
        shaper = Shaper()
        try:
            nodes = {name: shaper.node(item.schema) for name, item in self._functions.items()}
            return shaper.shape(self._root(nodes))
        except (Inexpressible, BadSchema):  # too much for strict mode, or no arguments can match
            return None

    def _root(self, nodes: dict[str, Node]) -> Node:
        if self._is_single:
            return next(iter(nodes.values()))
        calls: list[Node] = [
            Record({"tool": Property(Plain(("string",), (name,))), "arguments": Property(node)})
            for name, node in nodes.items()
        ]
        call = calls[0] if len(calls) == 1 else Choice(tuple(calls))
        if self._allows_many:
            return Record({"calls": Property(Listing(call, {"minItems": 1}))})
        return call if isinstance(call, Record) else Record({"call": Property(call)})

    def _instruction(self) -> str:
        listed = "\n\n".join(
            "\n".join(
                filter(
                    None,
                    (
                        f"Function: {item.tool.name}",
                        item.tool.description,
                        f"Parameters (JSON schema): {dump_json(item.tool.parameters)}",
                    ),
                )
            )
            for item in self._functions.values()
        )
        return f"{self._demand()}\n\n{listed}"

    def _demand(self) -> str:
        only = "Answer with that JSON and nothing else."
        if self.shape is not None:
            only += " Give null for an optional property that you leave out."
        if self._is_single:
            name = next(iter(self._functions))
            return f"Call the function {name} now: your answer is the JSON of its arguments. {only}"
        call = '{"tool": <name of the function>, "arguments": <its arguments>}'
        if self._allows_many:
            return (
                "Call one or more of these functions now: your answer is the JSON of the calls, "
                f'{{"calls": [{call}, ...]}}, in the order in which they are to run. {only}'
            )
        if len(self._functions) > 1:
            call = f'{{"call": {call}}}'
        return (
            f"Call one of these functions now: your answer is the JSON of the call, {call}. {only}"
        )

    def read(self, text: str) -> tuple[ToolCall, ...]:
        text = unfenced(text) if self.shape is None else text
        answer = answer_json(text)
        value, fits = self.shape.restore(answer) if self.shape else (answer, False)
        if self._is_single:
            call = self._call(next(iter(self._functions)), value, fits)
            return (replace(call, arguments=text) if value is answer else call,)
        calls = [self._split(call) for call in self._calls(value)]
        return tuple(self._call(name, arguments, fits) for name, arguments in calls)

    def _calls(self, value: object) -> list[object]:
        if not isinstance(value, dict):
            raise AnswerInvalid("The model's answer is not a function call: it is not an object.")
        if not self._allows_many:
            return [value.get("call", value)]
        calls = value.get("calls")
        if not isinstance(calls, list) or not calls:
            raise AnswerInvalid("The model's answer is not a function call: it has no calls.")
        return calls

    def _split(self, call: object) -> tuple[str, object]:
        name = call.get("tool") if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(name, str) or name not in self._functions:
            raise AnswerInvalid("The model's answer is not a call to one of the functions.")
        return name, call.get("arguments")

    def _call(self, name: str, arguments: object, fits: bool) -> ToolCall:
        problem = self._functions[name].schema.problem(arguments, fits_shape=fits)
        if problem is not None:
            raise AnswerInvalid(f"The model's arguments for '{name}' do not match: {problem}.")
        return ToolCall(f"call_{secrets.token_hex(12)}", name, dump_json(arguments))
