"""Agent mode where grants need a second person, as a caller meets it."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User

from proxy.models import AgentGrant, ApprovalRule


def given(site: Any) -> AgentGrant:
    grant = AgentGrant.objects.create(key=site.key, reason="x", granted_by=site.owner)
    grant.roots.add(site.root)
    return grant


async def test_a_grant_opens_agent_mode_once_it_is_approved(site: Any, settings: Any) -> None:
    settings.GRANTS_NEED_APPROVAL = True
    grant = await site.database(given, site)
    agent = {"metadata": {"agent": "true"}}

    await site.refused(await site.client.ask(**agent), 403, "agent_not_granted")

    await site.database(lambda: grant.approve(by=User.objects.create_user("ben")))
    assert (await site.client.ask(**agent)).status == 200


async def test_a_grant_of_the_command_line_is_approved_by_anybody(site: Any, settings: Any) -> None:
    settings.GRANTS_NEED_APPROVAL = True
    grant = await site.database(given, site)
    await site.database(lambda: AgentGrant.objects.filter(pk=grant.pk).update(granted_by=None))
    grant.granted_by = None

    await site.database(lambda: grant.approve(by=site.owner))

    assert (await site.client.ask(metadata={"agent": "true"})).status == 200


async def test_the_server_notes_since_when_the_rule_holds(site: Any, settings: Any) -> None:
    settings.GRANTS_NEED_APPROVAL = True

    await site.client.ask()

    (rule,) = await site.database(lambda: list(ApprovalRule.objects.all()))
    assert rule.is_needed
    await site.database(ApprovalRule.objects.note, is_needed=True)
    assert await site.database(ApprovalRule.objects.count) == 1
    await site.database(ApprovalRule.objects.note, is_needed=False)
    assert await site.database(ApprovalRule.objects.count) == 2
