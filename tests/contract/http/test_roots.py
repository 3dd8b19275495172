"""metadata.cwd: a folder inside a root of the key, or a 403 that says nothing of the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxy.models import AllowedRoot, ProxySettings
from tests.asgi import Exchange


async def asked_in(site: Any, cwd: Any) -> Exchange:
    exchange: Exchange = await site.client.ask(metadata={"cwd": cwd})
    return exchange


async def worked_in(site: Any, answer: Exchange, folder: Path, alias: str = "project") -> None:
    """Check that the turn and its row agree on the folder."""
    assert answer.status == 200, answer.body
    row = await site.recorded(answer, "ok")
    assert (row.cwd, row.root_alias, row.sandbox) == (str(folder), alias, "read-only")
    assert site.engine.turns[-1].cwd == str(folder)


async def denied(site: Any, answer: Exchange) -> None:
    """Check the refusal: the same in every case, no path in it, no turn."""
    row = await site.refused(answer, 403, "workspace_denied")
    assert answer.error == {
        "message": "metadata.cwd is not a folder that this key may work in.",
        "type": "permission_error",
        "param": "metadata.cwd",
        "code": "workspace_denied",
    }
    assert (row.cwd, row.root_alias) == ("", "")
    assert site.engine.turns == []


async def test_without_cwd_the_default_root_is_used(site: Any) -> None:
    await worked_in(site, await site.client.ask(), site.folder)


async def test_absolute_path_inside_a_root_is_used(site: Any) -> None:
    inner = site.folder / "src" / "deep"
    inner.mkdir(parents=True)
    await worked_in(site, await asked_in(site, str(inner)), inner)


@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}/.", "{}/src/..", "/./{}"])
async def test_root_itself_is_used_however_it_is_spelled(site: Any, spelling: str) -> None:
    (site.folder / "src").mkdir()
    await worked_in(site, await asked_in(site, spelling.format(site.folder)), site.folder)


async def test_alias_means_its_root(site: Any) -> None:
    await worked_in(site, await asked_in(site, "project"), site.folder)


async def test_symlink_inside_is_followed_and_its_end_recorded(site: Any) -> None:
    inner, link = site.folder / "src", site.folder / "link"
    inner.mkdir()
    link.symlink_to(inner)
    await worked_in(site, await asked_in(site, str(link)), inner)


async def test_symlink_from_outside_into_the_root_is_used(site: Any) -> None:
    link = site.outside / "link"
    link.symlink_to(site.folder)
    await worked_in(site, await asked_in(site, str(link)), site.folder)


async def test_root_that_is_a_symlink_counts_by_its_real_path(site: Any) -> None:
    link = site.outside / "link"
    link.symlink_to(site.folder)
    await site.database(AllowedRoot.objects.update, path=str(link))
    await worked_in(site, await asked_in(site, "project"), site.folder)


async def test_of_nested_roots_the_inner_one_is_recorded(site: Any) -> None:
    inner = site.folder / "inner"
    (inner / "src").mkdir(parents=True)
    root = await site.database(AllowedRoot.objects.create, alias="inner", path=str(inner))
    await site.database(site.key.allowed_roots.add, root)
    await worked_in(site, await asked_in(site, str(inner / "src")), inner / "src", "inner")


async def test_null_is_as_good_as_absent(site: Any) -> None:
    await worked_in(site, await asked_in(site, None), site.folder)


@pytest.mark.parametrize(
    "cwd",
    [
        "{folder}/missing",
        "{folder}/file",
        "{folder}/out",
        "{folder}/out/deeper",
        "{folder}/loop",
        "{folder}/..",
        "{folder}/../elsewhere",
        "{folder}-twin",
        "{outside}",
        "{outside}/missing",
        "/",
        "/etc",
        "/root",
        "/nowhere/at/all",
        "src",
        "./src",
        "..",
        "project/src",
        "elsewhere",
        "~",
        "",
        " ",
        "project\x00",
        "{folder}\x00",
        "/" + "x" * 5000,
    ],
)
async def test_any_other_folder_is_403_that_tells_nothing(site: Any, cwd: str) -> None:
    (site.folder / "src").mkdir()
    (site.folder / "file").write_text("")
    (site.folder / "out").symlink_to(site.outside)
    (site.folder / "loop").symlink_to(site.folder / "loop")
    site.folder.with_name("project-twin").mkdir()
    answer = await asked_in(site, cwd.format(folder=site.folder, outside=site.outside))
    await denied(site, answer)


@pytest.mark.parametrize("cwd", [5, 1.5, True, ["project"], {"path": "project"}])
async def test_cwd_that_is_no_text_is_400(site: Any, cwd: Any) -> None:
    answer = await asked_in(site, cwd)
    await site.refused(answer, 400, "invalid_type")
    assert answer.error["param"] == "metadata.cwd"


async def test_root_that_vanished_is_403(site: Any) -> None:
    site.folder.rmdir()
    await denied(site, await site.client.ask())


async def test_root_replaced_by_a_symlink_is_followed_at_each_request(site: Any) -> None:
    await site.client.ask()
    site.folder.rmdir()
    site.folder.symlink_to(site.outside)
    answer = await site.client.ask()
    row = await site.recorded(answer, "ok")
    assert row.cwd == str(site.outside)


async def test_alias_of_a_root_of_another_key_is_403(site: Any) -> None:
    await site.database(AllowedRoot.objects.create, alias="theirs", path=str(site.outside))
    await denied(site, await asked_in(site, "theirs"))


async def test_root_taken_from_the_key_is_closed_from_the_next_request_on(site: Any) -> None:
    other = await site.database(AllowedRoot.objects.create, alias="o", path=str(site.outside))
    await site.database(site.key.allowed_roots.set, [other])
    await denied(site, await asked_in(site, str(site.folder)))


class TestKeyWithoutRoots:
    """Works where the settings say."""

    @pytest.fixture(autouse=True)
    async def without_roots(self, site: Any) -> None:
        await site.database(site.key.allowed_roots.clear)
        await site.change(default_root=None)

    async def test_default_is_the_workspace_of_the_server(self, site: Any, settings: Any) -> None:
        answer = await site.client.ask()
        await worked_in(site, answer, settings.DATA_DIR.workspace, "workspace")

    async def test_default_working_directory_is_its_root(self, site: Any) -> None:
        await site.set_options(default_cwd=str(site.outside))
        await worked_in(site, await site.client.ask(), site.outside, "workspace")

    async def test_other_folders_are_403(self, site: Any) -> None:
        await denied(site, await asked_in(site, str(site.folder)))

    async def test_roots_of_the_settings_are_its_roots(self, site: Any) -> None:
        await site.set_options()
        row = await site.database(ProxySettings.load)
        await site.database(row.allowed_roots.add, site.root)
        await worked_in(site, await asked_in(site, "project"), site.folder)

    async def test_roots_of_the_environment_go_by_their_folder_names(
        self, site: Any, settings: Any
    ) -> None:
        settings.OPTION_OVERRIDES = {"allowed_roots": [f"{site.outside}/", str(site.folder)]}
        await worked_in(site, await asked_in(site, "elsewhere"), site.outside, "elsewhere")
