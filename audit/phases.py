"""Where a request's time went, as the parts of a bar. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# In the order in which they happen: PostgreSQL's JSON does not keep the one they were written in.
PHASES: dict[str, tuple[str, str]] = {
    "auth": ("finding the key", "#64748b"),
    "policy": ("options, root, grant", "#8b5cf6"),
    "queue_wait": ("waiting for a free engine", "#f59e0b"),
    "workspace_before": ("looking at the agent's folder", "#a3a3a3"),
    "worker_start": ("starting a worker", "#ef4444"),
    "process_spawn": ("starting the process", "#ef4444"),
    "thread_start": ("opening Codex's thread", "#ec4899"),
    "turn_start": ("handing over the turn", "#14b8a6"),
    "first_event": ("until Codex's first event", "#0ea5e9"),
    "first_delta": ("until the first words", "#4f46e5"),
    "answer": ("the answer itself", "#10b981"),
    "workspace_after": ("comparing the agent's folder", "#a3a3a3"),
    "joined": ("reading another request's answer", "#10b981"),
    "response": ("finishing the response", "#84cc16"),
}
REST = "other"
REST_LOOK = ("not in any phase", "#9ca3af")


@dataclass(frozen=True, slots=True)
class Segment:
    """One part of the bar; `share` is in percent of the whole."""

    name: str
    meaning: str
    colour: str
    ms: float
    share: float


def segments(phases: Mapping[str, object], total_ms: float | None) -> list[Segment]:
    """Return the phases that took time, in order, and the rest of `total_ms` (None: running)."""
    known = {
        name: float(ms) for name, ms in phases.items() if isinstance(ms, int | float) and ms > 0
    }
    ordered = [name for name in PHASES if name in known]
    ordered += [name for name in known if name not in PHASES]
    spent = sum(known.values())
    rest = (total_ms or 0.0) - spent
    if rest > 0.05:
        ordered.append(REST)
        known[REST] = known.get(REST, 0.0) + rest
    whole = sum(known.values()) or 1.0
    return [
        Segment(name, *PHASES.get(name, REST_LOOK), known[name], 100 * known[name] / whole)
        for name in dict.fromkeys(ordered)
    ]
