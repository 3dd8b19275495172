"""Which folders a grant opens: asked over HTTP, seen in the turn that the engine gets."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db.models import Model
from django.utils import timezone

from proxy import confining, sandboxing
from proxy.engines.confinement import Confinement
from proxy.models import AgentGrant, AllowedRoot, SandboxProof
from tests.asgi import Exchange, question

Ask = Callable[..., Any]


async def give(site: Any, *roots: AllowedRoot, key: Any = None, **fields: Any) -> AgentGrant:
    def create() -> AgentGrant:
        given = AgentGrant.objects.create(key=key or site.key, reason="why not", **fields)
        given.roots.set(roots or [site.root])
        return given

    made: AgentGrant = await site.database(create)
    return made


async def root_at(site: Any, path: Path, *keys: Any) -> AllowedRoot:
    path.mkdir(parents=True, exist_ok=True)

    def create() -> AllowedRoot:
        root = AllowedRoot.objects.create(alias=path.name, path=str(path))
        for key in keys:
            key.allowed_roots.add(root)
        return root

    made: AllowedRoot = await site.database(create)
    return made


async def ask(site: Any, cwd: object = None, **how: Any) -> Exchange:
    metadata = {"agent": "true"} | ({"cwd": str(cwd)} if cwd else {})
    body = question(metadata=metadata)
    exchange: Exchange = await site.client.post("/v1/chat/completions", json=body, **how)
    return exchange


def confinement(site: Any) -> Confinement:
    found: Confinement = site.engine.turns[-1].confinement
    return found


async def denied(site: Any, answer: Exchange, folder: Path) -> None:
    row = await site.refused(answer, 403, "workspace_denied")
    assert str(folder) not in str(answer.body)
    assert site.engine.turns == []
    assert row.agent_mode is True


@pytest.mark.parametrize(
    ("level", "network"), [("read", False), ("write", False), ("network", True)]
)
async def test_the_row_holds_the_policy_that_was_enforced(
    site: Any, level: str, network: bool
) -> None:
    given = await give(site, level=level)
    row = await site.recorded(await ask(site), "ok")
    enforced = confinement(site)
    assert (enforced.level, enforced.roots) == (level, (str(site.folder),))
    assert (row.sandbox, row.level, row.network) == (f"codexsite_{level}", level, network)
    assert (row.grant_id, row.grant_reason, row.cwd) == (given.pk, "why not", str(site.folder))
    assert row.policy_hash == enforced.policy_hash
    assert row.proof_id == (await site.database(SandboxProof.objects.get)).pk
    assert row.as_root is (os.geteuid() == 0)


async def test_a_chat_has_no_policy_to_hold(site: Any) -> None:
    await give(site)
    row = await site.recorded(await site.client.ask(), "ok")
    assert (row.sandbox, row.policy_hash, row.proof_id, row.as_root) == (
        "read-only",
        "",
        None,
        None,
    )
    assert site.engine.turns[-1].confinement is None


async def test_all_granted_roots_of_the_key_are_open(site: Any) -> None:
    more = await root_at(site, site.outside, site.key)
    lacking = await root_at(site, site.folder.parent / "not-the-keys")
    await give(site, site.root, more, lacking)
    await site.recorded(await ask(site), "ok")
    assert confinement(site).roots == tuple(sorted((str(site.folder), str(site.outside))))


async def test_a_granted_root_inside_the_keys_own_opens_no_more_than_itself(site: Any) -> None:
    inner = await root_at(site, site.folder / "inner", site.key)
    await give(site, inner)
    await site.recorded(await ask(site, site.folder / "inner"), "ok")
    assert confinement(site).roots == (str(site.folder / "inner"),)


class TestNestedRootsOfTwoKeys:
    @pytest.fixture
    async def theirs(self, site: Any) -> Path:
        """A folder two levels down, which is another key's root."""
        other, _ = await site.issue("other")
        folder: Path = site.folder / "team" / "theirs"
        await root_at(site, folder, other)
        await give(site)
        return folder

    async def test_the_inner_one_is_shut_in_the_outer_ones_turns(
        self, site: Any, theirs: Path
    ) -> None:
        await site.recorded(await ask(site), "ok")
        assert confinement(site).closed == (str(theirs),)
        listed = confinement(site).profile()["filesystem"]
        assert (listed[str(theirs)], listed[str(theirs.parent)]) == ("deny", "write")

    async def test_the_outer_keys_agent_cannot_work_in_it(self, site: Any, theirs: Path) -> None:
        (theirs / "deeper").mkdir()
        await denied(site, await ask(site, theirs), theirs)
        await denied(site, await ask(site, theirs / "deeper"), theirs)

    async def test_its_own_key_works_there_and_sees_no_more(self, site: Any, theirs: Path) -> None:
        key, secret = await site.issue("third")
        root = await site.database(AllowedRoot.objects.get, alias="theirs")
        await site.database(key.allowed_roots.add, root)
        await give(site, root, key=key)
        await site.recorded(await ask(site, theirs, key=secret), "ok", who="third")
        assert confinement(site).roots == (str(theirs),)
        assert confinement(site).closed == ()

    async def test_a_key_that_may_use_both_keeps_both(self, site: Any, theirs: Path) -> None:
        root = await site.database(AllowedRoot.objects.get, alias="theirs")
        await site.database(site.key.allowed_roots.add, root)
        await site.recorded(await ask(site, theirs), "ok")
        assert confinement(site).roots == (str(site.folder), str(theirs))
        assert confinement(site).closed == ()


