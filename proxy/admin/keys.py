"""Keys: issued, rotated, revoked; and from here an agent grant is given."""

from __future__ import annotations

from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from unfold.contrib.filters.admin import (
    ChoicesDropdownFilter,
    DropdownFilter,
    RelatedDropdownFilter,
)
from unfold.enums import ActionVariant

from audit.listing import column
from proxy.admin.base import (
    STATE_COLOURS,
    UNKNOWN,
    PolicyAdmin,
    button,
    change_url,
    links,
    list_url,
)
from proxy.admin.grants import say_what_came_of
from proxy.forms import ApiKeyForm, RotateForm
from proxy.grant_forms import GiveGrantForm
from proxy.kills import kill_under
from proxy.models import AgentGrant, ApiKey


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
    actions_detail = ("give_grant", "rotate", "revoke")

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

    @button("Rotate secret", icon="autorenew", permission="live_key")
    def rotate(self, request: HttpRequest, object_id: str) -> HttpResponse:
        key = ApiKey.objects.get(pk=object_id)
        form = RotateForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            secret = key.rotate(form.period)
            self.log_change(request, key, "Rotated the secret.")
            return self.show_secret(request, key, secret)
        return self.confirm(request, key, "proxy/rotate.html", "Rotate the secret", form=form)

    @button("Revoke", icon="block", permission="live_key", variant=ActionVariant.DANGER)
    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        key = ApiKey.objects.get(pk=object_id)
        form, kills = self.revoking(request, key)
        if request.method == "POST":
            key.revoke(by=request.user)
            self.log_change(request, key, "Revoked.")
            messages.success(request, f"{key} is revoked: its next request gets 401.")
            if kills:
                kill_under(key, by=request.user, reason="The key was revoked.")
                messages.success(request, "What runs under it is being ended.")
            return HttpResponseRedirect(change_url(key))
        return self.confirm(
            request,
            key,
            "proxy/revoke.html",
            "Revoke this key",
            form=form,
            consequence="From the next request on it opens nothing, for good. Its requests and "
            "grants stay on record.",
        )

    def has_give_permission(self, request: HttpRequest, object_id: str = "") -> bool:
        key = ApiKey.objects.filter(pk=object_id).first()
        return request.user.has_perm("proxy.add_agentgrant") and key is not None and key.is_live_now

    @button("Give agent grant", icon="verified_user", permission="give")
    def give_grant(self, request: HttpRequest, object_id: str) -> HttpResponse:
        key = ApiKey.objects.get(pk=object_id)
        form = GiveGrantForm(key, request.POST or None)
        if request.method == "POST" and form.is_valid():
            grant = form.give(request.user)
            say_what_came_of(request, grant)
            return HttpResponseRedirect(change_url(grant))
        return self.confirm(
            request,
            key,
            "proxy/give_grant.html",
            "Give an agent grant",
            form=form,
            live_grants=AgentGrant.objects.live().filter(key=key).prefetch_related("roots"),
            needs_approval=settings.GRANTS_NEED_APPROVAL,
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
        return links(
            ("its requests", list_url("audit_requestrecord", key_id=key.pk)),
            ("its agent grants", list_url("proxy_agentgrant", key__id__exact=key.pk)),
            ("where it could write and when", f"{reverse('who_could_write')}?key={key.pk}"),
        )
