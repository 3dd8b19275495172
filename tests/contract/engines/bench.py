"""Engines on a codex that can be told to misbehave, and what tests need to drive them."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from proxy.engines.app_server import AppServerEngine
from proxy.engines.base import (
    CommandFinished,
    CommandStarted,
    Completed,
    Engine,
    EngineConfig,
    Event,
    Failed,
    Message,
    MessageDone,
    ReasoningDelta,
    TextDelta,
    Turn,
    Usage,
    UsageReported,
)
from proxy.engines.confinement import Confinement
from proxy.engines.exec import ExecEngine
from proxy.engines.failures import error_of
from proxy.engines.running import RunningTurn
from proxy.engines.scripted import ScriptedEngine, Step

FAKE_CODEX = Path(__file__).parents[2] / "fake_codex.py"
USAGE = Usage(111, 30, 77, 20)
WAIT_S = 20.0
POLL_S = 0.01


class Fake:
    """The fake codex as a test sees it: one path to start it, and what it wrote down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "codex"
        command = shlex.join([sys.executable, "-I", "-S", str(FAKE_CODEX), str(folder)])
        self.bin.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        self.bin.chmod(0o700)

    def records(self) -> list[dict[str, Any]]:
        path = self.folder / "record.jsonl"
        return (
            [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
        )

    def starts(self, command: str) -> list[dict[str, Any]]:
        """Return the records of the processes that ran this subcommand, in order."""
        found = [record for record in self.records() if "start" in record]
        return [record for record in found if record["start"][:1] == [command]]

    def got(self, method: str) -> list[dict[str, Any]]:
        """Return the parameters of every request of this method, in order."""
        frames = [record["got"] for record in self.records() if "got" in record]
        return [frame["params"] for frame in frames if frame.get("method") == method]

    def prompts(self) -> list[str]:
        return [record["prompt"] for record in self.records() if "prompt" in record]

    def turns(self) -> list[object]:
        """Every turn that codex was asked for, by either engine."""
        return [*self.got("turn/start"), *self.prompts()]

    def pids(self) -> set[int]:
        """Every process that ran, grandchildren too."""
        records = self.records()
        return {r["pid"] for r in records} | {r["grandchild"] for r in records if "grandchild" in r}

    def allow(self, name: str) -> None:
        """Let a turn that waits for `name` go on."""
        (self.folder / name).touch()


async def until(is_so: Callable[[], object]) -> None:
    """Wait for what happens in another process, which tells nobody."""
    async with asyncio.timeout(WAIT_S):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def survivors(pids: Iterable[int]) -> set[int]:
    """Return those of the processes, and of their groups, that still run; zombies do not."""
    known = set(pids)
    if not any(is_alive(pid) or _has_group(pid) for pid in known):
        return set()
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,pgid=,stat="], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in listing.stdout.splitlines()]
    return {int(pid) for pid, group, state in rows
            if {int(pid), int(group)} & known and not state.startswith("Z")}  # fmt: skip


def _has_group(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def confined(folder: str) -> Confinement:
    """Return what an agent's turn in a folder runs under."""
    return Confinement(level="write", workspace=folder, roots=(folder,))


class Tick(asyncio.Event):
    """A pause in a script: long enough for others to run."""

    async def wait(self) -> bool:  # type: ignore[override]
        await asyncio.sleep(POLL_S)
        return True


def script(text: str) -> list[Step]:
    """Return what the fake codex would do with this message, as the scripted engine's steps."""
    steps: list[Step] = []
    for line in text.splitlines():
        steps += _steps(*(part.strip() for part in (*line.partition(":"),)[::2]))
    return steps if "fail:" in text else [*steps, UsageReported(USAGE), Completed()]


def _steps(verb: str, argument: str) -> list[Step]:
    match verb:
        case "say":
            words = argument.split()
            deltas = [*(f"{word} " for word in words[:-1]), *words[-1:]]
            return [*(TextDelta(delta) for delta in deltas), MessageDone(argument)]
        case "think":
            return [ReasoningDelta(argument)]
        case "remark":
            return [MessageDone(argument, is_commentary=True)]
        case "command":
            done = CommandFinished("1", argument, "completed", 0, 3, "out")
            return [CommandStarted("1", argument), done]
        case "chatter":
            return [ReasoningDelta("still thinking "), Tick()] * 10_000
        case "hang":
            return [asyncio.Event()]
        case "fail":
            error = json.loads(argument)
            return [Failed(error_of(error["message"], error.get("info")))]
    raise ValueError(verb)


class Bench:
    """One kind of engine, ready to be asked."""

    def __init__(self, name: str, fake: Fake, config: EngineConfig) -> None:
        self.name, self.fake, self.config = name, fake, config
        self.engines: list[Engine] = []
        self.turns: list[RunningTurn] = []

    def engine(self, *, env: dict[str, str] | None = None, **changes: Any) -> Engine:
        """Build an engine; the fixture closes it."""
        environment = {**self.config.environment, **(env or {})}
        config = replace(self.config, environment=environment, **changes)
        makers: dict[str, Callable[[], Engine]] = {
            "scripted": ScriptedEngine,
            "app-server": lambda: AppServerEngine(config),
            "exec": lambda: ExecEngine(config),
        }
        engine = makers[self.name]()
        self.engines.append(engine)
        return engine

    def ask(
        self,
        engine: Engine,
        text: str,
        *,
        system: str = "",
        deadline_s: float = WAIT_S,
        sandbox: str = "read-only",
        **fields: Any,
    ) -> RunningTurn:
        """Run a turn, an agent's unless its sandbox is `read-only`; the fixture closes it."""
        messages = [Message("system", system)] if system else []
        turn = Turn(
            request_id=f"r{len(self.turns)}",
            messages=(*messages, Message("user", text)),
            cwd=(cwd := fields.pop("cwd", str(self.fake.folder))),
            deadline=asyncio.get_running_loop().time() + deadline_s,
            confinement=None if sandbox == "read-only" else confined(cwd),
            **fields,
        )
        if isinstance(engine, ScriptedEngine):
            engine.script = script(text)
        running = engine.run(turn)
        self.turns.append(running)
        return running


async def events_of(running: RunningTurn) -> list[Event]:
    """Return all events up to the end."""
    async with asyncio.timeout(WAIT_S):
        return [event async for event in running]


async def first(running: RunningTurn, kind: type[Event]) -> Event:
    """Read up to the first event of this kind."""
    async with asyncio.timeout(WAIT_S):
        async for event in running:
            if isinstance(event, kind):
                return event
    raise AssertionError(f"the turn ended without {kind.__name__}")


async def end_of(running: RunningTurn) -> Event:
    return (await events_of(running))[-1]


async def error_of_turn(running: RunningTurn) -> Exception:
    end = await end_of(running)
    assert isinstance(end, Failed), end
    return end.error


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))
