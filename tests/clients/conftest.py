"""One server with the real codex for all clients, its provider a plausible model, and their runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.environments import node_environment, python_environment
from tests.clients.model import PlausibleModel
from tests.e2e.conftest import LiveSite, drain
from tests.processes import Serving
from tests.provider import ScriptedProvider

CLIENTS = Path(__file__).parent
SCRIPTS = CLIENTS / "scripts"
RUN_S = 180.0
"""For all that one client does."""

# A test may be the one that installs its client's environment.
TEST_S = 1200

collect_ignore = ["scripts"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if CLIENTS in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(TEST_S))


class Outcomes:
    """What the scenarios of one client's script came to, by name."""

    def __init__(self, found: dict[str, dict[str, Any]], said: str) -> None:
        self._found, self._said = found, said

    def __getitem__(self, scenario: str) -> Any:
        """Return what the scenario returned; its failure fails the test."""
        outcome = self._found.get(scenario)
        assert outcome is not None, f"{scenario} did not run:\n{self._said}"
        assert "error" not in outcome, outcome["error"]
        return outcome["value"]


class Bench:
    """Runs clients against the site, each in its own environment and an empty folder."""

    def __init__(self, site: LiveSite, folder: Callable[[str], Path]) -> None:
        self.site, self._folder = site, folder
        self._secrets: dict[str, str] = {}

    def secret(self, name: str, **fields: object) -> str:
        """Return a key with these columns, issued when it is first asked for."""
        if name not in self._secrets:
            self._secrets[name] = self.site.issue_key(name=name, **fields)
        return self._secrets[name]

    def python(
        self, environment: str, *arguments: str, **env: str
    ) -> subprocess.CompletedProcess[str]:
        return self._run([str(python_environment(environment)), *arguments], **env)

    def python_script(self, environment: str, script: str) -> Outcomes:
        """Run the scenarios of a Python script."""
        return _outcomes(self.python(environment, str(SCRIPTS / script)))

    def node_script(self, script: str) -> Outcomes:
        """Run the scenarios of a Node script."""
        node, packages = node_environment()
        place = self._folder("node")  # Node looks for packages beside the script
        (place / "node_modules").symlink_to(packages / "node_modules")
        for each in SCRIPTS.glob("*.mjs"):
            shutil.copy(each, place)
        return _outcomes(self._run([str(node), str(place / script)]))

    def _run(self, command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
        home = self._folder("client")
        # Nothing of this environment: no key of the developer's, no proxy, no settings.
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "PYTHONUTF8": "1",
            "BASE_URL": f"{self.site.url}/v1",
            "API_KEY": self.secret("plain"),
            "NARROW_KEY": self.secret("narrow", models_allowed=["gpt-5.5"]),
            "SINGLE_KEY": self.secret("single", max_concurrency=1),
            **env,
        }
        return subprocess.run(
            command, cwd=home, env=env, timeout=RUN_S, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip


def _outcomes(done: subprocess.CompletedProcess[str]) -> Outcomes:
    said = f"{done.stdout}\n{done.stderr}"
    _, mark, found = done.stdout.rpartition("OUTCOMES ")
    return Outcomes(json.loads(found) if mark else {}, said)


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One server for all clients."""
    data_dir = tmp_path_factory.mktemp("site") / "data"
    with ScriptedProvider(PlausibleModel()) as provider:
        configs = ";;".join(provider.overrides)
        with Serving(data_dir, "serve", "--port", "0", CODEX_PROXY_CODEX_CONFIGS=configs) as server:
            drain(server)
            site = LiveSite(server, data_dir, provider)
            yield Bench(site, tmp_path_factory.mktemp)
            site.close()
