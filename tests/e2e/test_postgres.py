"""The same product on PostgreSQL: served, asked, on record, seen in the admin."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import openai
import psycopg
import pytest

from tests.processes import Serving, wait_for
from tests.services import require_postgres


@pytest.fixture
def database() -> Iterator[str]:
    """The URL of a fresh database, dropped behind the test."""
    server = require_postgres()
    name = f"codexsite_test_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
        yield f"{server}/{name}"
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.mark.timeout(120)
def test_demo_on_postgresql_answers_and_keeps_one_row_a_request(
    tmp_path: Path, database: str
) -> None:
    with Serving(
        tmp_path / "data", "serve", "--port", "0", "--demo", DATABASE_URL=database
    ) as server:
        secret = server.find(r"(?m)^API key \(shown once\): (\S+)$")
        password = server.find(r"password \(shown once\): (\S+)")
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0) as client:
            answer = client.chat.completions.create(
                model="default", messages=[{"role": "user", "content": "hi"}]
            )
        assert "demo" in (answer.choices[0].message.content or "")
        with httpx.Client(base_url=server.url, follow_redirects=True) as browser:
            assert browser.get("/ready").status_code == 200
            wait_for(lambda: browser.get("/metrics").json()["requests_ok"] == 1)
            form = browser.get("/admin/login/").text
            (token,) = re.findall(r'name="csrfmiddlewaretoken" value="([^"]+)"', form)
            browser.post(
                "/admin/login/?next=/admin/",
                data={"username": "admin", "password": password, "csrfmiddlewaretoken": token},
            )
            page = browser.get(f"/admin/audit/requestrecord/?q={answer._request_id}").text
            links = re.findall(r"/audit/requestrecord/\d+/change/", page)
            assert len(set(links)) == 1
            assert "first key" in page
        # Another program's change of the policy holds from the next request on, here, too.
        with psycopg.connect(database, autocommit=True) as other:
            other.execute("UPDATE proxy_apikey SET revoked_at = now()")
        with (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()
    assert not (tmp_path / "data" / "db.sqlite3").stat().st_size
