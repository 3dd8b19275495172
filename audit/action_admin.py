"""What agents did, as auditors see it: a list of all of it, a page for each, a request's timeline."""

from __future__ import annotations

from dataclasses import dataclass

from django.contrib import admin
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from audit.filters import Choices, ColumnFilter, DayRangeFilter, KeyFilter, PeriodFilter
from audit.listing import LogAdmin, LogList, column, find_uuid, is_longer_than_window, newest_window
from audit.models import ActionKind, ActionStatus, AgentAction, RequestRecord

SEARCHED = 50_000
"""Actions whose texts are read for one search."""
IN_TIMELINE = 200
DIFF_IN_TIMELINE = 4_000

KIND_COLOURS = {
    "command": "primary",
    "typed into a command": "primary",
    "patch": "success",
    "changed by no patch": "warning",
    "web search": "info",
    "MCP call": "info",
    "escalation refused": "danger",
    "command refused": "danger",
    "patch refused": "danger",
    "folder compared": "default",
}
STATUS_COLOURS = {
    "running": "primary",
    "completed": "success",
    "failed": "warning",
    "refused": "danger",
    "unfinished": "danger",
}


# --- How one action reads ----------------------------------------------------------------------


def title_of(action: AgentAction) -> str:
    """Return what the action was, in one line's worth: its command, or its file."""
    if action.moved_to:
        return f"{action.path} → {action.moved_to}"
    return action.path or action.command or action.note


def outcome_of(action: AgentAction) -> str:
    """Return how it ended: the exit code of a command, what became of a file, or its status."""
    if action.exit_code is not None:
        return f"exit {action.exit_code}"
    if action.status != ActionStatus.COMPLETED:
        return str(action.get_status_display())
    return action.change or str(action.get_status_display())


def lines_of(action: AgentAction) -> str:
    """Return the lines added and removed; empty where it changed no file."""
    if action.kind not in (ActionKind.PATCH, ActionKind.SHELL_CHANGE):
        return ""
    if action.lines_added is None or action.lines_removed is None:
        return "lines unknown"
    return f"+{action.lines_added} −{action.lines_removed}"  # noqa: RUF001 - a minus sign


@dataclass(frozen=True, slots=True)
class DiffLine:
    """A line of a diff; `look` is the class that colours it."""

    text: str
    look: str


LOOKS = {"+": "added", "-": "removed", "@": "place"}


def diff_lines(diff: str) -> list[DiffLine]:
    return [DiffLine(line, LOOKS.get(line[:1], "")) for line in diff.splitlines()]


# --- The timeline of a request -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """One action as the timeline shows it."""

    action: AgentAction
    url: str
    title: str
    outcome: str
    lines: str
    diff: list[DiffLine]
    is_diff_cut: bool

    @property
    def is_bad(self) -> bool:
        return self.action.status in (ActionStatus.REFUSED, ActionStatus.UNFINISHED) or bool(
            self.action.exit_code
        )


def trail_of(record: RequestRecord) -> SafeString:
    """Return the timeline of a request's actions."""
    found = list(
        AgentAction.objects.filter(request_id=record.request_id).order_by("number")[
            : IN_TIMELINE + 1
        ]
    )
    look = {
        "steps": [_step(action) for action in found[:IN_TIMELINE]],
        "has_more": len(found) > IN_TIMELINE,
        "all": reverse("admin:audit_agentaction_changelist") + f"?q={record.request_id}",
    }
    return render_to_string("audit/trail.html", look)


def _step(action: AgentAction) -> Step:
    return Step(
        action=action,
        url=reverse("admin:audit_agentaction_change", args=[action.pk]),
        title=title_of(action),
        outcome=outcome_of(action),
        lines=lines_of(action),
        diff=diff_lines(action.diff[:DIFF_IN_TIMELINE]),
        is_diff_cut=len(action.diff) > DIFF_IN_TIMELINE,
    )


# --- The list ----------------------------------------------------------------------------------


class KindFilter(ColumnFilter):
    title, parameter_name = "kind", "kind"

    def options(self, model: type[Model]) -> Choices:
        return [(value, str(label)) for value, label in ActionKind.choices]


class StatusFilter(ColumnFilter):
    title, parameter_name = "status", "status"

    def options(self, model: type[Model]) -> Choices:
        return [(value, str(label)) for value, label in ActionStatus.choices]


class ExitCodeFilter(ColumnFilter):
    title, parameter_name = "exit code", "exit_code"


class ActionList(LogList):
    """The list; `is_narrowed` says that only the newest part of it was searched."""

    window = f"{SEARCHED:,}"
    has_last_day = is_narrowed = False

    def get_queryset(
        self, request: HttpRequest, exclude_parameters: list[str] | None = None
    ) -> QuerySet[AgentAction]:
        queryset: QuerySet[AgentAction] = super().get_queryset(request, exclude_parameters)
        filters = [spec for spec in self.filter_specs if isinstance(spec, ColumnFilter)]
        reads_texts = bool(self.query.strip()) and find_uuid(self.query) is None
        if not reads_texts and sum(bool(spec.value()) for spec in filters) < 2:
            return queryset
        days = next(spec for spec in self.filter_specs if isinstance(spec, DayRangeFilter))
        self.has_last_day = days.newest_id is not None
        self.is_narrowed = is_longer_than_window(AgentAction, SEARCHED)
        return newest_window(queryset, days.newest_id, SEARCHED)


