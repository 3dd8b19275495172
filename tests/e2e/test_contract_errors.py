"""Issue 3, point 9: what goes wrong behind Codex, as the caller is told it, whole and streamed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import LiveSite, drain
from tests.e2e.wire import CODE_MODEL, PLAIN_MODEL, Json, Reply, Streamed, ask, stream
from tests.processes import Serving, free_port
from tests.provider import (
    Behaviour,
    BreakOff,
    Disconnect,
    Fail,
    FunctionCall,
    Incomplete,
    Reasoning,
    ScriptedProvider,
    SseFailed,
    Text,
)

either_way = pytest.mark.parametrize("send", [ask, stream], ids=["whole", "streamed"])
KEY = "sk-verysecret1234567890"
WORDS = f"see http://127.0.0.1:9/v1 and /root/.codex/auth.json with {KEY}"

FLAGGED = "This request has been flagged for possible cybersecurity risk."


def fail(status: int, code: str | None = None, kind: str = "error", **headers: str) -> Fail:
    error: Json = {"message": WORDS, "type": kind, "code": code}
    return Fail(
        status, {"error": error}, {name.replace("_", "-"): v for name, v in headers.items()}
    )


TABLE: dict[str, tuple[Behaviour, int, str]] = {
    "400": (fail(400, "invalid_value", "invalid_request_error"), 400, "invalid_prompt"),
    "400 context": (fail(400, "context_length_exceeded"), 400, "context_length_exceeded"),
    "401": (fail(401), 503, "upstream_auth_failed"),
    "403": (fail(403), 503, "upstream_auth_failed"),
    "404": (fail(404), 502, "upstream_error"),
    "413": (fail(413), 502, "upstream_error"),
    "429 with retry-after": (fail(429, retry_after="2"), 429, "rate_limit_exceeded"),
    "429": (fail(429), 429, "rate_limit_exceeded"),
    "429 usage limit": (fail(429, None, "usage_limit_reached"), 429, "insufficient_quota"),
    "429 quota": (fail(429, "insufficient_quota", "insufficient_quota"), 429, "insufficient_quota"),
    "500": (fail(500), 502, "upstream_error"),
    "502 html": (Fail(502, f"<html>{WORDS}</html>"), 502, "upstream_error"),
    "503": (fail(503), 503, "server_overloaded"),
    "503 overloaded": (fail(503, "server_is_overloaded"), 503, "server_overloaded"),
    "reset": (BreakOff([], is_abrupt=True), 502, "upstream_disconnected"),
    "early end": (BreakOff([]), 502, "upstream_disconnected"),
    "failed context": (SseFailed("context_length_exceeded", WORDS), 400, "context_length_exceeded"),
    "failed rate": (
        SseFailed("rate_limit_exceeded", f"{WORDS}. Please try again in 1.5s."),
        429,
        "rate_limit_exceeded",
    ),
    "failed quota": (SseFailed("insufficient_quota", WORDS), 429, "insufficient_quota"),
    "failed not included": (SseFailed("usage_not_included", WORDS), 429, "insufficient_quota"),
    "failed overloaded": (SseFailed("server_is_overloaded", WORDS), 503, "server_overloaded"),
    "failed server_error": (SseFailed("server_error", WORDS), 502, "upstream_disconnected"),
    "failed invalid_prompt": (
        SseFailed("invalid_prompt", f"Invalid prompt: {WORDS}"),
        400,
        "invalid_prompt",
    ),
    "failed cyber": (
        SseFailed("cyber_policy", f"{FLAGGED} {WORDS}"),
        400,
        "content_policy_violation",
    ),
}
TYPES = {400: "invalid_request_error", 502: "server_error", 503: "server_error"}


def error_of(reply: Reply | Streamed) -> Json:
    error = reply.error
    assert error is not None
    return error


def assert_safe(error: Json) -> None:
    for secret in ("127.0.0.1", "http", "/root", "auth.json", "verysecret", "<html>"):
        assert secret not in str(error)


@either_way
@pytest.mark.parametrize("case", TABLE)
def test_failure_before_the_first_word_has_its_status(live: LiveSite, send: Any, case: str) -> None:
    behaviour, status, code = TABLE[case]
    reply = send(live, behaviour)
    error = error_of(reply)
    assert (reply.status, error["code"]) == (status, code)
    if status == 429:
        kind = "insufficient_quota" if code == "insufficient_quota" else "rate_limit_error"
        assert error["type"] == kind
    else:
        assert error["type"] == TYPES[status]
    if status in (429, 503):
        assert 1 <= int(reply.headers["retry-after"]) <= 60
    if code == "context_length_exceeded":
        assert "This model's maximum context length is" in error["message"]
    assert_safe(error)
    assert len(reply.upstream) == 1
    row = live.row_of(reply.headers["x-request-id"])
    assert (row["outcome"], row["http_status"], row["error_code"]) == ("failed", status, code)


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        (BreakOff([Text(("one ", "two"))], is_abrupt=True), "upstream_disconnected"),
        (Disconnect(after=3), "upstream_disconnected"),
        (SseFailed("server_is_overloaded", WORDS, ("one ", "two")), "server_overloaded"),
        (SseFailed("context_length_exceeded", WORDS, ("one ",)), "context_length_exceeded"),
    ],
)
def test_failure_after_the_first_word_is_never_a_complete_answer(
    live: LiveSite, behaviour: Behaviour, code: str
) -> None:
    streamed = stream(live, behaviour)
    assert (streamed.status, streamed.is_done, streamed.finishes) == (200, False, [])
    assert streamed.text
    assert error_of(streamed)["code"] == code
    assert_safe(error_of(streamed))
    row = live.row_of(streamed.headers["x-request-id"])
    assert (row["outcome"], row["error_code"]) == ("failed", code)
    assert error_of(ask(live, behaviour))["code"] == code


@either_way
@pytest.mark.parametrize(
    ("reason", "finish"), [("max_output_tokens", "length"), ("content_filter", "content_filter")]
)
@pytest.mark.parametrize("deltas", [("Hel", "lo"), ()])
def test_incomplete_answer_says_why(
    live: LiveSite, send: Any, reason: str, finish: str, deltas: tuple[str, ...]
) -> None:
    reply = send(live, Incomplete(reason, deltas))
    assert reply.status == 200
    if isinstance(reply, Streamed):
        assert (reply.text, reply.finishes, reply.is_done) == ("".join(deltas), [finish], True)
    else:
        assert reply.choice["finish_reason"] == finish
        assert reply.message["content"] == "".join(deltas)
    row = live.row_of(reply.headers["x-request-id"])
    assert (row["outcome"], row["http_status"]) == ("ok", 200)


@either_way
def test_incomplete_form_says_why_and_is_not_repaired(live: LiveSite, send: Any) -> None:
    reply = send(
        live, Incomplete("max_output_tokens", ('{"a":',)), response_format={"type": "json_object"}
    )
    assert (reply.status, len(reply.upstream)) == (200, 1)
    finish = reply.finishes[0] if isinstance(reply, Streamed) else reply.choice["finish_reason"]
    assert finish == "length"


# A provider that Codex may ask again.


@contextlib.contextmanager
def site(data_dir: Path, provider: ScriptedProvider, old: str, new: str) -> Iterator[LiveSite]:
    """Serve with another configuration of the provider: `new` stands where `old` stood."""
    configs = ";;".join(provider.overrides)
    assert old in configs
    options = {"CODEX_PROXY_CODEX_CONFIGS": configs.replace(old, new)}
    with Serving(data_dir, "serve", "--port", "0", **options) as server:
        drain(server)
        found = LiveSite(server, data_dir, provider)
        yield found
        found.close()


@pytest.fixture(scope="module")
def patient(
    tmp_path_factory: pytest.TempPathFactory, provider: ScriptedProvider
) -> Iterator[LiveSite]:
    """A server whose provider is asked up to three times for one answer."""
    data_dir = tmp_path_factory.mktemp("patient") / "data"
    with site(data_dir, provider, "stream_max_retries=0", "stream_max_retries=2") as found:
        yield found


@pytest.mark.parametrize("model", [PLAIN_MODEL, CODE_MODEL])
def test_text_that_codex_says_again_comes_once_in_a_whole_answer(
    patient: LiveSite, model: str
) -> None:
    reply = ask(patient, Disconnect(after=2), Text(("one ", "two ", "three")), model=model)
    assert reply.message["content"] == "one two three"
    assert len(reply.upstream) == 2


def test_reasoning_that_codex_says_again_comes_once(patient: LiveSite) -> None:
    thinking = Reasoning(("Let me", " see"))
    scripts: Any = [BreakOff([thinking]), [thinking, Text(("Done",))]]
    for send in (ask, stream):
        reply = send(patient, *scripts)
        if isinstance(reply, Streamed):
            assert reply.joined("reasoning_content") == "Let me see"
            assert reply.text == "Done"
        else:
            assert reply.message["reasoning_content"] == "Let me see"
            assert reply.message["content"] == "Done"


def test_text_that_codex_would_say_again_is_an_error_in_a_stream(patient: LiveSite) -> None:
    reply = stream(patient, Disconnect(after=2))
    assert reply.text == "word word "
    assert error_of(reply)["code"] == "upstream_disconnected"
    assert (reply.is_done, reply.finishes) == (False, [])
    assert len(reply.upstream) == 1
    assert ask(patient, Text(("next",))).message["content"] == "next"


@either_way
def test_response_that_broke_after_a_message_is_not_continued_by_another(
    patient: LiveSite, send: Any
) -> None:
    """Codex shows the model its own message and asks for more: two answers in one."""
    reply = send(patient, BreakOff([Text(("one ", "two"))], is_abrupt=True), Text(("one ", "two")))
    assert error_of(reply)["code"] == "upstream_disconnected"
    assert ask(patient).message["content"]


def test_response_that_broke_after_a_call_is_not_asked_for_again(patient: LiveSite) -> None:
    """Codex would show the model a result of the call that nobody gave."""
    function = {"name": "a", "parameters": {"type": "object", "properties": {}}}
    reply = ask(
        patient,
        BreakOff([FunctionCall("a", {}, "1")]),
        tools=[{"type": "function", "function": function}],
    )
    assert (reply.status, error_of(reply)["code"]) == (502, "upstream_disconnected")
    assert len(reply.upstream) == 1


def test_stream_that_broke_before_its_text_goes_on_as_if_nothing_were(patient: LiveSite) -> None:
    reply = stream(patient, BreakOff([]), Text(("all ", "well")))
    assert (reply.text, reply.finishes, reply.is_done) == ("all well", ["stop"], True)
    assert len(reply.upstream) == 2


def test_limit_counts_only_what_the_caller_gets(patient: LiveSite) -> None:
    reply = ask(patient, Disconnect(after=3), Text(("a ", "b ", "c ")), max_tokens=4)
    assert reply.message["content"] == "a b c "
    assert reply.choice["finish_reason"] == "stop"


def test_form_that_codex_says_again_is_read_once(patient: LiveSite) -> None:
    reply = ask(
        patient,
        Disconnect(after=1),
        Text(('{"a"', ": 1}")),
        response_format={"type": "json_object"},
    )
    assert reply.message["content"] == '{"a": 1}'


def test_failure_that_stays_is_told_after_all_tries(patient: LiveSite) -> None:
    broken = Disconnect(after=1)
    reply = ask(patient, broken, broken, broken)
    assert (reply.status, error_of(reply)["code"]) == (502, "upstream_disconnected")
    assert len(reply.upstream) == 3


@either_way
@pytest.mark.parametrize("deltas", [("Hel", "lo"), ()])
def test_filtered_answer_is_told_and_not_tried_again(
    patient: LiveSite, send: Any, deltas: tuple[str, ...]
) -> None:
    reply = send(patient, Incomplete("content_filter", deltas))
    if isinstance(reply, Streamed):
        assert (reply.text, reply.finishes) == ("".join(deltas), ["content_filter"])
    else:
        assert reply.message["content"] == "".join(deltas)
        assert reply.choice["finish_reason"] == "content_filter"
    assert ask(patient).message["content"]


# A provider that is not there.


@pytest.fixture(scope="module")
def absent(
    tmp_path_factory: pytest.TempPathFactory, provider: ScriptedProvider
) -> Iterator[LiveSite]:
    """A server whose provider's port is closed."""
    used = provider.base_url.removeprefix("http://").partition("/")[0]
    data_dir = tmp_path_factory.mktemp("absent") / "data"
    with site(data_dir, provider, used, f"127.0.0.1:{free_port()}") as found:
        yield found


@either_way
def test_provider_that_cannot_be_reached_is_an_error_at_once(absent: LiveSite, send: Any) -> None:
    reply = send(absent)
    assert (reply.status, error_of(reply)["code"]) == (502, "upstream_unreachable")
    assert_safe(error_of(reply))
