"""What agents did, in the admin: the timeline of a request, the list, and the page of each."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from audit.models import AgentAction, RequestRecord
from tests.contract.admin.conftest import logged_in
from tests.contract.admin.test_request_page import page_of, record

pytestmark = pytest.mark.django_db

LIST = "/admin/audit/agentaction/"
DIFF = "@@ -1 +1 @@\n-old <b>\n+new <script>alert(1)</script>\n"


def act(request: RequestRecord, number: int, kind: str = "command", **fields: Any) -> AgentAction:
    basics = {"status": "completed", "key_id": 7, "key_name": "ci", "key_prefix": "sk-ci"}
    return AgentAction.objects.create(
        request_id=request.request_id, number=number, created_at=timezone.now(), kind=kind,
        **{**basics, **fields},
    )  # fmt: skip


@pytest.fixture
def request_row(db: None) -> RequestRecord:
    row = record(agent_mode=True, action_count=3)
    act(row, 1, command="/bin/bash -c 'curl http://x'", exit_code=7, status="failed",
        cwd="/srv/shop", output_head="<i>no route</i>", output_bytes=8)  # fmt: skip
    act(row, 2, "patch", path="shop/settings.py", change="update", lines_added=1,
        lines_removed=1, diff=DIFF)  # fmt: skip
    act(row, 3, "escalation_refused", command="sudo id", status="refused", note="policy is never")
    return row


def found(client: Client, query: str) -> list[str]:
    """Return the ids of the actions that a list shows."""
    response = client.get(f"{LIST}?{query}")
    assert response.status_code == 200
    return sorted(str(action.number) for action in response.context["cl"].result_list)


def test_the_request_s_page_shows_what_its_agent_did_in_order(
    client: Client, request_row: RequestRecord
):
    text = page_of(client, request_row)

    places = [text.index(said) for said in ("curl http://x", "shop/settings.py", "sudo id")]
    assert places == sorted(places)
    for said in ("exit 7", "+1 \u22121", "policy is never", "in /srv/shop", "patch"):
        assert said in text
    for action in AgentAction.objects.all():
        assert f"{LIST}{action.pk}/change/" in text


def test_what_an_agent_wrote_is_shown_and_never_run(client: Client, request_row: RequestRecord):
    pages = [page_of(client, request_row)]
    pages += [
        client.get(f"{LIST}{action.pk}/change/").content.decode()
        for action in AgentAction.objects.all()
    ]
    pages.append(client.get(LIST).content.decode())
    for text in pages:
        assert "<script>alert(1)" not in text
        assert "<i>no route" not in text
    assert "&lt;script&gt;alert(1)" in pages[0]


def test_a_chat_s_page_has_no_timeline(client: Client):
    assert "What the agent did" not in page_of(client, record(agent_mode=False))


def test_an_action_s_page_leads_to_its_request(client: Client, request_row: RequestRecord):
    action = AgentAction.objects.get(number=2)
    text = client.get(f"{LIST}{action.pk}/change/").content.decode()
    assert f"/admin/audit/requestrecord/{request_row.pk}/change/" in text
    assert "shop/settings.py" in text


def test_an_action_whose_request_has_no_row_has_its_page(
    client: Client, request_row: RequestRecord
):
    RequestRecord.objects.all().delete()
    action = AgentAction.objects.get(number=2)
    assert str(action.request_id) in client.get(f"{LIST}{action.pk}/change/").content.decode()


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("", "123"),
        ("q=settings.py", "2"),
        ("q=CURL", "1"),
        ("q=sudo", "3"),
        ("q=nothing", ""),
        ("kind=patch", "2"),
        ("kind=patch&q=curl", ""),
        ("exit_code=7", "1"),
        ("exit_code=0", ""),
        ("status=refused", "3"),
        ("key_id=7", "123"),
        ("key_id=8", ""),
        ("period=1h", "123"),
        ("created_at_to=2020-01-01", ""),
    ],
)
def test_the_list_answers(client: Client, request_row: RequestRecord, query: str, numbers: str):
    assert found(client, query) == list(numbers)


def test_the_list_finds_all_of_a_request(client: Client, request_row: RequestRecord):
    act(record(), 9)
    assert found(client, f"q={request_row.request_id}") == ["1", "2", "3"]
    assert found(client, f"q={uuid.uuid4()}") == []


def test_a_filter_by_what_is_no_number_is_passed_over(client: Client, request_row: RequestRecord):
    assert client.get(f"{LIST}?exit_code=x", follow=True).status_code == 200


def test_both_roles_read_actions_and_nobody_changes_them(
    auditor: Client, operator: Client, client: Client, request_row: RequestRecord
):
    action = AgentAction.objects.get(number=1)
    page = f"{LIST}{action.pk}/change/"
    for browser in (auditor, operator):
        assert browser.get(LIST).status_code == 200
        assert browser.get(page).status_code == 200
        assert "curl" in page_of(browser, request_row)
    for browser in (auditor, operator, client):
        assert browser.post(page, {"command": "true"}).status_code == 403
        assert browser.post(f"{LIST}{action.pk}/delete/", {"post": "yes"}).status_code == 403
        assert browser.get(f"{LIST}add/").status_code == 403
    assert AgentAction.objects.count() == 3


def test_staff_without_a_role_reads_none(db: None, request_row: RequestRecord):
    nobody = logged_in(User.objects.create_user("ned", is_staff=True))
    assert nobody.get(LIST).status_code == 403
