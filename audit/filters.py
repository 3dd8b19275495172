"""Filters of a log that an index answers: by a column's value, by time as a range of ids."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from typing import Any

from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from unfold.contrib.filters.admin import DropdownFilter, RangeDateFilter
from unfold.utils import parse_date_str

from audit.listing import distinct_values, first_id_since, last_id_before

Choices = list[tuple[str, str]]


class ColumnFilter(DropdownFilter):  # type: ignore[misc] # unfold has no types
    """Rows whose column has a value. `options` says which values are offered.

    A value that is not offered filters too: there may be more keys than a list should hold.
    """

    def options(self, model: type[Model]) -> Choices:
        return [(str(value), str(value)) for value, _ in distinct_values(model, self.parameter_name)
                if value != ""]  # fmt: skip

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:  # noqa: ANN401
        offered = self.options(model_admin.model)
        chosen = self.value()
        if chosen and chosen not in dict(offered):
            offered.append((chosen, chosen))
        return offered

    def has_output(self) -> bool:
        return True  # Django drops a filter without choices, its condition included

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if not self.value():
            return queryset
        try:
            return queryset.filter(**{self.parameter_name: self.value()})
        except ValueError as error:  # no number, where the column has numbers
            raise IncorrectLookupParameters from error


class FlagFilter(ColumnFilter):
    """Rows whose boolean column is true or false."""

    def options(self, model: type[Model]) -> Choices:
        return [("1", "yes"), ("0", "no")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() not in ("0", "1"):
            return queryset
        # Django writes `column = True` as the bare column, which SQLite answers without its index.
        return queryset.filter(**{f"{self.parameter_name}__in": [self.value() == "1"]})


class KeyFilter(ColumnFilter):
    """By key, each under the name that it had in its newest row."""

    title, parameter_name = "key", "key_id"

    def options(self, model: type[Model]) -> Choices:
        found = distinct_values(model, "key_id")
        newest: dict[int, Any] = model._base_manager.in_bulk([row_id for _, row_id in found])
        named = [(str(key_id), newest[row_id]) for key_id, row_id in found if row_id in newest]
        labels = [(key_id, f"{row.key_name} ({row.key_prefix}…)") for key_id, row in named]
        return sorted(labels, key=lambda choice: choice[1].lower())


class PeriodFilter(DropdownFilter):  # type: ignore[misc] # unfold has no types
    """The last hour, day, week, month."""

    title, parameter_name = "period", "period"
    periods = {  # noqa: RUF012 - Django's style of class options
        "1h": ("last hour", timedelta(hours=1)),
        "24h": ("last 24 hours", timedelta(days=1)),
        "7d": ("last 7 days", timedelta(days=7)),
        "30d": ("last 30 days", timedelta(days=30)),
    }

    def __init__(
        self,
        request: HttpRequest,
        params: dict[str, list[str]],
        model: type[Model],
        model_admin: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(request, params, model, model_admin)
        self.time_column = model_admin.time_column

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:  # noqa: ANN401
        return [(name, label) for name, (label, _) in self.periods.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() not in self.periods:
            return queryset
        since = timezone.now() - self.periods[self.value()][1]
        oldest_id = first_id_since(queryset.model, self.time_column, since)
        return queryset.none() if oldest_id is None else queryset.filter(id__gte=oldest_id)


class DayRangeFilter(RangeDateFilter):  # type: ignore[misc] # unfold has no types
    """From a day to a day, both included, in the server's time zone."""

    newest_id: int | None = None

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        model, column = queryset.model, self.parameter_name
        since, until = self._day(f"{column}_from"), self._day(f"{column}_to")
        if since:
            oldest_id = first_id_since(model, column, _start_of(since))
            if oldest_id is None:
                return queryset.none()
            queryset = queryset.filter(id__gte=oldest_id)
        if until:
            self.newest_id = last_id_before(model, column, _start_of(until + timedelta(days=1)))
            if self.newest_id is None:
                return queryset.none()
            queryset = queryset.filter(id__lte=self.newest_id)
        return queryset

    def _day(self, parameter: str) -> date | None:
        day: date | None = parse_date_str(self.used_parameters.get(parameter, ""))
        return day

    def choices(self, changelist: ChangeList) -> Iterator[dict[str, Any]]:
        choices: Iterator[dict[str, Any]] = super().choices(changelist)
        return choices


def _start_of(day: date) -> datetime:
    return timezone.make_aware(datetime.combine(day, time.min))
