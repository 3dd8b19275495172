"""The ratios as a picture: one bar for each, its target as a mark; SVG, for light and dark pages."""

from __future__ import annotations

from html import escape

from benchmarks.report import BARE, BEFORE, MEASURES, Results

WIDTH, LEFT, ROW, BAR = 860, 380, 26, 12
SCALE_END = 1.5
"""A ratio above this is drawn as long as this, with its number beside it."""
NAMES = {BARE: "bare Codex", BEFORE: "the predecessor"}
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.faint { fill: #57606a }
.held { fill: #2da44e } .behind { fill: #cf222e } .mark { stroke: #24292f; stroke-width: 2 }
.one { stroke: #8c959f; stroke-dasharray: 3 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .faint { fill: #9198a1 } .mark { stroke: #e6edf3 }
}
"""


def draw(results: Results) -> str:
    """Return the picture: how much of another's time, or of another's work, ours is.

    Throughput is turned round, so that shorter is better everywhere.
    """
    bars = list(_bars(results))
    height = 58 + ROW * len(bars)
    one = _x(1.0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img">',
        "<title>codexsite against bare Codex and against its predecessor</title>",
        f"<style>{STYLE}</style>",
        '<text x="0" y="16">Ours as a share of theirs: shorter is better</text>',
        '<text x="0" y="34" class="faint">the mark is the target; the dashed line is "the same"</text>',
        f'<line class="one" x1="{one}" y1="44" x2="{one}" y2="{height - 8}"/>',
    ]
    for number, bar in enumerate(bars):
        parts += _drawn(48 + number * ROW, *bar)
    return "\n".join([*parts, "</svg>", ""])


def _bars(results: Results) -> list[tuple[str, float, float, bool]]:
    """Return label, ratio, target and whether it is held, for each target against another."""
    found = []
    for measure in MEASURES:
        for target, figure, is_held in results.judged(measure):
            if not target.of:
                continue
            value, limit = figure, target.limit
            if measure.more_is_better:
                value, limit = 1 / figure, 1 / target.limit
            label = f"{measure.name} / {NAMES[target.of]}"
            label += " (exec)" if measure.engine == "exec" else ""
            found.append((label, value, limit, is_held))
    return found


def _drawn(y: int, label: str, value: float, limit: float, is_held: bool) -> list[str]:
    end, mark, middle = _x(value), _x(limit), y + BAR
    kind = "held" if is_held else "behind"
    return [
        f'<text x="{LEFT - 10}" y="{middle}" text-anchor="end">{escape(label)}</text>',
        f'<rect class="{kind}" x="{LEFT}" y="{y + 2}" width="{end - LEFT:.1f}" height="{BAR}" rx="2"/>',
        f'<line class="mark" x1="{mark:.1f}" y1="{y - 1}" x2="{mark:.1f}" y2="{y + BAR + 5}"/>',
        f'<text x="{max(end, mark) + 8:.1f}" y="{middle}">{value:.2f}</text>',
    ]


def _x(value: float) -> float:
    return LEFT + (WIDTH - LEFT - 60) * min(value, SCALE_END) / SCALE_END
