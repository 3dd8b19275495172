"""The audit log's promises to an auditor, kept by real processes on both databases."""

from __future__ import annotations

from contextlib import contextmanager

import psycopg
import pytest
from psycopg import sql

pytestmark = pytest.mark.timeout(120)


def start(launch):
    process = launch()
    process.ask("start")
    return process


def segments(data_dir):
    return sorted(path.name for path in (data_dir / "spool").glob("*-*.jsonl"))


def test_ended_requests_are_stored_and_counted(launch, data_dir):
    server = start(launch)
    names = server.ask("open", 5)
    assert (
        server.ask("end", names[:3], "ok", 200, {"input_tokens": 7, "output_tokens": 2})
        == [True] * 3
    )
    assert server.ask("end", names[3:4], "rejected", 429) == [True]
    assert server.ask("flush")
    report = server.ask("report")
    assert [report["rows"][name] for name in names] == [
        *[["ok", 200]] * 3,
        ["rejected", 429],
        ["running", None],
    ]
    assert report["counters"] == {
        "requests_total": 4,
        "requests_ok": 3,
        "requests_error": 1,
        "errors_by_status": {"429": 1},
        "requests_by_outcome": {
            "ok": 3,
            "rejected": 1,
            "failed": 0,
            "timed_out": 0,
            "cancelled": 0,
            "interrupted": 0,
        },
        "in_flight": 1,
        "tokens": {"input": 21, "output": 6},
    }
    assert segments(data_dir) == []


def test_kill_9_loses_no_acknowledged_state_and_counts_each_once(launch):
    server = start(launch)
    server.tell("hammer")
    lines = [server.read_line() for _ in range(3000)]
    lines += server.kill()
    opened = {line.split()[1] for line in lines if line.startswith("open ")}
    ended = {line.split()[1] for line in lines if line.startswith("ok ")}

    report = start(launch).ask("report")
    rows = report["rows"]
    assert opened <= rows.keys()
    assert {tuple(rows[name]) for name in ended} == {("ok", 200)}
    # Each thread may have been killed between a state and its acknowledgement, not more.
    assert len(rows.keys() - opened) <= 4
    left = [name for name in opened - ended if rows[name] != ["interrupted", None]]
    assert len(left) <= 4
    assert {tuple(row) for row in rows.values()} == {("ok", 200), ("interrupted", None)}
    ok = sum(row[0] == "ok" for row in rows.values())
    assert (
        report["counters"]["requests_by_outcome"] | {"ok": ok, "interrupted": len(rows) - ok}
        == (report["counters"]["requests_by_outcome"])
    )
    assert report["counters"]["requests_total"] == len(rows)
    assert report["counters"]["tokens"]["input"] == 10 * len(rows)
    assert report["counters"]["in_flight"] == 0


def test_processes_that_start_at_once_recover_a_crash_once(launch):
    server = start(launch)
    names = server.ask("open", 300, {"input_tokens": 1})
    server.ask("end", names[:200], "ok", 200)
    server.kill()
    starters = [launch() for _ in range(3)]
    for starter in starters:
        starter.tell("start")
    boots = {starter.answer() for starter in starters}
    assert len(boots) == 3
    for starter in starters:
        report = starter.ask("report")
        assert report["counters"]["requests_by_outcome"]["ok"] == 200
        assert report["counters"]["requests_by_outcome"]["interrupted"] == 100
        assert report["counters"]["tokens"]["input"] == 300
        assert len(report["rows"]) == 300


def test_a_second_process_leaves_the_rows_and_segments_of_a_living_one_alone(launch):
    first = start(launch)
    names = first.ask("open", 3)
    assert first.ask("flush")
    second = start(launch)
    others = second.ask("open", 2)
    assert second.ask("end", others, "ok", 200) == [True, True]
    assert second.ask("flush")
    assert {tuple(second.ask("report")["rows"][name]) for name in names} == {("running", None)}
    first.ask("end", names, "cancelled", 499)
    assert first.ask("flush")
    counters = second.ask("report")["counters"]
    assert counters["requests_by_outcome"]["ok"] == 2
    assert counters["requests_by_outcome"]["cancelled"] == 3
    assert counters["requests_error"] == 0


def test_two_processes_count_the_same_things_at_the_same_time_exactly(launch):
    servers = [start(launch), start(launch)]
    for _ in range(10):
        batches = [server.ask("open", 20) for server in servers]
        for server, names in zip(servers, batches, strict=True):
            server.tell("end", names[:10], "ok", 200, {"output_tokens": 3})
            server.tell("end", names[10:], "failed", 502)
            server.tell("flush")
        for server in servers:
            assert [server.answer() for _ in range(3)][-1]
    counters = servers[0].ask("report")["counters"]
    assert counters["requests_ok"] == 200
    assert counters["errors_by_status"] == {"502": 200}
    assert counters["tokens"]["output"] == 600


