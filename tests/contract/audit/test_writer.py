from __future__ import annotations

import logging
import sqlite3
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from django.db import OperationalError, connection

from audit.models import Outcome, RequestCounter, RequestRecord
from audit.recorder import Record
from audit.spool import Spool
from audit.writer import BATCH_ROWS, AuditLog, commit, merged

pytestmark = pytest.mark.django_db(transaction=True)


def outcomes():
    return dict(RequestCounter.objects.values_list("outcome", "count"))


@pytest.fixture
def other_connection():
    """A second, plain connection to the test database, as another program would have."""
    if connection.vendor != "sqlite":
        pytest.skip("This is about SQLite's file")
    other = sqlite3.connect(connection.settings_dict["NAME"], isolation_level=None, timeout=20)
    yield other
    other.close()


def test_a_closed_record_is_one_row(audit_log):
    log = audit_log()
    record = log.open(endpoint="/v1/models", method="GET", key_name="laptop")
    record.save()
    record.note(engine="app-server", phases={"auth": 0.5})
    assert record.close(Outcome.OK, 200)
    assert log.flush()
    row = RequestRecord.objects.get()
    assert row.request_id == record.request_id
    assert (row.instance, row.boot) == ("here", log.boot)
    assert (row.outcome, row.http_status, row.engine) == ("ok", 200, "app-server")
    assert row.phases == {"auth": 0.5}
    assert row.total_ms is not None
    assert row.total_ms > 0
    assert outcomes() == {"ok": 1}


def test_a_saved_record_is_a_running_row(audit_log):
    log = audit_log()
    log.open(endpoint="/v1", method="POST").save()
    assert log.flush()
    row = RequestRecord.objects.get()
    assert (row.outcome, row.http_status, row.total_ms) == ("running", None, None)
    assert outcomes() == {}


def test_rows_keep_the_order_in_which_requests_came(audit_log):
    log = audit_log()
    records = [log.open(endpoint="/v1", method="POST") for _ in range(100)]
    for record in records:
        record.save()
    for record in reversed(records):
        record.close("ok", 200)
    assert log.flush()
    found = RequestRecord.objects.order_by("id").values_list("request_id", flat=True)
    assert list(found) == [record.request_id for record in records]


def test_starting_twice_starts_one_writer(audit_log):
    log = audit_log()
    log.start()
    assert [thread.name for thread in threading.enumerate()].count("audit-writer") == 1


def test_closing_stores_the_rest_and_ends_the_thread(audit_log, tmp_path):
    log = audit_log(interval_s=3600)
    log.open(endpoint="/v1", method="POST").close("ok", 200)
    log.close()
    log.close()
    assert RequestRecord.objects.count() == 1
    assert "audit-writer" not in [thread.name for thread in threading.enumerate()]
    assert [path.name for path in (tmp_path / "spool").iterdir()] == ["recovery.lock"]


def test_the_writer_stores_without_being_asked(audit_log):
    committed = threading.Event()
    log = audit_log(after_commit=lambda rows: committed.set())
    log.open(endpoint="/v1", method="POST").close("ok", 200)
    assert committed.wait(10)
    assert outcomes() == {"ok": 1}


def test_what_follows_a_commit_gets_its_rows(audit_log):
    batches: list[list[dict[str, object]]] = []
    log = audit_log(after_commit=batches.append, interval_s=3600)
    record = log.open(endpoint="/v1", method="POST", key_id=7)
    record.save()
    record.close("ok", 200)
    assert log.flush()
    [[row]] = batches
    assert row["key_id"] == 7
    assert row["created_at"] == record.fields["created_at"]
    assert row["outcome"] == "ok"


def test_a_failure_of_what_follows_a_commit_changes_nothing(audit_log, caplog):
    def fail(rows):
        raise RuntimeError("broken")

    log = audit_log(after_commit=fail)
    log.open(endpoint="/v1", method="POST").close("ok", 200)
    assert log.flush()
    log.open(endpoint="/v1", method="POST").close("ok", 200)
    assert log.flush()
    assert outcomes() == {"ok": 2}
    assert "What follows the commit of audit rows failed" in caplog.text


