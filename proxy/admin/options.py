"""The server's options, one page."""

from __future__ import annotations

from functools import cache
from typing import Any

from auditlog.context import disable_auditlog
from django.conf import settings
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Field
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.html import format_html, format_html_join

from audit.listing import column
from proxy.admin.base import PolicyAdmin
from proxy.forms import ProxySettingsForm
from proxy.models import ProxySettings
from proxy.redaction import redact_override, redact_url


@admin.register(ProxySettings)
class ProxySettingsAdmin(PolicyAdmin):
    form = ProxySettingsForm
    sections = (
        (
            "Engine",
            (
                "engine", "workers", "turns_per_worker", "worker_max_mb", "worker_max_hours",
                "max_concurrency",
            ),
        ),
        ("Waiting", ("max_queue_size", "queue_timeout_seconds", "timeout_seconds")),
        (
            "Codex",
            ("model", "fast", "is_lean", "ephemeral", "codex_configs", "codex_bin",
             "app_server_codex_home", "proxy"),
        ),
        ("Answers", ("reasoning", "max_choices", "fetch_images")),
        ("Where keys without roots work", ("allowed_roots", "default_cwd")),
        (
            "Agent mode",
            ("agent", "action_output_chars", "action_diff_chars", "compared_files"),
        ),
        ("Log", ("log_level",)),
    )  # fmt: skip

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> ProxySettings:
        """Return the one row, made with its defaults at the first look: that is nobody's change."""
        with disable_auditlog():
            return ProxySettings.objects.get_or_create(pk=1)[0]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        return HttpResponseRedirect(reverse("admin:proxy_proxysettings_change", args=[1]))

    def get_fieldsets(self, request: HttpRequest, obj: ProxySettings | None = None) -> list[Any]:
        return [
            (title, {"fields": tuple(self.shown(name, request) for name in names)})
            for title, names in self.sections
        ]

    def get_readonly_fields(
        self, request: HttpRequest, obj: ProxySettings | None = None
    ) -> list[Any]:
        fieldsets = self.get_fieldsets(request, obj)
        return [field for _, section in fieldsets for field in section["fields"] if callable(field)]

    def shown(self, name: str, request: HttpRequest) -> Any:  # noqa: ANN401 - a name or a callable
        """Return the field's name, or what shows its value where the page may not edit it."""
        if name in settings.OPTION_OVERRIDES:
            return _from_environment(name)
        if name == "codex_configs" and not self.has_change_permission(request):
            return _codex_configs
        return name


@column("codex config overrides")
def _codex_configs(obj: ProxySettings) -> str:
    return _plain(obj.codex_configs)


@cache  # Django asks for the fields more than once and compares what it got
def _from_environment(name: str) -> Any:  # noqa: ANN401 - Django's kind of display function
    field = ProxySettings._meta.get_field(name)

    @column(_label(field))
    def value(obj: ProxySettings) -> str:
        return format_html(
            "{}<br><small>Set by the variable <code>{}</code>, which wins over this page.</small>",
            _plain(settings.OPTION_OVERRIDES[name]),
            settings.OPTION_VARIABLES[name],
        )

    return value


def _label(field: Any) -> str:  # noqa: ANN401 - Field's generics say nothing here
    return str(field.verbose_name) if isinstance(field, Field) else field.name


def _plain(value: object) -> str:
    """Return an option's value as text, its credentials starred."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return format_html_join("", "<div>{}</div>", ((redact_override(item),) for item in value))
    return redact_url(str(value))
