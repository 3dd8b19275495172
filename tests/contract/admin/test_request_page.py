"""A request's own page: what it was, where its time went, and the ways to its key and grant."""

from __future__ import annotations

import re
import uuid
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from audit.models import RequestRecord
from audit.phases import segments
from proxy.models import AgentGrant

pytestmark = pytest.mark.django_db


def record(**fields: Any) -> RequestRecord:
    basics = {"endpoint": "/v1/chat/completions", "method": "POST", "outcome": "ok"}
    return RequestRecord.objects.create(
        request_id=uuid.uuid4(), created_at=timezone.now(), **{**basics, **fields}
    )


def page_of(client: Client, row: RequestRecord) -> str:
    return client.get(f"/admin/audit/requestrecord/{row.pk}/change/").content.decode()


def test_the_page_draws_the_phases_in_order(client: Client):
    row = record(phases={"answer": 600.0, "auth": 100.0, "queue_wait": 250.0}, total_ms=1000.0)

    text = page_of(client, row)

    bar = re.search(r'aria-label="([^"]*)"', text)
    assert bar
    assert bar[1] == "auth 100.0 ms, queue_wait 250.0 ms, answer 600.0 ms, other 50.0 ms"


def test_the_page_leads_to_key_and_grant_and_to_their_requests(client: Client, grant: AgentGrant):
    key = grant.key
    row = record(
        key_id=key.pk, key_name=key.name, key_prefix=key.prefix, agent_mode=True, grant_id=grant.pk
    )

    text = page_of(client, row)

    for url in (
        f"/admin/proxy/apikey/{key.pk}/change/",
        f"/admin/audit/requestrecord/?key_id={key.pk}",
        f"/admin/proxy/agentgrant/{grant.pk}/change/",
        f"/admin/audit/requestrecord/?grant_id={grant.pk}",
    ):
        assert url in text
        assert client.get(url).status_code == 200


def test_a_refused_request_without_a_key_has_its_page(client: Client):
    row = record(outcome="rejected", http_status=401, error_code="invalid_api_key")

    text = page_of(client, row)

    assert "invalid_api_key" in text
    assert row.request_id.hex not in text  # as people write it, with dashes
    assert str(row.request_id) in text


def test_unknown_is_not_shown_as_zero(client: Client):
    text = page_of(client, record(input_tokens=None, output_tokens=0))

    values = re.findall(
        r"(Input|Output) tokens\s*</label>.*?readonly[^>]*>([^<]*)<", text, re.DOTALL
    )
    assert dict(values) == {"Input": "-", "Output": "0"}


def test_what_a_client_sent_is_text_on_the_page(client: Client):
    row = record(user_agent="<script>alert(1)</script>", error_message="<b>x</b>", key_name="<i>k")

    for text in (page_of(client, row), client.get("/admin/audit/requestrecord/").content.decode()):
        assert "<script>alert(1)" not in text
        assert "<b>x</b>" not in text
        assert "<i>k" not in text


def test_segments_without_a_total_share_what_is_known():
    parts = segments({"auth": 1.0, "policy": 3.0}, None)

    assert [(part.name, part.share) for part in parts] == [("auth", 25.0), ("policy", 75.0)]


def test_segments_keep_unknown_phases_and_leave_out_what_took_no_time():
    parts = segments({"novel": 2.0, "auth": 0, "policy": None, "answer": 2}, 4.0)

    assert [part.name for part in parts] == ["answer", "novel"]


def test_no_phases_make_no_bar():
    assert segments({}, None) == []
