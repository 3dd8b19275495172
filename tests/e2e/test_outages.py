"""The disk or the database is away: refused before a turn is spent, or answered; no row is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import psycopg
import pytest

from codexsite.background import answers
from tests.e2e.conftest import LiveSite, children_of, drain, is_alive, wait_until
from tests.e2e.test_endings import open_request, serving
from tests.e2e.test_postgres import database as database  # a fixture
from tests.processes import PROJECT, Serving, free_port, manage, wait_for
from tests.provider import ScriptedProvider, Stall, Text

QUESTION: Any = [{"role": "user", "content": "hi"}]
SOON_S = 8.0
"""An outage is told within this many seconds; Django alone would wait for twenty, TCP for minutes."""


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


def ask(site: LiveSite) -> Any:
    return site.client().chat.completions.create(model="default", messages=QUESTION)


def refused_soon(site: LiveSite) -> openai.APIStatusError:
    started = time.monotonic()
    with pytest.raises(openai.APIStatusError) as refusal:
        ask(site)
    assert time.monotonic() - started < SOON_S
    assert (refusal.value.status_code, refusal.value.code) == (503, "server_unavailable")
    return refusal.value


class Behind:
    """A request that runs while something breaks."""

    def __init__(self, site: LiveSite) -> None:
        self._gate, self._answers = threading.Event(), list[Any]()
        asked = len(site.provider.requests)
        site.provider.reply(Text(("so far", " done"), gate=self._gate))
        self._thread = threading.Thread(target=lambda: self._answers.append(ask(site)))
        self._thread.start()
        site.provider.wait_for_request(asked + 1)

    def finish(self) -> Any:
        self._gate.set()
        self._thread.join(20)
        (answer,) = self._answers
        assert answer.choices[0].message.content == "so far done"
        return answer


# The disk.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes, mounted at the spool's place of a data directory."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("Not run: only root can mount a small disk here")
    spool = tmp_path / "data" / "spool"
    spool.mkdir(parents=True, mode=0o700)
    (tmp_path / "data").chmod(0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "none", spool], check=True)
    yield spool
    subprocess.run(["umount", "--lazy", spool], check=True)


def _fill(spool: Path) -> None:
    wait_until(lambda: not list(spool.glob("*.jsonl")))  # or its end would make room again
    with contextlib.suppress(OSError), (spool / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)


def _free(spool: Path) -> None:
    (spool / "filler").unlink()


def _close(spool: Path) -> None:
    wait_until(lambda: not list(spool.glob("*.jsonl")))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", spool], check=True)


def _open(spool: Path) -> None:
    subprocess.run(["umount", spool], check=True)


@pytest.mark.parametrize(
    ("breaks", "mends"), [(_fill, _free), (_close, _open)], ids=["full", "read-only"]
)
def test_disk_that_takes_nothing_refuses_new_turns_and_loses_no_row(
    tmp_path: Path,
    small_disk: Path,
    provider: ScriptedProvider,
    breaks: Callable[[Path], None],
    mends: Callable[[Path], None],
) -> None:
    with serving(tmp_path / "data", provider, "serve", "--port", "0") as server:
        drain(server)
        site = LiveSite(server, tmp_path / "data", provider)
        ask(site)
        site.rows()
        behind, asked = Behind(site), len(provider.requests)
        breaks(small_disk)
        refusals = [refused_soon(site) for _ in range(3)]
        running = behind.finish()
        assert len(provider.requests) == asked, "no turn was spent"
        mends(small_disk)
        assert site.row_of(str(running._request_id))["outcome"] == "ok"
        for refusal in refusals:
            row = site.row_of(str(refusal.request_id))
            assert (row["outcome"], row["http_status"]) == ("failed", 503)
        site.row_of(str(ask(site)._request_id))
        assert site.count() == 6
        site.close()


def test_spool_has_a_bound_and_frees_itself(tmp_path: Path, provider: ScriptedProvider) -> None:
    data_dir = tmp_path / "data"
    with serving(data_dir, provider, "serve", "--port", "0", CODEX_PROXY_SPOOL_MB="0.02") as server:
        drain(server)
        site = LiveSite(server, data_dir, provider)
        ask(site)
        site.rows()
        lock = sqlite3.connect(data_dir / "db.sqlite3", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        answered, refusal = 1, None
        while refusal is None:
            assert answered < 100
            try:
                ask(site)
                answered += 1
            except openai.APIStatusError as error:
                refusal = error
        assert (refusal.status_code, refusal.code) == (503, "server_unavailable")
        assert refusal.response.headers["retry-after"].isdecimal()
        assert answered > 2
        lock.execute("COMMIT")
        lock.close()
        assert site.row_of(str(refusal.request_id))["outcome"] == "failed"
        site.row_of(str(ask(site)._request_id))
        assert site.count() == answered + 2
        site.close()


# The database.


def test_locked_database_holds_up_no_answer_and_loses_no_row(
    tmp_path: Path, provider: ScriptedProvider
) -> None:
    data_dir = tmp_path / "data"
    with serving(data_dir, provider, "serve", "--port", "0") as server:
        drain(server)
        site = LiveSite(server, data_dir, provider)
        ask(site)
        site.rows()
        lock = sqlite3.connect(data_dir / "db.sqlite3", isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        answers = [ask(site) for _ in range(3)]
        assert time.monotonic() - started < SOON_S
        lock.execute("COMMIT")
        lock.close()
        for answer in answers:
            assert site.row_of(str(answer._request_id))["outcome"] == "ok"
        assert site.count() == 4
        assert "database is locked" not in server.output
        site.close()


class Wire:
    """A way to PostgreSQL that can be cut and mended."""

    def __init__(self, port: int) -> None:
        self._target, self._is_cut = port, False
        self._pairs: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self._is_cut:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._target))
                self._pairs += (near, far)
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        self._is_cut = True
        for end in self._pairs:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._is_cut = False

    def close(self) -> None:
        self.cut()
        self._listener.close()


@pytest.mark.timeout(120)
def test_postgresql_that_is_gone_refuses_new_turns_and_loses_no_row(
    tmp_path: Path, provider: ScriptedProvider, database: str
) -> None:
    wire = Wire(5432)
    url = database.replace(":5432/", f":{wire.port}/")
    data_dir = tmp_path / "data"
    with serving(data_dir, provider, "serve", "--port", "0", DATABASE_URL=url) as server:
        drain(server)
        site = LiveSite(server, data_dir, provider)
        first = ask(site)
        behind, asked = Behind(site), len(provider.requests)
        wire.cut()
        refusals = [refused_soon(site) for _ in range(3)]
        running = behind.finish()
        assert len(provider.requests) == asked, "no turn was spent"
        wire.mend()
        wait_until(lambda: _answers(site), bound_s=20)
        wanted = {str(answer._request_id): "ok" for answer in (first, running)}
        wanted |= {str(refusal.request_id): "failed" for refusal in refusals}

        def rows() -> dict[str, str]:
            with psycopg.connect(database) as connection:
                found = connection.execute("SELECT request_id, outcome FROM audit_requestrecord")
                return {str(request_id): outcome for request_id, outcome in found.fetchall()}

        wait_until(lambda: wanted.items() <= rows().items(), bound_s=20)
        site.close()
    wire.close()


def _answers(site: LiveSite) -> bool:
    with contextlib.suppress(openai.APIStatusError):
        ask(site)
        return True
    return False


# Signals.

COMMANDS = {
    "serve": (("serve",), "Serving."),
    "runserver": (("runserver", "--noreload"), "Quit the server"),
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", COMMANDS)
def test_second_signal_cuts_the_grace_short_with_a_clean_error(
    tmp_path: Path, provider: ScriptedProvider, command: str, number: signal.Signals
) -> None:
    data_dir = tmp_path / "data"
    with serving(data_dir, provider, "serve", "--port", "0") as first:
        key = first.find(r"(?m)^API key \(shown once\): (\S+)$")
        assert first.end(signal.SIGTERM) == 0
    options = {"CODEX_PROXY_SHUTDOWN_GRACE_SECONDS": "1000"}
    options["CODEX_PROXY_CODEX_CONFIGS"] = ";;".join(provider.overrides)
    port = free_port()
    arguments, until = COMMANDS[command]
    with Serving(
        data_dir, *arguments, until=until, CODEX_PROXY_PORT=str(port), **options
    ) as server:
        url = f"http://127.0.0.1:{port}"
        drain(server)
        wait_for(lambda: answers(f"{url}/health"))
        provider.reply(Stall(after=2))
        connection = open_request(url, key, stream=True)
        response = connection.getresponse()
        assert response.readline().startswith(b"data: ")
        server.process.send_signal(number)
        wait_until(lambda: "may finish" in server.output, bound_s=10)
        assert server.process.poll() is None
        server.process.send_signal(number)
        rest = response.read()
        assert server.process.wait(10) == 0
        connection.close()
    assert b'"code":"server_shutting_down"' in rest
    assert b"[DONE]" not in rest
    with contextlib.closing(sqlite3.connect(data_dir / "db.sqlite3")) as rows:
        assert rows.execute("SELECT outcome FROM audit_requestrecord").fetchall() == [
            ("interrupted",)
        ]


# The reloader.


@pytest.fixture
def reloading(tmp_path: Path) -> Iterator[tuple[Serving, str]]:
    """`runserver` with its reloader and a Codex behind it; gives it and its address."""
    assert manage(tmp_path, "migrate", "--verbosity", "0").returncode == 0
    port = free_port()
    with Serving(
        tmp_path, "runserver", str(port), until="Quit the server", CODEX_PROXY_DEMO="1"
    ) as server:
        drain(server)
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"))
        wait_until(lambda: "runs as pid" in server.output)
        yield server, f"http://127.0.0.1:{port}/health"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_reloader_that_ends_leaves_no_child(
    reloading: tuple[Serving, str], number: signal.Signals
) -> None:
    server, _ = reloading
    family = children_of(server.process.pid)
    assert len(family) >= 2, "the server and its Codex"
    server.process.send_signal(number)
    server.process.wait(20)
    wait_until(lambda: not any(is_alive(pid) for pid in family), bound_s=15)


def test_reload_leaves_no_child_of_the_server_before(reloading: tuple[Serving, str]) -> None:
    server, url = reloading
    before = children_of(server.process.pid)
    os.utime(PROJECT / "codexsite" / "pages.py")
    wait_until(lambda: not any(is_alive(pid) for pid in before), bound_s=20)
    wait_until(lambda: server.output.count("runs as pid") == 2, bound_s=20)
    assert answers(url)
