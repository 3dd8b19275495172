"""The pid file's lock and the watch over a start, with small real processes instead of a server."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from codexsite.background import (
    AlreadyRunning,
    Background,
    StartFailed,
    State,
    is_secret,
    split_options,
)
from codexsite.datadir import DataDir
from tests.processes import free_port

SERVER = """
import http.server, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("it says something", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


@pytest.fixture
def background(tmp_path: Path) -> Iterator[Background]:
    data_dir = DataDir(tmp_path)
    data_dir.prepare()
    background = Background(data_dir)
    yield background
    assert background.kill()


def spawn(background: Background, script: str, tmp_path: Path, timeout_s: float = 20.0) -> int:
    handle, port = background.lock(), free_port()
    try:
        return background.spawn(
            [sys.executable, "-c", script, str(port)], handle=handle, cwd=tmp_path,
            url=f"http://127.0.0.1:{port}/", timeout_s=timeout_s,
        )  # fmt: skip
    finally:
        os.close(handle)


def test_spawned_process_is_the_one_that_runs(background: Background, tmp_path: Path) -> None:
    pid = spawn(background, SERVER, tmp_path)
    assert background.is_running()
    assert background.pid() == pid
    assert background.last_words().startswith("it says something")
    with pytest.raises(AlreadyRunning) as running:
        background.lock(patience_s=0.1)
    assert running.value.pid == pid


def test_stop_that_is_ignored_is_told_and_kill_ends_it(
    background: Background, tmp_path: Path
) -> None:
    spawn(background, SERVER, tmp_path)
    assert not background.stop(0.3)
    assert background.is_running()
    assert background.kill()
    assert not background.is_running()


def test_process_that_ends_at_once_is_a_failed_start_with_its_last_words(
    background: Background, tmp_path: Path
) -> None:
    background.log_file.write_text("of an earlier start\n")
    with pytest.raises(StartFailed, match="status 3") as failed:
        spawn(background, "import sys; print('no luck'); sys.exit(3)", tmp_path)
    assert failed.value.log == "no luck"
    assert not background.is_running()


def test_process_that_never_answers_is_stopped(background: Background, tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="did not answer"):
        spawn(background, "import time; time.sleep(60)", tmp_path, timeout_s=0.5)
    assert not background.is_running()


def test_pid_of_the_past_is_nobody(background: Background) -> None:
    background.pid_file.write_text(f"{os.getpid()}\n")
    assert not background.is_running()
    assert background.pid() is None
    assert background.stop(0.1)


def test_state_comes_back_and_is_the_owners_alone(background: Background) -> None:
    state = State(
        "127.0.0.1", 8765, "1.0", "today", {"CODEX_PROXY_ENGINE": "exec"}, ["DATABASE_URL"]
    )
    assert background.state() is None
    background.remember(state)
    assert background.state() == state
    assert background.state_file.stat().st_mode & 0o777 == 0o600
    background.state_file.write_text("{broken")
    assert background.state() is None


def test_options_are_kept_and_secrets_are_named_only() -> None:
    options, withheld = split_options(
        {
            "CODEX_PROXY_MODEL": "m",
            "CODEX_PROXY_FAST": "",
            "CODEX_PROXY_DATA_DIR": "/data",
            "CODEX_PROXY_API_KEY": "s",
            "CODEX_PROXY_CHILD_ENV": "PROVIDER_KEY,ABSENT",
            "PROVIDER_KEY": "s",
            "DATABASE_URL": "postgres://me:pw@db/x",
            "PATH": "/bin",
        }
    )
    assert options == {"CODEX_PROXY_MODEL": "m", "CODEX_PROXY_CHILD_ENV": "PROVIDER_KEY,ABSENT"}
    assert withheld == ["CODEX_PROXY_API_KEY", "DATABASE_URL", "PROVIDER_KEY"]
    state = State("127.0.0.1", 1, "1", "today", options, withheld)
    assert state.missing({"DATABASE_URL": "", "PROVIDER_KEY": "s"}) == ["CODEX_PROXY_API_KEY"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ('model_providers.x={base_url="https://h/v1",env_key="MY_API_KEY"}', False),
        ("model_auto_compact_token_limit=100000", False),
        ('model_providers.x={experimental_bearer_token="t"}', True),
        ('model_providers.x.http_headers."X-Auth"="t"', True),
        ('model_providers.x={base_url="https://me:pw@h/v1"}', True),
    ],
)
def test_override_with_a_credential_is_a_secret(override: str, expected: bool) -> None:
    assert is_secret("CODEX_PROXY_CODEX_CONFIGS", f"a=1;;{override}") is expected
