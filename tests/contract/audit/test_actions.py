"""Actions travel like rows: through the spool, once each, and none is lost with its process."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from audit.actions import commit, fitted, is_action, line_of
from audit.models import ActionStatus, AgentAction, RequestRecord

pytestmark = pytest.mark.timeout(120)


def start(launch):
    process = launch()
    process.ask("start")
    return process


def test_an_action_is_told_twice_and_is_one_row(launch):
    server = start(launch)
    (name,) = server.ask("open", 1)
    server.ask("act", name, 1, "running")
    server.ask("flush")
    server.ask("act", name, 1, "failed", {"exit_code": 3})
    server.ask("act", name, 2, "completed", {"exit_code": 0})
    server.ask("flush")

    assert server.ask("actions", name) == [[1, "failed", 3], [2, "completed", 0]]
    assert server.ask("row", name)["action_count"] == 2


def test_kill_9_loses_no_action_and_ends_what_ran(launch):
    server = start(launch)
    (name,) = server.ask("open", 1)
    for number in range(1, 51):
        server.ask("act", name, number, "completed", {"exit_code": number})
    server.ask("act", name, 51, "running")
    server.kill()

    successor = start(launch)

    found = successor.ask("actions", name)
    assert found == [[n, "completed", n] for n in range(1, 51)] + [[51, "unfinished", None]]
    row = successor.ask("row", name)
    assert (row["outcome"], row["action_count"]) == ("interrupted", 51)


def test_dying_between_commit_and_removal_stores_nothing_twice(launch):
    server = start(launch)
    (name,) = server.ask("open", 1)
    server.ask("die_before_unlink")
    server.ask("act", name, 1, "running")
    server.ask("act", name, 1, "completed", {"exit_code": 0})
    server.tell("flush")
    server.wait()

    successor = start(launch)

    assert successor.ask("actions", name) == [[1, "completed", 0]]


def test_a_living_server_s_actions_are_left_alone(launch):
    first, second = start(launch), start(launch)
    (name,) = first.ask("open", 1)
    first.ask("act", name, 1, "running")
    first.ask("flush")
    third = start(launch)
    assert third.ask("actions", name) == [[1, "running", None]]
    second.ask("close")


# --- In this process ---------------------------------------------------------------------------


def line(request_id: uuid.UUID, number: int = 1, **columns: Any) -> bytes:
    basics = {
        "request_id": str(request_id), "number": number, "created_at": datetime.now(UTC),
        "instance": "i", "boot": "b", "kind": "command", "status": "completed",
    }  # fmt: skip
    return line_of({**basics, **fitted(columns)})


@pytest.mark.django_db
def test_an_older_state_does_not_undo_the_end():
    request_id = uuid.uuid4()
    commit([line(request_id, exit_code=0)])
    commit([line(request_id, status="running")])
    assert AgentAction.objects.get().status == ActionStatus.COMPLETED


@pytest.mark.django_db
def test_more_that_is_known_later_replaces_what_was():
    request_id = uuid.uuid4()
    commit([line(request_id, path="a")])
    commit([line(request_id, path="a", lines_added=3)])
    assert AgentAction.objects.get().lines_added == 3


@pytest.mark.django_db(transaction=True)
def test_an_action_that_no_database_takes_stops_no_other(audit_log, tmp_path):
    log = audit_log()
    record = log.open(endpoint="/v1", method="POST")
    record.save()
    for sent in (b'{"action":{"number":1}}\n', line(record.request_id, 2)):
        record.append(sent, slim=lambda: b"")
    record.close("ok", 200)
    assert log.flush()
    assert AgentAction.objects.get().number == 2
    assert RequestRecord.objects.get().action_count == 1
    assert b'"number":1' in (tmp_path / "spool" / "rejected.jsonl").read_bytes()


def test_columns_are_cut_to_what_every_database_takes():
    found = fitted(
        {"path": "\x00" + "p" * 2000, "exit_code": 2**40, "duration_ms": 2**70, "diff": "\ud800"}
    )
    assert (len(found["path"]), found["exit_code"], found["duration_ms"]) == (1000, None, None)
    assert found["diff"] == "?"
    with pytest.raises(TypeError):
        fitted({"prompt": "x"})


def test_a_request_s_line_is_no_action():
    assert is_action(line(uuid.uuid4()))
    assert not is_action(b'{"id":1,"action_count":3}')


@pytest.mark.django_db(transaction=True)
def test_a_spool_that_takes_no_more_keeps_an_action_without_its_texts(audit_log):
    log = audit_log()
    record = log.open(endpoint="/v1", method="POST")
    record.save()
    whole = line(record.request_id, diff="+x\n", path="a")

    def refuse(sent: bytes) -> None:
        raise OSError(28, "No space left on device")

    log.append = refuse
    record.append(whole, slim=lambda: line(record.request_id, path="a"))
    assert log.flush()
    action = AgentAction.objects.get()
    assert (action.path, action.diff) == ("a", "")
