from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from audit.writer import AuditLog
from tests.services import require_postgres

WAIT_S = 40

_PROGRAM = "import django; django.setup(); from tests.contract.audit.process import main; main()"


class ServerProcess:
    """A child that runs `process.py` over one data directory and one database."""

    def __init__(self, data_dir: Path, database_url: str) -> None:
        self._errors_path = data_dir.parent / f"stderr-{uuid.uuid4().hex}.log"
        self._errors = self._errors_path.open("wb")
        self._child = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "tests.contract.audit.child_settings",
                "CODEX_PROXY_DATA_DIR": str(data_dir),
                "DATABASE_URL": database_url,
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
        )
        self._buffer = b""

    def tell(self, *command: object) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(command).encode() + b"\n")
        self._child.stdin.flush()

    def ask(self, *command: object) -> Any:
        self.tell(*command)
        return self.answer()

    def answer(self) -> Any:
        return json.loads(self.read_line())

    def read_line(self) -> str:
        while b"\n" not in self._buffer:
            chunk = self._read()
            assert chunk, f"The child is gone: {self.errors()}"
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def _read(self) -> bytes:
        assert self._child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            assert selector.select(WAIT_S), f"The child does not answer: {self.errors()}"
        return os.read(self._child.stdout.fileno(), 65536)

    def kill(self) -> list[str]:
        """Kill it as `kill -9` does; return the whole lines it had still written."""
        self._child.kill()
        self._child.wait(WAIT_S)
        while chunk := self._read():
            self._buffer += chunk
        lines, self._buffer = self._buffer.split(b"\n")[:-1], b""
        return [line.decode() for line in lines]

    def end(self) -> int:
        """Let it come to its own end; return its exit status."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        return self._child.wait(WAIT_S)

    def wait(self) -> int:
        return self._child.wait(WAIT_S)

    def errors(self) -> str:
        return self._errors_path.read_text()

    def close(self) -> None:
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait(WAIT_S)
        for stream in (self._child.stdin, self._child.stdout):
            assert stream is not None
            stream.close()
        self._errors.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind that the product runs on."""
    if request.param == "sqlite":
        yield ""  # the data directory's own
        return
    server = require_postgres()
    name = f"codexsite_test_{uuid.uuid4().hex}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield f"{server}/{name}"
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def launch(data_dir: Path, database_url: str) -> Iterator[Callable[[], ServerProcess]]:
    """Start one more process over the same data directory; the database is migrated."""
    processes: list[ServerProcess] = []

    def launch() -> ServerProcess:
        processes.append(ServerProcess(data_dir, database_url))
        return processes[-1]

    launch().ask("migrate")
    yield launch
    for process in processes:
        process.close()


@pytest.fixture
def audit_log(transactional_db: None, tmp_path: Path) -> Iterator[Callable[..., AuditLog]]:
    """Make and start an audit log in this process, over one spool folder."""
    logs: list[AuditLog] = []

    def make(**options: Any) -> AuditLog:
        logs.append(AuditLog(tmp_path / "spool", "here", **options))
        logs[-1].start()
        return logs[-1]

    yield make
    for log in logs:
        log.close()
