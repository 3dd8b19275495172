"""Agent mode: only where it was asked for and a live grant covers key and root."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from proxy.models import AgentGrant, AllowedRoot
from tests.asgi import Exchange

HOUR = timedelta(hours=1)


async def grant(site: Any, *, key: Any = None, root: Any = None, **fields: Any) -> AgentGrant:
    """Give agent mode to a key (the site's) in a root (the site's)."""

    def give() -> AgentGrant:
        given = AgentGrant.objects.create(
            key=key or site.key, reason="a test", granted_by=site.owner, **fields
        )
        given.roots.add(root or site.root)
        return given

    made: AgentGrant = await site.database(give)
    return made


async def asked(site: Any, agent: Any = "true", **metadata: Any) -> Exchange:
    exchange: Exchange = await site.client.ask(metadata={"agent": agent, **metadata})
    return exchange


async def worked(site: Any, answer: Exchange, given: AgentGrant) -> None:
    """Check that turn and row say: agent mode, under this grant."""
    assert answer.status == 200, answer.body
    row = await site.recorded(answer, "ok")
    assert (row.agent_mode, row.grant_id, row.sandbox) == (True, given.pk, "codexsite_write")
    assert (site.engine.turns[-1].sandbox, site.engine.turns[-1].is_agent) == (
        "codexsite_write",
        True,
    )


async def denied(site: Any, answer: Exchange) -> None:
    row = await site.refused(answer, 403, "agent_not_granted")
    assert (answer.error["type"], answer.error["param"]) == ("permission_error", "metadata.agent")
    assert (row.agent_mode, row.grant_id, row.sandbox) == (True, None, "")
    assert site.engine.turns == []


async def chatted(site: Any, answer: Exchange) -> None:
    """Check that the turn was a chat: read-only, under no grant."""
    assert answer.status == 200, answer.body
    row = await site.recorded(answer, "ok")
    assert (row.agent_mode, row.grant_id, row.sandbox) == (False, None, "read-only")
    assert site.engine.turns[-1].sandbox == "read-only"


@pytest.mark.parametrize("agent", ["true", True, "True", "TRUE"])
async def test_live_grant_opens_agent_mode_and_is_in_the_row(site: Any, agent: Any) -> None:
    given = await grant(site)
    await worked(site, await asked(site, agent), given)


async def test_without_a_grant_it_is_403(site: Any) -> None:
    await denied(site, await asked(site))


async def test_chat_stays_read_only_under_a_live_grant(site: Any) -> None:
    await grant(site)
    await chatted(site, await site.client.ask())


@pytest.mark.parametrize("agent", ["false", False, None])
async def test_agent_false_is_a_chat(site: Any, agent: Any) -> None:
    await grant(site)
    await chatted(site, await asked(site, agent))


@pytest.mark.parametrize("agent", ["yes", "1", "", 1, 0, [], {}, "true "])
async def test_agent_of_any_other_value_is_400(site: Any, agent: Any) -> None:
    await grant(site)
    answer = await asked(site, agent)
    await site.refused(answer, 400, "invalid_value")
    assert answer.error["param"] == "metadata.agent"
    assert site.engine.turns == []


async def test_grant_that_has_not_begun_is_403(site: Any) -> None:
    await grant(site, starts_at=timezone.now() + HOUR)
    await denied(site, await asked(site))


async def test_grant_that_is_over_is_403(site: Any) -> None:
    now = timezone.now()
    await grant(site, starts_at=now - 2 * HOUR, ends_at=now - HOUR)
    await denied(site, await asked(site))


async def test_grant_that_ends_later_is_live(site: Any) -> None:
    given = await grant(site, ends_at=timezone.now() + HOUR)
    await worked(site, await asked(site), given)


async def test_revoked_grant_is_403_from_the_next_request_on(site: Any) -> None:
    given = await grant(site)
    await worked(site, await asked(site), given)
    site.engine.turns.clear()
    await site.database(given.revoke, site.owner)
    await denied(site, await asked(site))


async def test_grant_of_another_key_is_403(site: Any) -> None:
    other, _ = await site.issue("other")
    await grant(site, key=other)
    await denied(site, await asked(site))


async def test_grant_in_another_root_is_403(site: Any) -> None:
    other = await site.database(AllowedRoot.objects.create, alias="o", path=str(site.outside))
    await site.database(site.key.allowed_roots.add, other)
    await grant(site, root=other)
    await denied(site, await asked(site))


async def test_grant_in_an_outer_root_covers_the_inner_folder(site: Any) -> None:
    inner = site.folder / "inner"
    inner.mkdir()
    given = await grant(site)
    answer = await asked(site, cwd=str(inner))
    await worked(site, answer, given)
    assert site.engine.turns[-1].cwd == str(inner)


async def test_grant_in_an_inner_root_does_not_cover_the_outer_one(site: Any) -> None:
    inner = site.folder / "inner"
    inner.mkdir()
    root = await site.database(AllowedRoot.objects.create, alias="inner", path=str(inner))
    await grant(site, root=root)
    await denied(site, await asked(site))


async def test_grant_does_not_open_a_root_that_the_key_lacks(site: Any) -> None:
    other = await site.database(AllowedRoot.objects.create, alias="o", path=str(site.outside))
    await grant(site, root=other)
    answer = await asked(site, cwd=str(site.outside))
    await site.refused(answer, 403, "workspace_denied")


async def test_symlink_out_of_the_granted_root_is_403(site: Any) -> None:
    (site.folder / "out").symlink_to(site.outside)
    other = await site.database(AllowedRoot.objects.create, alias="o", path=str(site.outside))
    await site.database(site.key.allowed_roots.add, other)
    await grant(site)
    await denied(site, await asked(site, cwd=str(site.folder / "out")))


async def test_live_grant_counts_beside_a_revoked_one(site: Any) -> None:
    await site.database((await grant(site)).revoke)
    given = await grant(site)
    await worked(site, await asked(site), given)


@pytest.mark.parametrize("by", ["key", "options"])
class TestAgentByDefault:
    @pytest.fixture(autouse=True)
    async def default(self, site: Any, by: str) -> None:
        if by == "key":
            await site.change(agent_by_default=True)
        else:
            await site.set_options(agent=True)

    async def test_request_that_does_not_say_asks_for_it(self, site: Any) -> None:
        given = await grant(site)
        await worked(site, await site.client.ask(), given)

    async def test_it_needs_a_grant_all_the_same(self, site: Any) -> None:
        await denied(site, await site.client.ask())

    async def test_agent_false_in_the_request_wins(self, site: Any) -> None:
        await grant(site)
        await chatted(site, await asked(site, "false"))


async def test_exec_engine_gets_the_same_sandbox(site: Any) -> None:
    given = await grant(site)
    await site.change(engine="exec")
    answer = await asked(site)
    row = await site.recorded(answer, "ok")
    assert (row.engine, row.grant_id, row.sandbox) == ("exec", given.pk, "codexsite_write")
    assert site.exec_engine.turns[0].sandbox == "codexsite_write"
