"""The checker finds a leak of each kind: planted in a small stand-in for the server."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from tests.e2e.conftest import LiveSite
from tests.faults.checker import HAS_PROC, Checker, Leak

STAND_IN = """
import http.server, json, subprocess, sys, threading
kept, tasks = [], 1

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"tasks": tasks}).encode())
    def log_message(self, *_):
        pass

server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1], flush=True)
for line in sys.stdin:
    word = line.strip()
    if word == "task":
        tasks += 1
    elif word == "thread":
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    elif word == "descriptor":
        kept.append(open(sys.argv[1]))
    elif word == "child":
        kept.append(subprocess.Popen(["sleep", "60"]))
        print(kept[-1].pid, flush=True)
    elif word == "zombie":
        kept.append(subprocess.Popen(["true"]))
    print("done", flush=True)
"""


class StandIn:
    """What the checker needs of a `LiveSite`, and leaks on command."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.data_dir, self.process = folder, process
        self.url = f"http://127.0.0.1:{self.read()}"
        with self._database() as connection:
            connection.execute("CREATE TABLE audit_requestrecord (id, request_id, outcome)")

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def leak(self, what: str) -> str:
        """Let it leak and return the first line it says."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self.read()

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        with (
            contextlib.closing(sqlite3.connect(self.data_dir / "db.sqlite3")) as connection,
            connection,
        ):
            yield connection

    def add_row(self, request_id: str, outcome: str = "ok") -> None:
        with self._database() as connection:
            connection.execute(
                "INSERT INTO audit_requestrecord VALUES (1, ?, ?)", (request_id, outcome)
            )

    def rows_now(self) -> list[dict[str, Any]]:
        return LiveSite.rows_now(cast("LiveSite", self))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[StandIn]:
    (tmp_path / "scratch").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", STAND_IN, __file__],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        yield StandIn(tmp_path, process)
        process.kill()


@pytest.fixture
def checker(site: StandIn) -> Checker:
    checker = Checker(cast("LiveSite", site), site.process.pid, settling_s=0.5)
    checker.baseline()
    return checker


def test_no_leak_is_no_complaint(site: StandIn, checker: Checker) -> None:
    checker.check(0)
    site.add_row("a")
    site.add_row("b", "failed")
    checker.check(2)


def missing_row(site: StandIn) -> None:
    site.process.poll()  # one request was sent, and nothing is on record


def second_row(site: StandIn) -> None:
    site.add_row("a")
    site.add_row("a")


@pytest.mark.parametrize(
    ("plant", "complaint"),
    [
        (missing_row, "0 rows for 1 requests"),
        (second_row, "2 rows for 1 requests"),
        (lambda site: site.add_row("a", "running"), "rows that say running"),
    ],
)
def test_wrong_row_is_found(
    site: StandIn, checker: Checker, plant: Callable[[StandIn], None], complaint: str
) -> None:
    plant(site)
    with pytest.raises(Leak, match=complaint):
        checker.check(1)


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ("task", "2 tasks, not 1"),
        ("zombie", r"zombie"),
        pytest.param("thread", "threads, not", marks=pytest.mark.skipif(not HAS_PROC, reason="no /proc")),
        pytest.param("descriptor", "descriptors, not", marks=pytest.mark.skipif(not HAS_PROC, reason="no /proc")),
    ],
)  # fmt: skip
def test_leak_in_the_server_is_found(
    site: StandIn, checker: Checker, what: str, complaint: str
) -> None:
    site.leak(what)
    with pytest.raises(Leak, match=complaint):
        checker.check(0)


def test_child_left_is_found(site: StandIn, checker: Checker) -> None:
    pid = int(site.leak("child"))
    try:
        with pytest.raises(Leak, match=r"processes \['sleep'\], not \[\]"):
            checker.check(0)
    finally:
        subprocess.run(["kill", str(pid)], check=True)


def test_orphan_is_found_by_its_environment(site: StandIn, checker: Checker) -> None:
    environment = {"TMPDIR": str(site.data_dir / "scratch"), "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(["sleep", "60"], env=environment) as orphan:
        with pytest.raises(Leak, match="processes"):
            checker.check(0)
        orphan.kill()
    checker.check(0)


def test_folder_left_in_the_scratch_directory_is_found(site: StandIn, checker: Checker) -> None:
    (site.data_dir / "scratch" / "codex-1-left").mkdir()
    with pytest.raises(Leak, match="1 scratch folders, not 0"):
        checker.check(0)


def test_server_that_does_not_come_to_rest_gives_no_baseline(
    site: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker = Checker(cast("LiveSite", site), site.process.pid, settling_s=0.5)
    real = checker.figures

    def growing() -> Any:
        site.leak("task")
        return real()

    monkeypatch.setattr(checker, "figures", growing)
    with pytest.raises(Leak, match="does not come to rest"):
        checker.baseline()
