"""What is compared: this server, Codex alone, and the predecessor, each with both engines."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks import predecessor
from benchmarks.bare import (
    LEAN_EXEC,
    Answer,
    AppServer,
    lean_catalogue,
    provider_overrides,
    run_exec,
)
from benchmarks.client import complete
from benchmarks.processes import free_port, serving

CHECKOUT = Path(__file__).resolve().parent.parent
QUESTION = "hi"
CLIENTS = 16
MORE_WORKERS = 4

Product = Literal["codexsite", "bare codex", "predecessor"]
EngineName = Literal["app-server", "exec"]
Ask = Callable[[bool], Awaitable[Answer]]
"""Asks `QUESTION`, as a stream or not."""


@dataclass(frozen=True)
class Contender:
    """One product with one engine. `crowd` are its settings for many clients at once, by name."""

    product: Product
    engine: EngineName
    ask: Ask
    crowd: dict[str, Ask] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """What all contenders share: one codex binary, one model provider, one scratch folder."""

    codex_bin: str
    base_url: str
    folder: Path

    def subfolder(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir()
        return path


def _http(port: int, key: str) -> Ask:
    return lambda stream: complete(port, key, QUESTION, stream=stream)


@contextlib.asynccontextmanager
async def codexsite(bench: Bench, engine: EngineName) -> AsyncIterator[Contender]:
    """This server with its defaults; for a crowd with more workers too."""
    async with contextlib.AsyncExitStack() as stack:
        ask = await stack.enter_async_context(_codexsite_serving(bench, engine, engine))
        crowd = {"": ask}
        if engine == "app-server":
            more = _codexsite_serving(
                bench, engine, "many-workers", CODEX_PROXY_WORKERS=str(MORE_WORKERS)
            )
            crowd = {
                "1 worker": ask,
                f"{MORE_WORKERS} workers": await stack.enter_async_context(more),
            }
        yield Contender("codexsite", engine, ask, crowd)


@contextlib.asynccontextmanager
async def _codexsite_serving(
    bench: Bench, engine: EngineName, name: str, **variables: str
) -> AsyncIterator[Ask]:
    """What `manage.py serve` starts, on a data directory of its own."""
    folder, port, key = bench.subfolder(f"codexsite-{name}"), free_port(), secrets.token_hex(16)
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "CODEX_PROXY_DATA_DIR": str(folder / "data"),
        "CODEX_PROXY_CODEX_BIN": bench.codex_bin,
        "CODEX_PROXY_CODEX_CONFIGS": ";;".join(provider_overrides(bench.base_url)),
        "CODEX_PROXY_API_KEY": key,
        "CODEX_PROXY_ENGINE": engine,
        "CODEX_PROXY_MAX_CONCURRENCY": str(CLIENTS),
        "CODEX_PROXY_QUEUE_TIMEOUT_SECONDS": "120",
        **variables,
    }
    argv = (sys.executable, str(CHECKOUT / "manage.py"), "serve", "--port", str(port))
    async with serving(argv, port=port, env=env, cwd=folder, log=folder / "log"):
        yield _http(port, key)


@contextlib.asynccontextmanager
async def bare_app_server(bench: Bench) -> AsyncIterator[Contender]:
    """A minimal JSON-RPC loop over one app-server; for a crowd over several too."""
    home = bench.subfolder("bare-app-server")
    catalogue = await asyncio.to_thread(lean_catalogue, bench.codex_bin, home, home / "models.json")
    overrides = (*provider_overrides(bench.base_url), f'model_catalog_json="{catalogue}"')
    async with contextlib.AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(AppServer.running(bench.codex_bin, home, overrides))
            for _ in range(1 + MORE_WORKERS)
        ]
        turns = itertools.cycle(servers[1:])
        crowd: dict[str, Ask] = {
            "1 process": lambda stream: servers[0].ask(QUESTION),
            f"{MORE_WORKERS} processes": lambda stream: next(turns).ask(QUESTION),
        }
        yield Contender("bare codex", "app-server", crowd["1 process"], crowd)


@contextlib.asynccontextmanager
async def bare_exec(bench: Bench) -> AsyncIterator[Contender]:
    """One lean `codex exec` per question, as many at once as are asked."""
    home, cwd = bench.subfolder("bare-exec"), bench.subfolder("bare-exec-cwd")
    catalogue = await asyncio.to_thread(lean_catalogue, bench.codex_bin, home, home / "models.json")
    # Codex refuses an empty file.
    await asyncio.to_thread((home / "instructions").write_text, "Answer.")
    overrides = (
        *provider_overrides(bench.base_url),
        f'model_catalog_json="{catalogue}"',
        f'model_instructions_file="{home / "instructions"}"',
        *LEAN_EXEC,
    )

    async def ask(stream: bool) -> Answer:
        return await run_exec(bench.codex_bin, home, cwd, overrides, QUESTION)

    yield Contender("bare codex", "exec", ask, {"": ask})


@contextlib.asynccontextmanager
async def _predecessor_serving(
    bench: Bench, program: Path, name: str, *engine: str
) -> AsyncIterator[Ask]:
    folder, port, key = bench.subfolder(name), free_port(), secrets.token_hex(16)
    (folder / ".codex").mkdir()
    argv = predecessor.start_command(
        program,
        folder,
        port=port,
        key=key,
        codex_bin=bench.codex_bin,
        overrides=provider_overrides(bench.base_url),
        engine=engine,
    )
    env = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    async with serving(argv, port=port, env=env, cwd=folder, log=folder / "server-log"):
        yield _http(port, key)


@contextlib.asynccontextmanager
async def predecessor_app_server(bench: Bench, program: Path) -> AsyncIterator[Contender]:
    """One worker for one client; for a crowd both a few workers and one for each client."""
    start = functools.partial(_predecessor_serving, bench, program)
    engine = ("--engine", "app-server", "--workers")
    async with (
        start("predecessor-1", *engine, "1") as ask,
        start("predecessor-more", *engine, str(MORE_WORKERS)) as few,
        start("predecessor-many", *engine, str(CLIENTS)) as many,
    ):
        crowd = {f"{MORE_WORKERS} workers": few, f"{CLIENTS} workers": many}
        yield Contender("predecessor", "app-server", ask, crowd)


@contextlib.asynccontextmanager
async def predecessor_exec(bench: Bench, program: Path) -> AsyncIterator[Contender]:
    engine = ("--engine", "exec", "--max-concurrency", str(CLIENTS))
    async with _predecessor_serving(bench, program, "predecessor-exec", *engine) as ask:
        yield Contender("predecessor", "exec", ask, {"": ask})