def test_many_threads_lose_nothing_and_nothing_counts_twice(audit_log):
    log = audit_log(interval_s=0.005)

    def work() -> None:
        for _ in range(100):
            record = log.open(endpoint="/v1", method="POST", input_tokens=1)
            record.save()
            record.close("ok", 200)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert log.flush()
    assert RequestRecord.objects.filter(outcome="ok").count() == 800
    assert RequestCounter.objects.get().count == 800
    assert RequestCounter.objects.get().input_tokens == 800


def test_a_locked_database_delays_rows_only(audit_log, other_connection):
    log = audit_log()
    other_connection.execute("BEGIN IMMEDIATE")
    record = log.open(endpoint="/v1", method="POST")
    record.save()
    record.close("ok", 200)
    assert log.flush(0.3) is False
    other_connection.execute("ROLLBACK")
    assert log.flush()
    assert outcomes() == {"ok": 1}


def test_an_outage_is_told_once_and_loses_nothing(audit_log, other_connection, caplog):
    caplog.set_level(logging.WARNING, logger="audit")
    log = audit_log()
    other_connection.execute("ALTER TABLE audit_requestrecord RENAME TO away")
    records = []
    for _ in range(3):
        records.append(log.open(endpoint="/v1", method="POST"))
        records[-1].save()
        assert log.flush(0.2) is False
    records[0].close("ok", 200)
    other_connection.execute("ALTER TABLE away RENAME TO audit_requestrecord")
    assert log.flush()
    assert RequestRecord.objects.filter(outcome="running").count() == 2
    assert outcomes() == {"ok": 1}
    assert [record.getMessage() for record in caplog.records] == [
        "The audit log's writer fails; it will be tried again",
        "The audit log's writer works again",
    ]


def test_what_a_closed_log_could_not_store_is_stored_by_the_next(audit_log, other_connection):
    log = audit_log()
    other_connection.execute("ALTER TABLE audit_requestrecord RENAME TO away")
    log.open(endpoint="/v1", method="POST").close("ok", 200)
    log._kept.append(orjson.dumps(log.open(endpoint="/v1", method="POST").fields) + b"\n")
    log.close()
    other_connection.execute("ALTER TABLE away RENAME TO audit_requestrecord")
    audit_log()
    assert outcomes() == {"ok": 1, "interrupted": 1}


def test_a_start_waits_for_its_turn_to_recover(audit_log, tmp_path):
    RequestRecord.objects.create(
        request_id=uuid.uuid4(), created_at=datetime.now(UTC), instance="here", boot="dead"
    )
    other = Spool(tmp_path / "spool", uuid.uuid4().hex)
    other.open()
    with other.recovery():
        starter = threading.Thread(target=audit_log)
        starter.start()
        starter.join(0.5)
        assert starter.is_alive()
        assert outcomes() == {}
    starter.join(10)
    assert not starter.is_alive()
    assert outcomes() == {"interrupted": 1}
    other.close()


def test_a_line_that_is_not_json_is_set_aside(audit_log, tmp_path, caplog):
    dead = Spool(tmp_path / "spool", uuid.uuid4().hex)
    dead.open()
    dead.append(b"\x00\x00\x00\n")
    dead.append(b'{"request_id":"00000000-0000-4000-8000-000000000000"}\n')
    dead.append(
        b'{"request_id":"00000000-0000-4000-8000-000000000001","outcome":"ok","endpoint":"/v1",'
        b'"created_at":"2030-01-01T00:00:00+00:00","a_column_of_a_later_version":1}\n'
    )
    dead.append(b'{"torn')
    dead.close()
    audit_log()
    assert outcomes() == {"ok": 1}
    assert (tmp_path / "spool" / "rejected.jsonl").read_bytes().count(b"\n") == 2
    assert "cannot be read" in caplog.text


def test_nothing_is_accepted_before_the_start(tmp_path):
    log = AuditLog(tmp_path, "here")
    with pytest.raises(OSError, match="not open"):
        log.open(endpoint="/v1", method="POST").save()
    assert log.flush(0.01) is False


def test_a_state_from_after_the_end_does_not_reopen_a_request():
    name = uuid.uuid4()
    rows = [
        {"request_id": name, "outcome": "running"},
        {"request_id": name, "outcome": "ok"},
        {"request_id": name, "outcome": "running"},
    ]
    assert merged(rows) == [rows[1]]


# --- The bound of what waits, and what the disk does not take ---------------------------------


