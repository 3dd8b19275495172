"""The disk or the database goes away under a real server: nothing is spent in vain, no row is lost.

Each test asks in the outage and behind it, and at the end there is one closed row for each request.
"""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psycopg
import pytest

from tests.cable import Cable
from tests.e2e.conftest import drain, wait_until
from tests.e2e.test_endings import open_request
from tests.processes import Serving, manage
from tests.provider import ScriptedProvider, Text
from tests.services import require_mounts, require_postgres

pytestmark = pytest.mark.timeout(120)

QUESTION = {"model": "default", "messages": [{"role": "user", "content": "hi"}]}
PROMPTLY_S = 9.0
"""Five seconds for the database, and room for a slow machine; Django alone waits for twenty."""

Rows = Callable[[], list[tuple[str, int | None]]]


class Asker:
    """Asks one server and counts the requests, so that their rows can be counted."""

    def __init__(self, server: Serving, provider: ScriptedProvider) -> None:
        self.server, self.url, self.provider = server, server.url, provider
        self.secret = server.find(r"(?m)^API key \(shown once\): (\S+)$")
        self.count = 0

    def ask(self) -> httpx.Response:
        self.count += 1
        headers = {"authorization": f"Bearer {self.secret}"}
        url = f"{self.url}/v1/chat/completions"
        return httpx.post(url, json=QUESTION, headers=headers, timeout=40)

    def is_refused(self) -> bool:
        """Ask once; return whether this was 503 and cost no turn. Anything but 200 is wrong else."""
        asked = len(self.provider.requests)
        answer = self.ask()
        if answer.status_code == 200:
            return False
        assert answer.status_code == 503, answer.text
        assert answer.json()["error"]["code"] == "server_unavailable"
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert len(self.provider.requests) == asked
        return True

    @contextlib.contextmanager
    def running(self) -> Iterator[Callable[[], bytes]]:
        """A stream in mid-answer; what is yielded lets it finish and returns the rest of it."""
        self.count += 1
        gate = threading.Event()
        self.provider.reply(Text(("Hello", " world"), gate=gate))
        with closing(open_request(self.url, self.secret, stream=True)) as connection:
            response = connection.getresponse()
            while b"Hello" not in response.readline():
                pass

            def finish() -> bytes:
                gate.set()
                return response.read()

            yield finish


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


@contextlib.contextmanager
def serving(data_dir: Path, provider: ScriptedProvider, **env: str) -> Iterator[Asker]:
    configs = ";;".join(provider.overrides)
    arguments = ("serve", "--port", "0")
    with Serving(data_dir, *arguments, CODEX_PROXY_CODEX_CONFIGS=configs, **env) as server:
        drain(server)
        asker = Asker(server, provider)
        assert asker.ask().status_code == 200
        try:
            yield asker
        finally:
            print(server.output)  # noqa: T201 - pytest shows it where the test fails


def rows_of(path: Path) -> Rows:
    def rows() -> list[tuple[str, int | None]]:
        with closing(sqlite3.connect(path, timeout=20)) as connection:
            query = "SELECT outcome, http_status FROM audit_requestrecord ORDER BY id"
            return [(outcome, status) for outcome, status in connection.execute(query)]

    return rows


@contextlib.contextmanager
def explained(rows: Rows, count: int) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"of {count} requests these have rows: {rows()}") from error


def assert_one_closed_row_each(rows: Rows, count: int) -> list[tuple[str, int | None]]:
    with explained(rows, count):
        wait_until(lambda: len(rows()) >= count and "running" not in {row[0] for row in rows()})
    found = rows()
    assert len(found) == count
    return found


