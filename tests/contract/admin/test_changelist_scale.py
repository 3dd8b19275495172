"""The request list at 200,000 rows: no page reads more of the log than it shows.

Judged by SQLite's own plans and by the steps of its virtual machine, not by the clock. Run as
`python -m tests.contract.admin.measure 5000000` to see times at another size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import Client
from django.utils import timezone

from audit.models import RequestRecord
from tests.contract.admin.logbook import fill
from tests.contract.admin.pages import pages

ROWS = 200_000
STEPS = 600_000
"""Of the virtual machine for one page; reading the whole table takes at least five a row."""

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.skipif(connection.vendor != "sqlite", reason="reads SQLite's query plans"),
]


@pytest.fixture(scope="module")
def log(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    with django_db_blocker.unblock(), transaction.atomic():
        fill(ROWS)
        yield
        transaction.set_rollback(True)


@dataclass
class Watch:
    """What the database was asked for one page, and how hard it worked."""

    queries: list[tuple[str, Any]] = field(default_factory=list)
    steps: int = 0

    def __call__(
        self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any
    ) -> Any:
        if "audit_requestrecord" in sql:
            self.queries.append((sql, params))
        return execute(sql, params, many, context)

    def tick(self) -> int:
        self.steps += 1_000
        return 0

    def plans(self) -> list[tuple[str, str]]:
        """Return each query with one line of its plan at a time."""
        with connection.cursor() as cursor:
            found = []
            for sql, params in self.queries:
                cursor.execute(f"EXPLAIN QUERY PLAN {sql}", params)
                found += [(sql, row[3]) for row in cursor.fetchall()]
        return found


def visit(client: Client, url: str) -> tuple[Any, Watch]:
    watch = Watch()
    connection.ensure_connection()
    connection.connection.set_progress_handler(watch.tick, 1_000)
    try:
        with connection.execute_wrapper(watch):
            response = client.get(url)
    finally:
        connection.connection.set_progress_handler(None, 0)
    assert response.status_code == 200, url
    return response, watch


def complaints(watch: Watch) -> list[str]:
    found = []
    for sql, step in watch.plans():
        # Newest first without a condition, and cut: the one scan that ends after a page.
        is_first_page = "WHERE" not in sql and "LIMIT" in sql
        if step.startswith("SCAN audit_requestrecord") and not is_first_page:
            found.append(f"{step}: {sql}")
        if "TEMP B-TREE" in step and " IN (" not in sql:  # several keys are merged in a window
            found.append(f"{step}: {sql}")
    for sql, _ in watch.queries:
        if "DISTINCT" in sql or re.search(r"COUNT\(\*\)(?!.*LIMIT)", sql, re.DOTALL):
            found.append(sql)
    return found


@pytest.mark.parametrize("name", pages())
def test_a_page_is_answered_by_ranges_of_an_index(log: None, client: Client, name: str):
    url = pages()[name]

    _, watch = visit(client, url)

    assert watch.queries
    assert complaints(watch) == []
    if not name.startswith("two"):  # these may look at as many rows as this table has
        assert watch.steps < STEPS


def shown(client: Client, query: str) -> list[RequestRecord]:
    return list(client.get(f"/admin/audit/requestrecord/?{query}").context["cl"].result_list)


def test_each_filter_shows_its_rows_newest_first(log: None, client: Client):
    for query, attribute, value in [
        ("outcome=timed_out", "outcome", "timed_out"),
        ("key_id=7", "key_id", 7),
        ("engine=exec", "engine", "exec"),
        ("model_served=gpt-5.5-mini", "model_served", "gpt-5.5-mini"),
        ("agent_mode=1", "agent_mode", True),
        ("agent_mode=0", "agent_mode", False),
        ("stream=0", "stream", False),
        ("http_status=403", "http_status", 403),
        ("grant_id=1", "grant_id", 1),
        ("q=sk-codexsite-key00007", "key_id", 7),
    ]:
        rows = shown(client, query)
        assert {getattr(row, attribute) for row in rows} == {value}, query
        ids = [row.pk for row in rows]
        assert ids == sorted(ids, reverse=True), query
        assert len(ids) == 50, query


def test_a_period_is_a_range_of_time(log: None, client: Client):
    hour_ago = timezone.now() - timedelta(hours=1)

    rows = shown(client, "period=1h")

    since_then = RequestRecord.objects.filter(created_at__gte=hour_ago).count()
    assert rows
    assert abs(len(rows) - min(50, since_then)) <= 1  # the clock went on between the two


def test_days_are_included_on_both_ends(log: None, client: Client):
    day = (timezone.localtime() - timedelta(days=10)).date()

    rows = shown(client, f"created_at_from={day}&created_at_to={day}&p=1")

    assert {timezone.localtime(row.created_at).date() for row in rows} == {day}
    newest = RequestRecord.objects.filter(created_at__date=day).order_by("-id")[0]
    assert rows[0] == newest


def test_a_request_is_found_by_its_id_with_or_without_dashes(log: None, client: Client):
    record = RequestRecord.objects.order_by("id")[1234]

    assert shown(client, f"q={record.request_id}") == [record]
    assert shown(client, f"q={record.request_id.hex}") == [record]
    assert shown(client, "q=00000000-0000-0000-0000-000000000000") == []


def test_the_beginning_of_a_prefix_finds_all_its_keys(log: None, client: Client):
    rows = shown(client, "q=sk-codexsite-key0001")

    assert {row.key_id for row in rows} == set(range(10, 20))
    assert shown(client, "q=sk-nobody") == []
    assert shown(client, "q=%00") == shown(client, "")


def test_the_count_stops_at_the_cap_and_says_so(log: None, client: Client):
    response = client.get("/admin/audit/requestrecord/")

    assert response.context["cl"].result_count == 10_000
    assert "the newest 10000" in response.content.decode()


def test_the_choices_are_what_is_on_record(log: None, client: Client):
    specs = {
        spec.parameter_name: [value for value, _ in spec.lookup_choices]
        for spec in client.get("/admin/audit/requestrecord/").context["cl"].filter_specs
        if hasattr(spec, "lookup_choices")
    }

    assert sorted(specs["key_id"], key=int) == [str(number) for number in range(1, 41)]
    assert specs["model_served"] == ["gpt-5.5", "gpt-5.5-mini"]
    assert specs["http_status"] == ["200", "403", "504"]
    assert specs["engine"] == ["app-server", "exec"]


@pytest.mark.parametrize("query", ["user_agent__icontains=x", "total_ms__gt=5", "error_message=x"])
def test_a_url_cannot_ask_for_a_scan(log: None, client: Client, query: str):
    assert client.get(f"/admin/audit/requestrecord/?{query}").status_code == 400


@pytest.mark.parametrize(
    "query", ["key_id=x", "http_status=%00", "created_at_from=never", "p=99999"]
)
def test_nonsense_in_the_url_is_no_error(log: None, client: Client, query: str):
    assert client.get(f"/admin/audit/requestrecord/?{query}", follow=True).status_code == 200
