"""One question and its right answer: what every measure is made of."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

from benchmarks.bare import TurnFailed
from benchmarks.client import Client, RequestFailed
from benchmarks.contenders import Ask, Bench, Question
from benchmarks.report import Results

FAILURES = (TurnFailed, RequestFailed, OSError, EOFError, TimeoutError, KeyError, ValueError)
PIECE = re.compile(r"(\w+|-)\.(\d+)\.([\d.]+)")
"""Tag, number and time, see `provider`."""

_tags = count(1)


@dataclass(frozen=True)
class Pace:
    """How many deltas the provider gives for a question, and how far apart."""

    deltas: int
    pause_s: float


AT_ONCE = Pace(2, 0.0)


@dataclass(frozen=True)
class Asked:
    """A right answer: how long it took, and when its pieces came."""

    whole_ms: float
    first_ms: float | None
    sent_at_ms: list[float]
    pieces: list[tuple[float, str]]


async def set_pace(bench: Bench, pace: Pace) -> None:
    body = {"deltas": pace.deltas, "pause_s": pace.pause_s}
    await Client(bench.port).fetch("POST", "/pace", body)


async def last_bytes(bench: Bench) -> int:
    """Return the size of the last request that reached the model provider."""
    seen = await Client(bench.port).fetch("GET", "/seen")
    return int(seen["last_bytes"])


async def ask_once(
    ask: Ask, question: Question, pace: Pace, results: Results, label: str
) -> Asked | None:
    """Ask; a failure or an answer that is not whole and in order is noted, and gives None."""
    started = time.monotonic()
    try:
        answer = await ask(question)
        whole_ms = (time.monotonic() - started) * 1000
        sent_at_ms = check_pieces(answer.text, tag_of(question.text), pace.deltas)
    except FAILURES as error:
        results.failures[f"{label}: {type(error).__name__} {error}"[:300]] += 1
        return None
    first_ms = (answer.pieces[0][0] - started) * 1000 if answer.pieces else None
    return Asked(whole_ms, first_ms, sent_at_ms, answer.pieces)


def tagged() -> str:
    """Return a question that nobody else asks, so that a mixed-up answer shows."""
    return f"ask-{next(_tags)}"


def tag_of(text: str) -> str:
    return text.removeprefix("ask-") if text.startswith("ask-") else "-"


def check_pieces(text: str, tag: str, deltas: int) -> list[float]:
    """Return when each piece of an answer was sent, in milliseconds of the monotonic clock.

    Raises `ValueError` where one is lost, doubled, out of order, or from another answer.
    """
    pieces = [PIECE.fullmatch(piece) for piece in text.split()]
    found = [(piece[1], int(piece[2])) for piece in pieces if piece]
    if len(found) != len(pieces) or found != [(tag, number) for number in range(deltas)]:
        strangers = sum(owner != tag for owner, _ in found)
        raise ValueError(
            f"not the {deltas} pieces in order: {len(pieces)}, {strangers} of them another's"
        )
    return [float(piece[3]) for piece in pieces if piece]


async def ask_many(
    ask: Ask, questions: Iterable[Question], clients: int, pace: Pace, results: Results, label: str
) -> list[Asked]:
    """Have so many clients ask them all between them; returns the right answers."""
    waiting, answers = iter(questions), list[Asked]()

    async def client() -> None:
        for question in waiting:
            asked = await ask_once(ask, question, pace, results, label)
            if asked is not None:
                answers.append(asked)

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers
