"""What is compared: this server, Codex alone, and the predecessor, each with both engines.

A contender is one running setting of a product. Bare Codex has the same lean configuration as this
server's workers, and is compared setting by setting with as many processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks import predecessor
from benchmarks.bare import (
    CHAT,
    LEAN_EXEC,
    Answer,
    AppServer,
    environment,
    lean_catalogue,
    provider_overrides,
    quick_authorities,
    run_exec,
)
from benchmarks.client import Client
from benchmarks.processes import StartFailed, free_port, serving

CHECKOUT = Path(__file__).resolve().parent.parent
CLIENTS = 16
MORE_WORKERS = 4
GRANT = """
from proxy.models import AgentGrant, AllowedRoot, ApiKey
grant = AgentGrant.objects.create(key=ApiKey.objects.get(), reason="benchmark")
grant.roots.set(AllowedRoot.objects.all())
"""

Product = Literal["codexsite", "bare codex", "bare, lifted", "predecessor"]
EngineName = Literal["app-server", "exec"]
ENGINES: tuple[EngineName, ...] = ("app-server", "exec")


@dataclass(frozen=True)
class Question:
    """What is asked; an empty model is the default one."""

    text: str = "hi"
    model: str = ""
    is_streamed: bool = False
    is_agent: bool = False


Ask = Callable[[Question], Awaitable[Answer]]


@dataclass(frozen=True)
class Contender:
    """`server` is its process id; bare Codex has none, and names its `workers` instead."""

    product: Product
    engine: EngineName
    workers: int
    ask: Ask
    server: int | None = None
    worker_pids: Callable[[], list[int]] = list
    ask_with_env_key: Ask | None = None

    @property
    def setting(self) -> str:
        if self.engine == "exec":
            return ""
        noun = "worker" if self.server else "process"
        plural = "es" if noun == "process" else "s"
        return f"{self.workers} {noun}{'' if self.workers == 1 else plural}"

    def __str__(self) -> str:
        return " ".join(part for part in (self.product, self.engine, self.setting) if part)


@dataclass(frozen=True)
class Bench:
    """What all contenders share: one codex binary, one model provider, one scratch folder."""

    codex_bin: str
    port: int
    folder: Path

    @property
    def overrides(self) -> tuple[str, ...]:
        return provider_overrides(f"http://127.0.0.1:{self.port}/v1")

    def subfolder(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir()
        return path


def _over_http(client: Client) -> Ask:
    async def ask(question: Question) -> Answer:
        message = {"role": "user", "content": question.text}
        more = {"metadata": {"agent": "true"}} if question.is_agent else {}
        return await client.complete(
            {
                "model": question.model or "codex-local",
                "messages": [message],
                "stream": question.is_streamed,
                **more,
            }
        )

    return ask


@contextlib.asynccontextmanager
async def codexsite(
    bench: Bench, engine: EngineName, workers: int = 1, name: str = ""
) -> AsyncIterator[Contender]:
    """What `manage.py serve` starts, on a data directory of its own, asked with its first key.

    That key has a row in the database, as those of users have. It may use agent mode, too.
    """
    folder = bench.subfolder(f"codexsite-{engine}-{workers}{name}")
    port, env_key = free_port(), secrets.token_hex(16)
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "CODEX_PROXY_DATA_DIR": str(folder / "data"),
        "CODEX_PROXY_CODEX_BIN": bench.codex_bin,
        "CODEX_PROXY_CODEX_CONFIGS": ";;".join(bench.overrides),
        "CODEX_PROXY_API_KEY": env_key,
        "CODEX_PROXY_ENGINE": engine,
        "CODEX_PROXY_WORKERS": str(workers),
        "CODEX_PROXY_MAX_CONCURRENCY": str(CLIENTS),
        "CODEX_PROXY_MAX_QUEUE_SIZE": "512",
        "CODEX_PROXY_ALLOW_ROOT_AGENT": "1",  # where this runs as root, in a scratch folder of its own
        "CODEX_PROXY_QUEUE_TIMEOUT_SECONDS": "120",
    }
    manage = (sys.executable, str(CHECKOUT / "manage.py"))
    argv, log = (*manage, "serve", "--port", str(port)), folder / "log"
    async with serving(argv, port=port, env=env, cwd=folder, log=log) as pid:
        shown = await asyncio.to_thread(log.read_text)
        found = re.search(r"API key \(shown once\): (\S+)", shown)
        if found is None:
            raise StartFailed(f"it showed no API key: {shown[-500:]}")
        if workers == 1:
            granting = (*manage, "shell", "-c", GRANT)
            await asyncio.to_thread(
                subprocess.run, granting, env=env, cwd=folder, check=True, capture_output=True
            )
        client, other = Client(port, found[1]), Client(port, env_key)
        with contextlib.closing(client), contextlib.closing(other):
            yield Contender(
                *("codexsite", engine, workers, _over_http(client)),
                server=pid,
                ask_with_env_key=_over_http(other),
            )


@contextlib.asynccontextmanager
async def bare_app_server(
    bench: Bench, workers: int = 1, *, is_lifted: bool = False
) -> AsyncIterator[Contender]:
    """A minimal JSON-RPC loop over so many app-servers in turn.

    Lifted, Codex gets the authorities as this server gives them, which spares it much of its work.
    """
    home = bench.subfolder(f"bare-app-server-{workers}{'-lifted' if is_lifted else ''}")
    catalogue = await asyncio.to_thread(lean_catalogue, bench.codex_bin, home, home / "models.json")
    overrides = (*bench.overrides, f'model_catalog_json="{catalogue}"')
    env = environment(home) | (quick_authorities(home) if is_lifted else {})
    async with contextlib.AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(
                AppServer.running(bench.codex_bin, home, overrides, env)
            )
            for _ in range(workers)
        ]
        turns = itertools.cycle(servers)

        async def ask(question: Question) -> Answer:
            thread = {**CHAT, "model": question.model} if question.model else CHAT
            return await next(turns).ask(question.text, thread)

        pids = [server.pid for server in servers]
        yield Contender(_bare(is_lifted), "app-server", workers, ask, worker_pids=lambda: pids)


@contextlib.asynccontextmanager
async def bare_exec(bench: Bench, *, is_lifted: bool = False) -> AsyncIterator[Contender]:
    """One lean `codex exec` per question, as many at once as are asked; agent mode is Codex's own."""
    name = f"bare-exec{'-lifted' if is_lifted else ''}"
    home, cwd = bench.subfolder(name), bench.subfolder(f"{name}-cwd")
    catalogue = await asyncio.to_thread(lean_catalogue, bench.codex_bin, home, home / "models.json")
    # Codex refuses an empty file.
    await asyncio.to_thread((home / "instructions").write_text, "Answer.")
    lean = (
        *bench.overrides,
        f'model_catalog_json="{catalogue}"',
        f'model_instructions_file="{home / "instructions"}"',
        *LEAN_EXEC,
    )
    env = environment(home) | (quick_authorities(home) if is_lifted else {})

    async def ask(question: Question) -> Answer:
        return await run_exec(
            *(bench.codex_bin, home, cwd),
            bench.overrides if question.is_agent else lean,
            question.text,
            sandbox="workspace-write" if question.is_agent else "read-only",
            model=question.model or None,
            env=env,
        )

    yield Contender(_bare(is_lifted), "exec", CLIENTS, ask)


def _bare(is_lifted: bool) -> Product:
    return "bare, lifted" if is_lifted else "bare codex"


@contextlib.asynccontextmanager
async def predecessor_serving(
    bench: Bench, program: Path, engine: EngineName, workers: int, *, is_agent: bool = False
) -> AsyncIterator[Contender]:
    """The predecessor; for `exec` the workers are runs at once."""
    folder = bench.subfolder(f"predecessor-{engine}-{workers}{'-agent' if is_agent else ''}")
    port, key = free_port(), secrets.token_hex(16)
    (folder / ".codex").mkdir()
    size = "--workers" if engine == "app-server" else "--max-concurrency"
    argv = predecessor.start_command(
        program,
        folder,
        port=port,
        key=key,
        codex_bin=bench.codex_bin,
        overrides=bench.overrides,
        engine=("--engine", engine, size, str(workers), *(("--agent",) if is_agent else ())),
    )
    env = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    async with serving(argv, port=port, env=env, cwd=folder, log=folder / "server-log") as pid:
        with contextlib.closing(Client(port, key)) as client:
            yield Contender("predecessor", engine, workers, _over_http(client), server=pid)
