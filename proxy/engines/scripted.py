"""An engine that plays a script: for tests of everything above the engines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from proxy.engines.base import Completed, Event, Failed, Inspection, Model, Turn, TurnStarted
from proxy.engines.gate import Gate
from proxy.engines.running import RunningTurn, Turns
from proxy.errors import EngineError

Step = Event | EngineError | asyncio.Event | Callable[[Turn], Event]
"""An event is emitted, an error is raised, an `asyncio.Event` is waited for, a callable is asked."""

CATALOGUE = (
    Model("scripted-1", "Scripted 1", ("low", "medium", "high"), is_default=True),
    Model("scripted-2", "Scripted 2", ("low",), is_default=False),
)


class ScriptedEngine:
    """Plays `script` for every turn; remembers the turns it was given and those it finished.

    `scripts` come before it, one for each of the first turns. Its gate is wide open.
    """

    name = "scripted"

    def __init__(self, script: Sequence[Step] = (), *, logged_in: bool = True) -> None:
        self.script = list(script)
        self.scripts: list[Sequence[Step]] = []
        self.logged_in = logged_in
        self.turns: list[Turn] = []
        self.cleaned_up: list[Turn] = []
        self.gate = Gate(capacity=1000, max_queue=0, queue_timeout_s=0.0)
        self._turns = Turns()

    def run(self, turn: Turn) -> RunningTurn:
        self.turns.append(turn)
        script = self.scripts.pop(0) if self.scripts else self.script
        return self._turns.run(turn, partial(self._play, script))

    async def _play(self, script: Sequence[Step], running: RunningTurn) -> None:
        try:
            async with self.gate.place(running.turn):
                await self._play_inside(script, running)
        finally:
            self.cleaned_up.append(running.turn)

    async def _play_inside(self, script: Sequence[Step], running: RunningTurn) -> None:
        running.worker, running.codex_version = "scripted", "0.0.0"
        if running.turn.confinement is not None:
            running.turn.confinement.insist()
        running.served_model = running.turn.model or CATALOGUE[0].id
        await running.prepare()
        for name in ("queue_wait", "worker_start", "thread_start", "turn_start"):
            running.laps.lap(name)
        running.emit(TurnStarted())
        for step in script:
            await self._take(step, running)
        if not any(isinstance(step, Completed | Failed) for step in script):
            running.emit(Completed())

    async def _take(self, step: Step, running: RunningTurn) -> None:
        if isinstance(step, EngineError):
            raise step
        if isinstance(step, asyncio.Event):
            await step.wait()
        elif callable(step):
            running.emit(step(running.turn))
        else:
            running.emit(step)

    async def inspect(self) -> Inspection:
        return Inspection("0.0.0", CATALOGUE, "apiKey" if self.logged_in else None, True)

    async def aclose(self) -> None:
        await self._turns.aclose()
