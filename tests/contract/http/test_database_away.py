"""A database that is locked or silent: an answer within a bound, and no request that waits behind."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from typing import Any

import pytest
from django.db import connection

from proxy import dbthreads
from proxy.errors import ServerUnavailable

BOUND_S = 0.3


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.dbthreads.READ_BOUND_S", BOUND_S)


async def test_writer_that_holds_the_lock_stops_no_request(site: Any) -> None:
    name = connection.settings_dict["NAME"]
    with closing(sqlite3.connect(name, isolation_level=None, timeout=20)) as other:
        other.execute("BEGIN EXCLUSIVE")
        answers = [await site.client.ask() for _ in range(3)]
        assert [answer.status for answer in answers] == [200] * 3
        assert not await asyncio.to_thread(site.service.audit_log.flush, 0.2)
    assert [row.outcome for row in await site.rows()] == ["ok"] * 3


async def test_database_that_falls_silent_is_503_within_the_bound(
    site: Any, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr("proxy.policy.read_version", lambda: over.wait(20))
        started = time.monotonic()
        answers = await asyncio.gather(*(site.client.ask() for _ in range(10)))
        took_s = time.monotonic() - started
    over.set()
    assert took_s < 10 * BOUND_S, "side by side, not one behind the other"
    assert {(answer.status, answer.error["code"]) for answer in answers} == {
        (503, "server_unavailable")
    }
    assert site.engine.turns == []
    rows = await site.rows()
    assert [(row.outcome, row.http_status) for row in rows] == [("failed", 503)] * 10
    await site.recorded(await site.client.ask(), "ok")


async def test_asker_that_gave_up_costs_no_later_one_its_turn(impatient: None) -> None:
    over = threading.Event()
    ran: list[int] = []
    stuck = [asyncio.ensure_future(dbthreads.read(over.wait, 20)) for _ in range(4)]
    waiting = [asyncio.ensure_future(dbthreads.read(ran.append, number)) for number in range(5)]
    errors = await asyncio.gather(*stuck, *waiting, return_exceptions=True)
    assert {type(error) for error in errors} == {ServerUnavailable}
    over.set()
    assert await dbthreads.read(lambda: "next") == "next"
    assert ran == []


def test_process_ends_though_its_database_never_answers() -> None:
    program = (
        "import asyncio, threading\n"
        "from proxy import dbthreads\n"
        "from proxy.errors import ServerUnavailable\n"
        "dbthreads.READ_BOUND_S = 0.1\n"
        "try: asyncio.run(dbthreads.read(threading.Event().wait))\n"
        "except ServerUnavailable: print('given up')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (0, "given up\n")
