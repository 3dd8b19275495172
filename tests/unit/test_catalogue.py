from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proxy.engines.base import EngineConfig
from proxy.engines.catalogue import CatalogueChanged, lean, write_lean


def config_of(program: Path, folder: Path, **more: bool) -> EngineConfig:
    return EngineConfig(str(program), str(folder), str(folder), {}, **more)  # type: ignore[arg-type]


MODEL = {
    "slug": "m-1",
    "tool_mode": "code",
    "multi_agent_version": 2,
    "experimental_supported_tools": ["x"],
    "apply_patch_tool_type": "freeform",
    "context_window": 7,
}


def leaned(*, for_exec_chat: bool = False, **more: Any) -> dict[str, Any]:
    document = {"models": [MODEL, {**MODEL, "slug": "m-2"}], **more}
    result: dict[str, Any] = json.loads(
        lean(json.dumps(document).encode(), for_exec_chat=for_exec_chat)
    )
    return result


def test_every_model_has_plain_tools_only():
    for model in leaned()["models"]:
        assert "tool_mode" not in model
        assert "multi_agent_version" not in model
        assert model["experimental_supported_tools"] == []


def test_everything_else_stays():
    document = leaned(version=3)
    assert document["version"] == 3
    assert [model["slug"] for model in document["models"]] == ["m-1", "m-2"]
    assert document["models"][0]["context_window"] == 7
    assert document["models"][0]["apply_patch_tool_type"] == "freeform"


def test_an_exec_chat_has_no_patch_tool():
    assert leaned(for_exec_chat=True)["models"][0]["apply_patch_tool_type"] is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        "7",
        "{}",
        '{"models": []}',
        '{"models": 7}',
        '{"models": [7]}',
        '{"models": ["m"]}',
        '{"models": {"m": 1}}',
        '{"models": [{}]}',
        '{"models": [{"slug": 7}]}',
        '{"models": [{"slug": "m"}]}',
    ],
)
def test_an_unknown_form_is_told_as_such(text: str):
    with pytest.raises(CatalogueChanged):
        lean(text.encode())


async def test_a_codex_that_is_not_there_gives_no_catalogue(tmp_path: Path):
    assert await write_lean(config_of(tmp_path / "missing", tmp_path), {}) is None


@pytest.mark.parametrize("body", ["echo nonsense", "exit 3"])
async def test_a_codex_that_gives_nonsense_gives_no_catalogue(tmp_path: Path, body: str):
    program = tmp_path / "codex"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o700)
    assert await write_lean(config_of(program, tmp_path), {}) is None
    assert list(tmp_path.iterdir()) == [program]


async def test_the_catalogue_is_written_for_codex_to_read(tmp_path: Path):
    (tmp_path / "bundled.json").write_text(json.dumps({"models": [MODEL]}))
    program = tmp_path / "codex"
    program.write_text(f"#!/bin/sh\ncat '{tmp_path}/bundled.json'\n")
    program.chmod(0o700)
    path = await write_lean(config_of(program, tmp_path), {"PATH": "/usr/bin:/bin"})
    assert path is not None
    assert json.loads(path.read_bytes())["models"][0]["experimental_supported_tools"] == []


async def test_where_the_settings_say_so_codex_keeps_its_own(tmp_path: Path):
    program = tmp_path / "codex"
    program.write_text("#!/bin/sh\nexit 3\n")
    assert await write_lean(config_of(program, tmp_path, is_lean=False), {}) is None
