"""GET /metrics: counters from the database, as JSON and for Prometheus."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.errors import WorkerDied
from tests.asgi import question


async def after_some_requests(site: Any) -> None:
    """One that is ok, one refused, one failed, one whose client left."""
    await site.client.ask()
    await site.client.ask(model="gpt-9")
    site.engine.script = [WorkerDied("Gone.")]
    await site.client.ask()
    site.engine.script = [asyncio.Event()]
    await site.client.open("POST", "/v1/chat/completions", json=question()).left()
    assert [row.outcome for row in await site.rows()] == ["ok", "rejected", "failed", "cancelled"]


async def test_json_counts_requests_by_their_end(site: Any) -> None:
    await after_some_requests(site)
    answer = await site.client.get("/metrics")
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert (body["requests_total"], body["requests_ok"], body["requests_error"]) == (4, 1, 2)
    assert body["errors_by_status"] == {"404": 1, "502": 1}
    assert body["requests_by_outcome"]["cancelled"] == 1
    assert body["tokens"] == {"input": 111, "output": 77}
    assert (body["in_flight"], body["engine"]) == (0, "app-server")
    assert body["app_server_pool_started"] is True
    assert body["queue"] == {
        "queued": 0,
        "running": 0,
        "capacity": site.engine.gate.capacity,
        "longest_wait_seconds": 0.0,
        "waiting": [],
    }
    assert body["uptime_seconds"] > 0
    assert body["tasks"] >= 1


@pytest.mark.parametrize(
    ("path", "accept"),
    [("/metrics?format=prometheus", "*/*"), ("/metrics", "text/plain;version=0.0.4"),
     ("/metrics", "application/openmetrics-text")],
)  # fmt: skip
async def test_prometheus_gets_the_same_as_text(site: Any, path: str, accept: str) -> None:
    await after_some_requests(site)
    answer = await site.client.get(path, headers={"accept": accept})
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = answer.body.decode().splitlines()
    assert 'codexsite_requests_total{outcome="ok",status="200"} 1.0' in lines
    assert 'codexsite_requests_total{outcome="rejected",status="404"} 1.0' in lines
    assert 'codexsite_tokens_total{kind="output"} 77.0' in lines
    gauges = ("queue_length", "queue_oldest_seconds", "turns_running")
    assert {f"codexsite_{name} 0.0" for name in gauges} <= set(lines)
    assert "codexsite_turns_capacity 1000.0" in lines
    assert any(float(line.split()[1]) >= 1 for line in lines if line.startswith("codexsite_tasks "))


async def test_metrics_are_not_requests(site: Any) -> None:
    for _ in range(2):
        assert (await site.client.get("/metrics")).json()["requests_total"] == 0
    assert await site.rows() == []
