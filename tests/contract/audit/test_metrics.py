from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from audit.metrics import counters, prometheus_text
from audit.models import RequestCounter, RequestRecord

pytestmark = pytest.mark.django_db


@pytest.fixture
def counted():
    for outcome, status, count in (
        ("ok", 200, 5),
        ("rejected", 401, 2),
        ("rejected", 429, 1),
        ("failed", 502, 1),
        ("failed", 200, 1),
        ("timed_out", 504, 1),
        ("cancelled", 499, 4),
        ("interrupted", 0, 3),
    ):
        RequestCounter.objects.create(
            outcome=outcome, http_status=status, count=count, input_tokens=10, output_tokens=1
        )
    RequestRecord.objects.create(request_id=uuid.uuid4(), created_at=datetime.now(UTC))


def test_counters_add_up(counted):
    found = counters()
    assert found["requests_total"] == 18
    assert found["requests_ok"] == 5
    assert found["requests_by_outcome"]["interrupted"] == 3
    assert found["in_flight"] == 1
    assert found["tokens"] == {"input": 80, "output": 8}


def test_a_client_that_left_is_no_error(counted):
    found = counters()
    assert found["requests_by_outcome"]["cancelled"] == 4
    assert found["requests_error"] == 9
    assert found["errors_by_status"] == {"200": 1, "401": 2, "429": 1, "502": 1, "504": 1}


def test_nothing_has_happened_yet():
    found = counters()
    assert (found["requests_total"], found["errors_by_status"]) == (0, {})
    assert found["tokens"] == {"input": 0, "output": 0}


def test_prometheus_reads_the_same(counted):
    text = prometheus_text({"workers_ready": 2, "queue_length": 0.5}).decode()
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["codexsite_requests_total", "ok", "200"] == 5
    assert samples["codexsite_requests_total", "interrupted", "0"] == 3
    assert samples["codexsite_tokens_total", "input"] == 80
    assert samples["codexsite_requests_in_flight",] == 1
    assert samples["codexsite_workers_ready",] == 2
    assert samples["codexsite_queue_length",] == 0.5


def test_a_scrape_costs_three_queries(counted, django_assert_num_queries):
    with django_assert_num_queries(3):
        prometheus_text({})
