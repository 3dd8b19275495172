"""What processes cost: CPU seconds and resident memory, by who spends them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psutil

MB = 2**20


@dataclass(frozen=True)
class Cpu:
    """CPU seconds spent so far by the server, by all of its codex, and by this very process."""

    server: float
    codex: float
    client: float

    def per_turn_ms(self, before: Cpu, turns: int) -> tuple[float, float, float]:
        scale = 1000 / turns
        return (
            (self.server - before.server) * scale,
            (self.codex - before.codex) * scale,
            (self.client - before.client) * scale,
        )


def cpu(server: int | None, workers: Callable[[], list[int]]) -> Cpu:
    """Return what has been spent; without a server, `workers` are children of this process."""
    own = time.process_time()
    reaped = os.times().children_user + os.times().children_system
    if server is None:
        return Cpu(0.0, sum(map(_of_process, workers())) + reaped, own)
    try:
        process = psutil.Process(server)
        times = process.cpu_times()
        codex = sum(_of_process(child.pid) for child in process.children(recursive=True))
    except psutil.Error:
        return Cpu(0.0, 0.0, own)
    ended = float(times.children_user + times.children_system)
    return Cpu(float(times.user + times.system), codex + ended, own)


def _of_process(pid: int) -> float:
    with suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0


def resident_mb(server: int) -> tuple[float, float]:
    """Return the resident memory of a server, and of all codex processes below it."""
    process = psutil.Process(server)
    children = 0.0
    for child in process.children(recursive=True):
        with suppress(psutil.Error):
            children += child.memory_info().rss / MB
    return process.memory_info().rss / MB, children
