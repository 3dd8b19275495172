from __future__ import annotations

import threading
from uuid import UUID

import orjson
import pytest

from audit.recorder import Record


class Journal:
    """Keeps lines in memory; a full one refuses them."""

    instance = "here"
    boot = "boot"

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.kept: list[tuple[bytes, bool]] = []
        self.is_full = False

    def append(self, line: bytes) -> None:
        if self.is_full:
            raise OSError("full")
        self.lines.append(line)

    def keep(self, line: bytes, *, has_begun: bool) -> None:
        self.kept.append((line, has_begun))


@pytest.fixture
def journal():
    return Journal()


@pytest.fixture
def record(journal):
    return Record(journal, {"endpoint": "/v1", "method": "POST"})


def test_every_state_is_one_whole_line(journal, record):
    record.save()
    record.note(key_name="laptop", input_tokens=3)
    record.close("ok", 200)
    running, ended = (orjson.loads(line) for line in journal.lines)
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in journal.lines)
    assert UUID(running["request_id"]) == record.request_id
    assert (running["outcome"], running["key_name"], running["total_ms"]) == ("running", "", None)
    assert running["input_tokens"] is None
    assert (ended["outcome"], ended["http_status"], ended["input_tokens"]) == ("ok", 200, 3)
    assert ended["total_ms"] > 0
    assert running.keys() == ended.keys()


def test_nothing_is_written_before_it_is_saved(journal, record):
    record.note(engine="exec")
    assert journal.lines == []


@pytest.mark.parametrize(
    "name", ["prompt", "id", "outcome", "request_id", "created_at", "total_ms"]
)
def test_a_name_that_cannot_be_noted_is_a_mistake(record, name):
    with pytest.raises(TypeError, match=name):
        record.note(**{name: "x"})


def test_the_first_end_wins(journal, record):
    assert record.close("cancelled", 499, error_code="turn_stopped", error_message="Left") is True
    assert record.close("ok", 200) is False
    [line] = journal.lines
    ended = orjson.loads(line)
    assert (ended["outcome"], ended["error_code"]) == ("cancelled", "turn_stopped")


def test_of_many_threads_one_ends_the_record(journal, record):
    barrier = threading.Barrier(8)
    won = []

    def end() -> None:
        barrier.wait(10)
        won.append(record.close("ok", 200))

    threads = [threading.Thread(target=end) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(won) == [False] * 7 + [True]
    assert len(journal.lines) == 1


def test_saving_after_the_end_writes_nothing(journal, record):
    record.close("ok", 200)
    record.save()
    assert len(journal.lines) == 1


def test_a_full_disk_stops_a_save_but_not_an_end(journal, record):
    journal.is_full = True
    with pytest.raises(OSError, match="full"):
        record.save()
    assert record.close("rejected", 503) is True
    [(line, has_begun)] = journal.kept
    assert orjson.loads(line)["outcome"] == "rejected"
    assert has_begun is False


def test_the_end_of_a_request_on_record_is_kept_as_promised(journal, record):
    record.save()
    journal.is_full = True
    record.close("ok", 200)
    [(_, has_begun)] = journal.kept
    assert has_begun is True


def test_a_value_that_cannot_be_written_costs_its_column_and_not_the_row(journal, record, caplog):
    record.fields["key_id"] = 2**80  # past note, which would not have let it in
    assert record.close("ok", 200) is True
    ended = orjson.loads(journal.lines[0])
    assert (ended["outcome"], ended["endpoint"]) == ("ok", "/v1")
    assert "key_id" not in ended
    assert "on record with gaps" in caplog.text


def test_no_trouble_gets_out_of_an_end(journal, record, caplog):
    journal.append = journal.keep = None
    assert record.close("ok", 200) is True
    assert "could not be closed on record" in caplog.text
