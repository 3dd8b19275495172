"""What the README says is so: its commands are those of CI, its tables are complete."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from codexsite import options, settings
from proxy import errors

PROJECT = Path(__file__).resolve().parent.parent
README = (PROJECT / "README.md").read_text()


def test_ci_runs_the_test_command_of_the_readme() -> None:
    (command,) = re.findall(r"^## Test\n\n```sh\n(.+)\n```", README, re.MULTILINE)
    assert command in (PROJECT / ".ci" / "run").read_text()


@pytest.mark.parametrize(
    "name",
    sorted(set(re.findall(r'"(CODEX_PROXY_\w+|DATABASE_URL)"', inspect.getsource(settings)))),
)
def test_every_variable_is_in_the_table(name: str) -> None:
    assert f"`{name}`" in README


@pytest.mark.parametrize(
    "code",
    sorted(
        {
            error.code
            for error in vars(errors).values()
            if isinstance(error, type) and issubclass(error, errors.ProxyError) and error.code
        }
    ),
)
def test_every_error_code_is_in_the_table(code: str) -> None:
    assert f"`{code}`" in README


@pytest.mark.parametrize("flag", [option.flag for option in options.OPTIONS])
def test_every_option_of_the_predecessor_is_named(flag: str) -> None:
    if flag not in ("--data-dir", "--demo"):
        assert flag in README


def test_every_image_is_there() -> None:
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (PROJECT / path).is_file(), path
