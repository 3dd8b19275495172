"""The promise of the log: on record before the engine is asked, and nothing secret in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.forms.models import model_to_dict

from audit.models import RequestRecord
from codexsite.asgi import Service, build
from proxy.dbthreads import read
from proxy.engines.base import Completed, TextDelta
from proxy.engines.scripted import ScriptedEngine
from proxy.runtime import Runtime
from tests.asgi import AsgiClient, question
from tests.contract.http.databases import renamed_table, unreachable


@pytest.fixture
def full_disk(site: Any, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The journal takes no line."""

    def refuse(_: bytes, *, beyond: float = 0) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(site.service.audit_log._spool, "append", refuse)
    return monkeypatch


@pytest.mark.parametrize("stream", [False, True])
async def test_turn_that_cannot_be_put_on_record_is_not_run(
    site: Any, full_disk: pytest.MonkeyPatch, stream: bool
) -> None:
    answer = await site.client.ask(stream=stream)
    row = await site.refused(answer, 503, "server_unavailable", outcome="failed")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert site.engine.turns == []
    assert row.cwd == str(site.folder)
    full_disk.undo()
    await site.recorded(await site.client.ask(), "ok")


async def test_refused_request_is_recorded_even_with_a_full_disk(
    site: Any, full_disk: pytest.MonkeyPatch
) -> None:
    answer = await site.client.post("/v1/chat/completions", json=question(), key="wrong")
    await site.refused(answer, 401, "invalid_api_key", who="")


async def test_full_spool_refuses_every_new_request_before_its_body_is_judged(site: Any) -> None:
    site.service.audit_log._spool.max_bytes = 0
    for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models")):
        answer = await site.client.request(method, path, body=b"no json")
        row = await site.refused(answer, 503, "server_unavailable", outcome="failed", who="")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert (row.method, row.http_status) == (method, 503)
    assert (await site.client.get("/health")).status == 200
    assert site.engine.turns == []
    site.service.audit_log._spool.max_bytes = 10**6
    await site.recorded(await site.client.ask(), "ok")


async def test_request_that_runs_when_the_disk_fills_is_answered_and_kept(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    def fill_up(_: object) -> TextDelta:
        monkeypatch.setattr(site.service.audit_log._spool, "append", refuse)
        return TextDelta("all the same")

    site.engine.script = [fill_up, Completed()]
    answer = await site.client.ask()
    assert answer.status == 200
    assert answer.json()["choices"][0]["message"]["content"] == "all the same"
    monkeypatch.undo()
    await site.recorded(answer, "ok")


async def test_note_that_fails_costs_its_columns_and_not_the_end_of_the_row(
    site: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("proxy.completions._note_turns", fail)
    for stream in (False, True):
        answer = await site.client.ask(stream=stream)
        assert answer.status == 200
        await site.recorded(answer, "ok")
    assert "noted with gaps" in caplog.text


async def test_request_is_on_record_before_the_engine_is_asked(site: Any) -> None:
    seen: list[bytes] = []

    def look(_: object) -> TextDelta:
        spool = site.service.audit_log._spool.folder
        seen.extend(path.read_bytes() for path in spool.glob("*.jsonl"))
        return TextDelta("a")

    flush = site.service.audit_log._store_everything
    site.service.audit_log._store_everything = lambda: None
    site.engine.script = [look]
    answer = await site.client.ask()
    site.service.audit_log._store_everything = flush
    assert answer.headers["x-request-id"].encode() in b"".join(seen)
    assert b'"outcome":"running"' in b"".join(seen)
    await site.recorded(answer, "ok")


async def test_neither_prompt_nor_answer_is_in_the_row(site: Any) -> None:
    site.engine.script = [TextDelta("an answer nobody logs")]
    answer = await site.client.post(
        "/v1/chat/completions",
        json=question("a prompt nobody logs", metadata={"x": "nobody logs"}, user="nobody logs"),
        headers={"x-note": "nobody logs"},
    )
    row = await site.recorded(answer, "ok")
    assert "nobody logs" not in str(model_to_dict(row))


async def test_bad_body_is_not_quoted_in_the_row(site: Any) -> None:
    for body in (b'{"model": nobody logs}', b'{"model": "default", "messages": "nobody logs"}'):
        answer = await site.client.post("/v1/chat/completions", body=body)
        row = await site.recorded(answer, "rejected", answer.error["code"])
        assert "nobody logs" not in str(model_to_dict(row))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models"])
async def test_database_that_does_not_answer_is_503(site: Any, path: str) -> None:
    async with unreachable():
        body = question() if "chat" in path else None
        answer = await site.client.request("POST" if body else "GET", path, json=body)
    row = await site.refused(answer, 503, "server_unavailable", outcome="failed", who="")
    assert answer.error["message"] == "The server's database does not answer."
    assert b"nowhere" not in answer.body
    assert row.http_status == 503
    assert site.engine.turns == []
    await site.recorded(await site.client.ask(), "ok")


async def test_database_that_is_not_prepared_is_503_and_says_how(site: Any) -> None:
    async with renamed_table("proxy_proxysettings"):
        answer = await site.client.ask()
    await site.refused(answer, 503, "server_unavailable", outcome="failed", who="")
    assert "migrate" in answer.error["message"]


async def test_phases_add_up_to_the_total(site: Any) -> None:
    answer = await site.client.ask()
    row = await site.recorded(answer, "ok")
    assert all(phase >= 0 for phase in row.phases.values())
    assert sum(row.phases.values()) == pytest.approx(row.total_ms, abs=5)


async def test_log_that_cannot_start_refuses_the_api_and_keeps_its_rows(
    transactional_db: None, tmp_path: Path
) -> None:
    (tmp_path / "blocked").touch()
    engine = ScriptedEngine()
    service = Service(
        Runtime({"app-server": lambda _: engine}), spool=tmp_path / "blocked" / "spool"
    )
    application = build(service)
    client = AsgiClient(application, "sk-any")
    for _ in range(2):
        answer = await (await client.open("GET", "/v1/models").start()).finish()
        assert (answer.status, answer.error["code"]) == (503, "server_unavailable")
    answer = await (await client.open("GET", "/health").start()).finish()
    assert answer.status == 200
    (tmp_path / "blocked").unlink()
    answer = await (await client.open("GET", "/v1/models").start()).finish()
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    await application.shutdown()
    rows = await read(lambda: list(RequestRecord.objects.order_by("http_status")))
    assert [row.http_status for row in rows] == [401, 503, 503]
