"""The engine of one `codex exec --json` process per turn.

The prompt goes in by stdin, which is then closed (an open one makes Codex wait for ever), and the
system text of a chat by a file: nothing of a request stands in the arguments, which everybody on the
machine can read.
"""

from __future__ import annotations

import asyncio
import base64
import contextvars
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from proxy.engines import scratch
from proxy.engines.base import EngineConfig, Inspection, Turn, TurnStarted
from proxy.engines.catalogue import (
    AGENT_CONFIG,
    EXEC_CHAT_FEATURES_OFF,
    LEAN_CHAT_CONFIG,
    write_lean,
)
from proxy.engines.child import Child
from proxy.engines.conversation import as_prompt, images_of, split_instructions
from proxy.engines.exec_events import LineReader
from proxy.engines.gate import Gate
from proxy.engines.launch import arguments, environment, overrides_of
from proxy.engines.running import RunningTurn, Turns, with_second_try
from proxy.engines.worker import Worker
from proxy.errors import ContextTooLong, EngineUnavailable, ShuttingDown, WorkerDied

log = logging.getLogger(__name__)

PROMPT_LIMIT = 1_048_576
"""Characters that Codex takes on stdin."""
EXIT_BOUND_S = 1.0
DATABASES_MB = 100.0

NO_INSTRUCTIONS = "You are a helpful assistant."
"""For a chat without system text: Codex refuses an empty file, and without one sends 21 KB."""


