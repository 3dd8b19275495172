"""Grants are evidence: given by somebody, ended by somebody, never rewritten."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from proxy.models import AgentGrant, AllowedRoot, ApiKey

pytestmark = pytest.mark.django_db

NOW = {"starts_at_0": "2026-01-01", "starts_at_1": "10:00:00"}
NO_END = {"ends_at_0": "", "ends_at_1": ""}


def test_a_grant_is_signed_by_who_gives_it(
    client: Client, boss: User, key: ApiKey, root: AllowedRoot
):
    data = {
        "key": key.pk,
        "roots": [root.pk],
        "reason": "upgrades",
        "level": "read",
        **NOW,
        **NO_END,
    }

    response = client.post("/admin/proxy/agentgrant/add/", data)

    assert response.status_code == 302
    grant = AgentGrant.objects.get()
    assert (grant.granted_by, grant.state, list(grant.roots.all())) == (boss, "live", [root])
    assert grant.level == "read"


def test_only_the_end_of_a_given_grant_can_be_moved(client: Client, grant: AgentGrant):
    page = f"/admin/proxy/agentgrant/{grant.pk}/change/"

    response = client.post(
        page, {"reason": "other", "ends_at_0": "2030-01-01", "ends_at_1": "10:00"}
    )

    assert response.status_code == 302
    grant.refresh_from_db()
    assert grant.reason == "upgrades"
    assert grant.ends_at is not None
    assert grant.ends_at.year == 2030
    assert set(client.get(page).context["adminform"].form.fields) == {"ends_at"}


def test_an_end_before_the_start_is_refused_at_the_field(client: Client, grant: AgentGrant):
    response = client.post(
        f"/admin/proxy/agentgrant/{grant.pk}/change/",
        {"ends_at_0": "2001-01-01", "ends_at_1": "10:00"},
    )

    assert response.context["adminform"].form.errors == {
        "ends_at": ["A grant must end after it starts."]
    }


def test_a_revoked_grant_can_no_longer_be_changed(client: Client, grant: AgentGrant, boss: User):
    page = f"/admin/proxy/agentgrant/{grant.pk}"

    assert client.post(f"{page}/revoke/").status_code == 302

    grant.refresh_from_db()
    assert (grant.state, grant.revoked_by) == ("revoked", boss)
    assert not client.get(f"{page}/change/").context["adminform"].form.fields
    assert client.post(f"{page}/revoke/").status_code == 403


def test_a_grant_without_effect_says_so(client: Client, key: ApiKey, tmp_path: Any):
    other = AllowedRoot.objects.create(alias="docs", path=str(tmp_path))
    data = {"key": key.pk, "roots": [other.pk], "reason": "x", "level": "write", **NOW, **NO_END}

    response = client.post("/admin/proxy/agentgrant/add/", data, follow=True)

    assert "may not work in docs now" in response.content.decode()


def test_a_grant_leads_to_its_requests(client: Client, grant: AgentGrant):
    text = client.get(f"/admin/proxy/agentgrant/{grant.pk}/change/").content.decode()

    url = f"/admin/audit/requestrecord/?grant_id={grant.pk}"
    assert url in text
    assert client.get(url).status_code == 200
