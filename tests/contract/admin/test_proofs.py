"""Proofs of the sandbox in the admin: read by both roles, tried by an operator, edited by nobody."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from proxy import sandboxing
from proxy.engines.base import EngineConfig
from proxy.engines.confinement import LEVELS, Level
from proxy.errors import EngineUnavailable
from proxy.models import AgentGrant, SandboxProof

pytestmark = pytest.mark.django_db

LIST = "/admin/proxy/sandboxproof/"
BUTTON = "/admin/proxy/sandboxproof/verify/"


def store(*, passed: bool, level: str = "write", **fields: Any) -> SandboxProof:
    probe = {"engine": "exec", "name": "cannot reach the moon", "held": passed, "seen": "a flag"}
    return SandboxProof.objects.create(
        host=sandboxing.host(), codex_version="1.2.3", level=level, policy_hash="abc",
        facts={"platform": "Minix"}, probes=[probe], passed=passed, as_root=False, duration_ms=7,
        **fields,
    )  # fmt: skip


@pytest.fixture
def proven(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """The levels that were tried, and for whom."""
    seen: list[tuple[str, Any]] = []

    async def prove(config: EngineConfig, level: Level, by: Any = None) -> SandboxProof:
        if level == "read":
            raise EngineUnavailable("Codex does not start.")
        seen.append((level, by))
        return SandboxProof(
            level=level, passed=level == "write", created_by=by,
            probes=[{"engine": "exec", "name": "cannot reach the moon", "held": False, "seen": ""}],
        )  # fmt: skip

    monkeypatch.setattr(sandboxing, "prove", prove)
    return seen


@pytest.mark.parametrize("role", ["auditor", "operator"])
def test_both_roles_read_what_was_tried_and_what_was_seen(
    request: pytest.FixtureRequest, role: str
) -> None:
    client: Client = request.getfixturevalue(role)
    proof = store(passed=False)
    assert "cannot reach the moon (exec)" in client.get(LIST).content.decode()
    page = client.get(f"{LIST}{proof.pk}/change/").content.decode()
    for text in ("cannot reach the moon", "a flag", "broken", "Minix", "1.2.3"):
        assert text in page


def test_an_operator_has_all_levels_tried_and_hears_what_came_of_it(
    operator: Client, proven: list[tuple[str, Any]]
) -> None:
    assert BUTTON in operator.get(LIST).content.decode()
    assert operator.get(BUTTON).status_code == 200
    assert proven == [], "looking at the page tries nothing"
    page = operator.post(BUTTON, follow=True).content.decode()
    assert [(level, str(by)) for level, by in proven] == [("write", "olaf"), ("network", "olaf")]
    assert "Level write: every probe held." in page
    assert "Level network: broken. cannot reach the moon (exec)" in page
    assert "Level read: the probes could not run. Codex does not start." in page
    assert len(LEVELS) == 3


def test_an_auditor_cannot_have_it_tried(auditor: Client, proven: list[tuple[str, Any]]) -> None:
    assert BUTTON not in auditor.get(LIST).content.decode()
    assert auditor.get(BUTTON).status_code == 403
    assert auditor.post(BUTTON).status_code == 403
    assert proven == []


def test_nobody_writes_changes_or_deletes_a_proof(client: Client) -> None:
    proof = store(passed=False)
    page = f"{LIST}{proof.pk}"
    assert client.get(f"{LIST}add/").status_code == 403
    assert client.post(f"{page}/change/", {"passed": "on"}).status_code == 403
    assert client.post(f"{page}/delete/", {"post": "yes"}).status_code == 403
    proof.refresh_from_db()
    assert not proof.passed


class TestNotice:
    @pytest.fixture(autouse=True)
    def unprivileged(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sandboxing, "runs_as_root", lambda: False)

    def shown(self, client: Client) -> str:
        page = client.get(LIST).content.decode()
        _, found, rest = page.partition('id="agent-notice"')
        return rest.partition("</div>")[0] if found else ""

    def test_nothing_is_said_while_no_grant_lives(self, client: Client) -> None:
        store(passed=False)
        assert self.shown(client) == ""

    def test_a_broken_sandbox_is_named_on_every_page(
        self, client: Client, grant: AgentGrant
    ) -> None:
        store(passed=True)
        assert self.shown(client) == ""
        store(passed=False)
        assert "cannot reach the moon" in self.shown(client)
        store(passed=False, level="network")
        store(passed=True)
        assert self.shown(client) == "", "no grant gives level network"

    def test_agents_as_root_are_named(
        self, client: Client, grant: AgentGrant, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sandboxing, "runs_as_root", lambda: True)
        settings.ALLOW_ROOT_AGENT = True
        assert "run as root" in self.shown(client)
        settings.ALLOW_ROOT_AGENT = False
        assert "CODEX_PROXY_CODEX_USER" in self.shown(client)

    def test_strangers_are_told_nothing(self, grant: AgentGrant, db: None) -> None:
        store(passed=False)
        assert "moon" not in Client().get("/").content.decode()


def test_a_proof_keeps_its_words_when_who_asked_is_gone(boss: User, client: Client) -> None:
    other = User.objects.create_user("gone")
    proof = store(passed=True, created_by=other)
    other.delete()
    proof.refresh_from_db()
    assert proof.created_by is None
    assert client.get(f"{LIST}{proof.pk}/change/").status_code == 200
