"""A server for all faults of a module, and the table that they write."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import LiveSite, drain, wait_until
from tests.faults.checker import processes_of
from tests.faults.faults import GRACE_S
from tests.faults.table import Table
from tests.faults.world import World, write_options
from tests.processes import WAIT_S, Serving
from tests.provider import ScriptedProvider

FAULTS = Path(__file__).parent

KEYS = """
root = AllowedRoot.objects.create(alias="project", path={folder!r})
result = {{}}
for engine in ("app-server", "exec"):
    _, result[engine] = ApiKey.objects.issue(**issue({{"name": engine, "engine": engine}}))
    key, result["agent-" + engine] = ApiKey.objects.issue(
        **issue({{"name": "agent-" + engine, "engine": engine, "default_root": root}})
    )
    key.allowed_roots.add(root)
    AgentGrant.objects.create(key=key, reason="faults").roots.add(root)
_, result["capped"] = ApiKey.objects.issue(**issue({{"name": "capped", "max_concurrency": 1}}))
ProxySettings(timeout_seconds=60).save()
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All but the checker's own tests run the real binary."""
    for item in items:
        if FAULTS in item.path.parents and item.path.name == "test_faults.py":
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """What the faults of this run have led to; written at its end where that is asked for."""
    table = Table()
    yield table
    if request.config.getoption("--write-fault-table"):
        table.write()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A data directory with all keys: to be copied, since the first start of one takes seconds."""
    base = tmp_path_factory.mktemp("prepared")
    (base / "project").mkdir()
    with ScriptedProvider() as unused, Serving(base / "data", "serve", "--port", "0") as server:
        drain(server)
        site = LiveSite(server, base / "data", unused)
        keys = site.run_code(KEYS.format(folder=str(base / "project")))
        scratch = base / "data" / "scratch"
        wait_until(lambda: list(processes_of(server.process.pid, scratch)) == ["codex"])
        server.process.terminate()
        server.process.wait(WAIT_S)
    return Prepared(base, keys)


@dataclass(frozen=True)
class Prepared:
    """Where it is, and the secrets of its keys by their names."""

    base: Path
    keys: dict[str, str]

    @contextlib.contextmanager
    def served(self, base: Path, **env: str) -> Iterator[World]:
        """Serve a copy of it. The provider stands in the settings' row, and not in the environment,
        so that a fault can name another one."""
        shutil.copytree(self.base / "data", base / "data")
        with ScriptedProvider() as provider:
            options = {"codex_configs": json.dumps(list(provider.overrides))}
            write_options(base / "data", options)
            with Serving(base / "data", "serve", "--port", "0", **env) as server:
                drain(server)
                site = LiveSite(server, base / "data", provider, self.keys["app-server"])
                world = World(site, self.keys, self.base / "project")
                yield world
                world.close()
                site.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, prepared: Prepared) -> Iterator[World]:
    """The server that most faults share: what one of them breaks, the next one finds."""
    with prepared.served(tmp_path_factory.mktemp("faults")) as world:
        world.begin()
        yield world


@pytest.fixture
def doomed(tmp_path: Path, prepared: Prepared) -> Iterator[World]:
    """A server for one fault, which it does not survive."""
    grace = {"CODEX_PROXY_SHUTDOWN_GRACE_SECONDS": str(GRACE_S)}
    with prepared.served(tmp_path, **grace) as world:
        world.remember()
        yield world
