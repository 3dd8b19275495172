"""The OpenAPI document: what ninja derives from the operations, and what it cannot know of them.

That is: the same endpoint answers as server-sent events; the headers of answers; and the shapes of
fields that are checked by our own code, because pydantic could not name the part at fault.
"""

from __future__ import annotations

from typing import Any

from pydantic import GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue, models_json_schema
from pydantic_core import CoreSchema

REF = "#/components/schemas/{model}"

ERRORS = {
    "400": "The request is not understood, or asks for what cannot be done; `param` names the field.",
    "401": "There is no key, or not a valid one.",
    "403": "The key may not use this model, folder or mode.",
    "404": "There is no such model or endpoint.",
    "413": "The body is too large.",
    "415": "The body is not sent as application/json.",
    "429": "Too many requests: of this key, on this server, or at the model provider.",
    "500": "A fault of this server.",
    "502": "Codex or the model provider failed.",
    "503": "Codex cannot start or is not logged in, or the server cannot serve now.",
    "504": "The deadline of the request passed. `x-should-retry: false` says not to try again.",
}
_REQUEST_ID = "The id of this request's row in the audit log."
_TEXT = {"schema": {"type": "string"}}
HEADERS: dict[str, dict[str, Any]] = {
    "x-request-id": {"description": _REQUEST_ID, "required": True, **_TEXT},
    "x-ignored-params": {
        "description": "The fields of the request that were ignored, separated by commas.",
        **_TEXT,
    },
    "retry-after": {
        "description": "Seconds to wait before another try.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 60},
    },
    "x-should-retry": {
        "description": "`false` where another try would only repeat a long failure.",
        "schema": {"const": "false"},
    },
}
METRICS = {
    "parameters": [
        {
            "name": "format",
            "in": "query",
            "description": "`prometheus` asks for Prometheus text, and so does such an `Accept`.",
            "schema": {"type": "string"},
        }
    ],
    "responses": {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
}


class Described:
    """Marks a field that our own code checks: any value to pydantic, this type in the document."""

    def __init__(self, shape: Any) -> None:  # noqa: ANN401 - a model or a union of them
        self._shape = shape

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return handler(TypeAdapter(self._shape).core_schema)


def complete(document: dict[str, Any], streams: dict[str, type[Any]]) -> dict[str, Any]:
    """Add to ninja's document, in place, what it leaves out.

    `streams` has the model of an event for each operation (by its id) that can answer in events.
    """
    document["components"]["headers"] = HEADERS
    chunks = [(model, "serialization") for model in streams.values()]
    _, schema = models_json_schema(chunks, ref_template=REF)  # type: ignore[arg-type]
    document["components"]["schemas"].update(schema["$defs"])
    for path in document["paths"].values():
        for operation in path.values():
            event = streams.get(operation["operationId"])
            if event is not None:
                _add_stream(operation["responses"][200], event)
            for status, answer in operation["responses"].items():
                _describe(str(status), answer)
    return document


def _add_stream(answer: dict[str, Any], event: type[Any]) -> None:
    answer["content"]["text/event-stream"] = {
        "schema": {"$ref": REF.format(model=event.__name__)},
    }
    answer["description"] = (
        "The whole answer; or, with `stream`, server-sent events: each `data:` line is one chunk, "
        "or an error as in the other answers, which ends the stream. A stream that went well ends "
        "with `data: [DONE]`. Lines that begin with a colon only keep the connection open."
    )


def _describe(status: str, answer: dict[str, Any]) -> None:
    names = ["x-request-id"]
    if status == "200":
        names += ["x-ignored-params"] if "text/event-stream" in answer.get("content", {}) else []
    elif "ErrorEnvelope" in str(answer):
        answer["description"] = ERRORS[status]
        names += {"429": ["retry-after"], "503": ["retry-after"], "504": ["x-should-retry"]}.get(
            status, []
        )
    answer["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
