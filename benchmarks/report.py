"""Samples in; out comes one table of medians and ratios, and which of them fell behind their target."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

OURS, BARE, LIFTED, BEFORE = PRODUCTS = ("codexsite", "bare codex", "bare, lifted", "predecessor")


@dataclass(frozen=True)
class Target:
    """What a figure of ours should be, as a share of another product's, or (`of` empty) in itself."""

    limit: float
    of: str = ""
    is_least: bool = False

    def is_held_by(self, value: float) -> bool:
        return value >= self.limit if self.is_least else value <= self.limit

    def __str__(self) -> str:
        sign = "≥" if self.is_least else "≤"
        return f"{sign} {self.limit:g}" + (f" x {self.of}" if self.of else "")


@dataclass(frozen=True)
class Measure:
    """One row of the table, for one engine."""

    name: str
    unit: str
    engine: str
    targets: tuple[Target, ...] = ()
    share: int = 50
    more_is_better: bool = False


def _of_both(measure: str, unit: str, share: int = 50, *, has_target: bool = True) -> list[Measure]:
    app_server = (Target(1.15, BARE), Target(0.75, BEFORE)) if has_target else ()
    alone = (Target(1.1, BARE),) if has_target else ()
    return [
        Measure(measure, unit, "app-server", app_server, share),
        Measure(measure, unit, "exec", alone, share),
    ]


LATENCY = _of_both("latency, 1 client, median", "ms")
LATENCY_P95 = _of_both("latency, 1 client, p95", "ms", 95, has_target=False)
FIRST_TOKEN = _of_both("time to first token, 1 client", "ms")
FASTER = (Target(0.9, BARE, is_least=True), Target(1.1, BEFORE, is_least=True))
THROUGHPUT = [
    Measure("throughput, 16 clients", "answers/s", "app-server", FASTER, more_is_better=True),
    Measure("throughput, 16 clients", "answers/s", "exec", more_is_better=True),
]
STREAMS = Measure(
    "100 streams of 2 s, 1 worker, wall",
    "s",
    "app-server",
    (Target(1.3, BARE), Target(0.05, BEFORE)),
)
GAP = Measure(
    "100 streams, wait between two deltas, median", "ms", "app-server", (Target(1.2, BARE),)
)
LONGEST_GAP = Measure("100 streams, longest wait for a delta, median", "ms", "app-server")
LOST = Measure("100 streams, broken or out of order", "streams", "app-server", (Target(0),))
MANY_LOST = Measure(
    "300 streams, 4 workers, broken or out of order", "streams", "app-server", (Target(0),)
)
MANY_STREAMS = Measure("300 streams, 4 workers, wall", "s", "app-server")
SENT = [
    Measure("sent to the model beside “hi”, worst model", "bytes", engine, (Target(2048),))
    for engine in ("app-server", "exec")
]
WORKER_GROWTH = Measure("memory of the worker, last / first", "x", "app-server", (Target(1.2),))
SERVER_GROWTH = Measure("memory of the server, last / first", "x", "app-server", (Target(1.1),))
SERVER_CPU = Measure("CPU of the server for a turn, 16 clients", "ms", "app-server")
CODEX_CPU = Measure("CPU of Codex for a turn, 16 clients", "ms", "app-server")

MEASURES = (
    *LATENCY, *LATENCY_P95, *FIRST_TOKEN, *THROUGHPUT, STREAMS, GAP, LONGEST_GAP, LOST, MANY_STREAMS, MANY_LOST,
    *SENT, WORKER_GROWTH, SERVER_GROWTH, SERVER_CPU, CODEX_CPU,
)  # fmt: skip


def of_engine(measures: list[Measure], engine: str) -> Measure:
    return next(measure for measure in measures if measure.engine == engine)


Place = tuple[Measure, str, str]
"""Measure, product, and the product's setting where several were tried."""


