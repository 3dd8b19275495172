"""instructor, which forces a tool or asks for JSON: see `scripts/instructor_modes.py`."""

from __future__ import annotations

import pytest

from tests.clients.conftest import Bench, Outcomes


@pytest.fixture(scope="module")
def outcomes(bench: Bench) -> Outcomes:
    return bench.python_script("older", "instructor_modes.py")


@pytest.mark.parametrize("mode", ["tools", "json_mode", "json_schema", "markdown_json", "partial"])
def test_typed_answer_comes_at_the_first_try(outcomes: Outcomes, mode: str) -> None:
    assert outcomes[mode] == {"name": "Ada", "age": 36}


@pytest.mark.parametrize("mode", ["rich_tools", "rich_json_schema"])
def test_what_strict_schemas_cannot_say_comes_back_typed(outcomes: Outcomes, mode: str) -> None:
    found = outcomes[mode]
    assert (found["title"], found["kind"], found["level"]) == ("Ada", "short", 12)
    assert set(map(type, found["scores"].values())) <= {int}


def test_refused_value_is_asked_for_again_with_the_failed_call(outcomes: Outcomes) -> None:
    found = outcomes["asked_again"]
    assert found["attempts"] == 3
    assert "the name must be another one" in found["why"]
