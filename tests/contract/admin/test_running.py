"""The board's page and the kill's: who sees them, who may end what, and what is on record of it."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone

from audit.models import RequestRecord
from proxy.models import AgentGrant, ApiKey, ChangeEntry, KillOrder
from tests.contract.admin.conftest import logged_in

pytestmark = pytest.mark.django_db

BOARD = "/admin/running/"


@pytest.fixture
def running(grant: AgentGrant) -> RequestRecord:
    """A request that runs in another process."""
    return RequestRecord.objects.create(
        request_id=uuid.uuid4(), created_at=timezone.now(), endpoint="/v1/chat/completions",
        method="POST", key_id=grant.key_id, key_name="ci", root_alias="shop", engine="exec",
        agent_mode=True, grant_id=grant.pk, boot="another",
    )  # fmt: skip


def kill_page(record: RequestRecord) -> str:
    return f"{BOARD}{record.request_id}/kill/"


def request_page(record: RequestRecord) -> str:
    return f"/admin/audit/requestrecord/{record.pk}/change/"


@pytest.mark.parametrize("role", ["auditor", "operator", "administrator"])
def test_each_role_sees_what_runs(
    role: str, request: pytest.FixtureRequest, running: RequestRecord
):
    person: Client = request.getfixturevalue(role)

    page = person.get(BOARD)

    (row,) = page.context["first"]["rows"]
    assert (row["request_id"], row["is_here"]) == (str(running.request_id), False)
    assert page.context["may_kill"] is (role != "auditor")
    assert person.get(f"{BOARD}{running.request_id}/")["Location"] == request_page(running)


def test_an_auditor_cannot_kill_by_any_path(
    auditor: Client, running: RequestRecord, grant: AgentGrant
):
    assert "/kill/" not in auditor.get(request_page(running)).text
    assert auditor.get(kill_page(running)).status_code == 403
    assert auditor.post(kill_page(running), {"reason": "x"}).status_code == 403
    for page in (f"agentgrant/{grant.pk}", f"apikey/{grant.key_id}"):
        assert auditor.post(f"/admin/proxy/{page}/revoke/", {"kill": "on"}).status_code == 403
    assert not KillOrder.objects.exists()


def test_an_operator_kills_with_a_reason_that_is_on_record(
    operator: Client, running: RequestRecord
):
    assert kill_page(running) in operator.get(request_page(running)).text
    assert "reason" in operator.post(kill_page(running), {"reason": " "}).context["form"].errors
    assert not KillOrder.objects.exists()

    assert operator.post(kill_page(running), {"reason": "circles"}).status_code == 302

    order = KillOrder.objects.get()
    assert (order.request_id, order.reason) == (running.request_id, "circles")
    assert str(order.ordered_by) == "olaf"
    entry = ChangeEntry.objects.get(content_type__model="killorder")
    assert str(entry.actor) == "olaf"
    assert operator.get("/admin/proxy/changeentry/").status_code == 200
    assert operator.get(f"/admin/proxy/changeentry/{entry.pk}/change/").status_code == 200


def test_what_has_ended_offers_no_kill(operator: Client, running: RequestRecord):
    RequestRecord.objects.update(outcome="cancelled", killed_by="olaf", kill_reason="circles")

    assert "It has ended" in operator.get(kill_page(running)).text
    page = operator.get(request_page(running)).text
    assert kill_page(running) not in page
    assert "by olaf: circles" in page
    assert operator.get(BOARD).context["first"]["rows"] == []


@pytest.mark.parametrize("what", ["grant", "key"])
def test_a_revocation_offers_to_end_what_runs(
    administrator: Client, running: RequestRecord, grant: AgentGrant, what: str
):
    pk = grant.pk if what == "grant" else grant.key_id
    page = f"/admin/proxy/{'agentgrant' if what == 'grant' else 'apikey'}/{pk}/revoke/"
    assert "End the 1 request that runs under it now" in administrator.get(page).text

    administrator.post(page, {"kill": "on"})

    order = KillOrder.objects.get()
    assert (order.grant_id, order.key_id) == ((pk, None) if what == "grant" else (None, pk))


def test_a_revocation_alone_ends_nothing(
    operator: Client, running: RequestRecord, grant: AgentGrant
):
    assert operator.post(f"/admin/proxy/agentgrant/{grant.pk}/revoke/").status_code == 302

    assert not KillOrder.objects.exists()


def test_who_may_revoke_and_not_kill_is_refused_the_whole(
    running: RequestRecord, key: ApiKey, db: None
):
    user = User.objects.create_user("eve", is_staff=True)
    user.user_permissions.set(
        Permission.objects.filter(codename__in=["view_apikey", "change_apikey"])
    )
    person, page = logged_in(user), f"/admin/proxy/apikey/{key.pk}/revoke/"

    assert 'name="kill"' not in person.get(page).text
    assert person.post(page, {"kill": "on"}).status_code == 403

    key.refresh_from_db()
    assert key.revoked_at is None
    assert person.post(page).status_code == 302


@pytest.mark.parametrize("page", [BOARD, f"{BOARD}{uuid.uuid4()}/", f"{BOARD}{uuid.uuid4()}/kill/"])
def test_a_stranger_is_sent_to_the_login_and_a_guest_refused(db: None, page: str):
    assert Client().get(page)["Location"].startswith("/admin/login/")
    assert logged_in(User.objects.create_user("guest", is_staff=True)).get(page).status_code == 403


def test_a_kill_takes_the_page_s_token(running: RequestRecord, boss: User):
    person = Client(enforce_csrf_checks=True)
    person.force_login(boss)

    assert person.post(kill_page(running), {"reason": "x"}).status_code == 403


def test_an_unknown_request_leads_to_the_list(auditor: Client, db: None):
    unknown = uuid.uuid4()

    assert auditor.get(f"{BOARD}{unknown}/")["Location"].endswith(f"?q={unknown}")


def test_the_sidebar_shows_pages_to_those_who_may_open_them(auditor: Client, db: None):
    guest = logged_in(User.objects.create_user("guest", is_staff=True))

    for link in (BOARD, "/admin/who-could-write/"):
        assert f'href="{link}"' in auditor.get("/admin/", follow=True).text
        assert f'href="{link}"' not in guest.get("/admin/").text


def test_names_on_the_board_are_text_and_nothing_else(auditor: Client, running: Any):
    RequestRecord.objects.update(key_name="</script><img src=x>")

    assert "</script><img" not in auditor.get(BOARD).text
