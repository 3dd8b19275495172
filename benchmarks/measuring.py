"""What is measured, and how: the contenders take turns, one measure after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from benchmarks import report
from benchmarks.bare import Answer, TurnFailed, provider_overrides, run_exec
from benchmarks.client import RequestFailed, complete, fetch_json
from benchmarks.contenders import CLIENTS, QUESTION, Ask, Bench, Contender, Served
from benchmarks.provider import text_of
from benchmarks.report import Results, of_engine

AT_ONCE_DELTAS, STREAM_DELTAS, STREAM_PAUSE_S = 2, 20, 0.02
LONG_PAUSE_S = 0.1
ONE_BY_ONE = 10
"""Streams that the predecessor is given where others get a hundred: it takes one after the other."""
FAILURES = (TurnFailed, RequestFailed, OSError, TimeoutError, KeyError, ValueError)


@dataclass(frozen=True)
class Size:
    """How often each contender is asked in a round, and how long everything may take in seconds."""

    rounds: int
    alone: int
    streams: int
    crowd: dict[str, int]
    at_once: int
    at_once_many: int
    memory_turns: tuple[int, int]
    budget_s: float


async def warm_up(bench: Bench, port: int, entered: list[Contender], results: Results) -> None:
    """Ask everybody before it counts."""
    await _set_pace(port, AT_ONCE_DELTAS, 0)
    for contender in entered:
        await _ask(contender.ask, results, f"{_name(contender)}, first question", AT_ONCE_DELTAS)
        if contender.engine == "exec":
            continue  # nothing stays that could be warm
        for setting, ask in contender.crowd.items():
            await _answers_per_s(ask, CLIENTS, results, f"{_name(contender)} {setting}, warm-up")
    if any(contender.engine == "exec" for contender in entered):
        home = bench.subfolder("plain-exec")
        await run_exec(bench.codex_bin, home, home, provider_overrides(bench.base_url), QUESTION)
        results.notes.append(
            f"`codex exec` with Codex's own settings sends {await _last_bytes(port)} bytes for “hi”."
        )


async def sent_to_the_model(port: int, entered: list[Contender], results: Results) -> None:
    """See how much beside the question reaches the model: of ours on every model, the most."""
    await _set_pace(port, AT_ONCE_DELTAS, 0)
    for contender in entered:
        measure = of_engine(report.SENT, contender.engine)
        sizes = []
        if contender.served is None:
            await contender.ask(False)
            sizes.append(await _last_bytes(port))
        else:
            served = contender.served
            for model in await served.models():
                await complete(served.port, served.key, QUESTION, stream=False, model=model)
                sizes.append(await _last_bytes(port))
        results.add(measure, contender.product, max(sizes) - len(QUESTION))


async def one_round(entered: list[Contender], size: Size, port: int, results: Results) -> None:
    """Measure time once. Alone they are asked in turn, one question each, again and again."""
    for contender in entered * size.alone:
        whole_ms, _ = await _timed(contender, results, AT_ONCE_DELTAS, stream=False)
        if whole_ms is not None:
            for measures in (report.LATENCY, report.LATENCY_P95):
                results.add(of_engine(measures, contender.engine), contender.product, whole_ms)
    await _set_pace(port, STREAM_DELTAS, STREAM_PAUSE_S)
    for contender in entered * size.streams:
        _, answer = await _timed(contender, results, STREAM_DELTAS, stream=True)
        if answer is not None and answer.first_delta_s is not None:
            measure = of_engine(report.FIRST_TOKEN, contender.engine)
            results.add(measure, contender.product, answer.first_delta_s * 1000)
    await _set_pace(port, AT_ONCE_DELTAS, 0)
    for contender in entered:
        await _measure_crowd(contender, size.crowd[contender.engine], results)


async def _timed(
    contender: Contender, results: Results, deltas: int, *, stream: bool
) -> tuple[float | None, Answer | None]:
    """Return how long a right answer took in milliseconds, and the answer; None for a wrong one."""
    started = time.monotonic()
    answer = await _ask(contender.ask, results, f"{_name(contender)}, alone", deltas, stream=stream)
    return ((time.monotonic() - started) * 1000, answer) if answer else (None, None)


async def _measure_crowd(contender: Contender, total: int, results: Results) -> None:
    measure = of_engine(report.THROUGHPUT, contender.engine)
    for setting, ask in contender.crowd.items():
        label = f"{_name(contender)} {setting}, crowd"
        served = contender.served if setting == contender.few else None
        before = _cpu_s(served) if served else None
        rate = await _answers_per_s(ask, total, results, label)
        if rate:
            results.add(measure, contender.product, rate, setting)
        if served and before and contender.engine == "app-server":
            spent = [now - then for now, then in zip(_cpu_s(served), before, strict=True)]
            for row, cpu_s in zip((report.SERVER_CPU, report.CODEX_CPU), spent, strict=True):
                results.add(row, contender.product, cpu_s * 1000 / total)


async def many_streams(entered: list[Contender], size: Size, port: int, results: Results) -> None:
    """Open all streams at once, each of 20 deltas in two seconds: with one worker, with several."""
    await _set_pace(port, STREAM_DELTAS, LONG_PAUSE_S)
    for contender in entered:
        if contender.engine == "exec":
            continue
        ask = contender.crowd.get(contender.few, contender.ask)
        is_one_by_one = contender.product == report.BEFORE
        count = ONE_BY_ONE if is_one_by_one else size.at_once
        wall_s, answers, broken = await _streams_at_once(ask, count)
        results.add(report.STREAMS, contender.product, wall_s * size.at_once / count)
        results.add(report.LOST, contender.product, broken)
        for answer in answers:
            gaps_ms = _gaps_ms(answer)
            results.add(report.GAP, contender.product, report.percentile(gaps_ms, 50))
            results.add(report.LONGEST_GAP, contender.product, max(gaps_ms))
        if is_one_by_one:
            results.notes.append(
                f"The predecessor's worker takes one stream after the other: {count} took "
                f"{wall_s:.1f} s, and {size.at_once} are reckoned from that."
            )
        if contender.many:
            many = contender.crowd[contender.many]
            wall_s, _, broken = await _streams_at_once(many, size.at_once_many)
            results.add(report.MANY_STREAMS, contender.product, wall_s)
            results.add(report.MANY_LOST, contender.product, broken)


async def _streams_at_once(ask: Ask, count: int) -> tuple[float, list[Answer], int]:
    """Return how long all took, the whole answers, and how many were not whole or not in order."""
    started = time.monotonic()
    found = await asyncio.gather(*(ask(True) for _ in range(count)), return_exceptions=True)
    wall_s = time.monotonic() - started
    whole = [
        answer
        for answer in found
        if isinstance(answer, Answer) and answer.text.strip() == text_of(STREAM_DELTAS).strip()
    ]
    return wall_s, whole, count - len(whole)


def _gaps_ms(answer: Answer) -> list[float]:
    """Return how long the client waited for each delta after the first."""
    pairs = zip(answer.arrivals_s, answer.arrivals_s[1:], strict=False)
    return [(later - earlier) * 1000 for earlier, later in pairs] or [0.0]


async def memory(entered: list[Contender], size: Size, port: int, results: Results) -> None:
    """Compare the memory of worker and server after few turns and after many."""
    served = next(
        (one.served for one in entered if one.served and one.engine == "app-server"), None
    )
    if served is None:
        return
    await _set_pace(port, AT_ONCE_DELTAS, 0)
    first, last = size.memory_turns
    await _answers_per_s(served.ask, first, results, "codexsite, memory", at_a_time=8)
    before = _memory_mb(served)
    await _answers_per_s(served.ask, last - first, results, "codexsite, memory", at_a_time=8)
    after = _memory_mb(served)
    results.notes.append(
        f"Memory between turn {first} and turn {last}: server {before[0]:.0f} -> {after[0]:.0f} MB, "
        f"worker {before[1]:.0f} -> {after[1]:.0f} MB."
    )
    for row, then, now in zip(
        (report.SERVER_GROWTH, report.WORKER_GROWTH), before, after, strict=True
    ):
        results.add(row, report.OURS, now / then)


def _memory_mb(served: Served) -> tuple[float, float]:
    server = psutil.Process(served.pid)
    children = server.children(recursive=True)
    workers = sum(child.memory_info().rss for child in children)
    return server.memory_info().rss / 2**20, workers / 2**20


def _cpu_s(served: Served) -> tuple[float, float]:
    """Return the seconds of CPU that the server and its children have used so far."""
    server = psutil.Process(served.pid)
    return _seconds([server]), _seconds(server.children(recursive=True))


def _seconds(processes: Iterable[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return float(sum(each.user + each.system for each in times))


async def _set_pace(port: int, deltas: int, pause_s: float) -> None:
    await fetch_json(port, "POST", "/pace", {"deltas": deltas, "pause_s": pause_s})


async def _last_bytes(port: int) -> int:
    seen = await fetch_json(port, "GET", "/seen")
    return int(seen["last_bytes"])


def _name(contender: Contender) -> str:
    return f"{contender.product} {contender.engine}"


async def _ask(
    ask: Ask, results: Results, label: str, deltas: int, *, stream: bool = False
) -> Answer | None:
    """Return a right answer; a wrong one is a failure, and None."""
    try:
        answer = await ask(stream)
    except FAILURES as error:
        results.failures[f"{label}: {type(error).__name__} {error}"] += 1
        return None
    if answer.text.strip() != text_of(deltas).strip():
        results.failures[f"{label}: it answered {answer.text!r}"] += 1
        return None
    return answer


async def _answers_per_s(
    ask: Ask, total: int, results: Results, label: str, at_a_time: int = CLIENTS
) -> float | None:
    """Have clients ask `total` times between them; None where no answer was right."""
    questions = iter(range(total))

    async def client() -> int:
        return sum([await _ask(ask, results, label, AT_ONCE_DELTAS) is not None for _ in questions])

    started = time.monotonic()
    good = sum(await asyncio.gather(*(client() for _ in range(at_a_time))))
    return good / (time.monotonic() - started) if good else None
