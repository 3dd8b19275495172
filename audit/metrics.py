"""The counters of all processes together: they come from the database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from django.db.models import Sum
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from audit.models import Outcome, RequestCounter, RequestRecord

_ERRORS = (Outcome.REJECTED, Outcome.FAILED, Outcome.TIMED_OUT, Outcome.INTERRUPTED)


def counters() -> dict[str, Any]:
    """Return the requests that have ended, and how many have not. Asks the database (sync).

    `requests_total` = `requests_ok` + `requests_error` + the cancelled ones, which are in
    `requests_by_outcome` only: a client that leaves is not an error. `errors_by_status` holds the
    errors by the status that the client got; an interrupted request got none that we know of.
    Rows are written behind, so all of this may be a tenth of a second old.
    """
    outcomes: dict[str, int] = defaultdict(int)
    statuses: dict[str, int] = defaultdict(int)
    for row in RequestCounter.objects.all():
        outcomes[row.outcome] += row.count
        if row.outcome in _ERRORS and row.http_status:
            statuses[str(row.http_status)] += row.count
    return {
        "requests_total": sum(outcomes.values()),
        "requests_ok": outcomes[Outcome.OK],
        "requests_error": sum(outcomes[outcome] for outcome in _ERRORS),
        "errors_by_status": dict(sorted(statuses.items())),
        "requests_by_outcome": {
            outcome.value: outcomes[outcome] for outcome in Outcome if outcome != Outcome.RUNNING
        },
        "in_flight": _in_flight(),
        "tokens": _tokens(),
    }


def prometheus_text(extra: Mapping[str, float]) -> bytes:
    """Return the same for Prometheus, in its text format. Asks the database (sync).

    `extra` are gauges of this process by name; each gets the prefix `codexsite_`.
    """
    registry = CollectorRegistry()
    registry.register(_Counters(extra))
    return generate_latest(registry)


class _Counters(Collector):
    """Reads the database once, for one scrape."""

    def __init__(self, extra: Mapping[str, float]) -> None:
        self._extra = extra

    def describe(self) -> list[Metric]:
        return []  # or registering it would ask the database as well

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "codexsite_requests",
            "Requests that have ended. Status 0: none was sent.",
            labels=["outcome", "status"],
        )
        for row in RequestCounter.objects.order_by("outcome", "http_status"):
            requests.add_metric([row.outcome, str(row.http_status)], row.count)
        yield requests
        tokens = CounterMetricFamily(
            "codexsite_tokens", "Tokens as Codex reports them.", labels=["kind"]
        )
        for kind, count in _tokens().items():
            tokens.add_metric([kind], count)
        yield tokens
        yield GaugeMetricFamily(
            "codexsite_requests_in_flight", "Requests that have not ended.", _in_flight()
        )
        for name, value in self._extra.items():
            yield GaugeMetricFamily(f"codexsite_{name}", name.replace("_", " ").capitalize(), value)


def _tokens() -> dict[str, int]:
    sums = RequestCounter.objects.aggregate(input=Sum("input_tokens"), output=Sum("output_tokens"))
    return {kind: sums[kind] or 0 for kind in ("input", "output")}


def _in_flight() -> int:
    return RequestRecord.objects.filter(outcome=Outcome.RUNNING).count()
