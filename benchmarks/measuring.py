"""What is measured, and how: the contenders take turns, one measure after the other."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from benchmarks import report
from benchmarks.bare import TurnFailed, provider_overrides, run_exec
from benchmarks.client import RequestFailed, fetch_json
from benchmarks.contenders import CLIENTS, QUESTION, Ask, Bench, Contender
from benchmarks.provider import WORD
from benchmarks.report import Results

AT_ONCE_DELTAS, STREAM_DELTAS, STREAM_PAUSE_S = 2, 20, 0.02
FAILURES = (TurnFailed, RequestFailed, OSError, TimeoutError, KeyError, ValueError)


@dataclass(frozen=True)
class Size:
    """How often each contender is asked in a round, and how long everything may take in seconds."""

    rounds: int
    alone: int
    streams: int
    crowd: dict[str, int]
    budget_s: float


@dataclass(frozen=True)
class Timing:
    """Of one good answer, in milliseconds since it was asked for."""

    whole_ms: float
    first_ms: float | None


async def warm_up(bench: Bench, port: int, entered: list[Contender], results: Results) -> None:
    """Ask everybody before it counts, and see how much of it reaches the model."""
    await _set_pace(port, AT_ONCE_DELTAS, 0)
    for contender in entered:
        if await _ask(contender.ask, results, f"{_name(contender)}, first question"):
            sent = await _last_bytes(port)
            results.add(report.SENT, contender.engine, contender.product, sent)
        if contender.engine == "exec":
            continue  # Nothing stays that could be warm.
        for setting, ask in contender.crowd.items():
            await _answers_per_s(ask, CLIENTS, results, f"{_name(contender)} {setting}, warm-up")
    if any(contender.engine == "exec" for contender in entered):
        home = bench.subfolder("plain-exec")
        await run_exec(bench.codex_bin, home, home, provider_overrides(bench.base_url), QUESTION)
        results.notes.append(
            f"`codex exec` with Codex's own settings sends {await _last_bytes(port)} bytes for it."
        )


async def one_round(entered: list[Contender], size: Size, port: int, results: Results) -> None:
    """Measure everything once. Alone they are asked in turn, one question each, again and again."""
    for contender in entered * size.alone:
        timing = await _ask(contender.ask, results, f"{_name(contender)}, alone")
        if timing:
            for measure in (report.LATENCY, report.LATENCY_P95):
                results.add(measure, contender.engine, contender.product, timing.whole_ms)
    await _set_pace(port, STREAM_DELTAS, STREAM_PAUSE_S)
    for contender in entered * size.streams:
        timing = await _ask(contender.ask, results, f"{_name(contender)}, stream", stream=True)
        if timing and timing.first_ms:
            results.add(report.FIRST_TOKEN, contender.engine, contender.product, timing.first_ms)
    await _set_pace(port, AT_ONCE_DELTAS, 0)
    for contender in entered:
        for setting, ask in contender.crowd.items():
            total, label = size.crowd[contender.engine], f"{_name(contender)} {setting}, crowd"
            rate = await _answers_per_s(ask, total, results, label)
            if rate:
                results.add(report.THROUGHPUT, contender.engine, contender.product, rate, setting)


async def _set_pace(port: int, deltas: int, pause_s: float) -> None:
    await fetch_json(port, "POST", "/pace", {"deltas": deltas, "pause_s": pause_s})


async def _last_bytes(port: int) -> int:
    seen = await fetch_json(port, "GET", "/seen")
    return int(seen["last_bytes"])


def _name(contender: Contender) -> str:
    return f"{contender.product} {contender.engine}"


async def _ask(ask: Ask, results: Results, label: str, *, stream: bool = False) -> Timing | None:
    """Return how long a right answer took; a wrong one is a failure, and None."""
    expected = WORD * (STREAM_DELTAS if stream else AT_ONCE_DELTAS)
    started = time.monotonic()
    try:
        answer = await ask(stream)
    except FAILURES as error:
        results.failures[f"{label}: {type(error).__name__} {error}"] += 1
        return None
    whole_ms = (time.monotonic() - started) * 1000
    if answer.text.strip() != expected.strip():
        results.failures[f"{label}: it answered {answer.text!r}"] += 1
        return None
    first_s = answer.first_delta_s
    return Timing(whole_ms, first_s * 1000 if first_s is not None else None)


async def _answers_per_s(ask: Ask, total: int, results: Results, label: str) -> float | None:
    """Have 16 clients ask `total` times between them; None where no answer was right."""
    questions = iter(range(total))

    async def client() -> int:
        return sum([await _ask(ask, results, label) is not None for _ in questions])

    started = time.monotonic()
    good = sum(await asyncio.gather(*(client() for _ in range(CLIENTS))))
    return good / (time.monotonic() - started) if good else None
