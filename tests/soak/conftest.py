"""How long the soak is: `pytest tests/soak --soak-turns 20000`."""

from __future__ import annotations

import pytest


@pytest.fixture
def soak_turns(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--soak-turns"))
