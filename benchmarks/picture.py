"""The ratios as an SVG: a bar for each figure, its target as a line. Readable on light and dark.

Bars show how far we are from the others on a logarithmic scale, turned so that shorter is better
everywhere: a figure of which more is better is drawn as theirs to ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from benchmarks.report import Row

WIDTH, LABELS, RIGHT = 920, 400, 70
TOP, ROW, BAR = 92, 34, 9
NUMBER = 36
LEAST, MOST = 0.02, 2.0
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2933; }
  .title { font-size: 17px; font-weight: 600; }
  .quiet, .scale { fill: #616e7c; font-size: 11.5px; }
  .scale { text-anchor: middle; }
  .paper { fill: #ffffff; }
  .grid { stroke: #e4e7eb; }
  .even { stroke: #9aa5b1; stroke-dasharray: 2 3; }
  .bare { fill: #2680c2; }
  .before { fill: #7b8794; }
  .behind { fill: #d64545; }
  .target { stroke: #1f2933; stroke-width: 2; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e4e7eb; }
    .quiet, .scale { fill: #9aa5b1; }
    .paper { fill: #14181d; }
    .grid { stroke: #2a3138; }
    .even { stroke: #616e7c; }
    .bare { fill: #62b0e8; }
    .before { fill: #8d99a6; }
    .behind { fill: #ef7b7b; }
    .target { stroke: #f5f7fa; }
  }
"""


@dataclass(frozen=True)
class Bar:
    """One comparison. `length` and `target` are ratios of which less is better."""

    kind: str
    length: float
    target: float | None

    @property
    def is_behind(self) -> bool:
        return self.target is not None and self.length > self.target


def bars(row: Row) -> list[Bar]:
    """Return the comparisons of a row with bare Codex and with the predecessor."""
    targets = row.figure.targets
    pairs = (
        ("bare", row.to_bare, targets.bare),
        ("before", row.to_predecessor, targets.predecessor),
    )
    return [
        Bar(kind, _less_is_better(row, ratio), _less_is_better(row, target) if target else None)
        for kind, ratio, target in pairs
        if ratio
    ]


def _less_is_better(row: Row, ratio: float) -> float:
    return 1 / ratio if row.figure.more_is_better else ratio


def draw(rows: Sequence[Row], caption: str) -> str:
    """Return the picture of all rows that compare us with somebody and have a target for it."""
    drawn = [row for row in rows if any(bar.target for bar in bars(row))]
    height = TOP + ROW * len(drawn) + 62
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img" aria-label="Benchmark ratios">',
            f"<style>{STYLE}</style>",
            f'<rect class="paper" width="{WIDTH}" height="{height}" rx="8"/>',
            _text(24, 34, "codexsite beside bare Codex and its predecessor", "title"),
            *_legend(),
            *_scale(height - 48),
            *(part for number, row in enumerate(drawn) for part in _row(row, TOP + ROW * number)),
            _text(24, height - 14, caption, "quiet"),
            "</svg>\n",
        ]
    )


def _x(ratio: float) -> float:
    """Return where a ratio lies; what lies outside the scale is drawn at its edge."""
    share = math.log(min(max(ratio, LEAST), MOST) / LEAST) / math.log(MOST / LEAST)
    return LABELS + share * (WIDTH - RIGHT - LABELS)


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'


def _legend() -> Iterator[str]:
    entries = (("bare", "to bare Codex"), ("before", "to the predecessor"), ("behind", "behind"))
    x = 24
    for kind, text in entries:
        yield f'<rect class="{kind}" x="{x}" y="51" width="12" height="9" rx="2"/>'
        yield _text(x + 18, 60, text, "quiet")
        x += 44 + 6 * len(text)
    yield f'<line class="target" x1="{x}" x2="{x}" y1="48" y2="63"/>'
    yield _text(x + 8, 60, "target: a bar must end before it. Shorter is better.", "quiet")


def _scale(bottom: float) -> Iterator[str]:
    for ratio in (0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0):
        kind = "even" if ratio == 1 else "grid"
        x = _x(ratio)
        yield f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 10}" y2="{bottom}"/>'
        yield _text(x, bottom + 16, f"{ratio:g} x", "scale")


def _row(row: Row, y: float) -> Iterator[str]:
    found = bars(row)
    engine = " (exec)" if row.figure.engine == "exec" else ""
    yield _text(24, y + 16, f"{row.figure.name}{engine}")
    top = y + (ROW - 8 - len(found) * BAR - (len(found) - 1) * 2) / 2
    for number, bar in enumerate(found):
        yield from _bar(bar, top + number * (BAR + 2))


def _bar(bar: Bar, y: float) -> Iterator[str]:
    kind, end = "behind" if bar.is_behind else bar.kind, _x(bar.length)
    said = f"{bar.length:.2f}"
    title = f"{said}, target {bar.target:.2f}" if bar.target else said
    yield (
        f'<rect class="{kind}" x="{LABELS}" y="{y:.1f}" width="{max(end - LABELS, 2):.1f}" '
        f'height="{BAR}" rx="2"><title>{title}</title></rect>'
    )
    if bar.target:
        at = _x(bar.target)
        yield (
            f'<line class="target" x1="{at:.1f}" x2="{at:.1f}" '
            f'y1="{y - 1.5:.1f}" y2="{y + BAR + 1.5:.1f}"/>'
        )
        if end - 4 < at < end + NUMBER:  # the number would stand on the mark
            end = at
    yield _text(end + 6, y + BAR - 0.5, said, "quiet")
