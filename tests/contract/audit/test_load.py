"""What the audit log takes of an answer's time, while its writer is busy with hundreds of others."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest

from audit.models import RequestRecord

PER_SECOND, SECONDS = 200, 2
A_FEW_MS = 5.0

pytestmark = pytest.mark.django_db(transaction=True)


def test_beginning_and_end_of_a_record_take_an_answer_no_time(audit_log: Any, caplog: Any):
    log = audit_log()
    begun, taken_ms = time.monotonic(), []
    for number in range(PER_SECOND * SECONDS):
        time.sleep(max(begun + number / PER_SECOND - time.monotonic(), 0))
        started = time.perf_counter()
        record = log.open(endpoint="/v1/chat/completions", method="POST")
        record.save()
        record.close("ok", 200)
        taken_ms.append((time.perf_counter() - started) * 1000)
    assert log.flush(20)
    assert RequestRecord.objects.filter(outcome="ok").count() == PER_SECOND * SECONDS
    assert statistics.quantiles(taken_ms, n=20)[-1] < A_FEW_MS
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
