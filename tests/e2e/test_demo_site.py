"""`serve --demo` from a fresh directory, asked by the official client; and the other ways to serve."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.e2e.conftest import LiveSite, children_of, is_alive, wait_until
from tests.processes import PROJECT, environment, free_port, manage, status_of


@pytest.fixture(scope="module")
def secrets(demo: LiveSite) -> dict[str, str]:
    """A key for each engine, both with a grant in the workspace."""
    return dict(
        demo.run_code("""
result = {}
root = AllowedRoot.objects.get(alias="workspace")
for engine in ("app-server", "exec"):
    key, result[engine] = ApiKey.objects.issue(**issue({"name": engine, "engine": engine}))
    AgentGrant.objects.create(key=key, reason="demo").roots.add(root)
""")
    )


@pytest.mark.parametrize("engine", ["app-server", "exec"])
def test_demo_answers_plain_and_streamed_and_says_what_it_is(
    demo: LiveSite, secrets: dict[str, str], engine: str
) -> None:
    completions = demo.client(secrets[engine]).chat.completions
    messages: Any = [{"role": "user", "content": "Where is the library?"}]
    plain = completions.create(model="default", messages=messages)
    text = plain.choices[0].message.content or ""
    assert "demo" in text
    assert "Where is the library?" in text
    assert plain.usage is not None
    assert plain.usage.total_tokens > 0
    with completions.create(model="default", messages=messages, stream=True) as stream:
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == text
    if engine == "app-server":
        assert len([piece for piece in pieces if piece]) > 5


@pytest.mark.parametrize("engine", ["app-server", "exec"])
def test_demo_runs_one_harmless_command_in_agent_mode(
    demo: LiveSite, secrets: dict[str, str], engine: str
) -> None:
    (demo.data_dir / "workspace" / f"for-{engine}.txt").write_text("x")
    answer = demo.client(secrets[engine]).chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": "look"}],
        metadata={"agent": "true", "cwd": "workspace"},
    )
    assert f"for-{engine}.txt" in (answer.choices[0].message.content or "")
    row = demo.row_of(answer._request_id or "")
    assert (row["agent_mode"], row["sandbox"]) == (1, "codexsite_write")
    assert row["grant_id"] is not None


def test_ready_says_that_this_is_the_demo(demo: LiveSite) -> None:
    ready = httpx.get(f"{demo.url}/ready")
    assert ready.status_code == 200
    assert ready.json()["demo"] is True


def test_metrics_count_what_was_asked(demo: LiveSite) -> None:
    assert demo.client().models.list().data
    demo.rows()
    found = httpx.get(f"{demo.url}/metrics").json()
    assert found["requests_total"] >= found["requests_ok"] > 0
    text = httpx.get(f"{demo.url}/metrics?format=prometheus").text
    assert 'codexsite_requests_total{outcome="ok",status="200"}' in text


# The other ways to serve: the same product after `migrate`, and no child survives them either.


def ask_bare(url: str) -> int:
    return httpx.post(
        f"{url}/v1/chat/completions",
        headers={"authorization": "Bearer from-the-environment"},
        json={"model": "default", "messages": [{"role": "user", "content": "hi"}]},
        timeout=30,
    ).status_code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("how", ["daphne", "runserver", "runserver with reloader"])
def test_bare_servers_give_the_same_product_and_leave_no_child(
    tmp_path: Path, how: str, number: signal.Signals
) -> None:
    assert manage(tmp_path, "migrate", "-v0").returncode == 0
    port = free_port()
    commands = {
        "daphne": ["-m", "daphne", "-p", str(port), "codexsite.asgi:application"],
        "runserver": ["manage.py", "runserver", "--noreload", f"127.0.0.1:{port}"],
        "runserver with reloader": ["manage.py", "runserver", f"127.0.0.1:{port}"],
    }
    env = environment(tmp_path, CODEX_PROXY_DEMO="1", CODEX_PROXY_API_KEY="from-the-environment")
    server = subprocess.Popen(
        [sys.executable, *commands[how]], cwd=PROJECT, env=env,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(url))
        assert ask_bare(url) == 200
        children = children_of(server.pid)
        assert children
        os.kill(server.pid, number)
        server.wait(30)
        wait_until(lambda: not any(is_alive(pid) for pid in children), bound_s=5)
    finally:
        server.kill()
        server.wait()


def answers(url: str) -> bool:
    try:
        return status_of(f"{url}/health") == 200
    except OSError:
        return False
