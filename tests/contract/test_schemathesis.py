"""No input of any kind gets a 5xx, or an answer that the OpenAPI document does not describe.

Schemathesis makes the requests, valid and broken ones, from the document; the server is a real one,
with the real codex and the demo's stand-in for a model, so any 5xx would be a fault of ours.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import jsonschema_rs
import orjson
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.transport import DEFAULT_MAX_STREAM_EVENTS
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from proxy.api import api
from tests.processes import WAIT_S, Serving

DOCUMENT = json.loads(json.dumps(api.get_openapi_schema(path_prefix="")))
EXAMPLES = 30

pytestmark = pytest.mark.timeout(180)

schema = schemathesis.openapi.from_dict(DOCUMENT)


def judge_of(name: str) -> Any:
    reference = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    return jsonschema_rs.validator_for(reference)


JUDGES = {
    name: judge_of(name) for name in ("ChatCompletionChunk", "TextCompletion", "ErrorEnvelope")
}
bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class Server:
    """A served demo and its key."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.headers = url, {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir = tmp_path_factory.mktemp("fuzzed") / "data"
    with Serving(data_dir, "serve", "--port", "0", "--demo", "--workers", "2") as running:
        threading.Thread(target=running.process.stdout.read, daemon=True).start()  # type: ignore[union-attr]
        yield Server(running.url, running.find(r"(?m)^API key \(shown once\): (\S+)$"))


REFUSED = ("audio", "web_search_options", "logprobs", "top_logprobs")
"""What is in the document only to be refused by name: with it, a request ends there."""


@schema.parametrize()
@bounded
def test_every_answer_is_as_the_document_says(case: Any, server: Server) -> None:
    check_answer(case, server)


@bounded
@given(case=schema["/v1/chat/completions"]["POST"].as_strategy(), stream=st.booleans())
def test_requests_with_a_plain_question_are_answered_or_refused(
    case: Any, stream: bool, server: Server
) -> None:
    """The first test's requests seldom get as far as a turn; these do."""
    assume(isinstance(case.body, dict))
    for name in (*REFUSED, *([] if stream else ["stream_options"])):
        case.body.pop(name, None)
    case.body |= {
        "model": "default",
        "stream": stream,
        "messages": [{"role": "user", "content": "hi"}],
    }
    if case.body.get("n"):
        case.body["n"] = min(case.body["n"], 3)
    check_answer(case, server)


def check_answer(case: Any, server: Server) -> None:
    response = case.call(base_url=server.url, headers=server.headers, timeout=WAIT_S)
    is_events = "text/event-stream" in str(response.headers.get("content-type"))
    checks = [content_type_conformance, response_headers_conformance]
    # What the stand-in says is never JSON, and Codex's failures are no faults of ours.
    checks += [] if "invalid_structured_output" in response.text else [not_a_server_error]
    # A method that the document does not name is not in its list of statuses.
    checks += [] if response.status_code in (404, 405) else [status_code_conformance]
    checks += [] if is_events else [response_schema_conformance]
    case.validate_response(response, checks=checks)
    if response.status_code >= 400 and case.path.startswith("/v1/"):
        JUDGES["ErrorEnvelope"].validate(orjson.loads(response.content))
    if is_events:
        check_events(
            response.content, "ChatCompletionChunk" if "chat" in case.path else "TextCompletion"
        )


def check_events(body: bytes, chunk: str) -> None:
    """Every event is a chunk; the last one is an error, or the end, where it was read so far."""
    *events, rest = body.decode().split("\n\n")
    assert rest == ""
    data = [event.removeprefix("data: ") for event in events if not event.startswith(":")]
    if len(data) < DEFAULT_MAX_STREAM_EVENTS and data[-1] != "[DONE]":
        JUDGES["ErrorEnvelope"].validate(orjson.loads(data.pop()))
    for event in data:
        if event != "[DONE]" or event is not data[-1]:
            JUDGES[chunk].validate(orjson.loads(event))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
FIELDS = sorted(DOCUMENT["components"]["schemas"]["ChatCompletionRequest"]["properties"])


@bounded
@given(
    path=st.sampled_from(["/v1/chat/completions", "/v1/completions"]),
    fields=st.dictionaries(
        st.sampled_from([*FIELDS, "prompt", "suffix", "\x00"]), JSON, max_size=3
    ),
)
def test_any_json_in_any_field_gets_an_answer_or_the_envelope(
    path: str, fields: dict[str, Any], server: Server
) -> None:
    body = {"model": "default", "messages": [{"role": "user", "content": "hi"}], "prompt": "hi"}
    check_plain(server, path, json.dumps({**body, **fields}).encode())


@bounded
@given(body=st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_get_the_envelope(body: bytes, server: Server) -> None:
    check_plain(server, "/v1/chat/completions", body)


@bounded
@given(
    path=st.text(st.characters(exclude_categories=["Cs"]), max_size=30), body=st.binary(max_size=9)
)
def test_any_url_gets_the_envelope(path: str, body: bytes, server: Server) -> None:
    check_plain(server, f"/v1/{quote(path)}", body)


@pytest.mark.parametrize(
    "kind",
    ["multipart/form-data", "multipart/form-data; boundary=x", "text/plain", "application/json; x"],
)
def test_body_of_another_kind_gets_the_envelope_and_not_the_bare_400_of_twisted(
    kind: str, server: Server
) -> None:
    response = httpx.post(
        f"{server.url}/v1/chat/completions",
        content=b"no such thing",
        headers={**server.headers, "content-type": kind},
        timeout=WAIT_S,
    )
    assert response.status_code in (400, 415)
    JUDGES["ErrorEnvelope"].validate(response.json())


def check_plain(server: Server, path: str, body: bytes) -> None:
    response = httpx.post(
        f"{server.url}{path}",
        content=body,
        headers={**server.headers, "content-type": "application/json"},
        timeout=WAIT_S,
    )
    assert response.status_code < 500 or "invalid_structured_output" in response.text
    if response.status_code >= 400:
        JUDGES["ErrorEnvelope"].validate(response.json())
