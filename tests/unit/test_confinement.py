"""The permission profile of a level: what it opens, what it shuts, and what its hash stands for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxy.engines import mountpoints
from proxy.engines.app_server import thread_parameters
from proxy.engines.base import Message, Turn
from proxy.engines.confinement import (
    LEVELS,
    Confinement,
    Place,
    command_environment,
    form_of,
)
from proxy.errors import WorkspaceMoved

PLAIN = Confinement(level="write", workspace="/srv/a", roots=("/srv/a",), readable=("/opt/codex",))


def filesystem(confinement: Confinement) -> dict[str, str]:
    found: dict[str, str] = confinement.profile()["filesystem"]
    return found


def test_everything_is_shut_but_what_is_listed() -> None:
    assert filesystem(PLAIN) == {
        ":root": "deny", ":minimal": "read", "/opt/codex": "read", "/srv/a": "write",
    }  # fmt: skip
    assert PLAIN.profile()["network"] == {"enabled": False}


@pytest.mark.parametrize(
    ("level", "access", "network"),
    [("read", "read", False), ("write", "write", False), ("network", "write", True)],
)
def test_each_level_opens_what_its_name_says(level: Any, access: str, network: bool) -> None:
    confinement = replace(PLAIN, level=level)
    assert filesystem(confinement)["/srv/a"] == access
    assert confinement.profile()["network"] == {"enabled": network}
    assert confinement.name == f"codexsite_{level}"


def test_a_root_inside_a_root_and_the_way_to_it_are_held_in_place() -> None:
    """Else a command could rename what holds it, and the next one would find it open."""
    closed = replace(PLAIN, closed=("/srv/a/x/y/theirs",))
    assert filesystem(closed) | {"/srv/a/x": "write", "/srv/a/x/y": "write"} == filesystem(closed)
    assert filesystem(closed)["/srv/a/x/y/theirs"] == "deny"
    own = replace(PLAIN, roots=("/srv/a", "/srv/a/x/own"))
    assert filesystem(own) | {"/srv/a/x": "write", "/srv/a/x/own": "write"} == filesystem(own)


def test_no_place_is_listed_where_an_agent_could_plant_a_link() -> None:
    """Codex follows a symlink that is listed as writable, out of the workspace."""
    listed = " ".join(filesystem(form_of("write")))
    assert not [name for name in (".git", ".codex", ".agents", ".aws") if name in listed]


def test_every_folder_down_to_the_workspace_is_distrusted_by_its_exact_path() -> None:
    distrusted = replace(PLAIN, workspace="/srv/a/b").config()["projects"]
    assert set(distrusted) == {"/", "/srv", "/srv/a", "/srv/a/b"}
    assert {entry["trust_level"] for entry in distrusted.values()} == {"untrusted"}


def test_commands_see_a_listed_environment() -> None:
    policy = command_environment("linux")
    assert set(policy["include_only"]) >= set(policy["set"])
    assert policy["inherit"] == "core"
    assert "set" not in command_environment("darwin")


def test_the_hash_is_that_of_the_exact_text() -> None:
    other = [
        replace(PLAIN, level="read"),
        replace(PLAIN, workspace="/srv/a/b"),
        replace(PLAIN, roots=("/srv/b",)),
        replace(PLAIN, closed=("/srv/a/b",)),
        replace(PLAIN, reads_agents_md=True),
    ]
    assert len({each.policy_hash for each in (PLAIN, *other)}) == 6
    assert replace(PLAIN).policy_hash == PLAIN.policy_hash
    assert len(PLAIN.policy_hash) == 64
    seen_elsewhere = replace(PLAIN, places=(Place("/srv/a", 1, 2),))
    assert seen_elsewhere.policy_hash == PLAIN.policy_hash, "which inode it was is no policy"


def test_each_level_has_a_form_of_its_own() -> None:
    assert len({form_of(level).policy_hash for level in LEVELS}) == 3


def turn(confinement: Confinement) -> Turn:
    return Turn("r", (Message("user", "go"),), confinement.workspace, 0.0, confinement)


def test_a_profile_never_meets_a_sandbox_flag() -> None:
    params, _ = thread_parameters(turn(PLAIN), ephemeral=True)
    assert "sandbox" not in params
    assert not [key for key in params["config"] if key.startswith("sandbox")]
    assert params["permissions"] == "codexsite_write"


class TestPlace:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "work").mkdir()
        return tmp_path.resolve() / "work"

    def confined(self, folder: Path) -> Confinement:
        return Confinement(
            level="write",
            workspace=str(folder),
            roots=(str(folder),),
            places=(Place.at(str(folder)),),
        )

    def test_an_unmoved_folder_may_be_worked_in(self, folder: Path) -> None:
        confinement = self.confined(folder)
        (folder / "new").touch()
        confinement.insist()

    @pytest.mark.parametrize("how", ["symlink", "another folder", "gone", "a file"])
    def test_what_was_put_in_its_place_is_refused(self, folder: Path, how: str) -> None:
        confinement = self.confined(folder)
        folder.rename(folder.with_name("aside"))
        if how == "symlink":
            folder.symlink_to(folder.with_name("aside"))  # even to the very same folder
        elif how == "another folder":
            folder.mkdir()
        elif how == "a file":
            folder.touch()
        with pytest.raises(WorkspaceMoved) as refused:
            thread_parameters(turn(confinement), ephemeral=True)
        assert (refused.value.status, refused.value.code) == (403, "workspace_denied")

    def test_a_link_on_the_way_is_refused(self, folder: Path) -> None:
        (folder / "inner").mkdir()
        confinement = self.confined(folder / "inner")
        folder.rename(folder.with_name("aside"))
        folder.symlink_to(folder.with_name("aside"))
        with pytest.raises(WorkspaceMoved):
            confinement.insist()


class TestMountPoints:
    def leave_two(self, folder: Path) -> None:
        (folder / ".git").mkdir(exist_ok=True)
        (folder / ".aws").mkdir(exist_ok=True)

    def test_empty_places_are_taken_away_when_the_last_turn_has_ended(self, tmp_path: Path) -> None:
        confinement = Confinement(level="write", workspace="", roots=(str(tmp_path),))
        first, second = mountpoints.enter(confinement), mountpoints.enter(confinement)
        self.leave_two(tmp_path)
        first()
        assert (tmp_path / ".git").exists()
        second()
        assert list(tmp_path.iterdir()) == []

    def test_what_holds_something_or_is_a_link_stays(self, tmp_path: Path) -> None:
        leave = mountpoints.enter(Confinement(level="write", workspace="", roots=(str(tmp_path),)))
        self.leave_two(tmp_path)
        (tmp_path / ".git" / "HEAD").touch()
        (tmp_path / ".codex").symlink_to(tmp_path / ".aws")
        leave()
        assert {path.name for path in tmp_path.iterdir()} == {".git", ".codex"}

    def test_a_root_that_has_vanished_is_no_matter(self, tmp_path: Path) -> None:
        mountpoints.enter(Confinement(level="write", workspace="", roots=(f"{tmp_path}/gone",)))()

    async def test_a_reading_turn_touches_nothing(self, tmp_path: Path) -> None:
        self.leave_two(tmp_path)
        mountpoints.enter(Confinement(level="read", workspace="", roots=(str(tmp_path),)))()
        await asyncio.sleep(0)
        assert len(list(tmp_path.iterdir())) == 2
