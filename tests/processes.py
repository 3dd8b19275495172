"""Real servers and commands for the tests: `manage.py` in a process, with a directory of its own."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

PROJECT = Path(__file__).resolve().parent.parent
WAIT_S = 40.0


def environment(data_dir: Path, **more: str) -> dict[str, str]:
    """Return this environment without any option of the server, but with the data directory."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("CODEX_PROXY_") and name != "DATABASE_URL"
    }
    # Their data directories lie where no other user gets to, so agents run as whoever runs the tests.
    own = {"CODEX_PROXY_ALLOW_ROOT_AGENT": "1", "PYTHONUNBUFFERED": "1"}
    return kept | {"CODEX_PROXY_DATA_DIR": str(data_dir)} | own | more


def manage(data_dir: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=PROJECT, env=environment(data_dir, **env), timeout=WAIT_S,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def status_of(url: str) -> int:
    """Return the HTTP status of a GET; raises `OSError` where nobody listens."""
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=WAIT_S)
    try:
        connection.request("GET", f"/{path}")
        return connection.getresponse().status
    finally:
        connection.close()


def wait_for(is_so: Callable[[], bool]) -> None:
    """Ask again and again until it is so; for what tells nobody when it happens."""
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Serving:
    """A server in the foreground, from the line that starts with `until` to the block's end."""

    def __init__(
        self, data_dir: Path, *arguments: str, until: str = "Serving.", **env: str
    ) -> None:
        self._until = until
        self._command = [sys.executable, "manage.py", *arguments]
        self._environment = environment(data_dir, **env)
        self.output = ""
        self.process: subprocess.Popen[str]

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command, cwd=PROJECT, env=self._environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        # Its end closes the pipe, and with it the wait.
        guard = threading.Timer(WAIT_S, self.process.kill)
        guard.start()
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if line.startswith(self._until):
                break
        guard.cancel()
        if self._until not in self.output:
            self.__exit__(None, None, None)
            raise AssertionError(f"the server did not start:\n{self.output}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate(timeout=WAIT_S)

    def find(self, pattern: str) -> str:
        """Return the first group of the pattern in what the server said."""
        found = re.search(pattern, self.output)
        assert found, f"no {pattern!r} in:\n{self.output}"
        return found[1]

    @property
    def url(self) -> str:
        return self.find(r"Base URL: (\S+)/v1\n")

    def end(self, number: int) -> int:
        """Send the signal and return the exit status."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=WAIT_S)
        self.output += rest
        return self.process.returncode
