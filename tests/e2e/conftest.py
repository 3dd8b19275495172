"""A real server with the real codex, its model provider scripted, its rows read from its database."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.processes import PROJECT, WAIT_S, Serving, environment
from tests.provider import ScriptedProvider
from tests.services import require_chromium

E2E = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder runs the real binary."""
    for item in items:
        if E2E in item.path.parents:
            item.add_marker(pytest.mark.e2e)


class LiveSite:
    """A served data directory: its keys, its rows, its processes."""

    def __init__(
        self,
        server: Serving,
        data_dir: Path,
        provider: ScriptedProvider,
        secret: str | None = None,
    ) -> None:
        self.server, self.data_dir, self.provider = server, data_dir, provider
        self._clients = contextlib.ExitStack()
        self.secret = secret or server.find(r"(?m)^API key \(shown once\): (\S+)$")

    @property
    def url(self) -> str:
        return self.server.url

    def client(self, secret: str | None = None) -> openai.OpenAI:
        """Return an official client; it is closed with the site."""
        client = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=secret or self.secret, max_retries=0, timeout=WAIT_S
        )
        self._clients.callback(client.close)
        return client

    def close(self) -> None:
        self._clients.close()

    def run_code(self, code: str) -> Any:
        """Run Python in a `manage.py shell` of that directory; return what it calls `result`."""
        done = subprocess.run(
            [sys.executable, "manage.py", "shell", "--no-imports", "-c",
             f"{PREAMBLE}\n{code}\nprint('RESULT ' + json.dumps(result))"],
            cwd=PROJECT, env=environment(self.data_dir), timeout=WAIT_S,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.rpartition("RESULT ")[2])

    def issue_key(self, **fields: object) -> str:
        """Issue a key of the admin's with these columns and return its secret."""
        return str(self.run_code(f"result = ApiKey.objects.issue(**issue({fields!r}))[1]"))

    def rows(self) -> list[dict[str, Any]]:
        """Every row, oldest first, once none of them is running any more."""
        deadline = time.monotonic() + WAIT_S
        while True:
            found = self.rows_now()
            if all(row["outcome"] != "running" for row in found):
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.02)

    def rows_now(self) -> list[dict[str, Any]]:
        """Every row, oldest first, running or not."""
        with contextlib.closing(sqlite3.connect(self.data_dir / "db.sqlite3")) as connection:
            connection.row_factory = sqlite3.Row
            query = "SELECT * FROM audit_requestrecord ORDER BY id"
            return [dict(row) for row in connection.execute(query)]

    def row_of(self, request_id: str) -> dict[str, Any]:
        """The one row of a request, closed."""
        deadline = time.monotonic() + WAIT_S
        while True:
            wanted = request_id.replace("-", "")
            found = [row for row in self.rows_now() if row["request_id"] == wanted]
            if found and found[0]["outcome"] != "running":
                assert len(found) == 1
                return found[0]
            assert time.monotonic() < deadline, found
            time.sleep(0.02)

    def newest_row(self, count: int) -> dict[str, Any]:
        """The newest of exactly `count` rows, closed: for a request whose id nobody learnt."""
        deadline = time.monotonic() + WAIT_S
        while True:
            found = self.rows_now()
            assert len(found) <= count
            if len(found) == count and found[-1]["outcome"] != "running":
                return found[-1]
            assert time.monotonic() < deadline, found
            time.sleep(0.02)

    def count(self) -> int:
        return len(self.rows())


PREAMBLE = """
import json, datetime
from django.contrib.auth.models import User
from django.utils import timezone
from proxy.models import AgentGrant, AllowedRoot, ApiKey, ProxySettings
def issue(fields):
    return {"name": "test", "owner": User.objects.get(username="admin"), **fields}
result = None
"""


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


@pytest.fixture(scope="module")
def live(
    tmp_path_factory: pytest.TempPathFactory, provider: ScriptedProvider
) -> Iterator[LiveSite]:
    """One server for a module, both engines."""
    data_dir = tmp_path_factory.mktemp("site") / "data"
    configs = ";;".join(provider.overrides)
    with Serving(data_dir, "serve", "--port", "0", CODEX_PROXY_CODEX_CONFIGS=configs) as server:
        drain(server)
        site = LiveSite(server, data_dir, provider)
        yield site
        site.close()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    """The demo, from an empty directory."""
    data_dir = tmp_path_factory.mktemp("demo") / "data"
    with (
        ScriptedProvider() as unused,
        Serving(data_dir, "serve", "--port", "0", "--demo") as server,
    ):
        drain(server)
        site = LiveSite(server, data_dir, unused)
        yield site
        site.close()


def drain(server: Serving) -> None:
    """Keep reading what the server says, so that a full pipe never stops it."""

    def read() -> None:
        with contextlib.suppress(ValueError):
            for line in server.process.stdout or ():
                server.output += line

    threading.Thread(target=read, daemon=True).start()


def children_of(pid: int) -> list[int]:
    """Return the pids of all descendants that run now."""
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True
    ).stdout
    parents: dict[int, list[int]] = {}
    for line in listing.splitlines():
        child, parent, state = line.split()
        if not state.startswith("Z"):
            parents.setdefault(int(parent), []).append(int(child))
    found, todo = [], [pid]
    while todo:
        below = parents.get(todo.pop(), [])
        found += below
        todo += below
    return found


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout
    return bool(state) and not state.startswith("Z")


def wait_until(is_so: Callable[[], bool], bound_s: float = WAIT_S) -> None:
    """Ask until it is so, within a bound: for what happens in another process."""
    deadline = time.monotonic() + bound_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


# --- A browser -------------------------------------------------------------------------------

CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = require_chromium()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@contextlib.contextmanager
def logged_in(
    browser: Browser, site: LiveSite, url: str | None = None, who: str = "admin"
) -> Iterator[Page]:
    """A page of somebody who has logged in; everybody but the first admin has "secret"."""
    url = url or site.url
    password = "secret"
    if who == "admin":
        password = site.server.find(r"password \(shown once\): (\S+)")
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    context.set_default_timeout(20_000)
    page = context.new_page()
    page.goto(f"{url}/admin/")
    page.fill("input[name=username]", who)
    page.fill("input[name=password]", password)
    page.click("button[type=submit]")
    page.wait_for_url(f"{url}/admin/")
    try:
        yield page
    finally:
        context.close()
