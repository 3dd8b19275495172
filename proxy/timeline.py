"""Who could write where and when, as bars: a lane for each key and root, a bar for each grant in it.

Only the layout is here; what was in force when comes from `history`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from django.utils import timezone

from proxy.history import GrantHistory, RootThen, Span, shown, spans_of
from proxy.models import AgentGrant, ApiKey

MOST_GRANTS = 500
"""The newest of a period; more than that is no picture any more."""


@dataclass(frozen=True, slots=True)
class Period:
    """From a moment to another; what is drawn lies between them."""

    since: datetime
    until: datetime

    def place(self, moment: datetime) -> float:
        """Return where the moment lies, in per cent of the width."""
        whole = (self.until - self.since).total_seconds()
        return round(100 * (moment - self.since).total_seconds() / whole, 3)


@dataclass(frozen=True, slots=True)
class Bar:
    """One grant's time in a lane; `left` and `width` are per cent."""

    grant: AgentGrant
    state: str
    since: datetime
    until: datetime | None
    left: float
    width: float

    @property
    def was_cut(self) -> bool:
        return self.until is not None and self.until == self.grant.revoked_at

    @property
    def times(self) -> str:
        until = shown(self.until) if self.until else "no end"
        return f"{shown(self.since)} to {until}"


@dataclass(slots=True)
class Lane:
    """What one key could do in one root; bars that overlap lie in rows of their own."""

    key: ApiKey
    alias: str
    path: str
    rows: list[list[Bar]] = field(default_factory=list)

    @property
    def told(self) -> list[Bar]:
        """Return the bars for a table, where one that goes on after now is one line."""
        lines: list[Bar] = []
        for bar in (bar for row in self.rows for bar in row):
            last = lines[-1] if lines else None
            goes_on = last is not None and (last.grant, last.until) == (bar.grant, bar.since)
            if last is not None and goes_on and (last.state, bar.state) == ("live", "planned"):
                lines[-1] = replace(last, until=bar.until)
            else:
                lines.append(bar)
        return sorted(lines, key=lambda bar: bar.since)

    def add(self, bars: list[Bar]) -> None:
        """Add the bars of one grant, which stay in one row."""
        for row in self.rows:
            if row[-1].left + row[-1].width <= bars[0].left:
                row.extend(bars)
                return
        self.rows.append(bars)


@dataclass(frozen=True, slots=True)
class Mark:
    """A line across all lanes, with what it says; `left` is per cent."""

    left: float
    label: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """The whole picture. `is_cut` says that only the newest grants are in it."""

    period: Period
    lanes: list[Lane]
    marks: list[Mark]
    now: float | None
    is_cut: bool


def draw(period: Period, *, key_id: int | None = None, root_id: int | None = None) -> Timeline:
    """Return the lanes of a period, of one key and of one root where these are asked for."""
    grants = AgentGrant.objects.filter(starts_at__lt=period.until, created_at__lt=period.until)
    grants = grants.exclude(revoked_at__lte=period.since)
    if key_id is not None:
        grants = grants.filter(key_id=key_id)
    newest = grants.select_related("key", "granted_by", "approved_by", "revoked_by")
    found = list(newest.prefetch_related("roots").order_by("-id")[: MOST_GRANTS + 1])
    now = timezone.now()
    return Timeline(
        period=period,
        lanes=_lanes(period, found[:MOST_GRANTS], root_id),
        marks=_days(period),
        now=period.place(now) if period.since <= now < period.until else None,
        is_cut=len(found) > MOST_GRANTS,
    )


def _lanes(period: Period, grants: list[AgentGrant], root_id: int | None) -> list[Lane]:
    history = GrantHistory(grants)
    lanes: dict[tuple[int, int], Lane] = {}
    for grant in sorted(grants, key=lambda grant: grant.starts_at):
        spans = [span for span in spans_of(grant, history) if _is_in(period, span)]
        roots = {root.pk: root for span in spans for root in span.roots}
        for root in roots.values():
            if root_id in (None, root.pk):
                lane = lanes.setdefault(
                    (grant.key_id, root.pk), Lane(grant.key, root.alias, root.path)
                )
                lane.add([_bar(period, span) for span in spans if _is_of(root, span)])
    return sorted(lanes.values(), key=lambda lane: (lane.key.name.lower(), lane.alias))


def _is_in(period: Period, span: Span) -> bool:
    return span.since < period.until and (span.until is None or span.until > period.since)


def _is_of(root: RootThen, span: Span) -> bool:
    return any(other.pk == root.pk for other in span.roots)


def _bar(period: Period, span: Span) -> Bar:
    left = max(period.place(span.since), 0.0)
    right = min(period.place(span.until), 100.0) if span.until else 100.0
    width = max(right - left, 0.0)
    return Bar(span.grant, span.state, span.since, span.until, left, round(width, 3))


def _days(period: Period) -> list[Mark]:
    """Return the lines: midnights, so many of them as can be read."""
    days = max((period.until - period.since).days, 1)
    step = next((step for step in (1, 2, 5, 7, 14, 30, 90) if days / step <= 10), 365)
    day = timezone.localtime(period.since).replace(hour=0, minute=0, second=0, microsecond=0)
    marks = []
    while day < period.until:
        if day >= period.since:
            marks.append(Mark(period.place(day), f"{day:%d %b}"))
        day += timedelta(days=step)
    return marks