@admin.register(AgentAction)
class AgentActionAdmin(LogAdmin):
    list_display = ("when", "key", "what_kind", "what", "result", "lines", "asked_by")
    list_filter = (
        PeriodFilter,
        ("created_at", DayRangeFilter),
        KeyFilter,
        KindFilter,
        StatusFilter,
        ExitCodeFilter,
    )
    search_fields = ("request_id",)  # shows the box; what it does is in get_search_results
    search_help_text = "A part of a path or of a command, or a request id."
    list_before_template = "audit/action_list_before.html"
    list_fullwidth = True
    fieldsets = (
        (None, {"fields": ("what_kind", "label", "request_link", "number", "created_at")}),
        ("What", {"fields": ("whole_command", "file", "folder", "said")}),
        ("Result", {"fields": ("result", "duration", "lines")}),
        ("Output", {"fields": ("output_size", "output_sha256", "output")}),
        ("Difference", {"fields": ("whole_diff",)}),
        ("Who", {"fields": ("key_link", "key_owner", "root_alias")}),
    )

    def get_changelist(self, request: HttpRequest, **kwargs: object) -> type[LogList]:
        return ActionList

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[AgentAction], search_term: str
    ) -> tuple[QuerySet[AgentAction], bool]:
        term = search_term.strip().replace("\x00", "")
        if not term:
            return queryset, False
        request_id = find_uuid(term)
        if request_id is not None:
            return queryset.filter(request_id=request_id), False
        texts = Q(path__icontains=term) | Q(moved_to__icontains=term) | Q(command__icontains=term)
        return queryset.filter(texts), False

    def get_readonly_fields(
        self, request: HttpRequest, obj: AgentAction | None = None
    ) -> list[str]:
        return [name for _, section in self.fieldsets for name in section["fields"]]

    @column("time", two_lines=True)
    def when(self, action: AgentAction) -> list[str]:
        moment = timezone.localtime(action.created_at)
        return [f"{moment:%H:%M:%S}", f"{moment:%d %b %Y}"]

    @column("key", two_lines=True)
    def key(self, action: AgentAction) -> list[str]:
        return [" · ".join(filter(None, (action.key_name, action.key_owner))), action.root_alias]

    @column("kind", colours=KIND_COLOURS)
    def what_kind(self, action: AgentAction) -> str:
        return str(action.get_kind_display())

    @column("what")
    def what(self, action: AgentAction) -> SafeString:
        return format_html('<span class="action-what">{}</span>', title_of(action)[:300])

    @column("result")
    def result(self, action: AgentAction) -> str:
        return outcome_of(action)

    @column("lines")
    def lines(self, action: AgentAction) -> str:
        return lines_of(action)

    @column("request")
    def asked_by(self, action: AgentAction) -> SafeString:
        url = reverse("admin:audit_requestrecord_changelist")
        short = f"{str(action.request_id)[:8]}…"
        return _link(f"{url}?q={action.request_id}", short)

    @column("status")
    def label(self, action: AgentAction) -> SafeString:
        label = str(action.get_status_display())
        look = {"text": label, "type": STATUS_COLOURS.get(label, "default")}
        return render_to_string("unfold/helpers/label.html", look)

    @column("request")
    def request_link(self, action: AgentAction) -> SafeString:
        pk = RequestRecord.objects.filter(request_id=action.request_id).values_list("pk").first()
        if pk is None:  # its own row was lost with the process, or is not stored yet
            return format_html("{}", action.request_id)
        return _link(reverse("admin:audit_requestrecord_change", args=pk), str(action.request_id))

    @column("command")
    def whole_command(self, action: AgentAction) -> SafeString | None:
        return _preformatted(action.command)

    @column("file")
    def file(self, action: AgentAction) -> str | None:
        return title_of(action) if action.path else None

    @column("working directory")
    def folder(self, action: AgentAction) -> str | None:
        return action.cwd or None

    @column("note")
    def said(self, action: AgentAction) -> str | None:
        return action.note or None

    @column("duration")
    def duration(self, action: AgentAction) -> str | None:
        return None if action.duration_ms is None else f"{action.duration_ms:,} ms"

    @column("size")
    def output_size(self, action: AgentAction) -> str | None:
        return None if action.output_bytes is None else f"{action.output_bytes:,} bytes"

    @column("first and last characters")
    def output(self, action: AgentAction) -> SafeString | None:
        return _preformatted("\n…\n".join(filter(None, (action.output_head, action.output_tail))))

    @column("diff")
    def whole_diff(self, action: AgentAction) -> SafeString:
        return render_to_string("audit/diff.html", {"lines": diff_lines(action.diff)})

    @column("key")
    def key_link(self, action: AgentAction) -> SafeString:
        url = reverse("admin:audit_agentaction_changelist") + f"?key_id={action.key_id}"
        return _link(url, f"{action.key_name} ({action.key_prefix}…): all its actions")


def _link(url: str, label: str) -> SafeString:
    look = "text-primary-600 dark:text-primary-500 underline"
    return format_html('<a class="{}" href="{}">{}</a>', look, url, label)


def _preformatted(text: str) -> SafeString | None:
    return render_to_string("audit/text.html", {"text": text}) if text else None