@dataclass
class Results:
    """All samples, what went wrong, and what else is worth a line."""

    samples: dict[Place, list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(self, measure: Measure, product: str, value: float, setting: str = "") -> None:
        self.samples[measure, product, setting].append(value)

    def best(self, measure: Measure, product: str) -> tuple[float, str] | None:
        """Return the value over all rounds, and the setting that gave it: the best that was tried."""
        values = [
            (percentile(samples, measure.share), place[2])
            for place, samples in self.samples.items()
            if place[:2] == (measure, product)
        ]
        if not values:
            return None
        return max(values) if measure.more_is_better else min(values)

    def value(self, measure: Measure, product: str) -> float | None:
        best = self.best(measure, product)
        return best[0] if best else None

    def judged(self, measure: Measure) -> list[tuple[Target, float, bool]]:
        """Return each target that can be judged, the figure that is judged, and whether it holds."""
        ours = self.value(measure, OURS)
        found = []
        for target in measure.targets:
            figure = ours
            if target.of:
                other = self.value(measure, target.of)
                figure = ours / other if ours is not None and other else None
            if figure is not None:
                found.append((target, figure, target.is_held_by(figure)))
        return found

    def behind(self) -> list[str]:
        """Return in words which figures are behind their targets."""
        return [
            f"{measure.name} ({measure.engine}): {figure:.2f}, wanted {target}"
            for measure in MEASURES
            for target, figure, is_held in self.judged(measure)
            if not is_held
        ]


def percentile(samples: list[float], share: int) -> float:
    """Return the sample below which `share` percent of them lie; between two, interpolated."""
    if len(samples) == 1:
        return samples[0]
    return statistics.quantiles(samples, n=100, method="inclusive")[share - 1]


def table(results: Results) -> str:
    """Return the table in Markdown: a row for each measure that has a figure of ours."""
    titles = ["measure", "engine", *PRODUCTS, "ours / bare", "ours / predecessor", "wanted", "is"]
    rows = [titles, [":--", ":--", *["--:"] * 6, ":--", ":--"]]
    for measure in MEASURES:
        ours = results.value(measure, OURS)
        if ours is None:
            continue
        judged = results.judged(measure)
        verdict = "" if not judged else "held" if all(held for *_, held in judged) else "behind"
        rows.append(
            [
                f"{measure.name} ({measure.unit})",
                measure.engine,
                *(shown(results.best(measure, product)) for product in PRODUCTS),
                ratio(ours, results.value(measure, BARE)),
                ratio(ours, results.value(measure, BEFORE)),
                ", ".join(map(str, measure.targets)),
                verdict,
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
    return "\n".join(_lines(rows, widths))


def _lines(rows: list[list[str]], widths: list[int]) -> Iterator[str]:
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"| {' | '.join(cells)} |"


def shown(best: tuple[float, str] | None) -> str:
    if best is None:
        return "-"
    value, setting = best
    number = (
        f"{value:.2f}" if 0 < value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"
    )
    return f"{number} ({setting})" if setting else number


def ratio(ours: float | None, other: float | None) -> str:
    return f"{ours / other:.2f}" if ours is not None and other else "-"


def as_json(results: Results) -> dict[str, Any]:
    """Return everything that was measured, with every sample and every verdict."""
    rows = [
        {
            "measure": measure.name,
            "unit": measure.unit,
            "more_is_better": measure.more_is_better,
            "engine": measure.engine,
            "product": product,
            "setting": setting,
            "value": percentile(samples, measure.share),
            "samples": [round(sample, 3) for sample in samples],
        }
        for (measure, product, setting), samples in results.samples.items()
    ]
    verdicts = [
        {
            "measure": measure.name,
            "engine": measure.engine,
            "wanted": str(target),
            "figure": round(figure, 4),
            "is_held": is_held,
        }
        for measure in MEASURES
        for target, figure, is_held in results.judged(measure)
    ]
    return {
        "rows": rows,
        "verdicts": verdicts,
        "behind": results.behind(),
        "failures": dict(results.failures),
        "notes": results.notes,
    }
