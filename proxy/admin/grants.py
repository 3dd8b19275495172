"""Agent grants: given, approved, extended, revoked; never rewritten."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import ForeignKey, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from unfold.contrib.filters.admin import DropdownFilter, RelatedDropdownFilter
from unfold.enums import ActionVariant

from audit.listing import column
from proxy.admin.base import STATE_COLOURS, PolicyAdmin, button, change_url, links, list_url
from proxy.grant_forms import ExtendForm, opens
from proxy.kills import kill_under
from proxy.models import APPROVED_BY_ANOTHER, AgentGrant, ApiKey


class GrantForm(forms.ModelForm):  # type: ignore[type-arg] # generic only in the stubs
    def clean_ends_at(self) -> datetime | None:
        until: datetime | None = self.cleaned_data["ends_at"]
        is_given = self.instance.pk is not None
        if is_given and settings.GRANTS_NEED_APPROVAL and self.instance.ends_later(until):
            raise ValidationError(
                "Grants need a second person here: a later end is asked for with the button Extend."
            )
        return until


class StateFilter(DropdownFilter):  # type: ignore[misc] # unfold has no types
    """As `AgentGrant.state` says it."""

    title, parameter_name = "state", "state"

    def lookups(self, request: HttpRequest, model_admin: object) -> list[tuple[str, str]]:
        states = ["live", "not yet", "awaiting approval", "over", "revoked"]
        if not settings.GRANTS_NEED_APPROVAL:
            states.remove("awaiting approval")
        return [(state, state) for state in states]

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[AgentGrant]
    ) -> QuerySet[AgentGrant]:
        now = timezone.now()
        over = Q(revoked_at=None, ends_at__lte=now)
        is_open = Q(revoked_at=None) & (Q(ends_at=None) | Q(ends_at__gt=now))
        counts = APPROVED_BY_ANOTHER if settings.GRANTS_NEED_APPROVAL else Q()
        conditions = {
            "live": is_open & counts & Q(starts_at__lte=now),
            "not yet": is_open & counts & Q(starts_at__gt=now),
            "awaiting approval": is_open & ~counts if counts else Q(pk=None),
            "over": over,
            "revoked": Q(revoked_at__isnull=False),
        }
        return queryset.filter(conditions.get(self.value(), Q()))


@admin.register(AgentGrant)
class AgentGrantAdmin(PolicyAdmin):
    form = GrantForm
    list_display = (
        "title", "key", "root_names", "level", "reason", "state_label", "granted_by", "starts_at",
        "ends_at",
    )  # fmt: skip
    list_filter = (
        StateFilter,
        ("key", RelatedDropdownFilter),
        ("roots", RelatedDropdownFilter),
    )
    list_select_related = ("key", "granted_by")
    list_before_template = "proxy/grants_before.html"
    list_fullwidth = True
    search_fields = ("reason", "key__name", "^key__prefix")
    search_help_text = "A reason, a key's name or the beginning of its prefix."
    actions_detail = ("approve", "extend", "revoke")
    asked = ("key", "roots", "level", "reads_agents_md", "reason", "starts_at", "ends_at")
    evidence = ("key", "roots", "level", "reads_agents_md", "reason", "starts_at")
    noted = (
        "state_label", "granted_by", "created_at", "approved", "revoked_at", "revoked_by",
        "elsewhere",
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
        return (*self.evidence, *self.noted) if obj.is_open else (*self.asked, *self.noted)

    def get_queryset(self, request: HttpRequest) -> QuerySet[AgentGrant]:
        queryset: QuerySet[AgentGrant] = super().get_queryset(request)
        return queryset.select_related("approved_by").prefetch_related("roots")

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
        if change:
            # Its end alone, from what it was: what somebody else does at this moment stays.
            until = obj.ends_at
            AgentGrant.objects.get(pk=obj.pk).move_end(until)
            return
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
        if not change:
            say_what_came_of(request, form.instance)

    # Approving.

    def has_approve_permission(self, request: HttpRequest, object_id: str = "") -> bool:
        """Whether this person may approve this grant: never the one who asked for it."""
        if not request.user.has_perm("proxy.approve_agentgrant"):
            return False
        grant = AgentGrant.objects.filter(pk=object_id, approved_at=None).first()
        return grant is not None and grant.is_open and grant.granted_by_id != request.user.pk

    @button("Approve", icon="how_to_reg", permission="approve", variant=ActionVariant.PRIMARY)
    def approve(self, request: HttpRequest, object_id: str) -> HttpResponse:
        grant = AgentGrant.objects.get(pk=object_id)
        if request.method == "POST":
            if self._approve_as_seen(request, grant.pk):
                self.log_change(request, grant, "Approved.")
                return HttpResponseRedirect(change_url(grant))
            messages.error(request, "The grant has changed since you saw it: look once more.")
            grant.refresh_from_db()
        return self.confirm(
            request,
            grant,
            "proxy/approve_grant.html",
            "Approve this grant",
            seen=_what_is_asked(grant),
            needs_approval=settings.GRANTS_NEED_APPROVAL,
        )

    @staticmethod
    def _approve_as_seen(request: HttpRequest, pk: int) -> bool:
        """Approve the grant if it still is what was shown, and tell so; its roots stay till then."""
        with transaction.atomic():
            grant = AgentGrant.objects.select_for_update().get(pk=pk)
            list(grant.roots.select_for_update(of=("self",)))
            if request.POST.get("seen") != _what_is_asked(grant):
                return False
            grant.approve(by=request.user)
        messages.success(request, f"The grant is approved and {_effect(grant)}.")
        return True

    # Extending.

    def has_extend_permission(self, request: HttpRequest, object_id: str = "") -> bool:
        grant = AgentGrant.objects.filter(pk=object_id, ends_at__isnull=False).first()
        return self.may_change(request) and grant is not None and grant.is_open

    @button("Extend", icon="more_time", permission="extend")
    def extend(self, request: HttpRequest, object_id: str) -> HttpResponse:
        grant = AgentGrant.objects.get(pk=object_id)
        form = ExtendForm(grant, request.POST or None)
        if request.method == "POST" and form.is_valid() and form.ends_at is not None:
            extended = grant.extend(form.ends_at, by=request.user)
            self.log_change(request, grant, "Extended.")
            if extended.pk == grant.pk:
                messages.success(request, "The end is moved.")
            else:
                say_what_came_of(request, extended)
            return HttpResponseRedirect(change_url(extended))
        return self.confirm(
            request,
            grant,
            "proxy/extend_grant.html",
            "Extend this grant",
            form=form,
            needs_approval=settings.GRANTS_NEED_APPROVAL,
        )

    # Revoking.

    def has_open_grant_permission(self, request: HttpRequest, object_id: str = "") -> bool:
        may = self.may_change(request) or request.user.has_perm("proxy.revoke_agentgrant")
        return may and AgentGrant.objects.filter(pk=object_id, revoked_at=None).exists()

    @button("Revoke", icon="block", permission="open_grant", variant=ActionVariant.DANGER)
    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        grant = AgentGrant.objects.get(pk=object_id)
        form, kills = self.revoking(request, grant)
        if request.method == "POST":
            grant.revoke(by=request.user)
            self.log_change(request, grant, "Revoked.")
            messages.success(request, "The grant is revoked: the next agent request gets 403.")
            if kills:
                kill_under(grant, by=request.user, reason="The grant was revoked.")
                messages.success(request, "What runs under it is being ended.")
            return HttpResponseRedirect(change_url(grant))
        return self.confirm(
            request,
            grant,
            "proxy/revoke.html",
            "Revoke this grant",
            form=form,
            consequence="From the next request on the key has no agent mode under this grant. A "
            "turn that runs now goes on, unless it is ended as well.",
        )

    # Columns.

    @column("grant", ordering="id")
    def title(self, grant: AgentGrant) -> str:
        return f"grant {grant.pk}"

    @column("state", colours=STATE_COLOURS)
    def state_label(self, grant: AgentGrant) -> str:
        return grant.state

    @column("roots")
    def root_names(self, grant: AgentGrant) -> str:
        return ", ".join(root.alias for root in grant.roots.all())

    @column("approved")
    def approved(self, grant: AgentGrant) -> str:
        if grant.approved_at is not None:
            moment = timezone.localtime(grant.approved_at)
            return f"by {grant.approved_by or 'somebody'}, {moment:%d %b %Y %H:%M %Z}"
        return "by nobody" + (", so it does not count" if grant.needs_approval else "")

    @column("see also")
    def elsewhere(self, grant: AgentGrant) -> str:
        return links(
            ("the requests under this grant", list_url("audit_requestrecord", grant_id=grant.pk)),
            ("the key", change_url(grant.key)),
            ("who could write where and when", f"{reverse('who_could_write')}?key={grant.key_id}"),
        )


def say_what_came_of(request: HttpRequest, grant: AgentGrant) -> None:
    """Tell who gave a grant whether it counts, and where it has no effect."""
    messages.success(request, f"Grant {grant.pk} is given and {_effect(grant)}.")
    idle = [root.alias for root in grant.roots.all() if not opens(grant.key, root)]
    if idle:
        messages.warning(
            request,
            f"The key may not work in {', '.join(idle)} now: the grant has no effect there "
            "until the key's allowed roots say so.",
        )


def _effect(grant: AgentGrant) -> str:
    return {
        "live": "counts from now on",
        "not yet": "counts from its start on",
        "awaiting approval": "does not count before a second person has approved it",
    }.get(grant.state, "counts no more")


def _what_is_asked(grant: AgentGrant) -> str:
    """Return a digest of all that an approval stands for, so that nobody approves something else."""
    roots = sorted((root.alias, root.path) for root in grant.roots.all())
    asked = (
        grant.key_id, grant.level, grant.reads_agents_md, grant.reason, grant.starts_at,
        grant.ends_at, roots,
    )  # fmt: skip
    return hashlib.sha256(repr(asked).encode()).hexdigest()
