"""A log of any length, filled by the database itself: 90 days, newest last."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from django.db import connection

DAYS = 90

# Keys 1 to 40; one request in a hundred is rejected, one in two thousand timed out; only the key 7
# ever used agent mode; nobody timed out on the engine `exec`, so these two together find nothing.
FILL = """
    INSERT INTO audit_requestrecord (
        request_id, created_at, instance, boot, endpoint, method, client_address, user_agent,
        key_id, key_name, key_prefix, key_owner, stream, model_asked, model_served, engine, worker,
        codex_version, cwd, root_alias, agent_mode, grant_id, sandbox, outcome, http_status,
        error_code, error_message, input_tokens, cached_input_tokens, output_tokens,
        reasoning_output_tokens, first_delta_ms, engine_ms, total_ms, phases,
        client_request_id, asked, ignored_params, service_tier,
        grant_reason, level, policy_hash, killed_by, kill_reason
    )
    WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < %(rows)s)
    SELECT
        printf('%%032x', n), strftime('%%Y-%%m-%%d %%H:%%M:%%f', %(start)s, '+' || (n * %(step)s) || ' seconds'),
        'i', 'b', '/v1/chat/completions', 'POST', '10.0.0.1', 'OpenAI/Python 3.54.0',
        n %% 40 + 1, 'key ' || (n %% 40 + 1), 'sk-codexsite-key' || printf('%%05d', n %% 40 + 1),
        'alice', n %% 3 > 0, 'default', CASE n %% 7 WHEN 0 THEN 'gpt-5.5-mini' ELSE 'gpt-5.5' END,
        CASE WHEN n %% 11 = 0 THEN 'exec' ELSE 'app-server' END, 'w1', '0.163.0', '/srv/shop', 'shop',
        n %% 4000 = 6, CASE WHEN n %% 4000 = 6 THEN 1 END, 'read-only',
        CASE WHEN n %% 2000 = 13 AND n %% 11 > 0 THEN 'timed_out' WHEN n %% 100 = 1 THEN 'rejected' ELSE 'ok' END,
        CASE WHEN n %% 2000 = 13 AND n %% 11 > 0 THEN 504 WHEN n %% 100 = 1 THEN 403 ELSE 200 END,
        '', '', 100, 30, 20, 0, 400.0, 900.0, 950.0, '{"auth": 0.5, "answer": 900.0}',
        '', '{"messages": 1}', '', 'default',
        '', '', '', '', ''
    FROM number
"""


def fill(rows: int) -> datetime:
    """Add so many requests, evenly over the last `DAYS`; return when the first of them came."""
    start = datetime.now(UTC) - timedelta(days=DAYS)
    step = timedelta(days=DAYS).total_seconds() / rows
    values: dict[str, str | int | float | None] = {
        "rows": rows,
        "start": start.strftime("%Y-%m-%d %H:%M:%S"),
        "step": step,
    }
    with connection.cursor() as cursor:
        cursor.execute(FILL, values)
    return start
