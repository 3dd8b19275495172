"""What is on record after the soak, against what was asked: rows, commands of agents, counters."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.soak.mix import Kind, mark_of

Row = dict[str, Any]


def wrong_rows(rows: list[Row], asked: dict[int, Kind]) -> Iterator[str]:
    """Yield, in words, each turn whose one row does not say what its kind must."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["client_request_id"], []).append(row)
    for number, kind in asked.items():
        ours = found.pop(mark_of(number), [])
        said = [{name: row[name] for name in kind.row} for row in ours]
        if said != [kind.row]:
            yield f"turn {number}, {kind.name}: {said}, not {kind.row}"
    if found:
        yield f"rows of nobody: {sorted(found)}"


def wrong_counters(metrics: dict[str, Any], rows: list[Row]) -> Iterator[str]:
    """Yield, in words, what `/metrics` counts otherwise than the rows do."""
    outcomes = Counter(row["outcome"] for row in rows)
    errors = Counter(str(row["http_status"]) for row in rows if row["outcome"] == "failed")
    expected = {
        "requests_total": len(rows),
        "requests_ok": outcomes["ok"],
        "requests_error": outcomes["failed"],
        "errors_by_status": dict(errors),
        "in_flight": 0,
        "tokens": {
            kind: sum(row[f"{kind}_tokens"] or 0 for row in rows) for kind in ("input", "output")
        },
    }
    for name, value in expected.items():
        if metrics[name] != value:
            yield f"{name} is {metrics[name]}, not {value}"
    by_outcome = {name: count for name, count in metrics["requests_by_outcome"].items() if count}
    if by_outcome != outcomes:
        yield f"requests_by_outcome is {by_outcome}, not {dict(outcomes)}"


def wrong_actions(actions: list[Row], rows: list[Row]) -> Iterator[str]:
    """Yield, in words, each turn with other actions on record than its own.

    An agent's has its one command and one comparison of its folder; no other turn has any. Whose
    change a file is cannot be told of agents that share a folder, so that changes are only counted.
    """
    found: dict[str, list[Row]] = {}
    for action in actions:
        found.setdefault(action["request_id"], []).append(action)
    for row in rows:
        ours = found.pop(row["request_id"], [])
        kinds = Counter(action["kind"] for action in ours)
        expected = 1 if row["agent_mode"] else 0
        is_own = all(
            _command_of(row) in action["command"] and action["exit_code"] == 0
            for action in ours
            if action["kind"] == "command"
        )
        # A comparison is none of the agent's doing, and is not counted in the row.
        counted = len(ours) - kinds["comparison"]
        is_whole = (kinds["command"], kinds["comparison"]) == (expected, expected)
        if not (is_own and is_whole and counted == (row["action_count"] or 0)):
            said = [(action["kind"], action["command"], action["exit_code"]) for action in ours]
            yield f"{row['client_request_id']}: {row['action_count']} actions, on record {said}"
    if found:
        yield f"actions of nobody: {found}"


def _command_of(row: Row) -> str:
    name = row["client_request_id"].replace("soak-", "f")
    return f"printf {name} > {name}"


def actions_of(data_dir: Path) -> list[Row]:
    """Return every action on record, oldest first."""
    with contextlib.closing(sqlite3.connect(data_dir / "db.sqlite3")) as connection:
        connection.row_factory = sqlite3.Row
        query = "SELECT * FROM audit_agentaction ORDER BY id"
        return [dict(row) for row in connection.execute(query)]
