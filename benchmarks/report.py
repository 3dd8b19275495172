"""Samples in; the table, the verdicts and the JSON out. Pure."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.figures import FIGURES, PRODUCTS, Figure, Verdict, ratio

Place = tuple[Figure, str, str]
"""A figure, a product, and the product's setting where several were tried."""


@dataclass
class Results:
    """All samples, what went wrong, and what else is worth a line."""

    samples: dict[Place, list[float]] = field(default_factory=lambda: defaultdict(list))
    sent: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    """Bytes for “hi”, by model and by who sent them."""
    cpu: dict[str, list[tuple[float, float, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """CPU milliseconds per turn of the server, of its codex, and of the client, by contender."""
    failures: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(self, figure: Figure, product: str, *values: float, setting: str = "") -> None:
        self.samples[figure, product, setting].extend(values)

    def best(self, figure: Figure, product: str) -> tuple[float, str] | None:
        """Return the figure over all rounds, and the setting that gave it: the best that was tried."""
        values = [
            (percentile(samples, figure.share), place[2])
            for place, samples in self.samples.items()
            if place[:2] == (figure, product) and samples
        ]
        if not values:
            return None
        return max(values) if figure.more_is_better else min(values)


@dataclass(frozen=True)
class Row:
    """One figure as it came out."""

    figure: Figure
    found: tuple[tuple[float, str] | None, ...]

    @property
    def values(self) -> tuple[float | None, ...]:
        """In the order of `PRODUCTS`."""
        return tuple(best[0] if best else None for best in self.found)

    @property
    def to_bare(self) -> float | None:
        return ratio(self.values[0], self.values[1])

    @property
    def to_lifted(self) -> float | None:
        return ratio(self.values[0], self.values[2])

    @property
    def to_predecessor(self) -> float | None:
        return ratio(self.values[0], self.values[3])

    @property
    def verdict(self) -> Verdict:
        ours, bare, _, before = self.values
        return self.figure.verdict(ours, bare, before)


def percentile(samples: Sequence[float], share: int) -> float:
    """Return the sample below which `share` percent of them lie; between two, interpolated."""
    if len(samples) == 1:
        return samples[0]
    return statistics.quantiles(samples, n=100, method="inclusive")[share - 1]


def rows(results: Results) -> list[Row]:
    """Return every figure of which anything was measured, in the table's order."""
    found = (
        Row(figure, tuple(results.best(figure, product) for product in PRODUCTS))
        for figure in FIGURES
    )
    return [row for row in found if any(row.found)]


def table(results: Results) -> str:
    """Return the table in Markdown."""
    titles = ["figure", "engine", *PRODUCTS, "ours / bare", "/ lifted", "/ predecessor"]
    lines = [[*titles, "target", "verdict"], [":--", ":--", *["--:"] * 7, ":--", ":--"]]
    for row in rows(results):
        figure = row.figure
        cells = [shown(best) for best in row.found]
        ratios = [times(row.to_bare), times(row.to_lifted), times(row.to_predecessor)]
        lines.append(
            [
                *(figure.title, figure.engine, *cells, *ratios),
                *(
                    figure.target(),
                    f"**{row.verdict}**" if row.verdict == "behind" else row.verdict,
                ),
            ]
        )
    return markdown(lines)


def notes(results: Results) -> list[str]:
    """Return what a reader of the table must know of its rows."""
    found = (f"{row.figure.name}: {row.figure.note}." for row in rows(results) if row.figure.note)
    return list(dict.fromkeys(found))  # both engines may share one


def table_of_models(results: Results) -> str:
    """Return how many bytes each sends for “hi”, by model."""
    senders = sorted({sender for sent in results.sent.values() for sender in sent})
    lines = [["sent beside “hi” (bytes), by model", *senders], [":--", *["--:"] * len(senders)]]
    for model, sent in results.sent.items():
        lines.append([model, *(str(sent.get(sender, "-")) for sender in senders)])
    return markdown(lines)


def table_of_cpu(results: Results) -> str:
    """Return where the CPU time of a turn goes, by contender."""
    lines = [
        ["CPU per turn at 16 clients (ms)", "server", "codex", "client"],
        [":--", "--:", "--:", "--:"],
    ]
    for name, samples in results.cpu.items():
        parts = (statistics.median(part) for part in zip(*samples, strict=True))
        lines.append([name, *(f"{part:.1f}" for part in parts)])
    return markdown(lines)


def conclusion(results: Results) -> str:
    """Return in one sentence which figures fell behind."""
    verdicts = [(row.figure, row.verdict) for row in rows(results)]
    behind = [f"{figure.name} ({figure.engine})" for figure, said in verdicts if said == "behind"]
    held = sum(said == "held" for _, said in verdicts)
    unknown = sum(said == "not measured" for _, said in verdicts)
    others = f"; {unknown} could not be judged" if unknown else ""
    if not behind:
        return f"No figure fell behind its target: {held} held{others}."
    return f"{len(behind)} fell behind: {', '.join(behind)}; {held} held{others}."


def markdown(lines: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(_padded(lines, widths))


def _padded(lines: list[list[str]], widths: list[int]) -> Iterator[str]:
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        yield f"| {' | '.join(cells)} |"


def shown(best: tuple[float, str] | None) -> str:
    if best is None:
        return "-"
    value, setting = best
    number = f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"
    return f"{number} ({setting})" if setting else number


def times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def as_json(results: Results) -> dict[str, Any]:
    """Return everything that was measured, with every sample."""
    samples = [
        {
            "figure": figure.name,
            "engine": figure.engine,
            "product": product,
            "setting": setting,
            "value": percentile(values, figure.share),
            "samples": [round(value, 3) for value in values],
        }
        for (figure, product, setting), values in results.samples.items()
        if values
    ]
    return {
        "rows": [
            {
                "figure": row.figure.name,
                "unit": row.figure.unit,
                "engine": row.figure.engine,
                **dict(zip(PRODUCTS, row.values, strict=True)),
                "ours_to_bare": row.to_bare,
                "ours_to_lifted": row.to_lifted,
                "ours_to_predecessor": row.to_predecessor,
                "target": row.figure.target(),
                "verdict": row.verdict,
            }
            for row in rows(results)
        ],
        "sent": results.sent,
        "cpu_ms_per_turn": results.cpu,
        "samples": samples,
        "failures": dict(results.failures),
        "notes": results.notes,
        "conclusion": conclusion(results),
    }
