"""The pages of the request list that a large log must not slow down."""

from __future__ import annotations

from datetime import timedelta

from django.utils import timezone

LIST = "/admin/audit/requestrecord/"


def pages() -> dict[str, str]:
    """Return a URL for each kind of look at the log; `two ...` combine conditions."""
    day = (timezone.now() - timedelta(days=40)).date()
    queries = {
        "first page": "",
        "page 150": "p=150",
        "outcome ok": "outcome=ok",
        "outcome timed out": "outcome=timed_out",
        "outcome without rows": "outcome=running",
        "key": "key_id=7",
        "key without rows": "key_id=4711",
        "grant": "grant_id=1",
        "grant without rows": "grant_id=4711",
        "engine": "engine=exec",
        "model": "model_served=gpt-5.5-mini",
        "model without rows": "model_served=none",
        "agent mode": "agent_mode=1",
        "no agent mode": "agent_mode=0",
        "stream": "stream=1",
        "status": "http_status=504",
        "last hour": "period=1h",
        "last 30 days": "period=30d",
        "one day": f"created_at_from={day}&created_at_to={day}",
        "key in the last 30 days": "period=30d&key_id=7",
        "outcome of one day": f"created_at_from={day}&created_at_to={day}&outcome=timed_out",
        "request id": "q=000000000000000000000000000004d2",
        "unknown request id": "q=ffffffffffffffffffffffffffffffff",
        "key prefix": "q=sk-codexsite-key00007",
        "unknown prefix": "q=sk-nobody",
        "two that meet nowhere": "outcome=timed_out&engine=exec",
        "two broad ones that meet seldom": "outcome=timed_out&model_served=gpt-5.5",
        "two broad ones that meet often": "outcome=ok&stream=1",
        "two of old days": f"created_at_to={day}&agent_mode=1&outcome=timed_out",
        "two keys by prefix": "q=sk-codexsite-key0001",
    }
    return {name: f"{LIST}?{query}" for name, query in queries.items()}
