"""GET /v1/models and what a model's name means in a request."""

from __future__ import annotations

from typing import Any

import pytest

MODELS = ["default", "scripted-1", "scripted-2"]


@pytest.mark.parametrize("engine", ["app-server", "exec"])
async def test_list_has_the_catalogue_and_the_alias(site: Any, engine: str) -> None:
    await site.set_options(engine=engine)
    answer = await site.client.get("/v1/models")
    body = answer.json()
    assert body["object"] == "list"
    assert [model["id"] for model in body["data"]] == MODELS
    for model in body["data"]:
        assert set(model) == {"id", "object", "created", "owned_by"}
        assert model["object"] == "model"
        assert isinstance(model["created"], int)
    await site.recorded(answer, "ok")


async def test_list_holds_only_what_the_key_may_use(site: Any) -> None:
    await site.change(models_allowed=["scripted-2"])
    answer = await site.client.get("/v1/models")
    assert [model["id"] for model in answer.json()["data"]] == ["scripted-2"]
    await site.recorded(answer, "ok")


async def test_list_names_the_model_of_the_settings_too(site: Any) -> None:
    await site.set_options(model="house-model")
    answer = await site.client.get("/v1/models")
    assert [model["id"] for model in answer.json()["data"]] == [*MODELS, "house-model"]
    await site.recorded(answer, "ok")


@pytest.mark.parametrize("name", ["default", "codex-local", "scripted-1", "scripted-2"])
async def test_one_model_is_described(site: Any, name: str) -> None:
    answer = await site.client.get(f"/v1/models/{name}")
    assert (answer.status, answer.json()["id"]) == (200, name)
    await site.recorded(answer, "ok")


@pytest.mark.parametrize("name", ["gpt-9", "vendor/gpt-9", "scripted-1/", "Scripted-1"])
async def test_one_unknown_model_is_404(site: Any, name: str) -> None:
    answer = await site.client.get(f"/v1/models/{name}")
    await site.refused(answer, 404, "model_not_found")
    assert answer.error["param"] == "model"


async def test_one_model_that_the_key_may_not_use_is_404(site: Any) -> None:
    await site.change(models_allowed=["scripted-2"])
    answer = await site.client.get("/v1/models/scripted-1")
    row = await site.refused(answer, 404, "model_not_found")
    unknown = await site.client.get("/v1/models/scripted-9")
    assert unknown.error["message"] == answer.error["message"].replace("scripted-1", "scripted-9")
    assert row.key_name == "laptop"


@pytest.mark.parametrize("name", ["default", "codex-local"])
async def test_alias_means_the_default_of_codex(site: Any, name: str) -> None:
    answer = await site.client.ask(model=name)
    row = await site.recorded(answer, "ok")
    assert (row.model_asked, row.model_served) == (name, "scripted-1")
    assert site.engine.turns[0].model == "scripted-1"


async def test_named_model_is_asked_and_served(site: Any) -> None:
    answer = await site.client.ask(model="scripted-2")
    assert answer.json()["model"] == "scripted-2"
    row = await site.recorded(answer, "ok")
    assert (row.model_asked, row.model_served) == ("scripted-2", "scripted-2")


async def test_alias_means_the_model_of_the_settings(site: Any) -> None:
    await site.set_options(model="scripted-2")
    answer = await site.client.ask()
    row = await site.recorded(answer, "ok")
    assert (row.model_asked, row.model_served) == ("default", "scripted-2")


async def test_model_of_the_settings_may_be_outside_the_catalogue(site: Any) -> None:
    await site.set_options(model="house-model")
    for name in ("default", "house-model"):
        answer = await site.client.ask(model=name)
        row = await site.recorded(answer, "ok")
        assert row.model_served == "house-model"


@pytest.mark.parametrize("name", ["gpt-9", "", " ", "Default"])
async def test_unknown_model_is_404_and_asks_nobody(site: Any, name: str) -> None:
    answer = await site.client.ask(model=name)
    row = await site.refused(answer, 404, "model_not_found")
    assert (answer.error["type"], answer.error["param"]) == ("invalid_request_error", "model")
    assert (row.model_asked, row.model_served) == (name, "")
    assert site.engine.turns == []


@pytest.mark.parametrize("name", ["scripted-1", "default"])
async def test_model_that_the_key_may_not_use_is_403(site: Any, name: str) -> None:
    await site.change(models_allowed=["scripted-2"])
    answer = await site.client.ask(model=name)
    await site.refused(answer, 403, "model_not_allowed")
    assert answer.error["param"] == "model"
    assert site.engine.turns == []


async def test_model_that_the_key_may_use_is_served(site: Any) -> None:
    await site.change(models_allowed=["scripted-2"])
    answer = await site.client.ask(model="scripted-2")
    await site.recorded(answer, "ok")


async def test_engine_of_the_settings_runs_the_turn(site: Any) -> None:
    await site.set_options(engine="exec")
    row = await site.recorded(await site.client.ask(), "ok")
    assert row.engine == "exec"
    assert (len(site.engine.turns), len(site.exec_engine.turns)) == (0, 1)


async def test_engine_of_the_key_wins_over_that_of_the_settings(site: Any) -> None:
    await site.change(engine="exec")
    row = await site.recorded(await site.client.ask(), "ok")
    assert row.engine == "exec"
    assert (len(site.engine.turns), len(site.exec_engine.turns)) == (0, 1)


async def test_catalogue_of_the_key_is_that_of_its_engine(site: Any) -> None:
    await site.change(engine="exec")
    site.exec_engine.logged_in = False
    answer = await site.client.get("/v1/models")
    await site.refused(answer, 503, "codex_not_logged_in", outcome="failed")
