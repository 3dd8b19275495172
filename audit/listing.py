"""Lists of a log of millions that stay quick: nothing here reads more of a table than it shows.

Each list is ordered by primary key, newest first, so it is a range scan of the key or of an index
(column, id). Measured at five million rows; `tests/contract/admin` reads the query plans.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar, cast

from django.contrib.admin import ShowFacets
from django.core.paginator import Paginator
from django.db import connection
from django.db.models import Max, Min, Model, QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property
from unfold.admin import ModelAdmin
from unfold.decorators import display
from unfold.views import ChangeList

CAP = 10_000
"""Rows that a list counts and pages through, so that no OFFSET is larger."""

WINDOW = 200_000
"""Rows that are looked at where no single index answers."""

NEIGHBOURS = 1_000


Shown = TypeVar("Shown", bound=Callable[..., object])


def column(
    description: str,
    *,
    colours: dict[str, str] | None = None,
    two_lines: bool = False,
    ordering: str | None = None,
) -> Callable[[Shown], Shown]:
    """Make a method a column of a list or a line of a page: unfold's `display`, with types.

    `colours` shows the value as a label; with `two_lines` the method returns two values.
    """
    decorate: Callable[[Shown], Shown] = display(
        description=description, label=colours, header=two_lines or None, ordering=ordering
    )
    return decorate


class CappedPaginator(Paginator):  # type: ignore[type-arg] # generic only in the stubs
    """Counts no further than `CAP`; its template says so."""

    template_name = "audit/pagination.html"

    @cached_property
    def count(self) -> int:
        rows = cast("QuerySet[Any]", self.object_list)
        return min(CAP, rows.order_by().values("pk")[: CAP + 1].count())


def distinct_values(
    model: type[Model], column: str, *, start: str | None = None, limit: int = 200
) -> list[tuple[Any, int]]:
    """Return the column's values in order, from `start` on, each with the id of its newest row.

    A walk over the index (column, id) with one probe for each value, where DISTINCT reads it all.
    """
    name = connection.ops.quote_name
    table, value = name(model._meta.db_table), name(column)
    since = f"WHERE {value} >= %s" if start else ""
    # Only names of our own models are put into the text.
    sql = f"""
        WITH RECURSIVE step(value, number) AS (
            SELECT (SELECT MIN({value}) FROM {table} {since}), 1
            UNION ALL
            SELECT (SELECT MIN({value}) FROM {table} WHERE {value} > step.value), number + 1
            FROM step WHERE step.value IS NOT NULL AND number < %s
        )
        SELECT value, (SELECT MAX(id) FROM {table} WHERE {value} = step.value)
        FROM step WHERE value IS NOT NULL
    """  # noqa: S608
    with connection.cursor() as cursor:
        cursor.execute(sql, [*([start] if start else []), limit])
        return list(cursor.fetchall())


def first_id_since(model: type[Model], column: str, since: datetime) -> int | None:
    """Return the id at which the log was when `since` came; None where nothing is that new.

    Ids follow time, but for the rows that several processes write at once and those that a killed
    server left for its next start. So the lowest id among the nearest neighbours counts.
    """
    newer = model._base_manager.filter(**{f"{column}__gte": since}).order_by(column)
    lowest: int | None = newer.values("id")[:NEIGHBOURS].aggregate(found=Min("id"))["found"]
    return lowest


def last_id_before(model: type[Model], column: str, until: datetime) -> int | None:
    """Return the id at which the log was just before `until`; None where nothing is that old."""
    older = model._base_manager.filter(**{f"{column}__lt": until}).order_by(f"-{column}")
    highest: int | None = older.values("id")[:NEIGHBOURS].aggregate(found=Max("id"))["found"]
    return highest


def is_longer_than_window(model: type[Model], size: int = WINDOW) -> bool:
    """Tell whether the log holds more than a window shows. Two probes: one for both ends is a scan."""
    rows = model._base_manager
    newest = rows.aggregate(found=Max("id"))["found"] or 0
    oldest = rows.aggregate(found=Min("id"))["found"] or 0
    return bool(newest - oldest >= size)


def newest_window(
    queryset: QuerySet[Any], newest_id: int | None = None, size: int = WINDOW
) -> QuerySet[Any]:
    """Narrow the queryset to the newest `size` rows of the log, or of what ends at `newest_id`.

    Two conditions that hold together for few rows only would else be looked for in all rows of
    the one that an index answers.
    """
    if newest_id is None:
        newest_id = queryset.model._base_manager.aggregate(found=Max("id"))["found"] or 0
    return queryset.filter(id__gt=newest_id - size)


def find_uuid(term: str) -> uuid.UUID | None:
    """Return the id that a search term is, if it is one."""
    try:
        return uuid.UUID(term.strip())
    except ValueError:
        return None


class LogList(ChangeList):  # type: ignore[misc] # unfold has no types
    """The page of such a list."""

    cap = CAP

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        # Nobody counted all rows; equal to the result the header leaves both away.
        self.full_result_count = self.result_count


class LogAdmin(ModelAdmin):  # type: ignore[misc] # unfold has no types
    """A log that everybody only reads: nobody adds, changes or deletes, superusers included."""

    time_column = "created_at"

    actions = None
    list_filter_submit = True
    list_per_page = 50
    list_max_show_all = 50
    ordering = ("-id",)
    paginator = CappedPaginator
    show_facets = ShowFacets.NEVER
    show_full_result_count = False
    sortable_by = ()

    def get_changelist(self, request: HttpRequest, **kwargs: object) -> type[LogList]:
        return LogList

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Allow what the filters offer: by default the URL may ask for any scan of any column."""
        return lookup in self.filter_parameters(request)

    def filter_parameters(self, request: HttpRequest) -> set[str]:
        names: set[str] = set()
        for item in self.get_list_filter(request):
            if isinstance(item, tuple):
                names |= {f"{item[0]}_from", f"{item[0]}_to"}
            else:
                names.add(item.parameter_name)
        return names
