"""The audit log as auditors see it: a list, and a page for each request."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from audit.action_admin import trail_of
from audit.filters import (
    Choices,
    ColumnFilter,
    DayRangeFilter,
    FlagFilter,
    KeyFilter,
    PeriodFilter,
)
from audit.listing import (
    WINDOW,
    LogAdmin,
    LogList,
    column,
    distinct_values,
    find_uuid,
    is_longer_than_window,
    newest_window,
)
from audit.models import Outcome, RequestRecord
from audit.phases import segments

OUTCOME_COLOURS = {
    "ok": "success",
    "rejected": "warning",
    "failed": "danger",
    "timed out": "danger",
    "cancelled": "info",
    "interrupted": "danger",
    "running": "primary",
}
UNKNOWN = "-"


class OutcomeFilter(ColumnFilter):
    title, parameter_name = "outcome", "outcome"

    def options(self, model: type[Model]) -> Choices:
        return [(value, str(label)) for value, label in Outcome.choices]


class GrantFilter(ColumnFilter):
    """By grant, which the link on the grant's page sets."""

    title, parameter_name = "grant", "grant_id"

    def options(self, model: type[Model]) -> Choices:
        return []

    def has_output(self) -> bool:
        return bool(self.value())


class EngineFilter(ColumnFilter):
    title, parameter_name = "engine", "engine"


class ModelFilter(ColumnFilter):
    title, parameter_name = "model", "model_served"


class StatusFilter(ColumnFilter):
    title, parameter_name = "HTTP status", "http_status"


class AgentFilter(FlagFilter):
    title, parameter_name = "agent mode", "agent_mode"


class StreamFilter(FlagFilter):
    title, parameter_name = "stream", "stream"


class RequestList(LogList):
    """The list; `is_narrowed` says that only the newest part of the log was looked at."""

    window = f"{WINDOW:,}"
    has_last_day = is_narrowed = False

    def get_queryset(
        self, request: HttpRequest, exclude_parameters: list[str] | None = None
    ) -> QuerySet[RequestRecord]:
        queryset: QuerySet[RequestRecord] = super().get_queryset(request, exclude_parameters)
        filters = [spec for spec in self.filter_specs if isinstance(spec, ColumnFilter)]
        conditions = sum(bool(spec.value()) for spec in filters)
        conditions += min(2, len(find_prefixes(self.query)))
        if conditions < 2:
            return queryset
        days = next(spec for spec in self.filter_specs if isinstance(spec, DayRangeFilter))
        self.has_last_day = days.newest_id is not None
        self.is_narrowed = is_longer_than_window(RequestRecord)
        return newest_window(queryset, days.newest_id)


def find_prefixes(term: str) -> list[str]:
    """Return the key prefixes on record that begin with the term; the one alone that equals it."""
    term = term.strip().replace("\x00", "")
    if not term or find_uuid(term):
        return []
    near = [str(prefix) for prefix, _ in distinct_values(RequestRecord, "key_prefix", start=term)]
    return [term] if term in near else [prefix for prefix in near if prefix.startswith(term)]


