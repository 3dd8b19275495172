"""An auditor reads, an operator manages and kills, an administrator grants; nobody deletes."""

from __future__ import annotations

import uuid

import pytest
from django.contrib.admin import site
from django.contrib.auth.models import User
from django.db.models import Model
from django.test import Client, RequestFactory
from django.urls import NoReverseMatch, reverse
from django.utils import timezone

from audit.models import AgentAction, RequestRecord
from proxy.models import AgentGrant, AllowedRoot, ApiKey, ChangeEntry, ProxySettings

pytestmark = pytest.mark.django_db

KEPT: list[type[Model]] = [
    ApiKey,
    AgentGrant,
    ProxySettings,
    RequestRecord,
    AgentAction,
    ChangeEntry,
    User,
]


@pytest.fixture
def record(db: None) -> RequestRecord:
    return RequestRecord.objects.create(
        request_id=uuid.uuid4(), created_at=timezone.now(), endpoint="/v1/models", method="GET"
    )


@pytest.fixture
def pages(grant: AgentGrant, root: AllowedRoot, record: RequestRecord) -> list[str]:
    change = ChangeEntry.objects.order_by("-id")[0]
    return [
        f"/admin/proxy/apikey/{grant.key.pk}/change/",
        f"/admin/proxy/allowedroot/{root.pk}/change/",
        f"/admin/proxy/agentgrant/{grant.pk}/change/",
        "/admin/proxy/proxysettings/1/change/",
        f"/admin/audit/requestrecord/{record.pk}/change/",
        f"/admin/proxy/changeentry/{change.pk}/change/",
    ]


def test_an_auditor_reads_every_list_and_page(auditor: Client, pages: list[str]):
    for page in pages:
        assert auditor.get(page).status_code == 200, page
        folder = page.rsplit("/", 3)[0] + "/"
        assert auditor.get(folder, follow=True).status_code == 200, folder


def test_an_auditor_changes_nothing(auditor: Client, grant: AgentGrant, pages: list[str]):
    key = grant.key
    before = ChangeEntry.objects.count()
    writes = [
        *pages,
        "/admin/proxy/apikey/add/",
        "/admin/proxy/allowedroot/add/",
        "/admin/proxy/agentgrant/add/",
        f"/admin/proxy/apikey/{key.pk}/rotate/",
        f"/admin/proxy/apikey/{key.pk}/revoke/",
        f"/admin/proxy/apikey/{key.pk}/give_grant/",
        f"/admin/proxy/agentgrant/{grant.pk}/revoke/",
        f"/admin/proxy/agentgrant/{grant.pk}/approve/",
        f"/admin/proxy/agentgrant/{grant.pk}/extend/",
        f"/admin/running/{uuid.uuid4()}/kill/",
    ]

    for page in writes:
        assert auditor.post(page, {"grace": "0"}).status_code == 403, page

    assert ChangeEntry.objects.count() == before
    assert ApiKey.objects.get().digest == key.digest


def test_an_auditor_sees_no_buttons_that_would_be_refused(auditor: Client, key: ApiKey):
    text = auditor.get(f"/admin/proxy/apikey/{key.pk}/change/").content.decode()

    assert "/rotate/" not in text
    assert "/revoke/" not in text
    assert 'name="_save"' not in text


def test_an_operator_manages_the_policy_and_revokes_but_does_not_grant(
    operator: Client, grant: AgentGrant
):
    for page in ("apikey/add", "allowedroot/add", "proxysettings/1/change"):
        response = operator.get(f"/admin/proxy/{page}/")
        assert 'name="_save"' in response.content.decode(), page
    assert operator.post(f"/admin/proxy/agentgrant/{grant.pk}/revoke/").status_code == 302
    assert operator.get("/admin/auth/user/").status_code == 403
    for page in ("agentgrant/add", f"apikey/{grant.key.pk}/give_grant"):
        assert operator.get(f"/admin/proxy/{page}/").status_code == 403
        assert operator.post(f"/admin/proxy/{page}/", {"reason": "x"}).status_code == 403


@pytest.mark.parametrize("model", KEPT)
def test_not_even_a_superuser_deletes_what_is_evidence(
    model: type[Model], boss: User, client: Client, pages: list[str]
):
    admin = site._registry[model]
    request = RequestFactory().get("/")
    request.user = boss
    row = model._base_manager.order_by("-pk").first()
    name = f"{model._meta.app_label}_{model._meta.model_name}"

    assert not admin.has_delete_permission(request)
    assert not admin.has_delete_permission(request, row)
    assert not admin.get_actions(request)
    pk = row.pk if row else 1
    assert (
        client.post(reverse(f"admin:{name}_delete", args=[pk]), {"post": "yes"}).status_code == 403
    )
    bulk = {"action": "delete_selected", "_selected_action": [pk], "post": "yes"}
    client.post(reverse(f"admin:{name}_changelist"), bulk)
    assert row is None or model._base_manager.filter(pk=pk).exists()


def test_a_root_stays_while_a_grant_or_a_key_names_it(
    client: Client, grant: AgentGrant, root: AllowedRoot
):
    page = f"/admin/proxy/allowedroot/{root.pk}/delete/"

    assert client.post(page, {"post": "yes"}).status_code == 403

    grant.roots.clear()
    assert client.post(page, {"post": "yes"}).status_code == 403
    for key in root.keys.all():  # without it the key would fall back on the general roots
        key.allowed_roots.remove(root)
    assert client.post(page, {"post": "yes"}).status_code == 302
    assert not AllowedRoot.objects.exists()


def test_the_library_s_own_log_page_is_gone():
    with pytest.raises(NoReverseMatch):
        reverse("admin:auditlog_logentry_changelist")


def test_a_stranger_is_sent_to_the_login(db: None):
    response = Client().get("/admin/proxy/apikey/")

    assert response.status_code == 302
    assert response["Location"].startswith("/admin/login/")
