"""Health, readiness, and what a completion gets while the server is not ready."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.engines.base import EngineConfig, Inspection
from proxy.engines.scripted import CATALOGUE, ScriptedEngine
from proxy.errors import EngineUnavailable
from tests.contract.http.databases import renamed_table

ALL_WELL = dict.fromkeys(("data_directory", "database", "engine", "login", "agent_mode"))


async def reasons(site: Any, status: int) -> dict[str, str | None]:
    """Return what `/ready` says of each item, its status checked."""
    answer = await site.client.get("/ready")
    assert answer.status == status
    body = answer.json()
    assert body["status"] == ("ready" if status == 200 else "not_ready")
    for check in body["checks"].values():
        assert check["ok"] is (check["reason"] is None)
    return {item: check["reason"] for item, check in body["checks"].items()}


async def test_health_is_ok_and_has_no_row(site: Any) -> None:
    answer = await site.client.get("/health", headers={"authorization": ""})
    assert (answer.status, answer.json()["status"]) == (200, "ok")
    assert await site.rows() == []


async def test_ready_is_200_with_every_item_well(site: Any) -> None:
    assert await reasons(site, 200) == ALL_WELL
    await site.recorded(await site.client.ask(), "ok")


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_without_a_login_everything_that_needs_codex_is_503(site: Any, method: str) -> None:
    site.engine.logged_in = False
    answer = await site.client.ask() if method == "POST" else await site.client.get("/v1/models")
    row = await site.refused(answer, 503, "codex_not_logged_in", outcome="failed")
    assert answer.headers["retry-after"] == "60"
    assert "codex login" in answer.error["message"]
    assert row.engine in ("app-server", "")
    found = await reasons(site, 503)
    assert "codex login" in (found.pop("login") or "")
    assert found == dict.fromkeys(("data_directory", "database", "engine"))
    assert site.engine.turns == []


async def test_own_model_provider_needs_no_login(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def inspect() -> Inspection:
        return Inspection("0.0.0", CATALOGUE, account=None, needs_login=False)

    monkeypatch.setattr(site.engine, "inspect", inspect)
    assert await reasons(site, 200) == ALL_WELL
    await site.recorded(await site.client.ask(), "ok")


async def test_engine_that_cannot_start_is_503_with_the_reason(site: Any) -> None:
    class Broken(ScriptedEngine):
        async def inspect(self) -> Inspection:
            raise EngineUnavailable("Codex does not start.")

    def build(_: EngineConfig) -> Broken:
        return Broken()

    site.builders["exec"] = build
    await site.set_options(engine="exec")
    answer = await site.client.ask()
    row = await site.refused(answer, 503, "engine_unavailable", outcome="failed")
    assert (row.engine, row.error_message) == ("exec", "Codex does not start.")
    found = await reasons(site, 503)
    assert found["engine"] == "Codex does not start."
    assert found["login"]


async def test_engine_is_asked_again_after_it_could_not_start(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> Inspection:
        raise EngineUnavailable("Codex does not start.")

    with monkeypatch.context() as patch:
        patch.setattr(site.exec_engine, "inspect", fail)
        await site.set_options(engine="exec")
        await site.refused(await site.client.ask(), 503, "engine_unavailable", outcome="failed")
    await site.recorded(await site.client.ask(), "ok")


async def test_ready_names_a_database_that_does_not_answer(site: Any) -> None:
    async with renamed_table("proxy_proxysettings"):
        found = await reasons(site, 503)
    assert found["database"]
    assert found["engine"]
    assert await reasons(site, 200) == ALL_WELL


async def test_demo_says_so(site: Any, settings: Any) -> None:
    settings.DEMO = True
    answer = await site.client.get("/ready")
    assert answer.json()["demo"] is True
    assert "demo" in answer.json()["notice"]
    assert await site.rows() == []
