"""Two hundred requests a second, refused and answered ones: each on record, none slowed down."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.e2e.conftest import LiveSite, drain, wait_until
from tests.e2e.test_endings import serving
from tests.e2e.test_postgres import database as database  # a fixture
from tests.provider import ScriptedProvider

PER_SECOND, SECONDS = 200, 4
ONE_TURN_IN = 10
SLOWEST_MEDIAN_MS = 100.0
"""Of a refusal while all this goes on. Not a figure to be proud of: a bound that tells a queue
that builds up, which would be seconds, from an answer that is only one of many."""

TURN = {"model": "default", "messages": [{"role": "user", "content": "hi"}]}
REFUSED = {**TURN, "metadata": {"cwd": "/etc"}}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str | None:
    return request.getfixturevalue("database") if request.param == "postgresql" else None


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


async def ask(port: int, key: str, body: object) -> tuple[int, float]:
    """Return the status, and the milliseconds until the whole answer was there."""
    content = json.dumps(body).encode()
    started = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
        b"content-type: application/json\r\nauthorization: Bearer %b\r\ncontent-length: %d\r\n\r\n"
        % (key.encode(), len(content))
        + content
    )
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ", 2)[1]), (time.monotonic() - started) * 1000


async def at_a_steady_pace(port: int, key: str) -> list[tuple[int, float]]:
    begun, asked = time.monotonic(), []
    for number in range(PER_SECOND * SECONDS):
        await asyncio.sleep(max(begun + number / PER_SECOND - time.monotonic(), 0))
        kinds = [(key, REFUSED), ("sk-codexsite-nobody", TURN), (key, {**TURN, "model": "none"})]
        secret, body = (key, TURN) if number % ONE_TURN_IN == 0 else kinds[number % 3]
        asked.append(asyncio.create_task(ask(port, secret, body)))
    return await asyncio.gather(*asked)


@pytest.mark.timeout(120)
async def test_two_hundred_requests_a_second_are_all_on_record(
    tmp_path: Path, provider: ScriptedProvider, url: str | None
) -> None:
    env = {"DATABASE_URL": url} if url else {}
    with serving(tmp_path / "data", provider, "serve", "--port", "0", **env) as server:
        drain(server)
        site = LiveSite(server, tmp_path / "data", provider)
        port = int(site.url.rpartition(":")[2])
        await ask(port, site.secret, TURN)
        answers = await at_a_steady_pace(port, site.secret)
        seen = Counter(status for status, _ in answers)
        assert set(seen) == {200, 401, 403, 404}
        assert seen[200] == len(answers) / ONE_TURN_IN
        refusals = [ms for status, ms in answers if status != 200]
        assert statistics.median(refusals) < SLOWEST_MEDIAN_MS
        outcomes = {"ok": seen[200] + 1, "rejected": len(refusals)}
        wait_until(lambda: counted(tmp_path / "data", url) == outcomes)
        assert "locked" not in server.output.replace(str(tmp_path), "")
        site.close()


def counted(data_dir: Path, url: str | None) -> dict[str, int]:
    query = "SELECT outcome, count(*) FROM audit_requestrecord GROUP BY outcome"
    if url:
        with psycopg.connect(url) as connection:
            return dict(connection.execute(query).fetchall())
    with contextlib.closing(sqlite3.connect(data_dir / "db.sqlite3")) as connection:
        return dict(connection.execute(query))