@admin.register(RequestRecord)
class RequestRecordAdmin(LogAdmin):
    list_display = (
        "when", "key", "asked_for", "engine_and_mode", "result", "status",
        "first_token", "total", "tokens",
    )  # fmt: skip
    list_filter = (
        PeriodFilter,
        ("created_at", DayRangeFilter),
        OutcomeFilter,
        KeyFilter,
        GrantFilter,
        EngineFilter,
        ModelFilter,
        AgentFilter,
        StreamFilter,
        StatusFilter,
    )
    search_fields = ("request_id",)  # shows the box; what it does is in get_search_results
    search_help_text = "A request id, or a key's prefix (its beginning is enough)."
    list_before_template = "audit/list_before.html"
    list_fullwidth = True
    fieldsets = (
        (None, {"fields": ("outcome_label", "killed", "status", "error", "created_at", "request_id")}),
        ("Where the time went", {"fields": ("bar", "total", "first_token", "engine_time")}),
        ("What the agent did", {"fields": ("trail",)}),
        ("Who", {"fields": ("key_link", "key_owner", "client_address", "user_agent")}),
        (
            "What",
            {
                "fields": (
                    "call", "stream", "model_asked", "model_served", "asked_details",
                    "ignored_params", "service_tier", "engine", "worker", "codex_version",
                    "joined_link", "client_request_id",
                )
            },
        ),
        (
            "Where and under which policy",
            {"fields": ("folder", "root_alias", "agent_mode", "grant_link", "sandbox")},
        ),
        (
            "At what cost",
            {
                "fields": (
                    "input_tokens", "cached_input_tokens", "output_tokens",
                    "reasoning_output_tokens",
                )
            },
        ),
    )  # fmt: skip

    def get_changelist(self, request: HttpRequest, **kwargs: object) -> type[LogList]:
        return RequestList

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[RequestRecord], search_term: str
    ) -> tuple[QuerySet[RequestRecord], bool]:
        if not search_term.strip():
            return queryset, False
        request_id = find_uuid(search_term)
        if request_id is not None:
            # A plain `=`: the admin's own exact search is iexact, which no index answers.
            return queryset.filter(request_id=request_id), False
        prefixes = find_prefixes(search_term)
        if len(prefixes) == 1:
            return queryset.filter(key_prefix=prefixes[0]), False
        return queryset.filter(key_prefix__in=prefixes), False

    def get_fieldsets(
        self, request: HttpRequest, obj: RequestRecord | None = None
    ) -> list[tuple[str | None, Any]]:
        is_agent = obj is not None and obj.agent_mode
        return [found for found in self.fieldsets if is_agent or found[1]["fields"] != ("trail",)]

    def get_readonly_fields(
        self, request: HttpRequest, obj: RequestRecord | None = None
    ) -> list[str]:
        return [name for _, section in self.fieldsets for name in section["fields"]]

    @column("time", two_lines=True)
    def when(self, record: RequestRecord) -> list[str]:
        moment = timezone.localtime(record.created_at)
        return [f"{moment:%H:%M:%S}", f"{moment:%d %b %Y}"]

    @column("key", two_lines=True)
    def key(self, record: RequestRecord) -> list[str]:
        if not record.key_name:
            return [UNKNOWN, ""]
        return [" · ".join(filter(None, (record.key_name, record.key_owner))), record.key_prefix]

    @column("request", two_lines=True)
    def asked_for(self, record: RequestRecord) -> list[str]:
        return [record.endpoint, record.model_served or record.model_asked]

    @column("engine", two_lines=True)
    def engine_and_mode(self, record: RequestRecord) -> list[str]:
        mode = "agent mode" if record.agent_mode else ""
        if record.action_count:
            mode += f", {record.action_count:,} actions"
        stream = "stream" if record.stream else ""
        return [record.engine or UNKNOWN, " · ".join(filter(None, (stream, mode)))]

    @column("outcome", colours=OUTCOME_COLOURS)
    def result(self, record: RequestRecord) -> str:
        return record.get_outcome_display()

    @column("outcome")
    def outcome_label(self, record: RequestRecord) -> SafeString:
        label = record.get_outcome_display()
        look = {"text": label, "type": OUTCOME_COLOURS[label]}
        return render_to_string("unfold/helpers/label.html", look)

    @column("HTTP status")
    def status(self, record: RequestRecord) -> int | None:
        return record.http_status

    @column("first token")
    def first_token(self, record: RequestRecord) -> str:
        return _ms(record.first_delta_ms)

    @column("total")
    def total(self, record: RequestRecord) -> str:
        return _ms(record.total_ms)

    @column("in the engine")
    def engine_time(self, record: RequestRecord) -> str:
        return _ms(record.engine_ms)

    @column("tokens in / out")
    def tokens(self, record: RequestRecord) -> str:
        if record.input_tokens is None and record.output_tokens is None:
            return UNKNOWN
        return f"{_number(record.input_tokens)} / {_number(record.output_tokens)}"

    @column("error")
    def error(self, record: RequestRecord) -> str | None:
        return ": ".join(filter(None, (record.error_code, record.error_message))) or None

    @column("killed")
    def killed(self, record: RequestRecord) -> str | None:
        return f"by {record.killed_by}: {record.kill_reason}" if record.killed_by else None

    @column("asked for")
    def asked_details(self, record: RequestRecord) -> str | None:
        return ", ".join(f"{name} {value}" for name, value in record.asked.items()) or None

    @column("joined as a retry of")
    def joined_link(self, record: RequestRecord) -> SafeString | None:
        if record.joined_to is None:
            return None
        url = reverse("admin:audit_requestrecord_changelist")
        return format_html('<a href="{}?q={}">{}</a>', url, record.joined_to, record.joined_to)

    @column("working directory")
    def folder(self, record: RequestRecord) -> str | None:
        return record.cwd or None

    @column("call")
    def call(self, record: RequestRecord) -> str:
        return f"{record.method} {record.endpoint}"

    @column("phases")
    def bar(self, record: RequestRecord) -> SafeString:
        parts = segments(record.phases or {}, record.total_ms)
        return render_to_string("audit/phases.html", {"segments": parts})

    @column("trail")
    def trail(self, record: RequestRecord) -> SafeString:
        return trail_of(record)

    @column("key")
    def key_link(self, record: RequestRecord) -> str:
        if record.key_id is None:
            return record.key_name or UNKNOWN
        label = f"{record.key_name} ({record.key_prefix}…)"
        return _links("admin:proxy_apikey_change", record.key_id, label, "key_id")

    @column("grant")
    def grant_link(self, record: RequestRecord) -> str:
        if record.grant_id is None:
            return UNKNOWN
        label = f"grant {record.grant_id}"
        return _links("admin:proxy_agentgrant_change", record.grant_id, label, "grant_id")


def _links(page: str, row_id: int, label: str, parameter: str) -> str:
    """Return a link to a row's own page and one to all requests with it."""
    requests = reverse("admin:audit_requestrecord_changelist") + f"?{parameter}={row_id}"
    try:
        page = reverse(page, args=[row_id])
    except NoReverseMatch:  # this app knows the other's pages by name only
        return format_html('{} · <a href="{}">its requests</a>', label, requests)
    return format_html(
        '<a class="text-primary-600 dark:text-primary-500 underline" href="{}">{}</a>'
        ' · <a class="text-primary-600 dark:text-primary-500 underline" href="{}">its requests</a>',
        page,
        label,
        requests,
    )


def _ms(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:,.1f} ms" if value < 100 else f"{value:,.0f} ms"


def _number(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"
