"""The server's own end by signals, under each command that serves: drained, cut short, killed."""

from __future__ import annotations

import http.client
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from codexsite.background import answers
from codexsite.management.commands.runserver import RELOADER_VARIABLE
from tests.e2e.conftest import children_of, is_alive, wait_until
from tests.e2e.test_endings import open_request
from tests.processes import PROJECT, environment, free_port, manage
from tests.provider import ScriptedProvider, Stall, Text

pytestmark = pytest.mark.timeout(120)

LONG_GRACE_S = "60"
SHORT_S = 8.0
"""A second signal must be over long before the grace; the machine may be slow."""


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


class Program:
    """Any command that serves a prepared data directory, its output read along."""

    def __init__(self, data_dir: Path, command: list[str], port: int, **env: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.output = ""
        self.process = subprocess.Popen(
            [sys.executable, *command], cwd=PROJECT, env=environment(data_dir, **env), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.output += line

    def wait_until_it_serves(self) -> None:
        wait_until(lambda: answers(f"{self.url}/health"))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(20)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated data directory, to be copied: each test ends a server of its own."""
    folder = tmp_path_factory.mktemp("prepared") / "data"
    assert manage(folder, "migrate", "--verbosity", "0").returncode == 0
    return folder


@pytest.fixture
def launch(
    tmp_path: Path, provider: ScriptedProvider, prepared: Path
) -> Iterator[Callable[..., Program]]:
    """Start a program over one prepared data directory."""
    programs: list[Program] = []
    shutil.copytree(prepared, tmp_path / "data", symlinks=True)

    def start(command: list[str], port: int, **env: str) -> Program:
        given = {
            "CODEX_PROXY_CODEX_CONFIGS": ";;".join(provider.overrides),
            "CODEX_PROXY_API_KEY": "sk-test-of-the-end",
        }
        programs.append(Program(tmp_path / "data", command, port, **given, **env))
        return programs[-1]

    yield start
    for program in programs:
        program.close()


def rows(data_dir: Path) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(data_dir / "db.sqlite3")) as connection:
        connection.row_factory = sqlite3.Row
        found = connection.execute("SELECT * FROM audit_requestrecord ORDER BY id").fetchall()
    return [dict(row) for row in found]


@contextmanager
def streaming(url: str) -> Iterator[http.client.HTTPResponse]:
    """A stream whose first text has come."""
    with closing(open_request(url, "sk-test-of-the-end", stream=True)) as connection:
        response = connection.getresponse()
        while b'"content":"' not in response.readline().replace(b'"content":""', b""):
            pass
        yield response


COMMANDS = {
    "serve": ["manage.py", "serve", "--port", "{port}"],
    "daphne": ["-m", "daphne", "-p", "{port}", "codexsite.asgi:application"],
    "runserver": ["manage.py", "runserver", "--noreload", "127.0.0.1:{port}"],
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", COMMANDS)
def test_first_signal_closes_the_door_and_the_second_cuts_the_grace_short(
    tmp_path: Path,
    provider: ScriptedProvider,
    launch: Callable[..., Program],
    command: str,
    number: int,
) -> None:
    port = free_port()
    program = launch(
        [part.format(port=port) for part in COMMANDS[command]],
        port,
        CODEX_PROXY_SHUTDOWN_GRACE_SECONDS=LONG_GRACE_S,
    )
    program.wait_until_it_serves()
    kept = http.client.HTTPConnection(urlsplit(program.url).netloc, timeout=20)
    kept.request("GET", "/health")
    kept.getresponse().read()
    provider.reply(Stall(after=2))
    with closing(kept), streaming(program.url) as response:
        children = children_of(program.process.pid)
        assert children

        program.process.send_signal(number)
        wait_until(lambda: not _accepts(port))
        kept.request("GET", "/v1/models", headers={"authorization": "Bearer sk-test-of-the-end"})
        refused = kept.getresponse()
        assert (refused.status, b"server_shutting_down" in refused.read()) == (503, True)
        assert program.process.poll() is None

        asked_again = time.monotonic()
        program.process.send_signal(number)
        rest = response.read()
        assert program.process.wait(30) == 0, program.output
        assert time.monotonic() - asked_again < SHORT_S
    assert b'"code":"server_shutting_down"' in rest
    wait_until(lambda: not any(is_alive(pid) for pid in children), bound_s=5)
    found = [(row["outcome"], row["http_status"]) for row in rows(tmp_path / "data")]
    assert found == [("interrupted", 200), ("rejected", 503)]
    assert "Traceback" not in program.output


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def test_first_signal_lets_a_running_turn_finish(
    provider: ScriptedProvider, launch: Callable[..., Program], tmp_path: Path
) -> None:
    port, gate = free_port(), threading.Event()
    program = launch(
        ["manage.py", "serve", "--port", str(port)],
        port,
        CODEX_PROXY_SHUTDOWN_GRACE_SECONDS=LONG_GRACE_S,
    )
    program.wait_until_it_serves()
    provider.reply(Text(("Hello", " world"), gate=gate))
    with streaming(program.url) as response:
        program.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not _accepts(port))
        gate.set()
        assert response.read().endswith(b"data: [DONE]\n\n")
    assert program.process.wait(30) == 0
    assert [row["outcome"] for row in rows(tmp_path / "data")] == ["ok"]


# --- The autoreloader -------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the product's own code, to change a file of."""
    copy = tmp_path / "checkout"
    for name in ("audit", "codexsite", "proxy", "templates"):
        shutil.copytree(PROJECT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "manage.py", copy)
    return copy


@pytest.mark.parametrize("end", ["change", "SIGTERM", "SIGINT", "SIGKILL"])
def test_reloader_leaves_neither_server_nor_child_behind_and_the_next_start_closes_the_row(
    tmp_path: Path,
    checkout: Path,
    provider: ScriptedProvider,
    launch: Callable[..., Program],
    end: str,
) -> None:
    port = free_port()
    command = [str(checkout / "manage.py"), "runserver", f"127.0.0.1:{port}"]
    program = launch(command, port, PYTHONPATH=str(checkout))
    program.wait_until_it_serves()
    provider.reply(Stall(after=2))
    with streaming(program.url):
        below = children_of(program.process.pid)
        assert len(below) > 1, "the server, and codex below it"
        if end == "change":
            with (checkout / "proxy" / "sse.py").open("a") as source:
                source.write("\n# changed\n")
        else:
            program.process.send_signal(getattr(signal, end))
        wait_until(lambda: not any(is_alive(pid) for pid in below), bound_s=20)
    if end == "change":
        program.wait_until_it_serves()
        again = children_of(program.process.pid)
        assert again
        program.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not any(is_alive(pid) for pid in again), bound_s=20)
    else:
        program.process.wait(20)
        launch(["manage.py", "runserver", "--noreload", str(port)], port).wait_until_it_serves()
    wait_until(lambda: [row["outcome"] for row in rows(tmp_path / "data")] == ["interrupted"])


def test_where_the_kernel_knows_no_death_signal_the_server_watches_its_reloader() -> None:
    program = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', '''\n"
        "import os, threading\n"
        "from codexsite.reloading import watch\n"
        "threading.Thread(target=watch, args=(os.getppid(),), daemon=True).start()\n"
        "print(os.getpid(), flush=True)\n"
        "threading.Event().wait(60)\n"
        "'''])\n"
        "time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    ) as parent:
        try:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            assert is_alive(pid)
        finally:
            parent.kill()
    wait_until(lambda: not is_alive(pid), bound_s=20)


def test_reloaded_process_whose_reloader_is_gone_already_ends_itself(prepared: Path) -> None:
    ended = manage(
        prepared, "runserver", f"127.0.0.1:{free_port()}",
        RUN_MAIN="true", **{RELOADER_VARIABLE: "1"},
    )  # fmt: skip
    assert ended.returncode == -signal.SIGTERM
