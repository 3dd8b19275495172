"""A server under many callers at once, whose provider answers each by the mark in its question."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.conftest import LiveSite, children_of
from tests.faults.byhand import Call, Seen
from tests.processes import Serving
from tests.provider import Answer, Request, Script, ScriptedProvider

Json = dict[str, Any]
MODEL = "gpt-5.5"
MARK = re.compile(r"\[\[([\w-]+)\]\]")
POLL_S = 0.01
EVENT_BOUND_S = 20.0

SETUP = """
root = AllowedRoot.objects.create(alias="project", path={folder!r})
result = {{}}
for name in ("app-server", "exec", "agent", "exec-agent"):
    engine = "exec" if name.startswith("exec") else "app-server"
    key, result[name] = ApiKey.objects.issue(**issue({{"name": name, "engine": engine, "default_root": root}}))
    key.allowed_roots.add(root)
    if "agent" in name:
        AgentGrant.objects.create(key=key, reason="faults").roots.add(root)
ProxySettings(codex_configs={configs!r}, timeout_seconds=60).save()
"""


class Crowd(LiveSite):
    """A live server whose provider answers each request by the mark in its text."""

    def __init__(
        self, server: Serving, data_dir: Path, provider: ScriptedProvider, folder: Path
    ) -> None:
        super().__init__(server, data_dir, provider)
        self.folder = folder
        self.calls: list[Call] = []
        self._numbers = itertools.count(1)
        self._scripts: dict[str, deque[Script]] = {}
        provider.default = self._script_for
        self.keys: dict[str, str] = dict(
            self.run_code(SETUP.format(folder=str(folder), configs=list(provider.overrides)))
        )

    # What the model says.

    def script(self, mark: str, *scripts: Script) -> None:
        """Have requests with this mark answered so, one after the other; the last one stays."""
        self._scripts[mark] = deque(scripts)

    def _script_for(self, body: Json) -> Any:
        found = MARK.search(json.dumps(body["input"]))
        scripts = self._scripts.get(found[1]) if found else None
        if not scripts:
            return Answer()
        script = scripts.popleft() if len(scripts) > 1 else scripts[0]
        return script(body) if callable(script) else script

    def asked(self, mark: str) -> list[Request]:
        """What the model was asked with this mark."""
        wanted = f"[[{mark}]]"
        return [one for one in self.provider.requests if wanted in json.dumps(one.body["input"])]

    async def until_asked(self, mark: str, times: int = 1) -> None:
        await self.until(lambda: len(self.asked(mark)) >= times, f"the model was asked of {mark}")

    async def until(self, is_so: Callable[[], bool], what: str) -> None:
        """Wait for what another process or thread does."""
        deadline = time.monotonic() + EVENT_BOUND_S
        while not is_so():
            assert time.monotonic() < deadline, f"not in time: {what}"
            await asyncio.sleep(POLL_S)

    # What callers do.

    def call(self, mark: str, key: str = "app-server", **body: Any) -> Call:
        """Return a request, not sent yet, with this mark in its question."""
        headers = body.pop("headers", {})
        body = {"model": MODEL, "messages": [{"role": "user", "content": f"[[{mark}]]"}], **body}
        name = f"{mark}-{next(self._numbers)}"
        secret = self.keys.get(key, key)
        call = Call(name, self.url, secret, body, **headers)
        self.calls.append(call)
        return call

    async def ask(self, mark: str, key: str = "app-server", **body: Any) -> Seen:
        """Ask as a good client does, to the end."""
        async with self.call(mark, key, **body) as call:
            return await call.finish()

    # What the operator does.

    def change_settings(self, **values: object) -> None:
        """Change the row of the settings, in the database itself."""
        names = ", ".join(f"{name} = ?" for name in values)
        given = [json.dumps(v) if isinstance(v, list | tuple) else v for v in values.values()]
        with contextlib.closing(sqlite3.connect(self.data_dir / "db.sqlite3", timeout=10)) as base:
            base.execute(f"UPDATE proxy_proxysettings SET {names}", given)
            base.commit()

    def workers(self) -> list[int]:
        """Return the app-server processes that run now."""
        return [pid for pid in children_of(self.server.process.pid) if is_worker(pid)]

    # What the log says.

    @property
    def sent(self) -> int:
        """How many requests the server has got whole: only these have a row."""
        return sum(call.is_whole for call in self.calls)

    def row(self, call_name: str) -> Json | None:
        found = [row for row in self.rows_now() if row["client_request_id"] == call_name]
        assert len(found) <= 1, found
        return found[0] if found else None

    async def closed_row(self, call: Call) -> str:
        """Return what the row of a call says, once it is closed."""
        if not call.is_whole:
            return "none"
        await self.until(
            lambda: (self.row(call.name) or {"outcome": "running"})["outcome"] != "running",
            f"the row of {call.name} is closed",
        )
        row = self.row(call.name)
        assert row is not None
        return " ".join(str(row[name]) for name in ("outcome", "http_status", "error_code")).strip()


def is_worker(pid: int) -> bool:
    try:
        return "app-server" in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False