def test_a_batch_that_was_committed_but_not_removed_changes_nothing_again(launch, data_dir):
    server = start(launch)
    names = server.ask("open", 4, {"input_tokens": 5})
    server.ask("die_before_unlink")
    server.tell("end", names[:3], "ok", 200)
    assert server.wait() == 9
    assert segments(data_dir)
    for _ in range(2):
        report = start(launch).ask("report")
        assert sorted(report["rows"].values()) == [["interrupted", None], *[["ok", 200]] * 3]
        assert report["counters"]["requests_total"] == 4
        assert report["counters"]["tokens"]["input"] == 20
        assert segments(data_dir) == []


def test_a_row_of_another_data_directory_stays_open(launch, database_url, data_dir, tmp_path):
    server = start(launch)
    [name] = server.ask("open", 1)
    assert server.ask("flush")
    server.kill()
    (data_dir / "instance_id").write_text("another")
    assert start(launch).ask("report")["rows"][name] == ["running", None]


def test_a_process_that_just_ends_stores_what_it_has(launch, data_dir):
    server = start(launch)
    server.ask("end", server.ask("open", 3), "ok", 200)
    assert server.end() == 0
    assert [path.name for path in (data_dir / "spool").iterdir()] == ["recovery.lock"]
    assert launch().ask("report")["counters"]["requests_ok"] == 3


def test_a_row_that_no_database_takes_is_set_aside_and_stops_no_other(launch, data_dir):
    server = start(launch)
    names = server.ask("open", 3)
    assert server.ask("flush")
    server.ask("spoil", names[1])
    server.ask("end", names, "ok", 200)
    assert server.ask("flush")
    report = server.ask("report")
    assert report["rows"][names[0]] == report["rows"][names[2]] == ["ok", 200]
    assert report["counters"]["requests_ok"] == 2
    assert names[1] in (data_dir / "spool" / "rejected.jsonl").read_text()
    assert f"Audit row {names[1]} cannot be stored" in server.errors()
    assert segments(data_dir) == []


def test_values_are_cut_to_what_every_database_takes(launch):
    server = start(launch)
    [name] = server.ask(
        "open",
        1,
        {
            "user_agent": "n\x00u\x00l" + "x" * 400,
            "cwd": "/half\ud83dsurrogate",
            "key_id": 2**70,
            "phases": {"auth": 0.25},
        },
    )
    server.ask("end", [name], "ok", 70_000, {"input_tokens": -3})
    assert server.ask("flush")
    row = server.ask("row", name)
    assert row["user_agent"] == "nul" + "x" * 297
    assert row["cwd"] == "/half?surrogate"
    assert (row["key_id"], row["http_status"], row["input_tokens"]) == (None, None, None)
    assert row["phases"] == {"auth": 0.25}


def test_a_full_disk_refuses_new_records_and_loses_no_end(launch):
    server = start(launch)
    names = server.ask("open", 3)
    assert server.ask("flush")
    server.ask("limit_files", 0)
    assert "error" in server.ask("open", 1)
    assert server.ask("end", names, "ok", 200) == [True] * 3
    server.ask("limit_files", None)
    assert server.ask("flush")
    report = server.ask("report")
    assert {tuple(row) for row in report["rows"].values()} == {("ok", 200)}
    assert report["counters"]["requests_ok"] == 3


@contextmanager
def outage(database_url):
    """Throw everybody out of the PostgreSQL database and let nobody in."""
    server, _, name = database_url.rpartition("/")
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format
    with psycopg.connect(f"{server}/postgres", autocommit=True) as admin:
        admin.execute(allow(sql.Identifier(name), sql.Literal(False)))
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        try:
            yield
        finally:
            admin.execute(allow(sql.Identifier(name), sql.Literal(True)))


# SQLite's outages are in test_writer.py.
POSTGRESQL_ONLY = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@POSTGRESQL_ONLY
def test_requests_go_on_while_postgresql_is_down(launch, database_url, data_dir):
    server = start(launch)
    names = server.ask("open", 2)
    assert server.ask("flush")
    with outage(database_url):
        assert server.ask("end", names, "ok", 200) == [True, True]
        names += server.ask("open", 1)
        assert server.ask("flush", 1) is False
        assert server.ask("flush", 1) is False
        assert segments(data_dir)
    assert server.ask("flush")
    report = server.ask("report")
    assert [report["rows"][name][0] for name in names] == ["ok", "ok", "running"]
    assert report["counters"]["requests_ok"] == 2
    assert server.errors().count("audit log's writer fails") == 1
    assert server.errors().count("audit log's writer works again") == 1


@POSTGRESQL_ONLY
def test_a_start_while_postgresql_is_down_recovers_later(launch, database_url, data_dir):
    server = start(launch)
    server.ask("open", 2)
    server.kill()
    with outage(database_url):
        second = start(launch)
        second.ask("open", 1)
        assert second.ask("flush", 1) is False
    # The recovery comes first in a pass: the first one may still have met the outage there.
    assert second.ask("flush")
    assert second.ask("flush")
    counters = second.ask("report")["counters"]
    assert counters["requests_by_outcome"]["interrupted"] == 2
    assert counters["in_flight"] == 1
