"""The figures that are held to a target, and how a verdict is reached. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OURS, BARE, LIFTED, BEFORE = PRODUCTS = ("codexsite", "bare codex", "bare, lifted", "predecessor")
Verdict = Literal["held", "behind", "not measured", ""]


@dataclass(frozen=True)
class Targets:
    """What this server must keep to. Ratios are ours to theirs; `value` bounds our own figure.

    A bound is the most that is allowed, or the least where more is better.
    """

    bare: float | None = None
    predecessor: float | None = None
    value: float | None = None


NO_TARGETS = Targets()


@dataclass(frozen=True)
class Figure:
    """One row of the table. Where there are many samples, `share` says which percentile counts.

    `note` says below the table what a reader must know to judge it.
    """

    name: str
    unit: str
    engine: str = "app-server"
    targets: Targets = NO_TARGETS
    share: int = 50
    more_is_better: bool = False
    note: str = ""

    @property
    def title(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def keeps(self, figure: float, bound: float) -> bool:
        """Return whether a figure or ratio is on the good side of its bound."""
        return figure >= bound if self.more_is_better else figure <= bound

    def target(self) -> str:
        """Return the targets as the table shows them."""
        sign = "≥" if self.more_is_better else "≤"
        bounds = (
            (self.targets.bare, " bare"),
            (self.targets.predecessor, " predecessor"),
            (self.targets.value, ""),
        )
        return ", ".join(
            f"{sign} {bound:g}{' x' + what if what else ''}"
            for bound, what in bounds
            if bound is not None
        )

    def verdict(self, ours: float | None, bare: float | None, before: float | None) -> Verdict:
        """Return whether all targets are kept; a target without its figures is not measured."""
        checks = (
            (self.targets.bare, ratio(ours, bare)),
            (self.targets.predecessor, ratio(ours, before)),
            (self.targets.value, ours),
        )
        wanted = [(bound, figure) for bound, figure in checks if bound is not None]
        if not wanted:
            return ""
        if any(figure is not None and not self.keeps(figure, bound) for bound, figure in wanted):
            return "behind"
        return "held" if all(figure is not None for _, figure in wanted) else "not measured"


def ratio(ours: float | None, other: float | None) -> float | None:
    return ours / other if ours is not None and other else None


ONE_CLIENT = Targets(bare=1.15, predecessor=0.75)
SENT_LIMIT = 2048

SENT = {
    engine: Figure(
        "sent beside “hi”, the largest of all models", "bytes", engine, Targets(value=SENT_LIMIT)
    )
    for engine in ("app-server", "exec")
}
SENT_AGENT = {
    engine: Figure(
        "sent beside “hi” in agent mode", "bytes", engine, note="bare: Codex's own settings"
    )
    for engine in ("app-server", "exec")
}
LATENCY = {
    "app-server": Figure("latency, 1 client, median", "ms", targets=ONE_CLIENT),
    "exec": Figure("latency, 1 client, median", "ms", "exec", Targets(bare=1.1)),
}
LATENCY_P95 = {
    engine: Figure("latency, 1 client, p95", "ms", engine, share=95)
    for engine in ("app-server", "exec")
}
LATENCY_ENV_KEY = Figure(
    "latency with the key of CODEX_PROXY_API_KEY, median", "ms", note="no row in the database"
)
FIRST_TOKEN = {
    "app-server": Figure("time to first token, 1 client, median", "ms", targets=ONE_CLIENT),
    "exec": Figure(
        "time to first token, 1 client, median", "ms", "exec", note="exec has no deltas: the end"
    ),
}
FIRST_TOKEN_P95 = Figure("time to first token, 1 client, p95", "ms", share=95)
THROUGHPUT_ONE = Figure(
    "throughput, 16 clients, 1 worker", "answers/s", targets=Targets(bare=0.9), more_is_better=True
)
THROUGHPUT_MORE = Figure(
    "throughput, 16 clients, 4 workers",
    "answers/s",
    targets=Targets(bare=0.9, predecessor=1.1),
    more_is_better=True,
    note="predecessor: the best of 1, 4 and 16 workers",
)
THROUGHPUT_EXEC = Figure("throughput, 16 clients", "answers/s", "exec", more_is_better=True)
STREAMS_WALL = Figure(
    "100 streams of 2 s, 1 worker, wall",
    "s",
    targets=Targets(bare=1.3, predecessor=0.05),
    note="predecessor: one turn at a time, so fewer streams, scaled to 100",
)
STREAMS_WHOLE = Figure(
    "100 streams: complete and in order",
    "%",
    targets=Targets(value=100),
    more_is_better=True,
)
STREAMS_OWN = Figure(
    "100 streams: deltas that came one by one", "%", targets=Targets(value=99), more_is_better=True
)
STREAMS_DELAY = Figure(
    "100 streams: a delta's way from the provider, p95",
    "ms",
    targets=Targets(bare=1.3),
    share=95,
)
STREAMS_GAP = Figure("100 streams: gap between deltas, p95", "ms", share=95)
MANY_WHOLE = Figure(
    "300 streams, 4 workers: complete and in order",
    "%",
    targets=Targets(value=100),
    more_is_better=True,
)
MANY_WALL = Figure("300 streams of 2 s, 4 workers, wall", "s")
MEMORY_WORKER = Figure("a worker's resident memory, late / early", "x", targets=Targets(value=1.2))
MEMORY_SERVER = Figure(
    "the server's resident memory, late / early", "x", targets=Targets(value=1.1)
)

FIGURES = (
    *SENT.values(),
    *SENT_AGENT.values(),
    LATENCY["app-server"],
    LATENCY_P95["app-server"],
    LATENCY_ENV_KEY,
    FIRST_TOKEN["app-server"],
    FIRST_TOKEN_P95,
    THROUGHPUT_ONE,
    THROUGHPUT_MORE,
    STREAMS_WALL,
    STREAMS_WHOLE,
    STREAMS_OWN,
    STREAMS_DELAY,
    STREAMS_GAP,
    MANY_WHOLE,
    MANY_WALL,
    LATENCY["exec"],
    LATENCY_P95["exec"],
    FIRST_TOKEN["exec"],
    THROUGHPUT_EXEC,
    MEMORY_WORKER,
    MEMORY_SERVER,
)
"""All rows, in the table's order."""
