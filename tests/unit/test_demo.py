from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from proxy.demo import COMMAND, NOTICE, DemoProvider, overrides
from proxy.engines.base import Message
from proxy.engines.conversation import as_prompt
from proxy.overrides import check_override

EXEC_COMMAND = {"type": "function", "name": "exec_command", "parameters": {}}


@pytest.fixture
def demo() -> Iterator[DemoProvider]:
    provider = DemoProvider(word_pause_s=0)
    provider.start()
    yield provider
    provider.close()


def request(
    demo: DemoProvider, method: str, path: str, content: bytes | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(demo.base_url).netloc, timeout=5)
    try:
        connection.request(method, path, content)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def ask(demo: DemoProvider, *items: dict[str, Any], **fields: object) -> list[dict[str, Any]]:
    body = json.dumps({"model": "m", "stream": True, "input": list(items), **fields})
    status, content = request(demo, "POST", "/v1/responses", body.encode())
    assert status == 200
    lines = content.decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


def user(text: str) -> dict[str, Any]:
    return {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": text}],
    }


def said(events: list[dict[str, Any]]) -> str:
    return "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")


def called(events: list[dict[str, Any]]) -> dict[str, Any]:
    item: dict[str, Any] = events[-1]["response"]["output"][0]
    return item


def test_answer_says_it_is_the_demo_and_echoes_the_question(demo):
    assert said(ask(demo, user("What is up?"))) == f"{NOTICE} You said: What is up?"


def test_answer_comes_word_by_word_and_ends_with_response_completed(demo):
    events = ask(demo, user("one  two\nthree"))
    words = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert words[-3:] == ["one  ", "two\n", "three"]
    assert events[0]["type"] == "response.created"
    assert events[-1]["type"] == "response.completed"
    assert called(events)["content"][0]["text"] == "".join(words)


def test_usage_grows_with_what_was_read_and_said(demo):
    short = ask(demo, user("x"))[-1]["response"]["usage"]
    long = ask(demo, user("x" * 400))[-1]["response"]["usage"]
    assert short["input_tokens"] > 0
    assert short["total_tokens"] == short["input_tokens"] + short["output_tokens"]
    assert long["input_tokens"] == pytest.approx(short["input_tokens"] + 100, abs=1)
    assert long["output_tokens"] == pytest.approx(short["output_tokens"] + 100, abs=1)


def test_a_word_is_sent_before_the_next_pause_ends():
    demo = DemoProvider(word_pause_s=30)
    demo.start()
    connection = http.client.HTTPConnection(urlsplit(demo.base_url).netloc, timeout=5)
    try:
        connection.request("POST", "/v1/responses", json.dumps({"input": "hi"}))
        response = connection.getresponse()
        lines = iter(response.readline, b"")
        assert any(b'"delta": "This "' in line for line in lines)
        started = time.monotonic()
        demo.close()
        assert b"response.completed" not in response.read()
        assert time.monotonic() - started < 5
    finally:
        connection.close()


def test_the_last_question_of_the_user_is_echoed(demo):
    answer = {"type": "message", "role": "assistant", "content": [{"text": "ok"}]}
    context = user("<environment_context>\n<cwd>/</cwd></environment_context>")
    assert said(ask(demo, user("first"), answer, user("second"))).endswith("You said: second")
    assert said(ask(demo, user("hello"), context)).endswith("You said: hello")
    assert said(ask(demo, input="as text")).endswith("You said: as text")


def test_a_conversation_in_one_prompt_is_understood(demo):
    prompt = as_prompt(
        [Message("user", "first"), Message("assistant", "ok"), Message("user", "second")]
    )
    assert said(ask(demo, user(prompt))).endswith("You said: second")


def test_json_of_the_users_own_is_echoed_as_it_is(demo):
    text = '[{"role": "user", "content": "inside"}]'
    assert said(ask(demo, user(text))).endswith(f"You said: {text}")


def test_a_long_question_is_cut(demo):
    assert len(said(ask(demo, user("word " * 100_000)))) < 1000


def test_a_shell_is_asked_for_one_harmless_command(demo):
    call = called(ask(demo, user("go"), tools=[EXEC_COMMAND]))
    assert call["type"] == "function_call"
    assert call["name"] == "exec_command"
    assert json.loads(call["arguments"]) == {"cmd": COMMAND}


