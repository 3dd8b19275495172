"""The OpenAPI document: a client generated from it works, and it tells nothing of our insides."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema_rs
import pytest
from openapi_spec_validator import validate

from proxy.api import api

METHODS = {
    "/v1/chat/completions": {"post": "createChatCompletion"},
    "/v1/completions": {"post": "createCompletion"},
    "/v1/models": {"get": "listModels"},
    "/v1/models/{model_id}": {"get": "retrieveModel"},
    "/health": {"get": "getHealth"},
    "/ready": {"get": "getReadiness"},
    "/metrics": {"get": "getMetrics"},
}


@pytest.fixture(scope="module")
def document() -> Any:
    """The document as clients get it: JSON."""
    return json.loads(json.dumps(api.get_openapi_schema(path_prefix="")))


def operations(document: Any, prefix: str = "/v1/") -> dict[str, Any]:
    return {
        operation["operationId"]: operation
        for path, methods in document["paths"].items()
        if path.startswith(prefix)
        for operation in methods.values()
    }


def validator(document: Any, name: str) -> Any:
    """Return what judges values by a schema of the document."""
    reference = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    return jsonschema_rs.validator_for(reference)


def test_document_is_valid_and_names_every_operation(document: Any) -> None:
    validate(document)
    found = {
        path: {method: operation["operationId"] for method, operation in methods.items()}
        for path, methods in document["paths"].items()
    }
    assert found == METHODS


def test_document_names_no_inside_of_the_server(document: Any) -> None:
    text = json.dumps(document).lower()
    assert not re.findall(r"django|ninja|pydantic|proxy_api|/home/|csrf|session", text)


def test_every_operation_of_the_api_takes_a_bearer_key_and_the_others_none(document: Any) -> None:
    (name, scheme), *others = document["components"]["securitySchemes"].items()
    assert not others
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for operation in operations(document).values():
        assert operation["security"] == [{name: []}]
    for prefix in ("/health", "/ready", "/metrics"):
        (operation,) = operations(document, prefix).values()
        assert "security" not in operation


def test_every_error_of_the_api_has_the_envelope_and_says_what_it_means(document: Any) -> None:
    for operation in operations(document).values():
        errors = {k: v for k, v in operation["responses"].items() if k >= "400"}
        assert set(errors) >= {"400", "401", "403", "404", "413", "429", "500", "502", "503", "504"}
        for answer in errors.values():
            (kind,) = answer["content"]
            reference = answer["content"][kind]["schema"]["$ref"]
            assert (kind, reference) == ("application/json", "#/components/schemas/ErrorEnvelope")
            assert answer["description"].endswith(".")
    error = document["components"]["schemas"]["ErrorBody"]
    assert set(error["required"]) == {"message", "type", "param", "code"}


def test_every_answer_names_its_headers(document: Any) -> None:
    known = document["components"]["headers"]
    for operation in operations(document, "/").values():
        for status, answer in operation["responses"].items():
            assert "x-request-id" in answer["headers"]
            assert set(answer["headers"]) <= set(known)
            if status == "429":
                assert "retry-after" in answer["headers"]


@pytest.mark.parametrize(
    ("operation", "whole", "event"),
    [
        ("createChatCompletion", "ChatCompletion", "ChatCompletionChunk"),
        ("createCompletion", "TextCompletion", "TextCompletion"),
    ],
)
def test_completions_come_whole_or_as_events(
    document: Any, operation: str, whole: str, event: str
) -> None:
    answer = operations(document)[operation]["responses"]["200"]
    assert {kind: part["schema"]["$ref"].rpartition("/")[2] for kind, part in answer["content"].items()} == {
        "application/json": whole,
        "text/event-stream": event,
    }  # fmt: skip
    assert "[DONE]" in answer["description"]


def test_every_field_of_the_request_has_a_type(document: Any) -> None:
    request = document["components"]["schemas"]["ChatCompletionRequest"]
    assert set(request["required"]) == {"model", "messages"}
    for name, field in request["properties"].items():
        assert {"type", "$ref", "anyOf", "enum"} & set(field), name
        assert "{}" not in json.dumps(field), name


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,", "detail": "low"}}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}},
        {"functions": [{"name": "f"}], "function_call": {"name": "f"}},
        {"stop": ["a", "b"], "n": 2, "temperature": 0, "logit_bias": {"1": -100}, "top_k": 1},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]}]},
        {"messages": [{"role": "assistant", "tool_calls": [CALL]},
                      {"role": "tool", "tool_call_id": "c", "content": "1"}]},
        {"tools": None, "stop": None, "response_format": None, "stream_options": None},
    ],
)  # fmt: skip
def test_requests_that_clients_send_are_valid(document: Any, fields: dict[str, Any]) -> None:
    request = {"model": "default", "messages": [{"role": "user", "content": "hi"}], **fields}
    validator(document, "ChatCompletionRequest").validate(request)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 3},
        {"n": "1"},
        {"messages": []},
        {"tools": [{"type": "custom", "custom": {"name": "f"}}]},
        {"tool_choice": "always"},
        {"response_format": {"type": "json_schema"}},
        {"stop": ["1", "2", "3", "4", "5"]},
        {"verbosity": "loud"},
    ],
)
def test_requests_that_are_refused_are_not_valid(document: Any, fields: dict[str, Any]) -> None:
    request = {"model": "default", "messages": [{"role": "user", "content": "hi"}], **fields}
    assert not validator(document, "ChatCompletionRequest").is_valid(request)
