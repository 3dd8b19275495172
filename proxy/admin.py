"""The policy as operators manage it: keys, roots, grants, the server's options, people.

Nothing that a request was judged by can be deleted here: keys and grants are revoked instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlencode

from auditlog.context import disable_auditlog
from auditlog.models import LogEntry
from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.db.models import (
    Field,
    ForeignKey,
    JSONField,
    ManyToManyField,
    Model,
    Q,
    QuerySet,
    TextField,
)
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.cache import patch_cache_control
from django.utils.html import format_html, format_html_join
from django.utils.text import capfirst
from unfold.admin import ModelAdmin
from unfold.contrib.filters.admin import (
    ChoicesDropdownFilter,
    DropdownFilter,
    RelatedDropdownFilter,
)
from unfold.decorators import action
from unfold.enums import ActionVariant
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget, UnfoldAdminTextareaWidget

from audit.listing import column
from proxy import changelog_admin as changelog_admin
from proxy import sandbox_admin as sandbox_admin
from proxy.forms import ApiKeyForm, LinesField, ProxySettingsForm, RotateForm
from proxy.models import AgentGrant, AllowedRoot, ApiKey, ProxySettings, is_inside
from proxy.policy import load_options
from proxy.redaction import redact_override, redact_url

admin.site.unregister([User, Group, LogEntry])

STATE_COLOURS = {
    "live": "success",
    "expired": "warning",
    "over": "warning",
    "not yet": "info",
    "revoked": "danger",
}
UNKNOWN = "-"
LINK = "text-primary-600 dark:text-primary-500 underline"


Page = TypeVar("Page", bound=Callable[..., HttpResponse])


def _button(
    title: str, *, icon: str, permission: str, variant: ActionVariant = ActionVariant.DEFAULT
) -> Callable[[Page], Page]:
    """Make a method a page of its own behind a button on the object's page."""
    decorate: Callable[[Page], Page] = action(
        description=title, icon=icon, permissions=[permission], variant=variant
    )
    return decorate


