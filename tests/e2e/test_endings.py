"""How requests end when something breaks: the client, the worker, the server. Nothing is lost."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from tests.e2e.conftest import LiveSite, children_of, drain, is_alive, wait_until
from tests.processes import Serving, manage
from tests.provider import Hang, ScriptedProvider, Stall

QUESTION: Any = [{"role": "user", "content": "hi"}]
PROMPTLY_S = 1.0


@pytest.fixture(scope="module", params=["app-server", "exec"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def secret(engine: str, live: LiveSite) -> str:
    return live.issue_key(engine=engine, name=engine)


def open_request(url: str, secret: str, *, stream: bool) -> http.client.HTTPConnection:
    """Send a chat completion by hand, to be able to pull the plug."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    body = json.dumps({"model": "default", "messages": QUESTION, "stream": stream})
    headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_stops_the_turn_within_a_second(
    live: LiveSite, secret: str, stream: bool
) -> None:
    rows, asked, gone = live.count(), len(live.provider.requests), live.provider.disconnects
    live.provider.reply(Stall(after=2))
    connection = open_request(live.url, secret, stream=stream)
    live.provider.wait_for_request(asked + 1)
    left_at = time.monotonic()
    connection.close()
    live.provider.wait_for_disconnect(gone + 1)
    assert time.monotonic() - left_at < PROMPTLY_S
    assert live.newest_row(rows + 1)["outcome"] == "cancelled"


def test_killed_worker_is_a_clean_error_at_once_and_the_next_caller_is_served(
    live: LiveSite, engine: str, secret: str
) -> None:
    asked = len(live.provider.requests)
    # What exec says comes whole: killed before that, it is tried once more, and killed again.
    tries = 2 if engine == "exec" else 1
    killed_at = 0.0
    for _ in range(tries):
        live.provider.reply(Stall(after=2))
    failure: list[Any] = []

    def ask() -> None:
        try:
            live.client(secret).chat.completions.create(model="default", messages=QUESTION)
        except openai.APIStatusError as error:
            failure.append((error, time.monotonic()))

    thread = threading.Thread(target=ask)
    thread.start()
    for number in range(1, tries + 1):
        live.provider.wait_for_request(asked + number)
        killed_at = time.monotonic()
        kill_children(live)
    thread.join(20)
    ((error, failed_at),) = failure
    assert failed_at - killed_at < PROMPTLY_S
    assert (error.status_code, error.code) == (502, "engine_crashed")
    row = live.row_of(error.request_id)
    assert (row["outcome"], row["error_code"]) == ("failed", "engine_crashed")
    answer = live.client(secret).chat.completions.create(model="default", messages=QUESTION)
    assert answer.choices[0].message.content == "Hello world"


def test_turn_whose_worker_dies_before_the_first_word_is_answered_by_another(
    live: LiveSite, secret: str
) -> None:
    asked = len(live.provider.requests)
    live.provider.reply(Hang())
    answers: list[Any] = []
    thread = threading.Thread(
        target=lambda: answers.append(
            live.client(secret).chat.completions.create(model="default", messages=QUESTION)
        )
    )
    thread.start()
    live.provider.wait_for_request(asked + 1)
    kill_children(live)
    thread.join(20)
    (answer,) = answers
    assert answer.choices[0].message.content == "Hello world"
    assert live.row_of(answer._request_id)["outcome"] == "ok"
    assert len(live.provider.requests) == asked + 2


def test_worker_killed_in_mid_stream_ends_the_stream_with_an_error_object(live: LiveSite) -> None:
    live.provider.reply(Stall(after=2))
    stream = live.client().chat.completions.create(model="default", messages=QUESTION, stream=True)
    first = next(chunk for chunk in stream if chunk.choices[0].delta.content)
    assert first.choices[0].delta.content == "word "
    kill_children(live)
    with pytest.raises(openai.APIError, match="ended in the middle"):
        list(stream)
    row = live.row_of(first.id.removeprefix("chatcmpl-"))
    assert (row["outcome"], row["http_status"]) == ("failed", 200)


def test_deadline_ends_a_turn_that_hangs(live: LiveSite, secret: str) -> None:
    live.run_code("ProxySettings(timeout_seconds=2).save()")
    live.provider.reply(Hang())
    try:
        with pytest.raises(openai.InternalServerError) as late:
            live.client(secret).chat.completions.create(model="default", messages=QUESTION)
    finally:
        live.run_code("ProxySettings(timeout_seconds=300).save()")
    assert (late.value.status_code, late.value.code) == (504, "upstream_timeout")
    assert live.row_of(late.value.request_id or "")["outcome"] == "timed_out"


def kill_children(live: LiveSite) -> None:
    for pid in children_of(live.server.process.pid):
        with contextlib.suppress(ProcessLookupError):  # it went with the one before
            os.kill(pid, signal.SIGKILL)


# The server's own end. Each of these has a server to itself.


@pytest.fixture
def lonely(tmp_path: Path) -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as provider:
        yield provider


SERVERS = {
    "serve": ("serve", "--port", "0"),
    "runserver": ("runserver", "--noreload", "127.0.0.1:0"),
}


def serving(data_dir: Path, provider: ScriptedProvider, *arguments: str, **env: str) -> Serving:
    return Serving(
        data_dir, *arguments, CODEX_PROXY_CODEX_CONFIGS=";;".join(provider.overrides), **env
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("engine", ["app-server", "exec"])
def test_no_child_survives_the_server_and_the_row_tells_the_truth(
    tmp_path: Path, lonely: ScriptedProvider, number: signal.Signals, engine: str
) -> None:
    data_dir = tmp_path / "data"
    options = {"CODEX_PROXY_ENGINE": engine, "CODEX_PROXY_SHUTDOWN_GRACE_SECONDS": "0.2"}
    with serving(data_dir, lonely, "serve", "--port", "0", **options) as server:
        drain(server)
        site = LiveSite(server, data_dir, lonely)
        lonely.reply(Stall(after=2))
        connection = open_request(site.url, site.secret, stream=True)
        response = connection.getresponse()
        if engine == "app-server":
            assert response.readline().startswith(b"data: ")
        else:
            lonely.wait_for_request(1)
        children = children_of(server.process.pid)
        assert children
        server.process.send_signal(number)
        rest = response.read() if number != signal.SIGKILL else b""
        server.process.wait(20)
        wait_until(lambda: not any(is_alive(pid) for pid in children), bound_s=5)
        connection.close()
    if number == signal.SIGKILL:
        assert manage(data_dir, "proxy", "start", "--port", "0", "--demo").returncode == 0
        assert manage(data_dir, "proxy", "stop").returncode == 0
    else:
        assert b'"code":"server_shutting_down"' in rest
        assert server.process.returncode == 0
    (row,) = site.rows()
    assert row["outcome"] == "interrupted"
