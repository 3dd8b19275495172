"""Thousands of mixed turns on one server: each gets what it must, and nothing is left behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import LiveSite, drain
from tests.faults.checker import Checker, metrics_of
from tests.processes import Serving
from tests.provider import ScriptedProvider
from tests.soak.mix import Kind, Server, order_of
from tests.soak.provider import SoakProvider
from tests.soak.records import actions_of, wrong_actions, wrong_counters, wrong_rows

AT_A_TIME = 16
GROWTH = 1.2
SHOWN = 30
POOLED = 8
"""Threads, and what they hold open, that pools may start later, when several are needed at once."""

KEYS = """
root = AllowedRoot.objects.get(alias="workspace")
result = {}
for name in ("app-server", "exec", "agent"):
    engine = "exec" if name == "exec" else "app-server"
    key, result[name] = ApiKey.objects.issue(**issue({"name": name, "engine": engine, "default_root": root}))
    key.allowed_roots.add(root)
    if name == "agent":
        AgentGrant.objects.create(key=key, reason="the soak").roots.add(root)
"""


async def ask_all(server: Server, order: list[Kind], begun: int) -> list[str]:
    """Ask them, 16 at a time; return what went wrong, in words."""
    numbered, wrong = iter(enumerate(order, begun)), list[str]()

    async def client() -> None:
        for number, kind in numbered:
            try:
                await kind.ask(server, number)
            except (AssertionError, OSError, TimeoutError, ValueError) as error:
                wrong.append(f"turn {number}, {kind.name}: {error!r}")

    await asyncio.gather(*(client() for _ in range(AT_A_TIME)))
    return wrong


def told(wrong: list[str]) -> str:
    """Return the first of what went wrong, and how much there is."""
    return "\n".join([f"{len(wrong)} went wrong:", *wrong[:SHOWN]])


def memory_mb(pid: int) -> tuple[float, float]:
    """Return the resident memory of the server, and of its children together."""
    server = psutil.Process(pid)
    children = sum(child.memory_info().rss for child in server.children(recursive=True))
    return server.memory_info().rss / 2**20, children / 2**20


@pytest.mark.timeout(7200)
async def test_soak(tmp_path: Path, soak_turns: int) -> None:
    data_dir = tmp_path / "data"
    async with SoakProvider().serving() as provider:
        options = {
            "CODEX_PROXY_CODEX_CONFIGS": ";;".join(provider.overrides),
            "CODEX_PROXY_MAX_QUEUE_SIZE": "200",
        }
        with (
            ScriptedProvider() as unused,
            Serving(data_dir, "serve", "--port", "0", **options) as running,
        ):
            drain(running)
            site = LiveSite(running, data_dir, unused)
            keys = await asyncio.to_thread(site.run_code, KEYS)
            server = Server(int(site.url.rpartition(":")[2]), keys, provider)
            order = order_of(soak_turns)
            third = max(len(order) // 3, 50)

            # The first of each kind before anything counts: the sandbox is proven, and threads that
            # stay are started when they are first needed.
            first = list(dict.fromkeys(order)) * 6
            wrong = await ask_all(server, first, begun=len(order))
            checker = Checker(site, running.process.pid)
            base = await asyncio.to_thread(checker.baseline)
            checker.allow(base.with_more(POOLED))

            wrong += await ask_all(server, order[:third], begun=0)
            before = memory_mb(running.process.pid)
            wrong += await ask_all(server, order[third:], begun=third)
            assert not wrong, told(wrong)

            asked = dict(enumerate([*order, *first]))
            await asyncio.to_thread(checker.check, len(asked))
            rows = await asyncio.to_thread(site.rows)
            actions = await asyncio.to_thread(actions_of, data_dir)
            metrics = await asyncio.to_thread(metrics_of, site.url)
            wrong = [
                *wrong_rows(rows, asked),
                *wrong_actions(actions, rows),
                *wrong_counters(metrics, rows),
            ]
            assert not wrong, told(wrong)
            assert provider.connections == 0
            after = memory_mb(running.process.pid)
            assert max(after[0] / before[0], after[1] / before[1]) < GROWTH, (before, after)

            wrote = {f"f{number}" for number, kind in asked.items() if kind.name == "agent"}
            workspace = data_dir / "workspace"
            assert {path.name for path in workspace.iterdir()} == wrote
            assert all((workspace / name).read_text() == name for name in wrote)
            site.close()
