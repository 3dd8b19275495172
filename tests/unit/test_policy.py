"""Folders and models, without a database: what resolves to what, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxy.engines.base import Inspection, Model
from proxy.errors import ModelNotFound, WorkspaceDenied
from proxy.policy import Caller, Options, Root, models_for, resolve_model, resolve_workspace

OPTIONS = Options(
    codex_bin="", proxy="", model="", engine="app-server", workers=1, worker_max_mb=1024, worker_max_hours=24.0, is_lean=True, turns_per_worker=1,
    max_concurrency=1, max_queue_size=1, queue_timeout_seconds=1, app_server_codex_home="",
    codex_configs=(), ephemeral=True, agent=False,
    action_output_chars=9, action_diff_chars=9, compared_files=9, fast=False, reasoning=True, max_choices=4,
    fetch_images=False, default_cwd="", allowed_roots=(),
    timeout_seconds=1, log_level="info",
)  # fmt: skip
LARGE, SMALL = Model("large", "", (), is_default=True), Model("small", "", (), is_default=False)


def catalogue(*models: Model) -> Inspection:
    return Inspection("0", models, "apiKey", needs_login=True)


def caller(*roots: Root) -> Caller:
    return Caller("name", "", "", roots, roots[0] if roots else Root("", "/"))


@pytest.fixture
def root(tmp_path: Path) -> Root:
    folder = tmp_path / "root"
    folder.mkdir()
    return Root("alias", str(folder))


def test_folder_inside_a_root_is_its_real_path(root: Root) -> None:
    (Path(root.path) / "a").mkdir()
    workspace = resolve_workspace(caller(root), f"{root.path}/a/../a")
    assert (workspace.path, workspace.root) == (f"{root.path}/a", root)


def test_no_wish_is_the_default_root(root: Root) -> None:
    assert resolve_workspace(caller(root), None).path == root.path


def test_root_of_everything_holds_everything(root: Root) -> None:
    assert resolve_workspace(caller(Root("all", "/")), root.path).root.alias == "all"


def test_folder_whose_name_only_begins_like_the_root_is_refused(root: Root) -> None:
    Path(root.path + "-twin").mkdir()
    with pytest.raises(WorkspaceDenied):
        resolve_workspace(caller(root), root.path + "-twin")


def test_missing_and_foreign_folders_are_refused_in_the_same_words(root: Root) -> None:
    messages = set()
    for asked in (f"{root.path}/missing", "/", "/missing", "no-alias", "", "\x00", "/\x00"):
        with pytest.raises(WorkspaceDenied) as refused:
            resolve_workspace(caller(root), asked)
        messages.add(refused.value.message)
    assert len(messages) == 1
    assert root.path not in messages.pop()


def test_default_means_the_default_of_the_catalogue() -> None:
    found = resolve_model("default", caller(), OPTIONS, catalogue(SMALL, LARGE))
    assert found == "large"


def test_default_means_the_model_of_the_options() -> None:
    options = replace(OPTIONS, model="house")
    assert resolve_model("codex-local", caller(), options, catalogue(LARGE)) == "house"


@pytest.mark.parametrize("asked", ["", "default", "other"])
def test_catalogue_without_a_default_leaves_only_named_models(asked: str) -> None:
    with pytest.raises(ModelNotFound):
        resolve_model(asked, caller(), OPTIONS, catalogue(SMALL))
    assert models_for(caller(), OPTIONS, catalogue(SMALL)) == ["small"]


def test_root_that_became_a_link_to_the_servers_data_opens_nothing(
    tmp_path: Path, settings: Any
) -> None:
    link = tmp_path / "root"
    link.symlink_to(settings.DATA_DIR.codex_home)
    with pytest.raises(WorkspaceDenied):
        resolve_workspace(caller(Root("alias", str(link))), None)


def test_folder_that_holds_the_servers_data_is_no_workspace(settings: Any) -> None:
    above = settings.DATA_DIR.root.parent
    with pytest.raises(WorkspaceDenied):
        resolve_workspace(caller(Root("alias", str(above))), str(above))
