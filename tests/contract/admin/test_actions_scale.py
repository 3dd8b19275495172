"""The list of actions at 100,000 rows: no page reads more of them than its share, texts included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import Client

from tests.contract.admin.test_changelist_scale import visit

ROWS = 100_000
STEPS = 1_500_000
"""Of the virtual machine for one page; a search reads the texts of 50,000 actions."""
FILL = """
    INSERT INTO audit_agentaction (
        request_id, number, created_at, instance, boot, key_id, key_name, key_prefix, key_owner,
        root_alias, kind, change, status, exit_code, path, moved_to, cwd, command, note,
        output_sha256, output_head, output_tail, diff
    )
    WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < %s)
    SELECT printf('%%032x', n / 10), n %% 10, strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now',
        '-' || (%s - n) || ' seconds'), 'i', 'b', n %% 40 + 1, 'key', 'sk', 'ada', 'shop',
        CASE WHEN n %% 3 = 0 THEN 'patch' ELSE 'command' END, '', 'completed', n %% 5,
        'src/file' || n || '.py', '', '/srv/shop', 'ls -l ' || n, '', '', hex(zeroblob(100)), '',
        hex(zeroblob(300))
    FROM number
"""

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.skipif(connection.vendor != "sqlite", reason="counts SQLite's steps"),
]


@pytest.fixture(scope="module")
def log(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    with django_db_blocker.unblock(), transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(FILL, [ROWS, ROWS])
        yield
        transaction.set_rollback(True)


@pytest.mark.parametrize(
    "query",
    ["", "p=150", "kind=patch", "kind=web_search", "key_id=7", "exit_code=4", "status=running",
     "period=1h", "q=00000000000000000000000000000010", "q=file77.py", "q=curl",
     "kind=patch&key_id=7", "kind=web_search&exit_code=3", "q=nothing&created_at_to=2020-01-01"],
)  # fmt: skip
def test_no_page_reads_more_than_its_share(log: None, client: Client, query: str):
    _, watch = visit(client, f"/admin/audit/agentaction/?{query}")
    assert watch.steps < STEPS, watch.steps
