"""What every client's script shares: run each scenario by itself, print what all came to as JSON."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import traceback
from collections.abc import Callable
from typing import Any

BASE_URL, API_KEY = os.environ["BASE_URL"], os.environ["API_KEY"]
NARROW_KEY, SINGLE_KEY = os.environ["NARROW_KEY"], os.environ["SINGLE_KEY"]

Scenario = Callable[[], Any]
_SCENARIOS: list[Scenario] = []


def scenario(function: Scenario) -> Scenario:
    """Add a function to what `main` runs; what it returns must fit into JSON."""
    _SCENARIOS.append(function)
    return function


def main() -> None:
    """Run all; one that fails leaves its traceback instead of a value."""
    outcomes = {each.__name__: _outcome(each) for each in _SCENARIOS}
    print("OUTCOMES " + json.dumps(outcomes))  # noqa: T201 - the test reads it


def _outcome(function: Scenario) -> dict[str, Any]:
    try:
        value = function()
        if inspect.iscoroutine(value):
            value = asyncio.run(value)
        json.dumps(value)
        return {"value": value}
    except Exception:  # noqa: BLE001 - the test shows it
        return {"error": traceback.format_exc()}
