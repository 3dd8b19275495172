"""The whole application under a steady load, on the database that DATABASE_URL names.

Half of the requests are refused, half are instant turns; both go through Django, the policy and the
gateway. Blocks with the audit log take turns with blocks without one, so that both meet the same
machine. Prints what it measured as one line of JSON.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import call_command

from audit.models import RequestCounter, RequestRecord
from audit.recorder import Record
from codexsite.asgi import Service, build
from proxy.dbthreads import read
from proxy.engines.base import Completed, TextDelta
from proxy.engines.scripted import ScriptedEngine
from proxy.models import ApiKey
from proxy.runtime import Runtime
from tests.asgi import AsgiClient, question, running

RATE = 200.0
BLOCK_S = 0.75
BLOCKS = 4


class NoLog:
    """A journal that keeps nothing."""

    instance = boot = ""
    is_full = False

    def open(self, **fields: Any) -> Record:
        return Record(self, fields)

    def append(self, line: bytes) -> None:
        pass

    def keep(self, line: bytes, *, has_begun: bool) -> None:
        pass


class Load:
    def __init__(self, client: AsgiClient) -> None:
        self.client = client
        self.appends_ms: list[float] = []

    def timed(self, append: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """Return an `append` that remembers how long each took."""

        def appending(line: bytes) -> None:
            started = time.perf_counter()
            append(line)
            self.appends_ms.append((time.perf_counter() - started) * 1000)

        return appending

    async def block(self) -> list[float]:
        """Send requests at the rate for one block; return how long each answer took, in ms."""
        first = time.perf_counter()
        sent = []
        for number in range(int(RATE * BLOCK_S)):
            await asyncio.sleep(max(first + number / RATE - time.perf_counter(), 0))
            sent.append(asyncio.create_task(self.one(is_refused=number % 2 == 0)))
        return list(await asyncio.gather(*sent))

    async def one(self, *, is_refused: bool) -> float:
        started = time.perf_counter()
        key = "sk-codexsite-wrong" if is_refused else None
        answer = self.client.open("POST", "/v1/chat/completions", json=question(), key=key)
        await answer.start()
        await answer.finish()
        assert answer.status == (401 if is_refused else 200), answer.body
        return (time.perf_counter() - started) * 1000


def prepare() -> str:
    call_command("migrate", verbosity=0)
    owner = User.objects.create_user("ada")
    return ApiKey.objects.issue(name="laptop", owner=owner)[1]


async def main(secret: str) -> dict[str, Any]:
    engine = ScriptedEngine([TextDelta("Hello"), Completed()])
    service = Service(Runtime({"app-server": lambda _: engine}), spool=settings.DATA_DIR.spool)
    with_log: list[list[float]] = []
    without: list[list[float]] = []
    spent_cpu = [0.0, 0.0]
    real, none = service.audit_log, NoLog()
    async with running(build(service)) as application:
        load = Load(AsgiClient(application, secret))
        real.append = load.timed(real.append)  # type: ignore[method-assign, assignment]
        warm_up = await load.block()  # the first requests load code: they count for neither
        for spent in [with_log, without, without, with_log] * (BLOCKS // 2):
            service.audit_log = real if spent is with_log else none  # type: ignore[assignment]
            cpu = time.process_time()
            spent.append(await load.block())
            spent_cpu[spent is without] += time.process_time() - cpu
        service.audit_log = real
        started = time.perf_counter()
        is_flushed = await asyncio.to_thread(real.flush)
        flush_s = time.perf_counter() - started
    counts = await read(lambda: dict(RequestCounter.objects.values_list("http_status", "count")))
    rows = await read(lambda: list(RequestRecord.objects.values_list("outcome", flat=True)))
    return {
        "sent": len(warm_up) + sum(map(len, with_log)),
        "rows": {outcome: rows.count(outcome) for outcome in sorted(set(rows))},
        "counts": {str(status): count for status, count in counts.items()},
        "is_flushed": is_flushed,
        "flush_s": round(flush_s, 3),
        "append_ms": quantiles(load.appends_ms),
        "with_ms": quantiles([ms for block in with_log for ms in block]),
        "without_ms": quantiles([ms for block in without for ms in block]),
        "best_medians_ms": [best_median(blocks) for blocks in (with_log, without)],
        "cpu_ms": [round(spent * 1000 / (RATE * BLOCK_S * BLOCKS), 3) for spent in spent_cpu],
        "waiting": [path.name for path in Path(settings.DATA_DIR.spool).glob("*.jsonl")],
    }


def quantiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100)
    return {"p50": round(cuts[49], 3), "p95": round(cuts[94], 3), "max": round(max(values), 3)}


def best_median(blocks: list[list[float]]) -> float:
    """Return the median of the block that the rest of the machine disturbed least."""
    return round(min(statistics.median(block) for block in blocks), 3)


def run() -> None:
    sys.stdout.write(orjson.dumps(asyncio.run(main(prepare()))).decode() + "\n")
