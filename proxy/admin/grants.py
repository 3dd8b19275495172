"""Agent grants: given, approved, extended, revoked; never rewritten."""

from __future__ import annotations

import os
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import ForeignKey, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from unfold.contrib.filters.admin import RelatedDropdownFilter
from unfold.enums import ActionVariant

from audit.listing import column
from proxy.admin.base import STATE_COLOURS, PolicyAdmin, button, change_url, links, list_url
from proxy.models import AgentGrant, AllowedRoot, ApiKey, is_inside
from proxy.policy import load_options


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
            root.alias for root in form.instance.roots.all() if not opens(form.instance.key, root)
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

    @button("Revoke", icon="block", permission="open_grant", variant=ActionVariant.DANGER)
    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        grant = AgentGrant.objects.get(pk=object_id)
        if request.method == "POST":
            grant.revoke(by=request.user)
            self.log_change(request, grant, "Revoked.")
            messages.success(request, "The grant is revoked: the next agent request gets 403.")
            return HttpResponseRedirect(change_url(grant))
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
        return links(
            ("the requests under this grant", list_url("audit_requestrecord", grant_id=grant.pk)),
            ("the key", change_url(grant.key)),
        )


def opens(key: ApiKey, root: AllowedRoot) -> bool:
    own = [other.path for other in key.allowed_roots.all()]
    paths = own or [other.path for other in load_options().roots]
    real = os.path.realpath(root.path)
    # Either way round: a grant covers what lies below its root, and so may a key's root.
    return any(
        is_inside(real, os.path.realpath(path)) or is_inside(os.path.realpath(path), real)
        for path in paths
    )
