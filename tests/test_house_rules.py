"""The checks that a commit must pass beside the tests: one command runs everything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PROGRAMS = Path(sys.executable).parent


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "format", "--check"),
        ("ruff", "check"),
        ("mypy",),
        ("lint-imports",),
        ("python", "manage.py", "makemigrations", "--check", "--dry-run"),
    ],
    ids=" ".join,
)
def test_house_rule_is_kept(command: tuple[str, ...]) -> None:
    program, *arguments = command
    done = subprocess.run(
        [PROGRAMS / program, *arguments], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
