"""Issue 3 on the exec engine: the same contract where Codex allows it, and never a silent difference."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import LiveSite
from tests.e2e.test_contract_answers import LOOSE, STRICT, finish_of, form, text_of
from tests.e2e.test_contract_errors import TABLE, assert_safe, error_of, site
from tests.e2e.test_contract_history import image_part, png
from tests.e2e.test_contract_tools import tool
from tests.e2e.wire import CODE_MODEL, HI, PLAIN_MODEL, Json, Streamed, ask, stream
from tests.provider import (
    BreakOff,
    Disconnect,
    FunctionCall,
    Incomplete,
    Reasoning,
    ScriptedProvider,
    Text,
)

both_wire_forms = pytest.mark.parametrize("model", [PLAIN_MODEL, CODE_MODEL])
either_way = pytest.mark.parametrize("send", [ask, stream], ids=["whole", "streamed"])


@pytest.fixture(scope="module")
def secret(live: LiveSite) -> str:
    """A key that is bound to the exec engine."""
    return live.issue_key(engine="exec", name="bound")


@both_wire_forms
def test_model_effort_verbosity_and_tier_reach_the_model(
    live: LiveSite, secret: str, model: str
) -> None:
    reply = ask(
        live, secret=secret, model=model, reasoning_effort="high", verbosity="high",
        service_tier="flex",
    )  # fmt: skip
    body = reply.asked.body
    assert body["model"] == reply.body["model"] == model
    assert body["reasoning"]["effort"] == "high"
    assert body["text"]["verbosity"] == "high"
    assert body["service_tier"] == reply.body["service_tier"] == "flex"
    assert reply.asked.tools() == []
    row = live.row_of(reply.headers["x-request-id"])
    assert (row["engine"], row["model_served"], row["input_tokens"]) == ("exec", model, 111)


def test_usage_is_what_the_provider_said(live: LiveSite, secret: str) -> None:
    usage = ask(live, secret=secret).body["usage"]
    assert usage["total_tokens"] == 188
    assert usage["prompt_tokens_details"]["cached_tokens"] == 30
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 20


@either_way
def test_schema_is_given_by_file_and_the_answer_is_checked(
    live: LiveSite, secret: str, send: Any
) -> None:
    answer = '{"name": "Ada", "age": 36}'
    reply = send(live, Text((answer,)), secret=secret, response_format=form(STRICT))
    assert text_of(reply) == answer
    (asked,) = reply.upstream
    assert asked.body["text"]["format"]["schema"] == STRICT
    loose = send(
        live, Text(('{"name": "Ada", "nick": null}',)), secret=secret, response_format=form(LOOSE)
    )
    assert json.loads(text_of(loose)) == {"name": "Ada"}


def test_json_object_is_repaired_once(live: LiveSite, secret: str) -> None:
    reply = ask(
        live, Text(("no",)), Text(('{"a": 1}',)), secret=secret,
        response_format={"type": "json_object"},
    )  # fmt: skip
    assert json.loads(text_of(reply)) == {"a": 1}
    assert len(reply.upstream) == 2


def test_reasoning_is_shown(live: LiveSite, secret: str) -> None:
    parts: Any = [Reasoning(("Hm", "m")), Text(("Done",))]
    reply = ask(live, parts, secret=secret)
    assert reply.message["reasoning_content"] == "Hmm"
    assert reply.asked.body["reasoning"]["summary"] == "auto"
    assert stream(live, parts, secret=secret).joined("reasoning_content") == "Hmm"


@either_way
def test_stop_and_choices_work(live: LiveSite, secret: str, send: Any) -> None:
    reply = send(live, Text(("one END two",)), secret=secret, stop="END")
    assert (text_of(reply), finish_of(reply)) == ("one ", "stop")
    two = ask(live, Text(("a",)), Text(("b",)), secret=secret, n=2)
    assert {choice["message"]["content"] for choice in two.body["choices"]} == {"a", "b"}


def test_images_are_given_by_file_and_no_server_path_is_told(live: LiveSite, secret: str) -> None:
    pictures = [png(1), png(2)]
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "first"}, image_part(pictures[0])]},
        {"role": "assistant", "content": "seen"},
        {"role": "user", "content": [image_part(pictures[1]), {"type": "text", "text": "second"}]},
    ]
    reply = ask(live, secret=secret, messages=messages)
    urls = reply.asked.images()
    assert [base64.b64decode(url.partition(",")[2]) for url in urls] == pictures
    prompt = str(reply.asked.said())
    assert str(live.data_dir) not in prompt
    assert "/" not in prompt.replace("</image>", "").replace("text/plain", "")
    assert live.row_of(reply.headers["x-request-id"])["engine"] == "exec"


LATE_SYSTEM: list[Json] = [*HI, {"role": "system", "content": "late"}, *HI]


@either_way
@pytest.mark.parametrize(
    ("body", "param"),
    [({"tools": [tool("a")]}, "tools"), ({"messages": LATE_SYSTEM}, "messages")],
    ids=["tools", "late system message"],
)
def test_what_exec_cannot_do_is_a_400_that_names_the_engine_that_can(
    live: LiveSite, secret: str, send: Any, body: Json, param: str
) -> None:
    reply = send(live, secret=secret, **body)
    assert (reply.status, reply.upstream) == (400, [])
    error = error_of(reply)
    assert (error["code"], error["param"]) == ("unsupported_parameter", param)
    assert "app-server" in error["message"]


def test_forced_call_is_carried_out_by_exec_itself(live: LiveSite, secret: str) -> None:
    named = {"type": "function", "function": {"name": "a"}}
    reply = ask(
        live, Text(('{"city": "Oslo"}',)), secret=secret, tools=[tool("a")], tool_choice=named
    )
    assert [call[1:] for call in reply.calls] == [("a", '{"city": "Oslo"}')]


@pytest.fixture
def exec_by_default(live: LiveSite) -> Iterator[LiveSite]:
    live.run_code("ProxySettings(engine='exec').save()")
    yield live
    live.run_code("ProxySettings(engine='app-server').save()")


def test_exec_as_the_server_s_choice_leaves_to_app_server_what_it_cannot_do(
    exec_by_default: LiveSite,
) -> None:
    live = exec_by_default
    plain = ask(live)
    assert live.row_of(plain.headers["x-request-id"])["engine"] == "exec"
    called = ask(live, FunctionCall("a", {}, "c"), tools=[tool("a")])
    assert called.calls == [("c", "a", "{}")]
    late = ask(live, messages=LATE_SYSTEM)
    assert late.message["content"] == "Hello world"
    for reply in (called, late):
        assert live.row_of(reply.headers["x-request-id"])["engine"] == "app-server"


@pytest.mark.parametrize("case", TABLE)
def test_failure_has_the_same_status(live: LiveSite, secret: str, case: str) -> None:
    behaviour, status, code = TABLE[case]
    reply = ask(live, behaviour, secret=secret)
    assert (reply.status, error_of(reply)["code"]) == (status, code)
    assert_safe(error_of(reply))


@either_way
@pytest.mark.parametrize(
    ("reason", "finish"), [("max_output_tokens", "length"), ("content_filter", "content_filter")]
)
def test_incomplete_answer_says_why(
    live: LiveSite, secret: str, send: Any, reason: str, finish: str
) -> None:
    reply = send(live, Incomplete(reason, ("Hel", "lo")), secret=secret)
    assert (text_of(reply), finish_of(reply)) == ("Hello", finish)


@pytest.fixture(scope="module")
def patient(
    tmp_path_factory: pytest.TempPathFactory, provider: ScriptedProvider
) -> Iterator[LiveSite]:
    """A server on exec whose provider is asked up to three times for one answer."""
    data_dir: Path = tmp_path_factory.mktemp("patient") / "data"
    with site(data_dir, provider, "stream_max_retries=0", "stream_max_retries=2") as found:
        found.secret = found.issue_key(engine="exec", name="bound")
        yield found


@either_way
@pytest.mark.parametrize("broken", [Disconnect(after=2), BreakOff([Text(("one ", "two"))])])
def test_text_that_codex_says_again_comes_once(patient: LiveSite, send: Any, broken: Any) -> None:
    reply = send(patient, broken, Text(("one ", "two")))
    if isinstance(reply, Streamed):
        assert (reply.error, reply.is_done) == (None, True)
    assert text_of(reply) == "one two"
