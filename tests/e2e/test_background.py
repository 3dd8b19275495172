"""`manage.py proxy`: a real server in the background, and every way to find it not as expected."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from codexsite.background import Background, answers
from codexsite.datadir import DataDir
from tests.processes import Serving, free_port, manage, status_of, wait_for


@pytest.fixture
def data_dir(data_dir: Path) -> Iterator[Path]:
    yield data_dir
    background = Background(DataDir(data_dir))
    assert background.stop(30) or background.kill()


def pid_of(output: str) -> int:
    found = re.search(r"with pid (\d+)", output)
    assert found, output
    return int(found[1])


def test_start_status_restart_stop(data_dir: Path) -> None:
    port = free_port()
    started = manage(
        data_dir, "proxy", "start", "--port", str(port), "--demo", "--engine", "exec", "--fast"
    )
    assert started.returncode == 0, started.stderr
    first = pid_of(started.stdout)
    assert status_of(f"http://127.0.0.1:{port}/health") == 200

    status = manage(data_dir, "proxy", "status", "--verbose")
    assert status.returncode == 0
    assert pid_of(status.stdout) == first
    assert f"http://127.0.0.1:{port}/v1" in status.stdout
    assert "CODEX_PROXY_ENGINE=exec" in status.stdout

    twice = manage(data_dir, "proxy", "start")
    assert twice.returncode == 0
    assert f"already running with pid {first}" in twice.stdout

    restarted = manage(data_dir, "proxy", "restart", "--engine", "app-server")
    assert restarted.returncode == 0, restarted.stderr
    second = pid_of(restarted.stdout.split("started")[1])
    assert second != first
    assert status_of(f"http://127.0.0.1:{port}/health") == 200
    status = manage(data_dir, "proxy", "status", "--verbose")
    assert "CODEX_PROXY_ENGINE=app-server" in status.stdout
    assert "CODEX_PROXY_FAST=1" in status.stdout

    stopped = manage(data_dir, "proxy", "stop")
    assert stopped.returncode == 0
    assert f"stopped with pid {second}" in stopped.stdout
    assert not answers(f"http://127.0.0.1:{port}/health")
    assert manage(data_dir, "proxy", "status").returncode == 1
    assert "not running" in manage(data_dir, "proxy", "stop").stdout


def test_first_secrets_are_in_the_terminal_and_in_no_file(data_dir: Path) -> None:
    key = "sk-of-the-environment"
    started = manage(
        data_dir, "proxy", "start", "--port", "0", "--demo", "--proxy", "http://me:pw@127.0.0.1:9",
        CODEX_PROXY_API_KEY=key,
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    secrets = [
        key.encode(), b"me:pw",
        re.search(r"API key \(shown once\): (\S+)", started.stdout)[1].encode(),  # type: ignore[index]
        re.search(r"password \(shown once\): (\S+)", started.stdout)[1].encode(),  # type: ignore[index]
    ]  # fmt: skip
    for file in [*(data_dir / "run").iterdir(), *(data_dir / "logs").iterdir()]:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert not [secret for secret in secrets if secret in file.read_bytes()]


def test_restart_asks_for_the_key_that_no_file_keeps(data_dir: Path) -> None:
    started = manage(data_dir, "proxy", "start", "--port", "0", "--demo", CODEX_PROXY_API_KEY="a")
    refused = manage(data_dir, "proxy", "restart")
    assert refused.returncode == 1
    assert "CODEX_PROXY_API_KEY" in refused.stderr
    # Refused before anything was stopped.
    assert pid_of(manage(data_dir, "proxy", "status").stdout) == pid_of(started.stdout)
    assert manage(data_dir, "proxy", "restart", CODEX_PROXY_API_KEY="").returncode == 0


def test_stale_pid_of_another_process_is_neither_believed_nor_signalled(data_dir: Path) -> None:
    run = data_dir / "run"
    run.mkdir(parents=True)
    (run / "server.pid").write_text(f"{os.getpid()}\n")
    assert manage(data_dir, "proxy", "status").returncode == 1
    assert "not running" in manage(data_dir, "proxy", "stop").stdout
    assert manage(data_dir, "proxy", "start", "--port", "0", "--demo").returncode == 0


def test_killed_server_is_known_to_be_gone(data_dir: Path) -> None:
    started = manage(data_dir, "proxy", "start", "--port", "0", "--demo")
    os.kill(pid_of(started.stdout), signal.SIGKILL)
    wait_for(lambda: not Background(DataDir(data_dir)).is_running())
    assert manage(data_dir, "proxy", "status").returncode == 1
    assert manage(data_dir, "proxy", "restart").returncode == 0


def test_taken_port_is_refused_before_a_server_is_spawned(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        refused = manage(data_dir, "proxy", "start", "--port", str(other.getsockname()[1]))
    assert refused.returncode == 1
    assert "Address already in use" in refused.stderr
    assert manage(data_dir, "proxy", "status").returncode == 1


def test_restart_without_any_start_says_so(data_dir: Path) -> None:
    refused = manage(data_dir, "proxy", "restart")
    assert refused.returncode == 1
    assert "No start to repeat" in refused.stderr


def test_foreground_server_is_found_and_stopped_like_any_other(data_dir: Path) -> None:
    with Serving(data_dir, "proxy", "start", "--foreground", "--port", "0", "--demo") as server:
        assert pid_of(manage(data_dir, "proxy", "status").stdout) == server.process.pid
        assert manage(data_dir, "proxy", "stop").returncode == 0
        server.process.communicate(timeout=10)
        assert server.process.returncode == 0


def test_state_holds_the_options_alone(data_dir: Path) -> None:
    manage(data_dir, "proxy", "start", "--port", "0", "--demo", DATABASE_URL="")
    state = json.loads((data_dir / "run" / "server.json").read_text())
    of_the_tests = {"CODEX_PROXY_ALLOW_ROOT_AGENT"}
    assert set(state["options"]) - of_the_tests == {"CODEX_PROXY_DEMO", "CODEX_PROXY_PORT"}
    assert state["withheld"] == []
