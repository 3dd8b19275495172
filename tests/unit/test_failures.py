"""Every row of the table that was measured with Codex 0.163, as each engine sees it."""

from __future__ import annotations

import json

import pytest

from proxy.engines.failures import error_of, scrub
from proxy.errors import (
    AnswerIncomplete,
    ContextTooLong,
    EngineError,
    EngineUnavailable,
    PromptRefused,
    RateLimited,
    TurnFailed,
    UpstreamOverloaded,
    UpstreamRefusedLogin,
    UsageLimited,
)

URL = "http://127.0.0.1:8080/v1/responses"


def http(status: int | None) -> dict[str, dict[str, int | None]]:
    return {"httpConnectionFailed": {"httpStatusCode": status}}


def unexpected(status: str) -> str:
    return f"unexpected status {status}: some message, url: {URL}"


BAD_REQUEST = json.dumps({"error": {"message": "Unsupported value", "code": "invalid_value"}})
TOO_LONG = json.dumps({"error": {"message": "too long", "code": "context_length_exceeded"}})
TOO_MANY = "exceeded retry limit, last status: 429 Too Many Requests"
BROKEN = "stream disconnected before completion: "

# What codex said, codexErrorInfo, what it is to us, its code.
TABLE: list[tuple[str, object, type[EngineError], str]] = [
    (BAD_REQUEST, "other", PromptRefused, "invalid_prompt"),
    (TOO_LONG, "other", ContextTooLong, "context_length_exceeded"),
    (unexpected("401 Unauthorized"), http(401), UpstreamRefusedLogin, "upstream_auth_failed"),
    (unexpected("403 Forbidden"), http(403), UpstreamRefusedLogin, "upstream_auth_failed"),
    (unexpected("404 Not Found"), http(404), TurnFailed, "upstream_error"),
    (unexpected("413 Payload Too Large"), http(413), TurnFailed, "upstream_error"),
    (
        TOO_MANY,
        {"responseTooManyFailedAttempts": {"httpStatusCode": 429}},
        RateLimited,
        "rate_limit_exceeded",
    ),
    (
        "You’ve hit your usage limit. Upgrade or try again at 9:33 AM.",  # noqa: RUF001 - as Codex says it
        "usageLimitExceeded",
        UsageLimited,
        "insufficient_quota",
    ),
    (
        "Quota exceeded. Check your plan and billing details.",
        "usageLimitExceeded",
        UsageLimited,
        "insufficient_quota",
    ),
    (
        "We’re currently experiencing high demand, which may cause temporary errors.",  # noqa: RUF001
        "internalServerError",
        TurnFailed,
        "upstream_error",
    ),
    (unexpected("502 Bad Gateway"), http(502), TurnFailed, "upstream_error"),
    (
        "Selected model is at capacity. Please try a different model.",
        "serverOverloaded",
        UpstreamOverloaded,
        "server_overloaded",
    ),
    (unexpected("503 Service Unavailable"), http(503), UpstreamOverloaded, "server_overloaded"),
    (
        "Connection failed: error sending request",
        http(None),
        TurnFailed,
        "upstream_unreachable",
    ),
    (
        f"{BROKEN}Transport error: network error: error decoding response body",
        "other",
        TurnFailed,
        "upstream_disconnected",
    ),
    (
        f"{BROKEN}stream closed before response.completed",
        "other",
        TurnFailed,
        "upstream_disconnected",
    ),
    (f"{BROKEN}idle timeout waiting for SSE", "other", TurnFailed, "upstream_disconnected"),
    (
        "Codex ran out of room in the model's context window. Start a new thread.",
        "contextWindowExceeded",
        ContextTooLong,
        "context_length_exceeded",
    ),
    (
        "rate limit exceeded: try again in 1.5s",
        "rateLimitExceeded",
        RateLimited,
        "rate_limit_exceeded",
    ),
    (f"{BROKEN}the server had an error", "other", TurnFailed, "upstream_disconnected"),
    ("Invalid prompt: it was flagged", "other", PromptRefused, "invalid_prompt"),
    (
        "Incomplete response returned, reason: max_output_tokens",
        "other",
        AnswerIncomplete,
        "answer_incomplete",
    ),
    (
        f"{BROKEN}Incomplete response returned, reason: content_filter",
        "other",
        AnswerIncomplete,
        "answer_incomplete",
    ),
    ("Missing environment variable: `MOCK_KEY`.", "other", EngineUnavailable, "engine_unavailable"),
]
IDS = [f"{message[:24]}-{info}" for message, info, _, _ in TABLE]


