"""Samples in, one table of medians and ratios out."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

PRODUCTS = ("codexsite", "bare codex", "predecessor")


@dataclass(frozen=True)
class Measure:
    """One row of the table for each engine; a ratio below 1 is good unless `more_is_better`."""

    name: str
    unit: str
    share: int = 50
    more_is_better: bool = False


LATENCY = Measure("latency, 1 client, median", "ms")
LATENCY_P95 = Measure("latency, 1 client, p95", "ms", share=95)
FIRST_TOKEN = Measure("time to first token, 1 client", "ms")
THROUGHPUT = Measure("throughput, 16 clients", "answers/s", more_is_better=True)
SENT = Measure("sent to the model for “hi”", "bytes")
MEASURES = (LATENCY, LATENCY_P95, FIRST_TOKEN, THROUGHPUT, SENT)

Place = tuple[Measure, str, str, str]
"""Measure, engine, product, and the product's setting where several were tried."""


@dataclass
class Results:
    """All samples, what went wrong, and what else is worth a line."""

    samples: dict[Place, list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(
        self, measure: Measure, engine: str, product: str, value: float, setting: str = ""
    ) -> None:
        self.samples[measure, engine, product, setting].append(value)

    def best(self, measure: Measure, engine: str, product: str) -> tuple[float, str] | None:
        """Return the value over all rounds, and the setting that gave it: the best that was tried."""
        values = [
            (percentile(samples, measure.share), place[3])
            for place, samples in self.samples.items()
            if place[:3] == (measure, engine, product)
        ]
        if not values:
            return None
        return max(values) if measure.more_is_better else min(values)


def percentile(samples: list[float], share: int) -> float:
    """Return the sample below which `share` percent of them lie; between two, interpolated."""
    if len(samples) == 1:
        return samples[0]
    return statistics.quantiles(samples, n=100, method="inclusive")[share - 1]


def table(results: Results, engines: list[str]) -> str:
    """Return the table in Markdown."""
    titles = ["measure", "engine", *PRODUCTS, "ours / bare", "ours / predecessor"]
    rows = [titles, [":--", ":--", *["--:"] * 5]]
    for measure in MEASURES:
        for engine in engines:
            found = [results.best(measure, engine, product) for product in PRODUCTS]
            ours, bare, before = (best[0] if best else None for best in found)
            name = f"{measure.name} ({measure.unit})"
            cells = [shown(best) for best in found]
            rows.append([name, engine, *cells, ratio(ours, bare), ratio(ours, before)])
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
    number = f"{value:.1f}" if value < 1000 else f"{value:.0f}"
    return f"{number} ({setting})" if setting else number


def ratio(ours: float | None, other: float | None) -> str:
    return f"{ours / other:.2f}" if ours and other else "-"


def as_json(results: Results) -> dict[str, Any]:
    """Return everything that was measured, with every sample."""
    rows = [
        {
            "measure": measure.name,
            "unit": measure.unit,
            "more_is_better": measure.more_is_better,
            "engine": engine,
            "product": product,
            "setting": setting,
            "value": percentile(samples, measure.share),
            "samples": [round(sample, 3) for sample in samples],
        }
        for (measure, engine, product, setting), samples in results.samples.items()
    ]
    return {"rows": rows, "failures": dict(results.failures), "notes": results.notes}
