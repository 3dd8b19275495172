"""What is compared: this server, Codex alone, and the predecessor, each with both engines."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import re
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
    environment,
    lean_catalogue,
    provider_overrides,
    run_exec,
)
from benchmarks.client import complete, fetch_json
from benchmarks.processes import StartFailed, free_port, serving
from proxy.engines.certificates import spread_out

CHECKOUT = Path(__file__).resolve().parent.parent
QUESTION = "hi"
CLIENTS = 16
MORE_WORKERS = 4
KEY_SHOWN = re.compile(r"(?m)^API key \(shown once\): (\S+)$")

Product = Literal["codexsite", "bare codex", "bare, lifted", "predecessor"]
EngineName = Literal["app-server", "exec"]
Ask = Callable[[bool], Awaitable[Answer]]
"""Asks `QUESTION`, as a stream or not."""


@dataclass(frozen=True)
class Served:
    """One running codexsite."""

    pid: int
    port: int
    key: str

    async def ask(self, stream: bool) -> Answer:
        return await complete(self.port, self.key, QUESTION, stream=stream)

    async def models(self) -> list[str]:
        found = await fetch_json(self.port, "GET", "/v1/models", key=self.key)
        return [model["id"] for model in found["data"] if model["id"] != "default"]


@dataclass(frozen=True)
class Contender:
    """One product with one engine.

    `ask` has a single worker. `crowd` are the settings for many clients at once, by name; `few` and
    `many` are the names of those with one and with several workers, where there are such.
    """

    product: Product
    engine: EngineName
    ask: Ask
    crowd: dict[str, Ask] = field(default_factory=dict)
    few: str = ""
    many: str = ""
    served: Served | None = None


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
        one = await stack.enter_async_context(_codexsite_serving(bench, engine, engine))
        if engine == "exec":
            yield Contender("codexsite", engine, one.ask, {"": one.ask}, served=one)
            return
        workers = {"CODEX_PROXY_WORKERS": str(MORE_WORKERS)}
        several = await stack.enter_async_context(
            _codexsite_serving(bench, engine, "many-workers", **workers)
        )
        few, many = "1 worker", f"{MORE_WORKERS} workers"
        crowd: dict[str, Ask] = {few: one.ask, many: several.ask}
        yield Contender("codexsite", engine, one.ask, crowd, few, many, one)


@contextlib.asynccontextmanager
async def _codexsite_serving(
    bench: Bench, engine: EngineName, name: str, **variables: str
) -> AsyncIterator[Served]:
    """What `manage.py serve` starts, on a data directory of its own, asked with its first key."""
    folder, port = bench.subfolder(f"codexsite-{name}"), free_port()
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "CODEX_PROXY_DATA_DIR": str(folder / "data"),
        "CODEX_PROXY_CODEX_BIN": bench.codex_bin,
        "CODEX_PROXY_CODEX_CONFIGS": ";;".join(provider_overrides(bench.base_url)),
        "CODEX_PROXY_ENGINE": engine,
        "CODEX_PROXY_MAX_CONCURRENCY": str(CLIENTS),
        "CODEX_PROXY_MAX_QUEUE_SIZE": "400",
        "CODEX_PROXY_QUEUE_TIMEOUT_SECONDS": "120",
        **variables,
    }
    argv = (sys.executable, str(CHECKOUT / "manage.py"), "serve", "--port", str(port))
    async with serving(argv, port=port, env=env, cwd=folder, log=folder / "log") as pid:
        yield Served(pid, port, await _first_key(folder / "log"))


async def _first_key(log: Path) -> str:
    said = ""
    for _ in range(100):
        said = await asyncio.to_thread(log.read_text, errors="replace")
        if shown := KEY_SHOWN.search(said):
            return shown[1]
        await asyncio.sleep(0.1)
    raise StartFailed(f"codexsite shows no key: {said[-500:]}")


@contextlib.asynccontextmanager
async def bare_app_server(bench: Bench, *, is_lifted: bool = False) -> AsyncIterator[Contender]:
    """A minimal JSON-RPC loop over one app-server; for a crowd over several too.

    Lifted, Codex gets the authorities as this server gives them, which spares it half of its work.
    """
    home = bench.subfolder("lifted-app-server" if is_lifted else "bare-app-server")
    env = environment(home) | (spread_out(home / "authorities") if is_lifted else {})
    catalogue = await asyncio.to_thread(lean_catalogue, bench.codex_bin, home, home / "models.json")
    overrides = (*provider_overrides(bench.base_url), f'model_catalog_json="{catalogue}"')
    async with contextlib.AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(
                AppServer.running(bench.codex_bin, home, overrides, env)
            )
            for _ in range(1 + MORE_WORKERS)
        ]
        turns = itertools.cycle(servers[1:])
        few, many = "1 process", f"{MORE_WORKERS} processes"
        crowd: dict[str, Ask] = {
            few: lambda stream: servers[0].ask(QUESTION),
            many: lambda stream: next(turns).ask(QUESTION),
        }
        product: Product = "bare, lifted" if is_lifted else "bare codex"
        yield Contender(product, "app-server", crowd[few], crowd, few, many)


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
        start("predecessor-more", *engine, str(MORE_WORKERS)) as some,
        start("predecessor-many", *engine, str(CLIENTS)) as as_many,
    ):
        crowd = {f"{MORE_WORKERS} workers": some, f"{CLIENTS} workers": as_many}
        yield Contender("predecessor", "app-server", ask, crowd)


@contextlib.asynccontextmanager
async def predecessor_exec(bench: Bench, program: Path) -> AsyncIterator[Contender]:
    engine = ("--engine", "exec", "--max-concurrency", str(CLIENTS))
    async with _predecessor_serving(bench, program, "predecessor-exec", *engine) as ask:
        yield Contender("predecessor", "exec", ask, {"": ask})
