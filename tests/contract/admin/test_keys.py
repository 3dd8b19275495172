"""Keys in the admin: the secret is seen once, and what a key may do is checked at its field."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry as AdminLogEntry
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.test import Client
from django.utils import timezone

from proxy.models import SECRET_START, AllowedRoot, ApiKey, ChangeEntry

pytestmark = pytest.mark.django_db

ADD = "/admin/proxy/apikey/add/"
SECRET = re.compile(rf"{SECRET_START}[\w-]{{43}}")


def form(owner: User, **more: Any) -> dict[str, Any]:
    empty = {"expires_at_0": "", "expires_at_1": "", "engine": "", "models_allowed": "", "note": ""}
    return {"name": "laptop", "owner": owner.pk, **empty, **more}


def secrets_in(response: Any) -> list[str]:
    return SECRET.findall(response.content.decode())


def test_a_new_key_shows_a_secret_that_opens_it(client: Client, boss: User, root: AllowedRoot):
    response = client.post(
        ADD,
        form(
            boss, allowed_roots=[root.pk], default_root=root.pk, models_allowed="gpt-5.5\n\n gpt-x "
        ),
    )

    [secret] = set(secrets_in(response))
    key = ApiKey.objects.get()
    assert ApiKey.objects.find(secret) == key
    assert (key.created_by, key.models_allowed) == (boss, ["gpt-5.5", "gpt-x"])
    assert list(key.allowed_roots.all()) == [root]
    assert "no-store" in response["Cache-Control"]


def test_the_secret_is_kept_nowhere(client: Client, boss: User):
    response = client.post(ADD, form(boss))
    [secret] = set(secrets_in(response))
    key = ApiKey.objects.get()

    pages = [
        "/admin/",
        "/admin/proxy/apikey/",
        f"/admin/proxy/apikey/{key.pk}/change/",
        "/admin/proxy/changeentry/",
        *(f"/admin/proxy/changeentry/{entry.pk}/change/" for entry in ChangeEntry.objects.all()),
    ]
    for page in pages:
        text = client.get(page).content.decode()
        assert secret not in text
        assert key.digest not in text
    tail = secret.removeprefix(key.prefix)
    sessions = [str(session.get_decoded()) for session in Session.objects.all()]
    changes = [f"{entry.changes} {entry.serialized_data}" for entry in ChangeEntry.objects.all()]
    history = [
        f"{entry.object_repr} {entry.change_message}" for entry in AdminLogEntry.objects.all()
    ]
    cookies = [morsel.value for morsel in client.cookies.values()]
    assert changes
    assert history
    for text in (*sessions, *changes, *history, *cookies):
        assert tail not in text
        assert key.digest not in text


def test_a_default_root_must_be_an_allowed_one(
    client: Client, boss: User, root: AllowedRoot, tmp_path: Any
):
    other = AllowedRoot.objects.create(alias="docs", path=str(tmp_path))

    among = client.post(ADD, form(boss, allowed_roots=[root.pk], default_root=other.pk))
    none = client.post(ADD, form(boss, default_root=other.pk))

    assert among.context["errors"] == [["This is none of the key's allowed roots."]]
    assert "none of the roots of the proxy settings" in str(none.context["errors"])
    assert not ApiKey.objects.exists()


def test_rotation_shows_a_new_secret_and_keeps_the_old_one_for_its_grace(
    client: Client, boss: User
):
    key, old = ApiKey.objects.issue(name="ci", owner=boss)

    response = client.post(f"/admin/proxy/apikey/{key.pk}/rotate/", {"grace": "24"})

    [new] = set(secrets_in(response))
    assert ApiKey.objects.find(new) == ApiKey.objects.find(old) == key
    key.refresh_from_db()
    assert key.previous_valid_until is not None
    left = key.previous_valid_until - timezone.now()
    assert timedelta(hours=23) < left <= timedelta(hours=24)
    assert (
        "still works until" in client.get(f"/admin/proxy/apikey/{key.pk}/change/").content.decode()
    )


def test_rotation_without_grace_ends_the_old_secret(client: Client, boss: User):
    key, old = ApiKey.objects.issue(name="ci", owner=boss)

    client.post(f"/admin/proxy/apikey/{key.pk}/rotate/", {"grace": "0"})

    assert ApiKey.objects.find(old) is None


def test_opening_the_rotation_page_changes_nothing(client: Client, key: ApiKey):
    response = client.get(f"/admin/proxy/apikey/{key.pk}/rotate/")

    assert not secrets_in(response)
    assert ApiKey.objects.get().digest == key.digest


def test_a_revoked_key_is_closed_for_good(client: Client, key: ApiKey, boss: User):
    page = f"/admin/proxy/apikey/{key.pk}"
    assert client.get(f"{page}/revoke/").status_code == 200
    assert ApiKey.objects.get().revoked_at is None

    response = client.post(f"{page}/revoke/")

    assert response.status_code == 302
    key.refresh_from_db()
    assert (key.state, key.revoked_by) == ("revoked", boss)
    assert client.post(f"{page}/rotate/", {"grace": "0"}).status_code == 403
    assert client.post(f"{page}/revoke/").status_code == 403
    assert f"{page}/rotate/" not in client.get(f"{page}/change/").content.decode()


def test_the_list_filters_by_state(client: Client, boss: User):
    past = timezone.now() - timedelta(days=1)
    for name, fields in {"a": {}, "b": {"expires_at": past}, "c": {"revoked_at": past}}.items():
        ApiKey.objects.issue(name=name, owner=boss, **fields)

    found = {
        state: [
            key.name
            for key in client.get(f"/admin/proxy/apikey/?state={state}").context["cl"].result_list
        ]
        for state in ("live", "expired", "revoked")
    }

    assert found == {"live": ["a"], "expired": ["b"], "revoked": ["c"]}


def test_a_key_leads_to_its_requests_and_grants(client: Client, key: ApiKey):
    text = client.get(f"/admin/proxy/apikey/{key.pk}/change/").content.decode()

    for url in (
        f"/admin/audit/requestrecord/?key_id={key.pk}",
        f"/admin/proxy/agentgrant/?key__id__exact={key.pk}",
    ):
        assert url in text
        assert client.get(url).status_code == 200