class Lines:
    """The child's lines for one reader: None after the last one."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()

    def put(self, line: bytes) -> None:
        self._queue.put_nowait(line)

    def end(self) -> None:
        self._queue.put_nowait(None)

    async def get(self) -> bytes | None:
        return await self._queue.get()


class ExecEngine:
    """See `Engine`. Deltas are whole messages: Codex gives no others here."""

    name = "exec"

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.gate = Gate(config.max_concurrency, config.max_queue_size, config.queue_timeout_s)
        self._inspection: asyncio.Task[Inspection] | None = None
        self._catalogues: asyncio.Task[tuple[Path | None, Path | None]] | None = None
        self._databases = scratch.SharedFolder(config.scratch_dir, DATABASES_MB)
        self._turns = Turns()

    def run(self, turn: Turn) -> RunningTurn:
        return self._turns.run(turn, self._drive)

    async def _drive(self, running: RunningTurn) -> None:
        async with self.gate.place(running.turn):
            running.laps.lap("queue_wait")
            await running.prepare()
            inspection = await self.inspect()
            running.codex_version = inspection.codex_version
            default = next((model.id for model in inspection.models if model.is_default), "")
            running.served_model = running.served_model or default
            await with_second_try(running, self._attempt)

    async def _attempt(self, running: RunningTurn) -> None:
        folder = scratch.new_folder(self.config.scratch_dir)
        try:
            with self._databases.use() as databases:
                await self._converse(running, folder, databases)
        finally:
            scratch.remove(folder)

    async def _converse(self, running: RunningTurn, folder: Path, databases: Path) -> None:
        turn = running.turn
        instructions, rest = split_instructions(turn.messages)
        if turn.is_agent:
            # Codex keeps its own instructions, and an argument, where these could go beside them,
            # is there for everybody on the machine to read: so they go with the conversation.
            instructions, rest = "", turn.messages
        prompt = as_prompt(rest)
        if len(prompt) > PROMPT_LIMIT:
            raise _too_long(f"{PROMPT_LIMIT} characters, and these messages have {len(prompt)}")
        own: dict[str, Any] = {"sqlite_home": str(databases), "approval_policy": "never"}
        if (catalogue := await self._catalogue_for(turn)) is not None:
            own["model_catalog_json"] = str(catalogue)
        argv = self._arguments(turn, instructions, folder, own)
        lines = Lines()
        child = await Child.spawn(
            argv,
            env=environment(self.config),
            cwd=turn.cwd if turn.is_agent else str(folder),
            on_line=lines.put,
            on_end=lines.end,
            user=self.config.user,
        )
        try:
            running.worker = f"exec-{child.pid}"
            running.laps.lap("process_spawn")
            child.write(prompt.encode())
            child.close_stdin()
            await self._follow(child, lines, running)
        finally:
            await child.stop()

    async def _follow(self, child: Child, lines: Lines, running: RunningTurn) -> None:
        reader, has_started = LineReader(), False
        while not reader.has_ended:
            line = await lines.get()
            if line is None:
                await child.wait(EXIT_BOUND_S)  # the end of its output comes before its status
                raise self._early_end(child, has_started=has_started)
            events = reader.read(line) if line.strip() else []
            if reader.has_started and not has_started:
                has_started = True
                running.laps.lap("turn_start")
                running.emit(TurnStarted())
            for event in events:
                running.emit(event)
            running.has_produced = running.has_produced or reader.holds_message

    def _early_end(self, child: Child, *, has_started: bool) -> WorkerDied | EngineUnavailable:
        """Codex left without an end of the turn: it died, or it refused its own configuration."""
        said = re.sub(r"^Reading .* from stdin\.\.\.$", "", child.stderr_tail, flags=re.MULTILINE)
        log.error("codex exec ended with %s; it said: %s", child.returncode, said.strip())
        if not has_started and child.returncode is not None and child.returncode > 0:
            return EngineUnavailable("Codex cannot be started; the server's log says why.")
        return WorkerDied("The codex process ended in the middle of the turn.")

    def _arguments(
        self, turn: Turn, instructions: str, folder: Path, own: dict[str, Any]
    ) -> list[str]:
        wishes = {
            "model_reasoning_effort": turn.effort,
            "model_reasoning_summary": "auto" if turn.wants_reasoning else None,
            "model_verbosity": turn.verbosity,
            "service_tier": turn.service_tier,
        }
        own |= {name: value for name, value in wishes.items() if value is not None}
        if turn.confinement is not None:
            turn.confinement.insist()
            own |= {**AGENT_CONFIG, **turn.confinement.config()}
            own["default_permissions"] = turn.confinement.name
        else:
            own |= LEAN_CHAT_CONFIG
            own |= {f"features.{feature}": False for feature in EXEC_CHAT_FEATURES_OFF}
            text = instructions if instructions.strip() else NO_INSTRUCTIONS
            own["model_instructions_file"] = str(_written(folder, text, "instructions.md"))
        flags = [
            "exec",
            "--json",
            "--skip-git-repo-check",
            "--ignore-user-config",
            "--ignore-rules",
        ]
        # For an agent no such flag: it would switch the permission profile off.
        flags += ["--sandbox", "read-only"] if turn.confinement is None else []
        flags += ["--ephemeral"] if self.config.ephemeral else []
        flags += ["--model", turn.model] if turn.model is not None else []
        if turn.output_schema is not None:
            schema = _written(folder, orjson.dumps(turn.output_schema).decode(), "schema.json")
            flags += ["--output-schema", str(schema)]
        # By names relative to the turn's folder: Codex writes them into the prompt as they are.
        for name in _write_images(folder, turn):
            flags += ["--image", name]
        return [*arguments(self.config, *flags, overrides=overrides_of(own)), "--", "-"]

    async def _catalogue_for(self, turn: Turn) -> Path | None:
        for_agent, for_chat = await self._both_catalogues()
        return for_agent if turn.is_agent else for_chat

    async def _both_catalogues(self) -> tuple[Path | None, Path | None]:
        """Return the lean catalogues for agent turns and for chats, written once."""
        if self._catalogues is None:
            self._catalogues = asyncio.get_running_loop().create_task(self._write_catalogues())
        return await asyncio.shield(self._catalogues)

    async def _write_catalogues(self) -> tuple[Path | None, Path | None]:
        env = environment(self.config)
        return (
            await write_lean(self.config, env),
            await write_lean(self.config, env, for_exec_chat=True),
        )

    async def inspect(self) -> Inspection:
        """Ask a short-lived app-server, once; an answer is kept, a failure is not."""
        if self._turns.is_closed:
            raise ShuttingDown("The server is shutting down.")
        if self._inspection is None or (
            self._inspection.done() and self._inspection.exception() is not None
        ):
            self._inspection = asyncio.get_running_loop().create_task(
                self._inspect(), name="inspection", context=contextvars.Context()
            )
            # Whoever asked may be gone when it fails.
            self._inspection.add_done_callback(lambda task: task.cancelled() or task.exception())
        inspection = self._inspection
        try:
            return await asyncio.shield(inspection)
        except asyncio.CancelledError:
            if inspection.cancelled():  # by our `aclose`: it is not the waiter who was cancelled
                raise ShuttingDown("The server is shutting down.") from None
            raise

    async def _inspect(self) -> Inspection:
        worker = await Worker.start(self.config, 0, None)
        await worker.stop()
        is_lean = not self.config.is_lean or None not in await self._both_catalogues()
        return replace(worker.inspection, is_lean=is_lean)

    async def aclose(self) -> None:
        await self._turns.aclose()
        tasks = [task for task in (self._inspection, self._catalogues) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._databases.close()


def _too_long(limit: str) -> ContextTooLong:
    return ContextTooLong(
        "This model's maximum context length is not the limit here: codex exec takes "
        f"{limit}. The app-server engine takes more.",
        param="messages",
    )


def _written(folder: Path, text: str, name: str) -> Path:
    path = folder / name
    with scratch.new_file(path) as file:
        file.write(text.encode())
    return path


def _write_images(folder: Path, turn: Turn) -> list[str]:
    """Write the images of a chat into its folder and return their names, in order."""
    names = []
    for number, image in enumerate(images_of(turn.messages), start=1):
        head, _, payload = image.url.partition(";base64,")
        name = f"image-{number}.{head.rpartition('/')[2]}"
        with scratch.new_file(folder / name) as file:
            file.write(base64.b64decode(payload))
        names.append(name)
    return names
