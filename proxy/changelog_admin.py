"""The changelog as auditors see it: who changed what of the policy, before and after."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from auditlog.models import LogEntry
from django.contrib import admin
from django.contrib.auth.models import Group, User
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import FieldDoesNotExist
from django.db.models import DateTimeField, Field, JSONField, Model
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from audit.filters import Choices, ColumnFilter, DayRangeFilter, PeriodFilter
from audit.listing import LogAdmin, column
from proxy.models import AgentGrant, AllowedRoot, ApiKey, ChangeEntry, KillOrder, ProxySettings

WATCHED = (ApiKey, AllowedRoot, AgentGrant, KillOrder, ProxySettings, User, Group)
ACTION_COLOURS = {"created": "success", "changed": "info", "deleted": "danger"}
ACTIONS = {0: "created", 1: "changed", 2: "deleted", 3: "read"}
NOTHING = "-"


class KindFilter(ColumnFilter):
    title, parameter_name = "kind", "content_type_id"

    def options(self, model: type[Model]) -> Choices:
        kinds = ContentType.objects.get_for_models(*WATCHED)
        return [(str(kind.pk), str(each._meta.verbose_name)) for each, kind in kinds.items()]


class ObjectFilter(ColumnFilter):
    """By object, which the History button of its page sets."""

    title, parameter_name = "object", "object_id"

    def options(self, model: type[Model]) -> Choices:
        return []

    def has_output(self) -> bool:
        return bool(self.value())


class ActorFilter(ColumnFilter):
    title, parameter_name = "who", "actor_id"

    def options(self, model: type[Model]) -> Choices:
        staff = User.objects.filter(is_staff=True).order_by("username")[:200]
        return [(str(user.pk), user.get_username()) for user in staff]


class ActionFilter(ColumnFilter):
    title, parameter_name = "action", "action"

    def options(self, model: type[Model]) -> Choices:
        return [(str(number), name) for number, name in ACTIONS.items() if name != "read"]


@admin.register(ChangeEntry)
class ChangeEntryAdmin(LogAdmin):
    time_column = "timestamp"
    list_display = (
        "timestamp",
        "actor_name",
        "remote_addr",
        "what",
        "kind",
        "object",
        "fields_changed",
    )
    list_filter = (
        PeriodFilter,
        ("timestamp", DayRangeFilter),
        ActorFilter,
        ActionFilter,
        KindFilter,
        ObjectFilter,
    )
    list_select_related = ("content_type", "actor")
    list_fullwidth = True
    fieldsets = (
        (None, {"fields": ("what", "kind", "object", "values")}),
        ("Who, when, from where", {"fields": ("actor_name", "timestamp", "remote_addr")}),
    )

    def get_readonly_fields(
        self, request: HttpRequest, obj: ChangeEntry | None = None
    ) -> list[str]:
        return [name for _, section in self.fieldsets for name in section["fields"]]

    @column("who")
    def actor_name(self, entry: ChangeEntry) -> str:
        """A change without a user was made by a command on the server's own machine."""
        return str(entry.actor) if entry.actor else "command line"

    @column("action", colours=ACTION_COLOURS)
    def what(self, entry: ChangeEntry) -> str:
        return ACTIONS[entry.action]

    @column("kind")
    def kind(self, entry: ChangeEntry) -> str:
        return str(entry.content_type.name)

    @column("object")
    def object(self, entry: ChangeEntry) -> str:
        kind = entry.content_type
        try:
            url = reverse(f"admin:{kind.app_label}_{kind.model}_change", args=[entry.object_pk])
        except NoReverseMatch:
            return str(entry.object_repr)
        return format_html(
            '<a class="text-primary-600 dark:text-primary-500 underline" href="{}">{}</a>',
            url,
            entry.object_repr,
        )

    @column("fields")
    def fields_changed(self, entry: ChangeEntry) -> str:
        if entry.action != LogEntry.Action.UPDATE:
            return NOTHING  # all of them
        return ", ".join(row["field"] for row in _rows(entry)) or NOTHING

    @column("before and after")
    def values(self, entry: ChangeEntry) -> SafeString:
        return render_to_string("proxy/changes.html", {"rows": _rows(entry)})


def _rows(entry: ChangeEntry) -> list[dict[str, str]]:
    """Return what changed, field by field; a field that was and is empty is no change."""
    model = entry.content_type.model_class()
    rows = [_row(model, name, change) for name, change in sorted(entry.changes_dict.items())]
    return [row for row in rows if row["before"] != row["after"]]


def _row(model: type[Model] | None, name: str, change: Any) -> dict[str, str]:  # noqa: ANN401 - JSON
    """Return a line of the table; a relation's entry says which objects came or went."""
    label = _label(model, name)
    if isinstance(change, dict):
        objects = ", ".join(change["objects"])
        came = change["operation"] == "add"
        return {"field": label, "before": "" if came else objects, "after": objects if came else ""}
    before, after = (_value(model, name, value) for value in change)
    return {"field": label, "before": before, "after": after}


def _field(model: type[Model] | None, name: str) -> Any:  # noqa: ANN401 - any kind of field
    try:
        return model._meta.get_field(name) if model else None
    except FieldDoesNotExist:
        return None  # of an older version


def _label(model: type[Model] | None, name: str) -> str:
    return str(getattr(_field(model, name), "verbose_name", name))


def _value(model: type[Model] | None, name: str, value: str) -> str:
    if value in ("None", ""):
        return ""
    field = _field(model, name)
    if isinstance(field, DateTimeField):
        return _moment(value)
    if isinstance(field, JSONField):
        return ", ".join(json.loads(value))
    if isinstance(field, Field) and field.choices:
        return str(dict(field.flatchoices).get(value, value))
    return {"True": "yes", "False": "no"}.get(value, value)


def _moment(value: str) -> str:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return value
    # auditlog writes UTC without saying so
    return f"{timezone.localtime(moment.replace(tzinfo=UTC)):%d %b %Y %H:%M:%S %Z}"
