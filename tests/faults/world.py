"""What a fault is done to: a real server, its processes, its model provider, and its callers."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import signal
import socket
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from tests.e2e.conftest import LiveSite, wait_until
from tests.faults.checker import Checker, metrics_of

Json = dict[str, Any]
BOUND_S = 30.0
HELLO = '200 stop "Hello world"'
LEFT = "nothing: it had left"
SECOND_SIGNAL_S = 0.05

_numbers = itertools.count(1)


class Asking:
    """One request by hand, read in a thread. `view` tells in a few words what its caller got."""

    def __init__(self, url: str, secret: str, body: Json, headers: dict[str, str]) -> None:
        self.name = f"fault-{next(_numbers)}"
        self.said = threading.Event()
        self.text = ""
        self.ended_at = 0.0
        self._view = ""
        self._has_left = False
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=BOUND_S)
        sent = {
            "authorization": f"Bearer {secret}",
            "content-type": "application/json",
            "user-agent": self.name,
            **headers,
        }
        self._connection.request("POST", "/v1/chat/completions", json.dumps(body), sent)
        assert self._connection.sock is not None
        self.socket: socket.socket = self._connection.sock
        self._reading = threading.Thread(target=self._read, daemon=True)

    def read(self) -> Asking:
        """Begin to read."""
        self._reading.start()
        return self

    def _read(self) -> None:
        try:
            response = self._connection.getresponse()
            if "event-stream" in (response.getheader("content-type") or ""):
                self._view = self._read_stream(response)
            else:
                self._view = _view_of(response.status, json.loads(response.read()))
        except (OSError, http.client.HTTPException):
            self._view = "connection lost"
        self.ended_at = time.monotonic()

    def _read_stream(self, response: http.client.HTTPResponse) -> str:
        error, finish = "", ""
        for line in response:
            if not line.startswith(b"data: "):
                continue
            data = line.removeprefix(b"data: ").strip()
            if data == b"[DONE]":
                return f"200, then {error}" if error else f'200 {finish} "{_short(self.text)}"'
            chunk = json.loads(data)
            if "error" in chunk:
                error = chunk["error"]["code"]
                continue
            for choice in chunk["choices"]:
                delta = choice["delta"]
                self.text += delta.get("content") or ""
                finish = choice["finish_reason"] or finish
                if delta.get("content") or delta.get("reasoning_content"):
                    self.said.set()
        return f"200, then {error}" if error else "200, then cut off"

    def leave(self) -> None:
        """Hang up."""
        self._has_left = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        if self._reading.ident is not None:
            self._reading.join(BOUND_S)
        self.socket.close()
        self._connection.close()

    def view(self) -> str:
        """Wait for the end and return what came, such as `502 engine_crashed`."""
        if self._reading.ident is not None:
            self._reading.join(BOUND_S)
            assert not self._reading.is_alive(), "the caller still waits"
        return LEFT if self._has_left else self._view


def _view_of(status: int, body: Json) -> str:
    if status != 200:
        return f"{status} {body['error']['code']}"
    choice = body["choices"][0]
    return f'{status} {choice["finish_reason"]} "{_short(choice["message"]["content"])}"'


def _short(text: str | None) -> str:
    text = (text or "").strip()
    return text if len(text) <= 20 else f"{len(text)} characters"


class World:
    """One server and what a fault may do to it."""

    def __init__(self, site: LiveSite, keys: dict[str, str], folder: Path) -> None:
        self.site, self.provider, self.keys, self.folder = site, site.provider, keys, folder
        self.sent = 0
        self.struck_at = 0.0
        self.subject: Asking | None = None
        self._askings: list[Asking] = []
        self._age = 0
        self.watched: list[int] = []
        self._halves: set[str] = set()
        self.checker = Checker(site, self.pid)

    @property
    def pid(self) -> int:
        return self.site.server.process.pid

    # Callers.

    def send(
        self,
        key: str = "app-server",
        *,
        stream: bool = False,
        headers: dict[str, str] | None = None,
        **body: Any,
    ) -> Asking:
        """Send a question, but read nothing yet."""
        whole: Json = {
            "model": "default",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": stream,
            **body,
        }
        asking = Asking(self.site.url, self.keys[key], whole, headers or {})
        self._askings.append(asking)
        self.sent += 1
        self.subject = asking
        return asking

    def ask(self, key: str = "app-server", **body: Any) -> Asking:
        """Send a question and begin to read."""
        return self.send(key, **body).read()

    def send_half(self, key: str = "app-server") -> Asking:
        """Send the head of a request, which promises a body, and half of that."""
        asking = Asking(self.site.url, self.keys[key], {}, {"content-length": "1000"})
        self._askings.append(asking)
        self._halves.add(asking.name)
        self.subject = asking
        return asking

    def is_served(self, key: str = "app-server") -> None:
        """Ask a plain question, which must be answered; not the fault's own."""
        subject = self.subject
        assert self.ask(key).view() == HELLO
        self.subject = subject

    def asked_at_provider(self, behaviour: Any, key: str = "app-server", **body: Any) -> Asking:
        """Ask, let the provider behave so, and return once the provider has the request."""
        number = len(self.provider.requests) + 1
        self.provider.reply(behaviour)
        asking = self.ask(key, **body)
        self.provider.wait_for_request(number, BOUND_S)
        return asking

    # The fault's moment.

    def strike(self) -> None:
        """Note the time: what the caller sees is measured from here."""
        self.struck_at = time.monotonic()

    # The server's processes and options.

    def children(self, kind: str = "app-server") -> list[psutil.Process]:
        """Return its codex processes of a kind: `app-server` or `exec`."""
        found = []
        for child in psutil.Process(self.pid).children():
            with contextlib.suppress(psutil.Error):
                if kind in child.cmdline():
                    found.append(child)
        return found

    def signal(self, number: int, kind: str = "app-server") -> psutil.Process:
        """Strike by sending a signal to its one process of that kind, and return that."""
        wait_until(lambda: len(self.children(kind)) == 1)
        (child,) = self.children(kind)
        self.strike()
        child.send_signal(number)
        if number == signal.SIGSEGV:
            # Rust's own handler takes the first one: it looks for an overflow of the stack.
            time.sleep(SECOND_SIGNAL_S)
            child.send_signal(number)
        return child

    def options(self, **fields: Any) -> None:
        """Change the settings' row, as another program might; undone when the fault is over."""
        values = {
            name: json.dumps(value) if isinstance(value, (list, tuple)) else value
            for name, value in fields.items()
        }
        write_options(self.site.data_dir, values)

    def execute(self, statement: str, *values: Any) -> None:
        """Write to the database behind the server's back."""
        execute(self.site.data_dir, statement, *values)

    def queued(self) -> int:
        return int(metrics_of(self.site.url)["queue"]["queued"])

    def unique_seconds(self) -> str:
        """Return a time to sleep by which a command is found among all processes."""
        return f"{300 + next(_numbers)}.{self.pid}"

    def fresh_engine(self, key: str = "app-server") -> None:
        """Have a new engine with a new pool, so that earlier deaths do not count in its backoff."""
        self._age += 1
        self.options(worker_max_hours=24 + self._age)
        self.is_served(key)

    # The server's end.

    def readiness(self) -> tuple[int, Json]:
        """Return what `/ready` says."""
        try:
            with urllib.request.urlopen(f"{self.site.url}/ready", timeout=BOUND_S) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def is_ending(self) -> bool:
        """Whether the server says that it lets its requests finish."""
        return "requests may finish" in self.site.server.output

    def end(self, number: int | None = None) -> None:
        """Strike by a signal to the server, unless that is struck already, and wait for its end."""
        if number is not None:
            self.strike()
            self.site.server.process.send_signal(number)
        self.site.server.process.wait(BOUND_S)

    # The life of a world.

    def remember(self) -> None:
        """Save the options, to be restored after each fault."""
        with contextlib.closing(sqlite3.connect(self.site.data_dir / "db.sqlite3")) as connection:
            connection.row_factory = sqlite3.Row
            row = dict(connection.execute("SELECT * FROM proxy_proxysettings").fetchone())
        del row["id"]
        self._saved = row

    def begin(self) -> None:
        """Warm up both engines and whatever starts on demand; take the baseline."""
        self.remember()
        for _ in range(3):
            several = [self.ask(key) for key in ("app-server", "exec") for _ in range(4)]
            assert [one.view() for one in several] == [HELLO] * 8
        # The sandbox is proved behind the start: what that runs is not the server's to keep.
        wait_until(lambda: has_proofs(self.site.data_dir))
        wait_until(lambda: self.checker.baseline().processes == ("codex",))

    def restore(self) -> None:
        """Undo what the fault has changed, and let what it holds go."""
        write_options(self.site.data_dir, self._saved)
        self.close()
        self.provider.clear()

    def close(self) -> None:
        """Hang up for every caller."""
        for asking in self._askings:
            asking.leave()
        self._askings.clear()

    def row(self) -> str:
        """Return what the subject's row says once it is closed: outcome, code, status."""
        assert self.subject is not None
        name = self.subject.name
        if self.sent_whole(name):
            wait_until(
                lambda: any(row["outcome"] != "running" for row in self._rows(name)), BOUND_S
            )
        words = [
            " ".join(str(row[column] or "") for column in ("outcome", "error_code", "http_status"))
            for row in self._rows(name)
        ]
        return " & ".join(" ".join(one.split()) for one in words) or "none"

    def sent_whole(self, name: str) -> bool:
        """Whether that request came in whole: half of one is none, and has no row."""
        return name not in self._halves

    def _rows(self, name: str) -> list[dict[str, Any]]:
        return [row for row in self.site.rows_now() if row["user_agent"] == name]


def execute(data_dir: Path, statement: str, *values: Any) -> None:
    """Write to the database of a data directory."""
    path = data_dir / "db.sqlite3"
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as connection, connection:
        connection.execute(statement, values)


def write_options(data_dir: Path, values: dict[str, Any]) -> None:
    """Set columns of the settings' row, as they stand in the database."""
    assignments = ", ".join(f"{name} = ?" for name in values)
    execute(data_dir, f"UPDATE proxy_proxysettings SET {assignments}", *values.values())


def has_proofs(data_dir: Path) -> bool:
    """Whether the sandbox has been proved there."""
    with contextlib.closing(sqlite3.connect(data_dir / "db.sqlite3", timeout=20)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM proxy_sandboxproof").fetchone()
    return bool(count)