# --- The disk ---------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[None]:
    subprocess.run([require_mounts(), *arguments, str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_full_disk_refuses_before_a_turn_and_keeps_the_rows(
    tmp_path: Path, provider: ScriptedProvider
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    # The write-ahead log alone takes four megabytes: a smaller disk is full without any filler.
    home = {"CODEX_PROXY_APP_SERVER_CODEX_HOME": str(tmp_path / "home")}
    with (
        mounted(data, "-t", "tmpfs", "-o", "size=40m", "tmpfs"),
        serving(data, provider, **home) as asker,
        asker.running() as finish,
    ):
        filler = data / "filler"
        with filler.open("wb", buffering=0) as file:
            for size in (65536, 512):
                with contextlib.suppress(OSError):
                    while file.write(b"x" * size):
                        pass
        wait_until(asker.is_refused)  # the last open page may still take a line or two
        assert asker.is_refused()
        assert finish().endswith(b"data: [DONE]\n\n")
        filler.unlink()
        wait_until(lambda: not asker.is_refused())
        found = assert_one_closed_row_each(rows_of(data / "db.sqlite3"), asker.count)
        assert ("failed", 503) in found


def test_read_only_data_directory_refuses_before_a_turn_and_keeps_the_rows(
    tmp_path: Path, provider: ScriptedProvider
) -> None:
    data = tmp_path / "data"
    with serving(data, provider) as asker, asker.running() as finish:
        with mounted(data, "--bind", str(data)):
            subprocess.run([require_mounts(), "-o", "remount,bind,ro", str(data)], check=True)
            wait_until(asker.is_refused)  # the file that was open may still take a line
            assert asker.is_refused()
            assert finish().endswith(b"data: [DONE]\n\n")
            refused = manage(data, "serve", "--port", "0")
        wait_until(lambda: not asker.is_refused())
        found = assert_one_closed_row_each(rows_of(data / "db.sqlite3"), asker.count)
        assert ("failed", 503) in found
    assert refused.returncode == 1
    assert refused.stderr.startswith("codexsite cannot start: CODEX_PROXY_DATA_DIR: ")
    assert "read-only" in refused.stderr
    assert refused.stderr.count("\n") == 1


# --- The database -----------------------------------------------------------------------------


def test_lock_of_another_program_on_sqlite_delays_rows_and_no_answer(
    tmp_path: Path, provider: ScriptedProvider
) -> None:
    with serving(tmp_path, provider) as asker:
        database = tmp_path / "db.sqlite3"
        rows = rows_of(database)
        with closing(sqlite3.connect(database, isolation_level=None, timeout=20)) as other:
            other.execute("BEGIN EXCLUSIVE")
            started = time.monotonic()
            assert [asker.ask().status_code for _ in range(5)] == [200] * 5
            assert time.monotonic() - started < PROMPTLY_S
            assert len(rows()) < asker.count
        assert assert_one_closed_row_each(rows, asker.count) == [("ok", 200)] * 6


def test_spool_that_is_full_refuses_what_the_lock_alone_did_not(
    tmp_path: Path, provider: ScriptedProvider
) -> None:
    with serving(tmp_path, provider, CODEX_PROXY_SPOOL_MB="0.03") as asker:
        database = tmp_path / "db.sqlite3"
        rows = rows_of(database)
        with closing(sqlite3.connect(database, isolation_level=None, timeout=20)) as other:
            other.execute("BEGIN IMMEDIATE")
            while not asker.is_refused():
                assert asker.count < 100
            assert asker.count > 3
        wait_until(lambda: not asker.is_refused())
        assert ("failed", 503) in assert_one_closed_row_each(rows, asker.count)


@pytest.fixture
def cable() -> Iterator[Cable]:
    require_postgres()
    with Cable(5432) as running:
        yield running


@pytest.fixture
def database() -> Iterator[str]:
    """The URL of a fresh database, dropped behind the test."""
    server, name = require_postgres(), f"codexsite_test_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
        yield f"{server}/{name}"
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def postgres_rows_of(url: str) -> Rows:
    def rows() -> list[tuple[str, int | None]]:
        with psycopg.connect(url) as connection:
            query = "SELECT outcome, http_status FROM audit_requestrecord ORDER BY id"
            return [(str(outcome), status) for outcome, status in connection.execute(query)]

    return rows


def through(cable: Cable, url: str) -> dict[str, Any]:
    return {"DATABASE_URL": url.replace(":5432", f":{cable.port}")}


@pytest.mark.parametrize("trouble", [Cable.cut, Cable.fall_silent])
def test_postgresql_that_goes_away_refuses_promptly_and_gets_every_row_later(
    tmp_path: Path,
    provider: ScriptedProvider,
    cable: Cable,
    database: str,
    trouble: Callable[[Cable], None],
) -> None:
    rows = postgres_rows_of(database)
    bound = {"CODEX_PROXY_SPOOL_MB": "0.03"}  # reached in this outage, many times over
    with serving(tmp_path, provider, **through(cable, database), **bound) as asker:
        with asker.running() as finish:
            trouble(cable)
            started = time.monotonic()
            with ThreadPoolExecutor(30) as threads:
                refused = list(threads.map(lambda _: asker.ask(), range(60)))
            took_s = time.monotonic() - started
            assert {answer.status_code for answer in refused} == {503}
            assert max(answer.elapsed.total_seconds() for answer in refused) < PROMPTLY_S
            assert took_s < 3 * PROMPTLY_S, "once the spool is full the database is not waited for"
            assert finish().endswith(b"data: [DONE]\n\n")
            waiting = sum(path.stat().st_size for path in (tmp_path / "spool").glob("*.jsonl"))
            assert waiting < 60_000
        cable.mend()
        wait_until(lambda: not asker.is_refused())
        found = assert_one_closed_row_each(rows, asker.count)
        assert found[:2] == [("ok", 200)] * 2
        assert found.count(("failed", 503)) >= 60
        assert httpx.get(f"{asker.url}/metrics").json()["requests_total"] == asker.count


def test_server_ends_while_its_database_is_silent_and_the_next_one_stores_the_rows(
    tmp_path: Path, provider: ScriptedProvider, cable: Cable, database: str
) -> None:
    rows = postgres_rows_of(database)
    grace = {"CODEX_PROXY_SHUTDOWN_GRACE_SECONDS": "0.1"}
    with serving(tmp_path, provider, **through(cable, database), **grace) as asker:
        with asker.running() as finish:
            cable.fall_silent()
            assert finish().endswith(b"data: [DONE]\n\n")
        process = asker.server.process
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert len(rows()) < asker.count or ("running", None) in rows()
    cable.mend()
    assert manage(tmp_path, "proxy", "start", "--port", "0", DATABASE_URL=database).returncode == 0
    assert manage(tmp_path, "proxy", "stop", DATABASE_URL=database).returncode == 0
    found = assert_one_closed_row_each(rows, asker.count)
    assert found == [("ok", 200), ("ok", 200)]
