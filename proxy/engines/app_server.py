"""The engine of long-lived workers: each turn is a fresh ephemeral thread on a shared app-server.

    queue -> worker -> thread/start -> inject_items -> turn/start -> notifications -> unsubscribe

Several turns run on one worker at once. Chat threads have no environment and no tools; agent threads
get their folder, marked untrusted, because Codex would otherwise run code that lies in it outside
the sandbox. Everything sent here was found by experiment with Codex 0.163.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from proxy.engines.app_server_events import TurnReader
from proxy.engines.base import (
    EngineConfig,
    Inspection,
    Message,
    Tool,
    Turn,
    TurnStarted,
)
from proxy.engines.catalogue import AGENT_CONFIG, LEAN_CHAT_CONFIG, write_lean
from proxy.engines.conversation import as_items, split_instructions
from proxy.engines.gate import Gate
from proxy.engines.launch import environment
from proxy.engines.pool import WorkerPool
from proxy.engines.running import RunningTurn, Turns, with_second_try
from proxy.engines.worker import RpcRefused, Thread, Worker
from proxy.errors import EngineProtocolError, TurnFailed

STARTED_NOT_USABLE = "Codex refused to start the turn; the server's log says why."


class AppServerEngine:
    """See `Engine`. Workers start on first use; `inspect` starts one."""

    name = "app-server"

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.gate = Gate(
            config.workers * config.turns_per_worker, config.max_queue_size, config.queue_timeout_s
        )
        self._pool: WorkerPool[Worker] = WorkerPool(self._start_worker, config.workers)
        self._catalogue: asyncio.Task[Path | None] | None = None
        self._turns = Turns()

    async def _start_worker(self, number: int) -> Worker:
        if self._catalogue is None:
            self._catalogue = asyncio.get_running_loop().create_task(
                write_lean(self.config, environment(self.config))
            )
        worker = await Worker.start(self.config, number, await asyncio.shield(self._catalogue))
        worker.spares.prepare(self._usual_thread(worker))
        return worker

    def _usual_thread(self, worker: Worker) -> dict[str, Any]:
        """Return what the thread of a plain chat with the default model is started with."""
        default = next((model.id for model in worker.inspection.models if model.is_default), None)
        plain = Turn(request_id="", messages=(), cwd="/", deadline=0.0, model=default)
        return thread_parameters(plain, ephemeral=self.config.ephemeral)[0]

    def run(self, turn: Turn) -> RunningTurn:
        return self._turns.run(turn, self._drive)

    async def _drive(self, running: RunningTurn) -> None:
        async with self.gate.place(running.turn):
            running.laps.lap("queue_wait")
            await running.prepare()
            await with_second_try(running, self._attempt)

    async def _attempt(self, running: RunningTurn) -> None:
        async with self._pool.lease() as worker:
            running.laps.lap("worker_start")
            running.worker, running.codex_version = worker.name, worker.version
            await self._converse(worker, running)

    async def _converse(self, worker: Worker, running: RunningTurn) -> None:
        thread = Thread(worker, is_agent=running.turn.is_agent)
        params, history = thread_parameters(running.turn, ephemeral=self.config.ephemeral)
        try:
            await self._begin(thread, params, history, running)
            await self._follow(thread, running)
        except RpcRefused as refused:
            raise TurnFailed(STARTED_NOT_USABLE, code="engine_refused") from refused
        except (KeyError, TypeError) as error:
            raise EngineProtocolError(
                "Codex said something that this version does not know."
            ) from error
        finally:
            await thread.close()
        if not running.turn.is_agent:
            worker.spares.restock(params)

    async def _begin(
        self,
        thread: Thread,
        params: dict[str, Any],
        history: list[dict[str, Any]],
        running: RunningTurn,
    ) -> None:
        started = await thread.open(params)
        running.served_model = started.get("model") or running.served_model
        await thread.inject(history)
        running.laps.lap("thread_start")
        await thread.ask(turn_parameters(running.turn))
        running.laps.lap("turn_start")
        running.emit(TurnStarted())

    async def _follow(self, thread: Thread, running: RunningTurn) -> None:
        reader = TurnReader(is_chat=not running.turn.is_agent)
        while not reader.has_ended:
            note = await thread.next()
            events = reader.read(note.method, note.params)
            running.served_model = reader.rerouted_to or running.served_model
            for event in events:
                running.emit(event)

    async def inspect(self) -> Inspection:
        async with self._pool.lease() as worker:
            return replace(await worker.check(), is_lean=self._is_as_lean_as_wanted)

    @property
    def _is_as_lean_as_wanted(self) -> bool:
        wrote = self._catalogue is not None and self._catalogue.done()
        is_missing = wrote and self._catalogue is not None and self._catalogue.result() is None
        return not (self.config.is_lean and is_missing)

    async def aclose(self) -> None:
        await self._turns.aclose()
        await self._pool.aclose()
        if self._catalogue is not None:
            self._catalogue.cancel()
            await asyncio.wait({self._catalogue})


def thread_parameters(
    turn: Turn, *, ephemeral: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the parameters of `thread/start`, and the items to inject before the turn.

    Those of a chat say nothing of the conversation: its system text is injected, too, and reaches
    the model as the same developer message at the same place. So such a thread can be started before
    the conversation is known.
    """
    instructions, messages = split_instructions(turn.messages)
    params: dict[str, Any] = {
        "ephemeral": ephemeral,
        "approvalPolicy": "never",
        "dynamicTools": [dynamic_tool(tool) for tool in turn.tools],
    }
    if turn.tools or turn.is_agent:  # only raw items show all calls, and what was refused
        params["experimentalRawEvents"] = True
    if turn.model is not None:
        params["model"] = turn.model
    if turn.confinement is not None:
        turn.confinement.insist()
        params["cwd"] = turn.cwd
        params["permissions"] = turn.confinement.name  # and no sandbox: that would switch it off
        params["config"] = {**AGENT_CONFIG, **turn.confinement.config()}
        if instructions:
            params["developerInstructions"] = instructions
    else:
        if instructions:
            messages = (Message("developer", instructions), *messages)
        params["cwd"] = "/"
        params["sandbox"] = "read-only"
        params["environments"] = []
        params["baseInstructions"] = ""
        params["config"] = dict(LEAN_CHAT_CONFIG)
    if turn.verbosity:
        params["config"]["model_verbosity"] = turn.verbosity
    return params, as_items(messages)


def turn_parameters(turn: Turn) -> dict[str, Any]:
    """Return what `turn/start` is told beside the thread."""
    wishes = {
        "effort": turn.effort,
        "summary": "auto" if turn.wants_reasoning else None,
        "outputSchema": turn.output_schema,
        "serviceTierForTurn": turn.service_tier,
    }
    return {name: value for name, value in wishes.items() if value is not None}


def dynamic_tool(tool: Tool) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "inputSchema": tool.parameters,
    }