@pytest.mark.parametrize(("message", "info", "kind", "code"), TABLE, ids=IDS)
def test_app_server_names_the_cause(message: str, info: object, kind: type, code: str):
    error = error_of(message, info)
    assert (type(error), error.code) == (kind, code)


@pytest.mark.parametrize(("message", "info", "kind", "code"), TABLE, ids=IDS)
def test_exec_gives_the_text_only(message: str, info: object, kind: type, code: str):
    error = error_of(message)
    assert (type(error), error.code) == (kind, code)


@pytest.mark.parametrize(("message", "info", "kind", "code"), TABLE, ids=IDS)
def test_no_message_tells_where_the_provider_is(message: str, info: object, kind: type, code: str):
    for error in (error_of(message, info), error_of(message)):
        assert "127.0.0.1" not in str(error)
        assert "MOCK_KEY" not in str(error)


def test_a_refusal_by_policy_is_known_by_its_name():
    error = error_of("This request was flagged.", "cyberPolicy")
    assert (type(error), error.code) == (PromptRefused, "content_policy_violation")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("unauthorized", UpstreamRefusedLogin), ("usageLimitExceeded", UsageLimited)],
)
def test_the_name_decides_where_the_text_is_not_known(name: str, kind: type):
    assert type(error_of("To use Codex, upgrade your plan.", name)) is kind


@pytest.mark.parametrize(
    ("reason", "finish"), [("max_output_tokens", "length"), ("content_filter", "content_filter")]
)
def test_an_incomplete_answer_knows_its_finish_reason(reason: str, finish: str):
    error = error_of(f"Incomplete response returned, reason: {reason}")
    assert isinstance(error, AnswerIncomplete)
    assert error.finish_reason == finish


def test_a_context_that_is_too_long_is_told_in_the_words_that_clients_know():
    assert "maximum context length" in str(error_of(TOO_LONG))


@pytest.mark.parametrize("info", [None, "", "novel", {}, {"novel": None}, {"novel": {}}, 7, []])
@pytest.mark.parametrize("message", ["", "{", "[]", "{}", '{"error": "text"}', "something new"])
def test_whatever_codex_says_is_a_typed_error_with_a_message(message: str, info: object):
    error = error_of(message, info)
    assert isinstance(error, TurnFailed)
    assert str(error)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("url: https://api.openai.com/v1/responses, try", "openai.com"),
        ("(http://10.0.0.7:8080/v1)", "10.0.0.7"),
        ("wss://chat.example/x?token=1", "chat.example"),
        ("cannot open /home/codex/.codex/auth.json", "codex"),
        ("CODEX_HOME points to '/srv/codex-home/x'", "srv"),
        ('"/Users/ada lovelace/x"', "Users"),
        ("in ~/.codex/auth.json", "auth.json"),
        ("Incorrect API key provided: sk-proj-abcdEFGH12345678", "abcd"),
        ("Incorrect API key provided: sk-1234********************wxyz.", "wxyz"),
        ("sess-abcdEFGH12345678", "abcd"),
        ("Authorization: Bearer abcdEFGH12345678ijkl", "abcd"),
        ("token eyJhbGciOiJIUzI1NiJ9.eyJzdWIi.sig-nature", "sig-nature"),
    ],
)
def test_addresses_paths_and_keys_are_taken_out(text: str, secret: str):
    assert secret not in scrub(text)


@pytest.mark.parametrize(
    "text", ["and/or, 1/2", "a skeleton skill-sketchbook", "reason: too long (see docs)"]
)
def test_plain_words_stay(text: str):
    assert scrub(text) == text


def test_a_long_text_is_cut_after_the_secrets_are_out():
    assert len(scrub("x" * 1000)) == 300
    assert "sk-" not in scrub("x" * 290 + " sk-proj-abcdEFGH12345678")
