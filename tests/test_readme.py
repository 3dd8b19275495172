"""What the README says is so: its commands are those of CI, its tables are complete."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from codexsite import options, settings
from proxy import errors, rendering
from proxy.models import ProxySettings
from proxy.schemas import HINTS, ChatCompletionRequest

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


def error_codes() -> set[str]:
    """Every code that a caller can meet: of the error classes, and those given where one is raised."""
    classes = [errors.ProxyError]
    for known in classes:
        classes += known.__subclasses__()
    of_classes = {known.code for known in classes if known.code}
    sources = [path.read_text() for path in (PROJECT / "proxy").rglob("*.py")]
    given = {code for source in sources for code in re.findall(r'\bcode="(\w+)"', source)}
    ranges = {
        f"{kind}_{suffix}"
        for _, suffix in rendering.BOUNDS.values()
        for kind in ("integer", "decimal")
    }
    return of_classes | given | set(rendering.PYDANTIC_CODES.values()) | ranges


@pytest.mark.parametrize("code", sorted(error_codes()))
def test_every_error_code_is_in_the_table(code: str) -> None:
    assert f"`{code}`" in section("Errors")


def section(title: str) -> str:
    """Return what stands under a heading, up to the next one."""
    (found,) = re.findall(rf"^##+ {title}\n(.*?)(?=^##)", README, re.MULTILINE | re.DOTALL)
    return str(found)


FIELDS = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", section("Request fields"), re.MULTILINE))


def test_every_request_field_is_in_the_table_and_no_other() -> None:
    reference = set(CompletionCreateParamsBase.__annotations__) | {"stream"}
    ours = set(ChatCompletionRequest.model_fields)
    assert set(FIELDS) == reference | ours
    assert reference <= ours, "fields of the reference that the OpenAPI document does not know"


def test_fields_that_the_table_calls_ignored_are_those_that_are() -> None:
    assert {name for name, fate in FIELDS.items() if fate == "ignored"} == set(HINTS)
    assert set(FIELDS.values()) == {"honoured", "mapped", "refused", "ignored"}


@pytest.mark.parametrize("field", ["reasoning", "max_choices", "fetch_images"])
def test_every_setting_without_a_variable_is_named(field: str) -> None:
    names = {column.name: str(column.verbose_name) for column in ProxySettings._meta.fields}
    assert f"*{names[field].capitalize()}*" in section("Settings")


@pytest.mark.parametrize("flag", [option.flag for option in options.OPTIONS])
def test_every_option_of_the_predecessor_is_named(flag: str) -> None:
    if flag not in ("--data-dir", "--demo"):
        assert flag in README


def test_every_image_is_there() -> None:
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (PROJECT / path).is_file(), path
