"""Every change of the policy is on record: who, when, from where, before and after."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from django.conf import LazySettings
from django.contrib.auth.models import Group, User
from django.test import Client
from django.utils import timezone

from proxy.models import AgentGrant, AllowedRoot, ApiKey, ChangeEntry, ProxySettings

pytestmark = pytest.mark.django_db

HISTORY = "/admin/proxy/apikey/{}/history/"


def newest() -> ChangeEntry:
    entry: ChangeEntry | None = ChangeEntry.objects.order_by("-id").first()
    assert entry is not None
    return entry


def test_a_change_names_actor_address_before_and_after(
    client: Client, boss: User, root: AllowedRoot
):
    response = client.post(
        f"/admin/proxy/allowedroot/{root.pk}/change/",
        {"alias": "store", "path": root.path, "description": ""},
        REMOTE_ADDR="192.0.2.7",
        HTTP_X_FORWARDED_FOR="203.0.113.9",
    )

    assert response.status_code == 302
    entry = newest()
    assert (entry.actor, entry.remote_addr) == (boss, "192.0.2.7")
    assert entry.changes == {"alias": ["shop", "store"]}


def test_a_forwarded_address_counts_from_a_trusted_proxy_only(
    client: Client, root: AllowedRoot, settings: LazySettings
):
    settings.TRUSTED_PROXIES = (ip_network("192.0.2.0/24"),)

    client.post(
        f"/admin/proxy/allowedroot/{root.pk}/change/",
        {"alias": "store", "path": root.path, "description": ""},
        REMOTE_ADDR="192.0.2.7",
        HTTP_X_FORWARDED_FOR="10.6.6.6, 203.0.113.9",
    )

    assert newest().remote_addr == "203.0.113.9"


def test_a_unix_socket_has_no_address_and_the_change_is_kept(client: Client, root: AllowedRoot):
    client.post(
        f"/admin/proxy/allowedroot/{root.pk}/change/",
        {"alias": "store", "path": root.path, "description": ""},
        REMOTE_ADDR="",
    )

    assert newest().remote_addr is None


def test_revocation_and_rotation_are_on_record(client: Client, key: ApiKey, boss: User):
    client.post(f"/admin/proxy/apikey/{key.pk}/rotate/", {"grace": "1"})
    rotated = newest()
    client.post(f"/admin/proxy/apikey/{key.pk}/revoke/")
    revoked = newest()

    assert set(rotated.changes) == {"prefix", "previous_prefix", "previous_valid_until"}
    assert revoked.changes["revoked_by"] == ["None", "boss"]
    assert rotated.actor == revoked.actor == boss


def test_relations_are_on_record(client: Client, key: ApiKey, root: AllowedRoot):
    key.allowed_roots.clear()
    key.allowed_roots.set([root])

    assert newest().changes["allowed_roots"]["objects"] == ["shop"]


def test_last_use_leaves_no_entry(key: ApiKey):
    before = ChangeEntry.objects.count()

    ApiKey.objects.filter(pk=key.pk).update(last_used_at=timezone.now())

    assert ChangeEntry.objects.count() == before


def test_people_and_roles_are_watched_without_their_passwords(boss: User):
    user = User.objects.create_user("eve", password="open sesame")
    user.groups.add(Group.objects.get(name="Operator"))
    user.set_password("other")
    user.save()

    changes = [entry.changes for entry in ChangeEntry.objects.filter(object_repr="eve")]
    assert [change["groups"]["objects"] for change in changes if "groups" in change] == [
        ["Operator"]
    ]
    assert "password" not in str(changes)


def test_credentials_of_options_are_starred():
    row = ProxySettings.load()
    row.proxy = "http://me:sesame@proxy:3128"
    row.codex_configs = ['model_providers.x.experimental_bearer_token="sk-own"', "a=1"]
    row.save()

    text = str(newest().changes)
    assert "sesame" not in text
    assert "sk-own" not in text
    assert "http://***@proxy:3128" in text
    assert "a=1" in text


def test_the_page_of_an_entry_reads_well(client: Client, key: ApiKey, boss: User):
    key.engine, key.expires_at = "exec", timezone.now()
    key.save()

    text = client.get(f"/admin/proxy/changeentry/{newest().pk}/change/").content.decode()

    for shown in ("command line", "expires at", "exec", "ci ("):
        assert shown in text


def test_history_leads_to_the_entries_of_that_object(
    client: Client, key: ApiKey, grant: AgentGrant
):
    response = client.get(HISTORY.format(key.pk), follow=True)

    found = response.context["cl"].result_list
    assert {entry.content_type.model for entry in found} == {"apikey"}
    assert {entry.object_id for entry in found} == {key.pk}


@pytest.mark.parametrize("query", ["period=24h", "action=0", "actor_id=1", "content_type_id=1"])
def test_each_filter_answers(client: Client, key: ApiKey, query: str):
    assert client.get(f"/admin/proxy/changeentry/?{query}").status_code == 200
