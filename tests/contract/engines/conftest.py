"""An engine for each test, and a look at what it leaves behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.engines.base import EngineConfig
from tests.contract.engines.bench import WAIT_S, Bench, Fake, survivors, until


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    folder = tmp_path / "fake"
    folder.mkdir()
    return Fake(folder.resolve())


@pytest.fixture
def config(fake: Fake, tmp_path: Path) -> EngineConfig:
    for name in ("home", "scratch"):
        (tmp_path / name).mkdir()
    return EngineConfig(
        codex_bin=str(fake.bin),
        codex_home=str(tmp_path / "home"),
        scratch_dir=str(tmp_path / "scratch"),
        environment={"PATH": os.defpath, "LISTED": "yes"},
        spare_threads=0,  # the tests count threads; those of the spare ones say otherwise
    )


def _descriptors() -> int:
    return len(os.listdir("/dev/fd"))


@pytest.fixture
async def bench(
    request: pytest.FixtureRequest, fake: Fake, config: EngineConfig
) -> AsyncIterator[Bench]:
    """The engine that the test is parametrized with; nothing of it may be left afterwards."""
    descriptors = _descriptors()
    bench = Bench(request.param, fake, config)
    yield bench
    async with asyncio.timeout(WAIT_S):
        for running in bench.turns:
            await running.aclose()
        for engine in bench.engines:
            await engine.aclose()
    assert survivors(fake.pids()) == set()
    assert list(Path(config.scratch_dir).glob("exec-*")) == []
    assert list(Path(config.scratch_dir).glob("codex-db-*")) == []
    # A closed pipe is given back one round of the loop later, a child's watcher a moment after.
    await until(lambda: _descriptors() <= descriptors)
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