class TestPaths:
    @pytest.fixture(autouse=True)
    async def granted(self, site: Any) -> None:
        await give(site)

    async def test_dots_lead_nowhere_else(self, site: Any) -> None:
        await denied(site, await ask(site, f"{site.folder}/../elsewhere"), site.outside)
        (site.folder / "sub").mkdir()
        await site.recorded(await ask(site, f"{site.folder}/sub/../sub/."), "ok")
        assert confinement(site).workspace == str(site.folder / "sub")

    async def test_a_symlink_out_is_refused(self, site: Any) -> None:
        (site.folder / "out").symlink_to(site.outside)
        await denied(site, await ask(site, site.folder / "out"), site.outside)

    async def test_letters_of_another_case_are_another_folder(self, site: Any) -> None:
        await denied(site, await ask(site, str(site.folder).upper()), site.folder)

    async def test_a_root_that_has_vanished_is_refused(self, site: Any) -> None:
        site.folder.rmdir()
        await denied(site, await ask(site), site.folder)

    async def test_another_granted_root_that_has_vanished_is_left_out(self, site: Any) -> None:
        gone = await root_at(site, site.folder.parent / "gone", site.key)
        await site.database(lambda: AgentGrant.objects.get().roots.add(gone))
        (site.folder.parent / "gone").rmdir()
        await site.recorded(await ask(site), "ok")
        assert confinement(site).roots == (str(site.folder),)

    async def test_what_is_mounted_into_a_root_is_shut(
        self, site: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mounted = site.folder / "mounted"
        mounted.mkdir()
        monkeypatch.setattr(confining, "_mounts", lambda: iter(["/", str(mounted)]))
        await site.recorded(await ask(site), "ok")
        assert confinement(site).closed == (str(mounted),)
        site.engine.turns.clear()
        await denied(site, await ask(site, mounted), mounted)

    async def test_the_same_folder_under_another_name_is_known(
        self, site: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A bind mount, or a file system that knows no case."""
        other, _ = await site.issue("other")
        await root_at(site, site.outside, other)
        alias = site.folder / "alias"
        alias.mkdir()
        theirs = confining._identity(str(site.outside))
        honest = confining._identity
        monkeypatch.setattr(
            confining, "_identity", lambda path: theirs if path == str(alias) else honest(path)
        )
        await denied(site, await ask(site, alias), alias)

    async def test_a_swap_between_check_and_use_is_refused(
        self, site: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = site.engine.run

        def swap_and_run(turn: Any) -> Any:
            site.folder.rename(site.folder.with_name("aside"))
            site.folder.symlink_to(site.outside)
            return run(turn)

        monkeypatch.setattr(site.engine, "run", swap_and_run)
        answer = await ask(site)
        await site.refused(answer, 403, "workspace_denied")

    async def test_a_root_above_the_data_directory_opens_the_folder_alone(
        self, site: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            confining, "opens_data_directory", lambda path: str(path) == str(site.folder)
        )
        sub = site.folder / "sub"
        sub.mkdir()
        await site.recorded(await ask(site, sub), "ok")
        assert confinement(site).roots == (str(sub),)

    async def test_codex_home_inside_a_root_is_shut(self, site: Any) -> None:
        home = site.folder / "codex-home"
        await site.set_options(app_server_codex_home=str(home))
        await site.recorded(await ask(site), "ok")
        assert confinement(site).closed == (str(home),)
        site.engine.turns.clear()
        await denied(site, await ask(site, home), home)


class TestAgentsMd:
    async def prompt(self, site: Any, *, reads: bool, cwd: object = None) -> str:
        await give(site, reads_agents_md=reads)
        await site.recorded(await ask(site, cwd), "ok")
        return "\n".join(message.text for message in site.engine.turns[-1].messages)

    async def test_it_is_not_read_unless_the_grant_says_so(self, site: Any) -> None:
        (site.folder / "AGENTS.md").write_text("OBEY")
        assert "OBEY" not in await self.prompt(site, reads=False)

    async def test_those_from_the_root_down_are_read_where_it_does(self, site: Any) -> None:
        (site.folder / "sub").mkdir()
        (site.folder / "AGENTS.md").write_text("FIRST")
        (site.folder / "sub" / "AGENTS.md").write_text("SECOND")
        said = await self.prompt(site, reads=True, cwd=site.folder / "sub")
        assert 0 < said.index("FIRST") < said.index("SECOND")

    @pytest.mark.parametrize("kind", ["symlink", "folder", "fifo", "missing", "empty"])
    async def test_only_a_plain_file_is_read(self, site: Any, kind: str) -> None:
        path = site.folder / "AGENTS.md"
        (site.outside / "secret").write_text("SECRET")
        make: dict[str, Callable[[], object]] = {
            "symlink": lambda: path.symlink_to(site.outside / "secret"),
            "folder": path.mkdir,
            "fifo": lambda: os.mkfifo(path),
            "missing": lambda: None,
            "empty": path.touch,
        }
        make[kind]()
        said = await self.prompt(site, reads=True)
        assert "SECRET" not in said
        assert confining.AGENTS_MD_HEAD not in said

    async def test_no_more_than_the_limit_is_read(self, site: Any) -> None:
        (site.folder / "AGENTS.md").write_text("x" * 100_000)
        assert len(await self.prompt(site, reads=True)) < confining.AGENTS_MD_LIMIT + 500


class TestWhetherItMayRun:
    @pytest.fixture(autouse=True)
    async def granted(self, site: Any) -> None:
        await give(site)

    async def test_as_root_it_is_refused_with_the_reason(
        self, site: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings.ALLOW_ROOT_AGENT = False
        monkeypatch.setattr(sandboxing, "runs_as_root", lambda: True)
        answer = await ask(site)
        row = await site.refused(answer, 503, "agent_as_root")
        assert "CODEX_PROXY_CODEX_USER" in answer.error["message"]
        assert row.proof_id is None
        assert site.engine.turns == []
        await site.recorded(await site.client.ask(), "ok")

    async def test_a_sandbox_that_broke_is_503_and_says_what_to_do(self, site: Any) -> None:
        await self.store(site, passed=False)
        answer = await ask(site)
        await site.refused(answer, 503, "agent_not_proven")
        assert "verify_sandbox" in answer.error["message"]
        assert "cannot read another root" in answer.error["message"]
        assert "/srv/secret" not in answer.error["message"]
        assert site.engine.turns == []
        await site.recorded(await site.client.ask(), "ok")

    async def test_the_newest_proof_counts(self, site: Any) -> None:
        await self.store(site, passed=True)
        await self.store(site, passed=False)
        await site.refused(await ask(site), 503, "agent_not_proven")
        await self.store(site, passed=True)
        await site.recorded(await ask(site), "ok")

    @pytest.mark.parametrize(
        "other",
        [{"host": "another"}, {"codex_version": "9.9.9"}, {"policy_hash": "x"}, {"level": "read"}],
        ids=lambda other: next(iter(other)),
    )
    async def test_a_proof_of_something_else_does_not_count(
        self, site: Any, other: dict[str, str]
    ) -> None:
        stored = await self.store(site, passed=True, **other)
        row = await site.recorded(await ask(site), "ok")
        assert row.proof_id is not None
        assert row.proof_id != stored.pk, "one was made for this"

    async def test_one_that_broke_long_ago_is_tried_again(self, site: Any) -> None:
        broken = await self.store(site, passed=False)
        long_ago = timezone.now() - sandboxing.RETRY_AFTER - timedelta(seconds=1)
        await site.database(SandboxProof.objects.filter(pk=broken.pk).update, created_at=long_ago)
        row = await site.recorded(await ask(site), "ok")
        assert row.proof_id > broken.pk

    async def test_what_live_grants_need_is_proven_before_anybody_asks(self, site: Any) -> None:
        await give(site, level="network")
        assert (await site.client.get("/ready")).status == 200
        levels = await site.database(
            lambda: set(SandboxProof.objects.values_list("level", flat=True))
        )
        assert levels == {"write", "network"}
        await site.database(SandboxProof.objects.all().delete)
        await site.service.runtime._warm_up()
        assert await site.database(SandboxProof.objects.count) == 2

    async def test_many_requests_make_one_proof(self, site: Any) -> None:
        answers = await asyncio.gather(*(ask(site) for _ in range(5)))
        assert {answer.status for answer in answers} == {200}
        assert await site.database(SandboxProof.objects.count) == 1

    async def test_ready_fails_only_where_a_grant_needs_it(self, site: Any) -> None:
        await self.store(site, passed=False)
        answer = await site.client.get("/ready")
        assert answer.status == 503
        assert "cannot read another root" in answer.json()["checks"]["agent_mode"]["reason"]
        await site.database(lambda: AgentGrant.objects.get().revoke())
        answer = await site.client.get("/ready")
        assert answer.status == 200
        assert "cannot read another root" in answer.json()["checks"]["agent_mode"]["note"]

    async def store(self, site: Any, *, passed: bool, **other: str) -> Model:
        seen = {"name": "cannot read another root", "engine": "exec", "held": passed,
                "seen": "/srv/secret"}  # fmt: skip
        fields = {
            "host": sandboxing.host(),
            "codex_version": "0.0.0",
            "level": "write",
            "policy_hash": sandboxing.form_hash("write"),
        } | other
        made: Model = await site.database(
            SandboxProof.objects.create,
            **fields, probes=[seen], passed=passed, as_root=False, duration_ms=1,
        )  # fmt: skip
        return made
