"""The soak's own eyes: they see a row, a command and a counter that is not as it must be."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.soak.mix import KINDS, order_of
from tests.soak.records import wrong_actions, wrong_counters, wrong_rows

ASKED = dict(enumerate(KINDS))
AGENT = next(number for number, kind in ASKED.items() if kind.name == "agent")


def rows() -> list[dict[str, Any]]:
    """One row for each kind, as it must be."""
    plain = {"agent_mode": 0, "action_count": None, "input_tokens": 10, "output_tokens": 5}
    marks = {"error_code": "", "http_status": 200}
    found = [
        {
            **plain,
            **marks,
            **kind.row,
            "client_request_id": f"soak-{number}",
            "request_id": str(number),
        }
        for number, kind in ASKED.items()
    ]
    found[AGENT]["action_count"] = 2  # the comparison is not counted
    return found


def actions() -> list[dict[str, Any]]:
    """The agent's command, the change it made, and the comparison that found it."""
    command = f"printf f{AGENT} > f{AGENT}"
    ours: dict[str, Any] = {"request_id": str(AGENT), "exit_code": None, "command": ""}
    return [
        {**ours, "kind": "command", "command": command, "exit_code": 0},
        {**ours, "kind": "shell_change"},
        {**ours, "kind": "comparison"},
    ]


def metrics() -> dict[str, Any]:
    outcomes = Counter(kind.row["outcome"] for kind in KINDS)
    return {
        "requests_total": len(KINDS),
        "requests_ok": outcomes["ok"],
        "requests_error": outcomes["failed"],
        "errors_by_status": {"200": 1, "502": outcomes["failed"] - 1},
        "in_flight": 0,
        "tokens": {"input": 10 * len(KINDS), "output": 5 * len(KINDS)},
        "requests_by_outcome": {**outcomes, "rejected": 0},
    }


def test_what_is_as_it_must_be_is_not_wrong() -> None:
    assert list(wrong_rows(rows(), ASKED)) == []
    assert list(wrong_actions(actions(), rows())) == []
    assert list(wrong_counters(metrics(), rows())) == []


def test_two_outcomes_that_changed_places_are_seen() -> None:
    found = rows()
    left = next(number for number, kind in ASKED.items() if kind.row["outcome"] == "cancelled")
    found[0]["outcome"], found[left]["outcome"] = "cancelled", "ok"
    assert len(list(wrong_rows(found, ASKED))) == 2


@pytest.mark.parametrize("change", ["missing", "twice", "nobody"])
def test_a_row_too_few_and_a_row_too_many_are_seen(change: str) -> None:
    found = rows()
    first = found.pop() if change == "missing" else found[0]
    if change == "twice":
        found.append(first)
    if change == "nobody":
        found.append({**first, "client_request_id": ""})
    assert len(list(wrong_rows(found, ASKED))) == 1


@pytest.mark.parametrize("change", ["missing", "twice", "another's", "failed", "not compared"])
def test_a_command_that_is_not_the_turn_s_own_is_seen(change: str) -> None:
    command, *rest = actions()
    made = {
        "missing": rest,
        "twice": [command, command, *rest],
        "another's": [{**command, "command": "printf f999 > f999"}, *rest],
        "failed": [{**command, "exit_code": 1}, *rest],
        "not compared": [command, rest[0]],
    }[change]
    assert list(wrong_actions(made, rows()))


@pytest.mark.parametrize("name", sorted(metrics()))
def test_each_counter_that_is_off_is_seen(name: str) -> None:
    changed = {"errors_by_status": {}, "tokens": {}, "requests_by_outcome": {"ok": 1}}
    said = {**metrics(), name: changed.get(name, 99)}
    (word,) = wrong_counters(said, rows())
    assert word.startswith(name)


def test_the_mix_holds_each_kind_by_its_share() -> None:
    assert sum(kind.share for kind in KINDS) == 1000
    assert Counter(order_of(1000)) == {kind: kind.share for kind in KINDS}
