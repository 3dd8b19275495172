"""The table of faults in the repository: what the caller saw, how long it took, what the row says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

PLACE = Path(__file__).parent / "TABLE.md"
HEAD = """# Faults

Written by `pytest tests/faults --write-fault-table`, from a run against the real server and the real
codex. "Took" is the time from the fault to the caller's end (where the caller had left: to the row's)
in seconds on one machine; the tests hold each to a bound of its own. After each fault the checker has
found a closed row for every request sent, and no process, scratch folder, task, descriptor or thread
more than before it.

| Fault | The caller saw | Took | The row says |
|---|---|---|---|
"""


@dataclass
class Table:
    """Collects the lines, in the order of the run."""

    lines: list[tuple[str, str, str, str]] = field(default_factory=list)

    def add(self, fault: str, seen: str, took_s: float, row: str) -> None:
        self.lines.append((fault, seen, f"{took_s:.2f}", row))

    def write(self) -> None:
        """Replace the file."""
        text = "".join(f"| {' | '.join(line)} |\n" for line in self.lines)
        PLACE.write_text(HEAD + text)


def committed() -> list[tuple[str, str, str]]:
    """Return the file's lines without the times: fault, what the caller saw, the row."""
    lines = PLACE.read_text().splitlines()[HEAD.count("\n") :]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [(fault, seen, row) for fault, seen, _, row in cells]