def test_tools_that_travel_as_an_item_are_found(demo):
    namespace = {"type": "namespace", "name": "functions", "tools": [EXEC_COMMAND]}
    tools = {"type": "additional_tools", "role": "developer", "tools": [namespace]}
    assert called(ask(demo, tools, user("go")))["type"] == "function_call"


def test_code_mode_runs_the_command_in_a_script(demo):
    description = "declare const tools: { exec_command(args: { cmd: string; }): Promise<unknown>; }"
    tool = {"type": "custom", "name": "exec", "description": description}
    call = called(ask(demo, user("go"), tools=[tool]))
    assert call["type"] == "custom_tool_call"
    assert f"tools.exec_command({json.dumps({'cmd': COMMAND})})" in call["input"]


def test_code_mode_without_a_shell_is_a_chat(demo):
    tool = {"type": "custom", "name": "exec", "description": "as in `tools.exec_command(...)`"}
    assert said(ask(demo, user("go"), tools=[tool])).endswith("You said: go")


@pytest.mark.parametrize(
    "output",
    ["Wall time: 0.1 seconds\nOutput:\nhello\n", [{"type": "input_text", "text": "hello"}]],
)
def test_the_output_of_the_command_is_quoted(demo, output):
    result = {"type": "function_call_output", "call_id": "c", "output": output}
    events = ask(demo, user("go"), called_item(), result, tools=[EXEC_COMMAND])
    assert said(events).startswith(NOTICE)
    assert said(events).endswith("\n```\nhello\n```")


def called_item() -> dict[str, Any]:
    return {"type": "function_call", "call_id": "c", "name": "exec_command", "arguments": "{}"}


def test_a_new_question_after_a_command_runs_it_again(demo):
    result = {"type": "function_call_output", "call_id": "c", "output": "hello"}
    events = ask(demo, user("go"), called_item(), result, user("again"), tools=[EXEC_COMMAND])
    assert called(events)["type"] == "function_call"


def test_models_are_an_empty_list(demo):
    status, content = request(demo, "GET", "/v1/models?client_version=1")
    assert status == 200
    assert json.loads(content)["data"] == json.loads(content)["models"] == []


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("POST", "/v1/chat/completions")])
def test_other_paths_are_404_as_json(demo, method, path):
    status, content = request(demo, method, path, b"{}")
    assert status == 404
    assert json.loads(content)["error"]["message"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_broken_body_is_400(demo, content):
    status, answer = request(demo, "POST", "/v1/responses", content)
    assert status == 400
    assert json.loads(answer)["error"]["message"]


@pytest.mark.parametrize(
    "body", [{}, {"input": 1}, {"input": [1, None]}, {"input": [{"role": "user"}], "tools": 5}]
)
def test_a_body_without_a_question_still_gets_an_answer(demo, body):
    status, content = request(demo, "POST", "/v1/responses", json.dumps(body).encode())
    assert status == 200
    assert b"response.completed" in content


def test_a_client_that_leaves_causes_no_noise(capfd):
    demo = DemoProvider(word_pause_s=0.001)
    demo.start()
    address = urlsplit(demo.base_url)
    assert address.hostname is not None
    for leave_after in (
        b"POST /v1/resp",
        b"POST /v1/responses HTTP/1.0\r\ncontent-length: 9\r\n\r\n{",
    ):
        with socket.create_connection((address.hostname, address.port or 0), 5) as client:
            client.sendall(leave_after)
    body = json.dumps({"input": "word " * 100}).encode()
    with socket.create_connection((address.hostname, address.port or 0), 5) as client:
        client.sendall(b"POST /v1/responses HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % len(body))
        client.sendall(body)
        client.recv(100)
    assert said(ask(demo, user("still there?"))).endswith("still there?")
    demo.close()
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_closing_twice_and_asking_for_the_url_of_a_closed_one(demo):
    demo.close()
    demo.close()
    with pytest.raises(RuntimeError):
        _ = demo.base_url


def test_an_operator_may_give_the_overrides_of_the_demo():
    for override in overrides("http://127.0.0.1:1/v1"):
        check_override(override)
