"""What is measured, and how: within each measure the contenders take turns."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from benchmarks import figures, usage
from benchmarks.asking import (
    AT_ONCE,
    Asked,
    Pace,
    ask_many,
    ask_once,
    last_bytes,
    set_pace,
    tagged,
)
from benchmarks.contenders import CLIENTS, MORE_WORKERS, Bench, Contender, Question
from benchmarks.figures import Figure
from benchmarks.report import Results, percentile

FIRST_TOKEN_PACE = Pace(5, 0.02)
STREAMS_PACE = Pace(20, 0.1)
MEMORY_CLIENTS = 8
IN_A_ROW = 5


@dataclass(frozen=True)
class Size:
    """How much is asked. Rounds are of all contenders; the budget is for everything, in seconds."""

    rounds: int
    alone: int
    """Times that each is asked five questions in a row, and one stream, in a round."""
    alone_exec: int
    crowd: int
    crowd_exec: int
    stream_rounds: int
    streams_before: int
    memory: tuple[int, int]
    budget_s: float


async def warm_up(bench: Bench, entered: list[Contender], results: Results) -> None:
    """Ask everybody before it counts."""
    await set_pace(bench, AT_ONCE)
    for contender in entered:
        if contender.engine == "exec":  # nothing stays that could be warm, but what starts it
            await ask_once(contender.ask, Question(), AT_ONCE, results, f"{contender}, warm-up")
        else:
            await _crowd(contender, CLIENTS * 2, results, "warm-up")


async def sizes(
    bench: Bench, entered: list[Contender], models: list[str], results: Results
) -> None:
    """See how much reaches the model beside the question, for every model of the catalogue."""
    text = Question().text
    for contender in entered:
        if contender.product == figures.LIFTED or not _is_for_one(contender):
            continue
        for model in models:
            question = Question(model=model)
            label = f"{contender}, {model}"
            if await ask_once(contender.ask, question, AT_ONCE, results, label):
                sent = await last_bytes(bench) - len(text)
                results.sent[model][f"{contender.product}, {contender.engine}"] = sent
        sent_by = f"{contender.product}, {contender.engine}"
        largest = [sent[sent_by] for sent in results.sent.values() if sent_by in sent]
        if largest:
            results.add(figures.SENT[contender.engine], contender.product, max(largest))


async def agent_size(bench: Bench, contender: Contender, results: Results) -> None:
    """See how much reaches the model in agent mode."""
    question = Question(is_agent=True)
    await set_pace(bench, AT_ONCE)
    label = f"{contender}, agent"
    if await ask_once(contender.ask, question, AT_ONCE, results, label):
        sent = await last_bytes(bench) - len(question.text)
        results.add(figures.SENT_AGENT[contender.engine], contender.product, sent)


async def alone(bench: Bench, entered: list[Contender], size: Size, results: Results) -> None:
    """One client, who asks one question after the other of each contender in turn."""
    engines = {"app-server": size.alone, "exec": size.alone_exec}
    for engine, times in engines.items():
        some = [one for one in entered if one.engine == engine and _is_for_one(one)]
        await set_pace(bench, AT_ONCE)
        for contender in some * times:
            await _ask_alone(contender, results)
        await set_pace(bench, FIRST_TOKEN_PACE)
        for contender in some * times:
            await _stream_alone(contender, results)


def _is_for_one(contender: Contender) -> bool:
    return contender.engine == "exec" or contender.workers == 1


async def _ask_alone(contender: Contender, results: Results) -> None:
    # In a row: what a server prepares behind an answer must not gain from the others' turns.
    label, both = f"{contender}, alone", (figures.LATENCY, figures.LATENCY_P95)
    for _ in range(IN_A_ROW):
        asked = await ask_once(contender.ask, Question(), AT_ONCE, results, label)
        if asked is not None:
            for figure in both:
                results.add(figure[contender.engine], contender.product, asked.whole_ms)
    if contender.ask_with_env_key is not None and contender.engine == "app-server":
        for _ in range(IN_A_ROW):
            asked = await ask_once(contender.ask_with_env_key, Question(), AT_ONCE, results, label)
            if asked is not None:
                results.add(figures.LATENCY_ENV_KEY, contender.product, asked.whole_ms)


async def _stream_alone(contender: Contender, results: Results) -> None:
    question, label = Question(is_streamed=True), f"{contender}, stream"
    asked = await ask_once(contender.ask, question, FIRST_TOKEN_PACE, results, label)
    if asked is None or asked.first_ms is None:
        return
    results.add(figures.FIRST_TOKEN[contender.engine], contender.product, asked.first_ms)
    if contender.engine == "app-server":
        results.add(figures.FIRST_TOKEN_P95, contender.product, asked.first_ms)


async def crowds(bench: Bench, entered: list[Contender], size: Size, results: Results) -> None:
    """Sixteen clients, one contender after the other."""
    await set_pace(bench, AT_ONCE)
    for contender in entered:
        total = size.crowd if contender.engine == "app-server" else size.crowd_exec
        rate = await _crowd(contender, total, results, "crowd")
        if rate:
            for figure in _throughput_figures(contender):
                results.add(figure, contender.product, rate, setting=contender.setting)


def _throughput_figures(contender: Contender) -> Iterable[Figure]:
    if contender.engine == "exec":
        return [figures.THROUGHPUT_EXEC]
    one, more = figures.THROUGHPUT_ONE, figures.THROUGHPUT_MORE
    if contender.product == "predecessor":  # its best is what the target is about
        return [one, more] if contender.workers == 1 else [more]
    return [one] if contender.workers == 1 else [more]


async def _crowd(contender: Contender, total: int, results: Results, what: str) -> float | None:
    before = usage.cpu(contender.server, contender.worker_pids)
    questions, label = (Question() for _ in range(total)), f"{contender}, {what}"
    started = time.monotonic()
    good = len(await ask_many(contender.ask, questions, CLIENTS, AT_ONCE, results, label))
    wall_s = time.monotonic() - started
    if not good:
        return None
    if what == "crowd":
        after = usage.cpu(contender.server, contender.worker_pids)
        results.cpu[str(contender)].append(after.per_turn_ms(before, good))
    return good / wall_s


async def streams(
    bench: Bench, entered: list[Contender], count: int, workers: int, results: Results
) -> None:
    """So many streams at once, each with a question of its own; the bare loop in turn with us."""
    await set_pace(bench, STREAMS_PACE)
    for contender in entered:
        if contender.engine == "exec" or contender.workers != workers:
            continue
        if contender.product == "predecessor":
            continue
        answers, wall_s = await _streams(contender, count, results)
        whole = 100 * len(answers) / count
        if workers == MORE_WORKERS:
            results.add(figures.MANY_WHOLE, contender.product, whole)
            results.add(figures.MANY_WALL, contender.product, wall_s)
            continue
        results.add(figures.STREAMS_WALL, contender.product, wall_s)
        results.add(figures.STREAMS_WHOLE, contender.product, whole)
        own, delays, gaps = arrivals(answers)
        results.add(figures.STREAMS_OWN, contender.product, own)
        results.add(figures.STREAMS_DELAY, contender.product, *delays)
        results.add(figures.STREAMS_GAP, contender.product, *gaps)


async def streams_before(bench: Bench, contender: Contender, count: int, results: Results) -> None:
    """Streams of the predecessor: it runs one turn at a time, so a few tell of a hundred."""
    await set_pace(bench, STREAMS_PACE)
    answers, wall_s = await _streams(contender, count, results)
    if len(answers) == count:
        results.add(figures.STREAMS_WALL, contender.product, wall_s * 100 / count)
        results.notes.append(
            f"The predecessor runs one turn at a time on a worker: it had {count} streams, which "
            f"took {wall_s:.1f} s; the table shows that for 100."
        )


async def _streams(contender: Contender, count: int, results: Results) -> tuple[list[Asked], float]:
    questions = [Question(text=tagged(), is_streamed=True) for _ in range(count)]
    started = time.monotonic()
    answers = await ask_many(
        contender.ask, questions, count, STREAMS_PACE, results, f"{contender}, {count} streams"
    )
    return answers, time.monotonic() - started


def arrivals(answers: list[Asked]) -> tuple[float, list[float], list[float]]:
    """Return how deltas came: the percentage that came each on its own, delays, and gaps in ms."""
    sent = sum(len(answer.sent_at_ms) for answer in answers)
    single = sum(len(text.split()) == 1 for answer in answers for _, text in answer.pieces)
    delays, gaps = list[float](), list[float]()
    for answer in answers:
        times = [at * 1000 for at, text in answer.pieces for _ in text.split()]
        came = zip(times, answer.sent_at_ms, strict=True)
        delays += [at - sent_at for at, sent_at in came]
        gaps += [later - earlier for earlier, later in pairwise(times)]
    return (100 * single / sent if sent else 0.0), delays, gaps


async def memory(bench: Bench, contender: Contender, size: Size, results: Results) -> None:
    """Compare the resident memory of a fresh server and its worker at two turns of their lives."""
    await set_pace(bench, AT_ONCE)
    assert contender.server is not None
    early, late = size.memory
    seen: dict[int, list[tuple[float, float]]] = {early: [], late: []}
    margin = early // 10
    for done in range(0, late + margin, margin // 2):
        questions = (Question() for _ in range(margin // 2))
        label = f"{contender}, memory"
        await ask_many(contender.ask, questions, MEMORY_CLIENTS, AT_ONCE, results, label)
        for turn, samples in seen.items():
            if abs(done + margin // 2 - turn) <= margin:
                samples.append(usage.resident_mb(contender.server))
    before, after = (
        [percentile(values, 50) for values in zip(*samples, strict=True)]
        for samples in seen.values()
    )
    results.add(figures.MEMORY_SERVER, contender.product, after[0] / before[0])
    results.add(figures.MEMORY_WORKER, contender.product, after[1] / before[1])
    results.notes.append(
        f"Memory from turn {early} to turn {late}, at {MEMORY_CLIENTS} clients: the worker "
        f"{before[1]:.0f} -> {after[1]:.0f} MB, the server {before[0]:.0f} -> {after[0]:.0f} MB."
    )
