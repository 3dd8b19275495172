"""The row of the proxy's settings: a change holds for the next request, and cuts no running turn."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.conf import settings

from proxy.engines.base import Completed, EngineConfig, TextDelta
from proxy.engines.scripted import ScriptedEngine
from tests.asgi import Exchange, question
from tests.contract.http.conftest import HELLO


class Remembered(ScriptedEngine):
    """Knows its configuration and whether it was closed."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(HELLO)
        self.config = config
        self.closed = asyncio.Event()

    async def aclose(self) -> None:
        await super().aclose()
        self.closed.set()


@pytest.fixture
def built(site: Any) -> list[Remembered]:
    """Every engine that the runtime builds from now on, oldest first."""
    engines: list[Remembered] = []

    def build(config: EngineConfig) -> Remembered:
        engines.append(Remembered(config))
        return engines[-1]

    # The first one was built for the warm-up; other options replace it.
    site.builders["app-server"] = build
    return engines


async def test_same_options_keep_the_engine(site: Any, built: list[Remembered]) -> None:
    await site.set_options(workers=2)
    for _ in range(3):
        await site.recorded(await site.client.ask(), "ok")
    assert len(built) == 1
    assert len(built[0].turns) == 3


async def test_engine_is_built_from_the_options(site: Any, built: list[Remembered]) -> None:
    await site.set_options(
        workers=3, turns_per_worker=7, max_concurrency=5, max_queue_size=9, queue_timeout_seconds=1.5,
        ephemeral=False, codex_configs=['model_verbosity="low"'], proxy="http://127.0.0.1:3128",
        app_server_codex_home=str(site.outside),
    )  # fmt: skip
    await site.recorded(await site.client.ask(), "ok")
    config = built[0].config
    assert (config.workers, config.turns_per_worker, config.max_concurrency) == (3, 7, 5)
    assert (config.max_queue_size, config.queue_timeout_s) == (9, 1.5)
    assert (config.ephemeral, config.overrides) == (False, ('model_verbosity="low"',))
    assert config.environment["https_proxy"] == "http://127.0.0.1:3128"
    assert config.codex_home == str(site.outside)


async def test_children_get_a_listed_environment(
    site: Any, built: list[Remembered], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://secret")
    await site.set_options(workers=2)
    await site.recorded(await site.client.ask(), "ok")
    environment = built[0].config.environment
    assert set(environment) - {"SSL_CERT_FILE", "SSL_CERT_DIR"} == {
        "PATH",
        "LANG",
        "HOME",
        "TMPDIR",
    }


async def test_authorities_that_the_operator_names_are_left_alone(
    site: Any, built: list[Remembered], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "CHILD_ENVIRONMENT", {"SSL_CERT_FILE": "/our/own.pem"})
    await site.set_options(workers=2)
    await site.recorded(await site.client.ask(), "ok")
    environment = built[0].config.environment
    assert environment["SSL_CERT_FILE"] == "/our/own.pem"
    assert "SSL_CERT_DIR" not in environment


@pytest.mark.parametrize(
    ("fields", "overrides"),
    [
        ({"fast": True}, ('model_reasoning_effort="low"',)),
        ({"fast": True, "codex_configs": ["a=1"]}, ("a=1",)),
    ],
)
async def test_fast_is_low_effort_where_no_override_is_given(
    site: Any, built: list[Remembered], fields: dict[str, Any], overrides: tuple[str, ...]
) -> None:
    await site.set_options(**fields)
    await site.recorded(await site.client.ask(), "ok")
    assert built[0].config.overrides == overrides


async def test_changed_options_hold_for_the_next_request(
    site: Any, built: list[Remembered]
) -> None:
    await site.set_options(workers=2)
    await site.client.ask()
    await site.set_options(workers=3)
    await site.recorded(await site.client.ask(), "ok")
    assert [engine.config.workers for engine in built] == [2, 3]
    assert [len(engine.turns) for engine in built] == [1, 1]
    await asyncio.wait_for(built[0].closed.wait(), 5)
    assert not built[1].closed.is_set()


async def test_replaced_engine_is_closed_when_its_turn_has_ended(
    site: Any, built: list[Remembered]
) -> None:
    gate = asyncio.Event()
    await site.set_options(workers=2)
    await site.client.ask()
    built[0].script = [TextDelta("old"), gate, TextDelta(" engine"), Completed()]
    running: Exchange = await site.client.open(
        "POST", "/v1/chat/completions", json=question(stream=True)
    ).start()
    await site.set_options(workers=3)
    await site.recorded(await site.client.ask(), "ok")
    assert not built[0].closed.is_set()
    gate.set()
    await running.finish()
    assert running.events()[-1] == "[DONE]"
    await asyncio.wait_for(built[0].closed.wait(), 5)
    assert {row.outcome for row in await site.rows()} == {"ok"}


async def test_variable_of_the_environment_wins_over_the_row(site: Any, settings: Any) -> None:
    settings.OPTION_OVERRIDES = {"engine": "exec", "model": "scripted-2"}
    await site.set_options(engine="app-server", model="scripted-1")
    row = await site.recorded(await site.client.ask(), "ok")
    assert (row.engine, row.model_served) == ("exec", "scripted-2")


async def test_timeout_is_the_absolute_deadline_of_the_turn(site: Any) -> None:
    await site.set_options(timeout_seconds=77)
    before = asyncio.get_running_loop().time()
    await site.recorded(await site.client.ask(), "ok")
    after = asyncio.get_running_loop().time()
    assert before + 77 <= site.engine.turns[0].deadline <= after + 77


async def test_first_request_needs_no_row_of_settings(site: Any) -> None:
    row = await site.recorded(await site.client.ask(), "ok")
    assert row.engine == "app-server"