class PolicyAdmin(ModelAdmin):  # type: ignore[misc] # unfold has no types
    """A part of the policy: its history is the changelog's, and roots are chosen by checkbox."""

    actions = None
    formfield_overrides: ClassVar = {
        TextField: {"widget": UnfoldAdminTextareaWidget(attrs={"rows": 4})}
    }
    list_filter_submit = True

    def history_view(
        self,
        request: HttpRequest,
        object_id: str,
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Lead to what the changelog has on this object; Django's own history knows no values."""
        content_type = ContentType.objects.get_for_model(self.model)
        return HttpResponseRedirect(
            _list_url("proxy_changeentry", content_type_id=content_type.pk, object_id=object_id)
        )

    def formfield_for_dbfield(
        self,
        db_field: object,
        request: HttpRequest,
        **kwargs: object,
    ) -> forms.Field | None:
        if isinstance(db_field, JSONField):
            return LinesField(
                label=capfirst(db_field.verbose_name),
                help_text=db_field.help_text,
                required=not db_field.blank,
                widget=UnfoldAdminTextareaWidget(attrs={"rows": 4}),
            )
        field: forms.Field | None = super().formfield_for_dbfield(db_field, request, **kwargs)
        if isinstance(db_field, ForeignKey) and db_field.related_model in (ApiKey, User) and field:
            # A key made in a pop-up would show its secret there and never come back to this form.
            field.widget.can_add_related = field.widget.can_change_related = False
        return field

    def formfield_for_manytomany(
        self, db_field: ManyToManyField[Any, Any], request: HttpRequest, **kwargs: object
    ) -> forms.ModelMultipleChoiceField[Any]:
        if db_field.related_model is AllowedRoot:
            kwargs["widget"] = UnfoldAdminCheckboxSelectMultipleWidget()
        field: forms.ModelMultipleChoiceField[Any] = super().formfield_for_manytomany(
            db_field, request, **kwargs
        )
        return field

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def may_change(self, request: HttpRequest) -> bool:
        allowed: bool = self.has_change_permission(request)
        return allowed

    def confirm(
        self, request: HttpRequest, obj: Model, template: str, title: str, **context: object
    ) -> TemplateResponse:
        """Render a page of one object in the admin's look; nothing of it may be kept anywhere."""
        response = TemplateResponse(
            request,
            template,
            {
                **self.admin_site.each_context(request),
                "title": title,
                "opts": self.opts,
                "original": obj,
                "object_url": _change_url(obj),
                **context,
            },
        )
        patch_cache_control(response, no_store=True, private=True)
        return response


def _change_url(obj: Model) -> str:
    return reverse(f"admin:{obj._meta.app_label}_{obj._meta.model_name}_change", args=[obj.pk])


def _list_url(model: str, **query: object) -> str:
    return reverse(f"admin:{model}_changelist") + "?" + urlencode(query)


class StateFilter(DropdownFilter):  # type: ignore[misc] # unfold has no types
    """Live, expired or revoked, as `ApiKey.state` says it."""

    title, parameter_name = "state", "state"

    def lookups(self, request: HttpRequest, model_admin: object) -> list[tuple[str, str]]:
        return [(state, state) for state in ("live", "expired", "revoked")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> QuerySet[ApiKey]:
        past = Q(expires_at__lte=timezone.now())
        conditions = {
            "live": Q(revoked_at=None) & ~past,
            "expired": Q(revoked_at=None) & past,
            "revoked": Q(revoked_at__isnull=False),
        }
        return queryset.filter(conditions.get(self.value(), Q()))


@admin.register(ApiKey)
class ApiKeyAdmin(PolicyAdmin):
    form = ApiKeyForm
    list_display = (
        "name", "owner", "prefix", "state_label", "roots", "engine_name", "last_used_at",
        "expires_at",
    )  # fmt: skip
    list_filter = (
        StateFilter,
        ("owner", RelatedDropdownFilter),
        ("engine", ChoicesDropdownFilter),
    )
    list_select_related = ("owner", "default_root")
    search_fields = ("name", "^prefix")
    search_help_text = "A name, or the beginning of a prefix."
    readonly_fields = (
        "prefix", "state_label", "previous_secret", "created_at", "created_by", "last_used_at",
        "revoked_at", "revoked_by", "elsewhere",
    )  # fmt: skip
    fields_of_policy = (
        "allowed_roots", "default_root", "engine", "models_allowed", "max_concurrency",
        "max_queued", "agent_by_default", "is_strict",
    )  # fmt: skip
    actions_detail = ("rotate", "revoke")

    def get_fieldsets(self, request: HttpRequest, obj: ApiKey | None = None) -> list[Any]:
        policy = ("What it may do", {"fields": self.fields_of_policy})
        if obj is None:
            return [(None, {"fields": ("name", "owner", "expires_at", "note")}), policy]
        return [
            (None, {"fields": ("name", "owner", "prefix", "state_label", "elsewhere")}),
            policy,
            (
                "Its life",
                {
                    "fields": (
                        "expires_at", "last_used_at", "created_at", "created_by",
                        "previous_secret", "revoked_at", "revoked_by", "note",
                    )
                },
            ),
        ]  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[ApiKey]:
        queryset: QuerySet[ApiKey] = super().get_queryset(request)
        return queryset.prefetch_related("allowed_roots")

    def save_model(
        self, request: HttpRequest, obj: ApiKey, form: forms.ModelForm[ApiKey], change: bool
    ) -> None:
        if not change:
            obj.created_by = request.user  # type: ignore[assignment] # staff are logged in
            # For `response_add`, on the request: it lives no longer than this one answer.
            request.new_secret = obj.new_secret()  # type: ignore[attr-defined]
        super().save_model(request, obj, form, change)

    def response_add(
        self, request: HttpRequest, obj: ApiKey, post_url_continue: str | None = None
    ) -> HttpResponse:
        return self.show_secret(request, obj, request.new_secret)  # type: ignore[attr-defined]

    def show_secret(self, request: HttpRequest, key: ApiKey, secret: str) -> HttpResponse:
        """Answer the POST itself with the secret: a message or a redirect would have to keep it."""
        return self.confirm(
            request,
            key,
            "proxy/secret.html",
            "The secret of this key, shown once",
            secret=secret,
            base_url=request.build_absolute_uri("/v1"),
        )

    def has_live_key_permission(self, request: HttpRequest, object_id: str = "") -> bool:
        is_open = ApiKey.objects.filter(pk=object_id, revoked_at=None)
        return self.may_change(request) and is_open.exists()

    @_button("Rotate secret", icon="autorenew", permission="live_key")
    def rotate(self, request: HttpRequest, object_id: str) -> HttpResponse:
        key = ApiKey.objects.get(pk=object_id)
        form = RotateForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            secret = key.rotate(form.period)
            self.log_change(request, key, "Rotated the secret.")
            return self.show_secret(request, key, secret)
        return self.confirm(request, key, "proxy/rotate.html", "Rotate the secret", form=form)

    @_button("Revoke", icon="block", permission="live_key", variant=ActionVariant.DANGER)
    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        key = ApiKey.objects.get(pk=object_id)
        if request.method == "POST":
            key.revoke(by=request.user)
            self.log_change(request, key, "Revoked.")
            messages.success(request, f"{key} is revoked: its next request gets 401.")
            return HttpResponseRedirect(_change_url(key))
        return self.confirm(
            request,
            key,
            "proxy/revoke.html",
            "Revoke this key",
            consequence="From the next request on it opens nothing, for good. Its requests and "
            "grants stay on record.",
        )

    @column("state", colours=STATE_COLOURS)
    def state_label(self, key: ApiKey) -> str:
        return key.state

    @column("roots")
    def roots(self, key: ApiKey) -> str:
        return ", ".join(root.alias for root in key.allowed_roots.all()) or "those of the settings"

    @column("engine", ordering="engine")
    def engine_name(self, key: ApiKey) -> str:
        return key.engine or "that of the settings"

    @column("old secret")
    def previous_secret(self, key: ApiKey) -> str:
        until = key.previous_valid_until
        if until is None or until <= timezone.now():
            return UNKNOWN
        moment = timezone.localtime(until)
        return f"{key.previous_prefix}… still works until {moment:%d %b %Y %H:%M %Z}"

    @column("see also")
    def elsewhere(self, key: ApiKey) -> str:
        return _links(
            ("its requests", _list_url("audit_requestrecord", key_id=key.pk)),
            ("its agent grants", _list_url("proxy_agentgrant", key__id__exact=key.pk)),
        )


def _links(*links: tuple[str, str]) -> str:
    return format_html_join(
        " · ", '<a class="{}" href="{}">{}</a>', ((LINK, url, label) for label, url in links)
    )


@admin.register(AllowedRoot)
class AllowedRootAdmin(PolicyAdmin):
    list_display = ("alias", "path", "is_there", "description")
    search_fields = ("alias", "path")
    fields = ("alias", "path", "description")

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Let a root go only while nothing names it.

        A grant would no longer say for where; a key that loses its only root would fall back on the
        roots of the settings, and so may do more than before.
        """
        allowed = super(PolicyAdmin, self).has_delete_permission(request, obj)
        if not allowed or not isinstance(obj, AllowedRoot):
            return False
        is_general = ProxySettings.objects.filter(allowed_roots=obj).exists()
        return not (obj.grants.exists() or obj.keys.exists() or is_general)

    @admin.display(description="exists", boolean=True)
    def is_there(self, root: AllowedRoot) -> bool:
        return os.path.isdir(root.path)


@admin.register(AgentGrant)
class AgentGrantAdmin(PolicyAdmin):
    list_display = (
        "title", "key", "root_names", "reason", "state_label", "granted_by", "starts_at", "ends_at",
    )  # fmt: skip
    list_filter = (("key", RelatedDropdownFilter), ("roots", RelatedDropdownFilter))
    list_select_related = ("key", "granted_by")
    search_fields = ("reason", "key__name", "^key__prefix")
    search_help_text = "A reason, a key's name or the beginning of its prefix."
    actions_detail = ("revoke",)
    asked = ("key", "roots", "reason", "starts_at", "ends_at")
    evidence = ("key", "roots", "reason", "starts_at")
    noted = (
        "state_label", "granted_by", "created_at", "revoked_at", "revoked_by", "elsewhere",
    )  # fmt: skip

    def get_fieldsets(self, request: HttpRequest, obj: AgentGrant | None = None) -> list[Any]:
        if obj is None:
            return [(None, {"fields": self.asked})]
        return [(None, {"fields": self.asked}), ("On record", {"fields": self.noted})]

    def get_readonly_fields(
        self, request: HttpRequest, obj: AgentGrant | None = None
    ) -> tuple[str, ...]:
        """A grant is evidence: once given, only its end can be moved, while it is not over."""
        if obj is None:
            return ()
        is_open = obj.state in ("live", "not yet")
        return (*self.evidence, *self.noted) if is_open else (*self.asked, *self.noted)

    def get_queryset(self, request: HttpRequest) -> QuerySet[AgentGrant]:
        queryset: QuerySet[AgentGrant] = super().get_queryset(request)
        return queryset.prefetch_related("roots")

    def formfield_for_foreignkey(
        self, db_field: ForeignKey[Any, Any], request: HttpRequest, **kwargs: object
    ) -> forms.ModelChoiceField[Any] | None:
        if db_field.name == "key":
            kwargs["queryset"] = ApiKey.objects.filter(revoked_at=None).order_by("name")
        field: forms.ModelChoiceField[Any] | None = super().formfield_for_foreignkey(
            db_field, request, **kwargs
        )
        return field

    def save_model(
        self, request: HttpRequest, obj: AgentGrant, form: forms.ModelForm[AgentGrant], change: bool
    ) -> None:
        if not change:
            obj.granted_by = request.user  # type: ignore[assignment] # staff are logged in
        super().save_model(request, obj, form, change)

    def save_related(
        self,
        request: HttpRequest,
        form: forms.ModelForm[AgentGrant],
        formsets: object,
        change: bool,
    ) -> None:
        super().save_related(request, form, formsets, change)
        idle = [
            root.alias for root in form.instance.roots.all() if not _opens(form.instance.key, root)
        ]
        if idle:
            messages.warning(
                request,
                f"The key may not work in {', '.join(idle)} now: the grant has no effect there "
                "until the key's allowed roots say so.",
            )

    def has_open_grant_permission(self, request: HttpRequest, object_id: str = "") -> bool:
        is_open = AgentGrant.objects.filter(pk=object_id, revoked_at=None)
        return self.may_change(request) and is_open.exists()

    @_button("Revoke", icon="block", permission="open_grant", variant=ActionVariant.DANGER)
    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        grant = AgentGrant.objects.get(pk=object_id)
        if request.method == "POST":
            grant.revoke(by=request.user)
            self.log_change(request, grant, "Revoked.")
            messages.success(request, "The grant is revoked: the next agent request gets 403.")
            return HttpResponseRedirect(_change_url(grant))
        return self.confirm(
            request,
            grant,
            "proxy/revoke.html",
            "Revoke this grant",
            consequence="From the next request on the key has no agent mode under this grant. A "
            "turn that runs now is not cut.",
        )

    @column("grant", ordering="id")
    def title(self, grant: AgentGrant) -> str:
        return f"grant {grant.pk}"

    @column("state", colours=STATE_COLOURS)
    def state_label(self, grant: AgentGrant) -> str:
        return grant.state

    @column("roots")
    def root_names(self, grant: AgentGrant) -> str:
        return ", ".join(root.alias for root in grant.roots.all())

    @column("see also")
    def elsewhere(self, grant: AgentGrant) -> str:
        return _links(
            ("the requests under this grant", _list_url("audit_requestrecord", grant_id=grant.pk)),
            ("the key", _change_url(grant.key)),
        )


def _opens(key: ApiKey, root: AllowedRoot) -> bool:
    own = [other.path for other in key.allowed_roots.all()]
    paths = own or [other.path for other in load_options().roots]
    real = os.path.realpath(root.path)
    # Either way round: a grant covers what lies below its root, and so may a key's root.
    return any(
        is_inside(real, os.path.realpath(path)) or is_inside(os.path.realpath(path), real)
        for path in paths
    )


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
            ("model", "fast", "is_lean", "ephemeral", "codex_configs", "codex_bin", "app_server_codex_home",
             "proxy"),
        ),
        ("Answers", ("reasoning", "max_choices", "fetch_images")),
        ("Where keys without roots work", ("allowed_roots", "default_cwd")),
        ("Agent mode", ("agent",)),
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


@admin.register(User)
class UserAdmin(DjangoUserAdmin, PolicyAdmin):  # type: ignore[misc,type-arg] # unfold has no types
    """People: made inactive, never deleted, since changes and grants are signed with them."""

    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "email", "is_active", "is_staff", "is_superuser", "last_login")
    list_filter = ("is_active", "is_staff", "is_superuser", "groups")


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin, PolicyAdmin):  # type: ignore[misc] # unfold has no types
    """Roles: `Auditor` reads everything, `Operator` manages keys, roots, grants and settings."""
