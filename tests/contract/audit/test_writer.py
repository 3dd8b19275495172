from __future__ import annotations

import logging
import sqlite3
import threading
import uuid
from datetime import UTC, datetime

import orjson
import pytest
from django.db import connection

from audit.models import Outcome, RequestCounter, RequestRecord
from audit.spool import Spool
from audit.writer import AuditLog, merged

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