@pytest.fixture
def stuck_log(audit_log, monkeypatch):
    """A log whose database takes nothing until the patch is undone, and which may hold little."""
    log = audit_log(max_bytes=20_000, interval_s=0.01)

    def fail(rows):
        raise OperationalError("The database is away")

    monkeypatch.setattr("audit.writer.commit", fail)
    return log, monkeypatch


def fill(log):
    """Put requests on record until no more is taken; return those that run."""
    running: list[Record] = []
    while True:
        record = log.open(endpoint="/v1", method="POST")
        try:
            record.save()
        except OSError:
            assert log.is_full or running
            return running, record
        running.append(record)


def test_above_the_bound_nothing_new_begins_and_no_row_is_lost(stuck_log, tmp_path):
    log, patch = stuck_log
    running, refused = fill(log)
    refused.close("failed", 503)
    for _ in range(30):  # more than the reserve takes: these wait in memory
        log.open(endpoint="/v1", method="POST").close("failed", 503)
    for record in running:
        assert record.close("ok", 200)
    on_disk = sum(path.stat().st_size for path in (tmp_path / "spool").glob("*-*.jsonl"))
    assert len(running) > 5
    assert log._kept
    assert on_disk < 20_000 * 1.25 + 3000 * len(running)
    assert b'"ok"' not in b"".join(log._kept), "the ends of running requests are on disk"
    patch.undo()
    assert log.flush()
    assert outcomes() == {"ok": len(running), "failed": 31}
    assert not log.is_full
    assert RequestRecord.objects.count() == len(running) + 31


def test_what_memory_does_not_hold_either_is_in_the_log(stuck_log, caplog, monkeypatch):
    log, _ = stuck_log
    monkeypatch.setattr("audit.writer.KEPT_LINES", 1)
    fill(log)
    lost = [log.open(endpoint="/v1", method="POST") for _ in range(30)]
    for record in lost:
        record.close("failed", 503)
    told = caplog.text.count("No room for an audit row, here it is")
    assert 0 < told < 30
    assert str(lost[-1].request_id) in caplog.text


def test_an_end_after_the_log_has_closed_is_in_the_servers_log(audit_log, caplog):
    log = audit_log()
    record = log.open(endpoint="/v1", method="POST")
    log.close()
    record.close("ok", 200)
    assert str(record.request_id) in caplog.text


def test_a_log_that_has_not_started_takes_nothing_new(tmp_path):
    assert AuditLog(tmp_path, "here").is_full


def test_more_rows_than_a_statement_takes_are_stored_in_several(audit_log, monkeypatch):
    # With 35,000 kept lines in one statement SQLite said "too many SQL variables", for ever.
    sizes = []

    def count(rows):
        sizes.append(len(rows))
        return commit(rows)

    log = audit_log(interval_s=3600)
    monkeypatch.setattr("audit.writer.commit", count)
    for _ in range(2 * BATCH_ROWS + 1):
        log.open(endpoint="/v1", method="POST").close("ok", 200)
    assert log.flush(50)
    assert sizes == [BATCH_ROWS, BATCH_ROWS, 1]
    assert outcomes() == {"ok": 2 * BATCH_ROWS + 1}


def test_a_segment_that_the_disk_does_not_give_holds_up_no_other(audit_log, monkeypatch):
    log = audit_log(interval_s=3600)
    usual, bad = Path.read_bytes, []

    def read(path):
        if path in bad:
            raise OSError(5, "Input/output error")
        return usual(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    for _ in range(3):
        log.open(endpoint="/v1", method="POST").close("ok", 200)
        log._spool.seal()
    bad.append(log._spool.sealed()[0])
    assert log.flush(1) is False
    assert outcomes() == {"ok": 2}
    bad.clear()
    assert log.flush()
    assert outcomes() == {"ok": 3}


def test_a_segment_that_cannot_be_removed_is_not_counted_again(audit_log, monkeypatch):
    log = audit_log(interval_s=3600)

    def refuse(path, missing_ok=False):
        raise OSError(30, "Read-only file system")

    log.open(endpoint="/v1", method="POST").close("ok", 200)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        assert log.flush(0.5) is False
        assert log.flush(0.5) is False
    assert log.flush()
    assert outcomes() == {"ok": 1}
    assert log._spool.sealed() == []
