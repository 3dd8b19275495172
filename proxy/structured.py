"""`response_format`: what is sent to Codex for it, and what the model's answer must pass. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from proxy.callerschema import (
    BadJson,
    BadSchema,
    CallerSchema,
    dump_json,
    load_json,
    read_schema,
)
from proxy.errors import InvalidRequest, TurnFailed
from proxy.strict import Inexpressible, Shape, Shaper

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

_ONLY_JSON = "Answer with one JSON value and nothing else: no explanation, no code fence."
_ONLY_OBJECT = "Answer with one JSON object and nothing else: no explanation, no code fence."


class AnswerInvalid(TurnFailed):
    """The model's answer is not what the caller's schema asks for; asking again may help.

    The message says what did not match, and never repeats the answer.
    """

    code = "invalid_structured_output"
    reason = "The model's answer is not what was asked for."
    """For the audit row: what did not match may name a key of the answer."""


@dataclass(frozen=True, slots=True, eq=False)
class OutputFormat:
    """How an answer is asked for, and how it is read.

    `schema_for_codex` is the turn's output schema, in OpenAI's strict form, or None. `instruction`
    is developer text that the model needs beside it; it may be empty.
    """

    schema_for_codex: dict[str, Any] | None
    instruction: str
    _shape: Shape | None = None
    _caller: CallerSchema | None = None

    def read(self, text: str) -> str:
        """Return the JSON text for the caller: the model's own, unless its shape had to change.

        Raises `AnswerInvalid` where the text is not JSON or is not what the caller asked for.
        """
        if self._shape is None:
            text = unfenced(text)
        answer = answer_json(text)
        value, fits = self._shape.restore(answer) if self._shape else (answer, False)
        if self._caller is None:
            problem = None if isinstance(value, dict) else "it is not a JSON object"
        else:
            problem = self._caller.problem(value, fits_shape=fits)
        if problem is not None:
            raise AnswerInvalid(f"The model's answer does not match response_format: {problem}.")
        return text if value is answer else dump_json(value)


def answer_json(text: str) -> Any:  # noqa: ANN401 - JSON is any
    """Return the value of the model's text; raises `AnswerInvalid`."""
    try:
        return load_json(text)
    except BadJson as error:
        raise AnswerInvalid(f"The model's answer is unusable: {error}.") from error


def unfenced(text: str) -> str:
    """Return `text` without a code fence around all of it: models add one in spite of the words."""
    first, newline, rest = text.strip().partition("\n")
    if newline and first.strip().lower() in ("```", "```json") and rest.endswith("```"):
        return rest.removesuffix("```").strip()
    return text


def strict_schema(schema: dict[str, Any]) -> dict[str, Any] | None:
    """Return `schema` in strict mode's form; None where that cannot be.

    Raises `InvalidRequest` where it is no schema at all.
    """
    try:
        shape = _shape_of(read_schema(schema))
    except BadSchema as error:
        raise InvalidRequest(f"Invalid schema: {error}.") from error
    return shape.schema if shape else None


def output_format(response_format: object) -> OutputFormat | None:
    """Check OpenAI's `response_format`; None means plain text. Raises `InvalidRequest`."""
    if response_format is None:
        return None
    wanted = as_object(response_format, "response_format")
    kind = as_text(wanted.get("type"), "response_format.type", is_required=True)
    if kind == "text":
        return None
    if kind == "json_object":
        return OutputFormat(None, _ONLY_OBJECT)
    if kind == "json_schema":
        return _schema_format(wanted.get("json_schema"))
    raise InvalidRequest(
        "Invalid value: 'response_format.type' must be 'text', 'json_object' or 'json_schema'.",
        param="response_format.type",
    )


def repair_request(text: str, problem: str) -> str:
    """Return the user's words for one more try, after `text` failed because of `problem`."""
    return (
        f"Your answer cannot be used. {problem}\n\nYour answer was:\n{text}\n\n"
        "Answer again, with the corrected JSON only: no explanation, no code fence."
    )


def _schema_format(given: object) -> OutputFormat:
    at = "response_format.json_schema"
    if given is None:
        raise missing(at)
    wanted = as_object(given, at)
    name = as_name(wanted.get("name"), f"{at}.name")
    description = as_text(wanted.get("description"), f"{at}.description")
    as_flag(wanted.get("strict"), f"{at}.strict")
    about = f"The answer is {name}: {description}" if description else ""
    schema = wanted.get("schema")
    if schema is None:
        return OutputFormat(None, f"{_ONLY_OBJECT}\n{about}".strip())
    as_object(schema, f"{at}.schema")
    try:
        caller = read_schema(schema)
        shape = _shape_of(caller, description)
    except BadSchema as error:
        raise InvalidRequest(
            f"Invalid schema for response_format '{name}': {error}.", param=f"{at}.schema"
        ) from error
    if shape is not None:
        return OutputFormat(shape.schema, "", shape, caller)
    instruction = f"{_ONLY_JSON} It must match this JSON schema:\n{dump_json(schema)}\n{about}"
    return OutputFormat(None, instruction.strip(), None, caller)


def _shape_of(caller: CallerSchema, about: str = "") -> Shape | None:
    shaper = Shaper()
    try:
        return shaper.shape(shaper.node(caller), about)
    except Inexpressible:
        return None


# What OpenAI says about a field of the wrong kind; `proxy.tools` says it too.


def missing(param: str) -> InvalidRequest:
    return InvalidRequest(
        f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
    )


def _wrong_type(value: object, param: str, wanted: str) -> InvalidRequest:
    kinds = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    given = kinds.get(type(value), "number")
    return InvalidRequest(
        f"Invalid type for '{param}': expected {wanted}, but got {given} instead.",
        param=param,
        code="invalid_type",
    )


def as_object(value: object, param: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong_type(value, param, "an object")
    return value


def as_list(value: object, param: str, *, most: int) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong_type(value, param, "an array")
    if len(value) > most:
        raise InvalidRequest(
            f"Invalid '{param}': array too long. Expected at most {most} items, got {len(value)}.",
            param=param,
            code="array_above_max_length",
        )
    return value


def as_text(value: object, param: str, *, is_required: bool = False) -> str:
    if value is None and is_required:
        raise missing(param)
    if value is not None and not isinstance(value, str):
        raise _wrong_type(value, param, "a string")
    return value or ""


def as_flag(value: object, param: str) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise _wrong_type(value, param, "a boolean")
    return value


def as_name(value: object, param: str) -> str:
    name = as_text(value, param, is_required=True)
    if not NAME.fullmatch(name):
        raise InvalidRequest(
            f"Invalid '{param}': it must be 1 to 64 letters, digits, underscores or dashes.",
            param=param,
        )
    return name
