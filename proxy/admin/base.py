"""What every page of the policy has in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlencode

from django import forms
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.db.models import ForeignKey, JSONField, ManyToManyField, Model, TextField
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.cache import patch_cache_control
from django.utils.html import format_html_join
from django.utils.text import capfirst
from unfold.admin import ModelAdmin
from unfold.decorators import action
from unfold.enums import ActionVariant
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget, UnfoldAdminTextareaWidget

from proxy.consumers import KILL
from proxy.forms import LinesField
from proxy.grant_forms import RevokeForm
from proxy.kills import running_under
from proxy.models import AgentGrant, AllowedRoot, ApiKey

STATE_COLOURS = {
    "live": "success",
    "expired": "warning",
    "over": "warning",
    "not yet": "info",
    "awaiting approval": "warning",
    "revoked": "danger",
}
UNKNOWN = "-"
LINK = "text-primary-600 dark:text-primary-500 underline"


Page = TypeVar("Page", bound=Callable[..., HttpResponse])


def button(
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
            list_url("proxy_changeentry", content_type_id=content_type.pk, object_id=object_id)
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

    def revoking(
        self, request: HttpRequest, obj: ApiKey | AgentGrant
    ) -> tuple[RevokeForm | None, bool]:
        """Return the form of a revocation (None where who revokes may not kill), and what it says.

        Raises `PermissionDenied` where a kill is asked for by one who may not order it.
        """
        may_kill = request.user.has_perm(KILL)
        asks = request.method == "POST" and "kill" in request.POST
        if asks and not may_kill:
            raise PermissionDenied
        return RevokeForm(running_under(obj)) if may_kill else None, asks

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
                "object_url": change_url(obj),
                **context,
            },
        )
        patch_cache_control(response, no_store=True, private=True)
        return response


def change_url(obj: Model) -> str:
    return reverse(f"admin:{obj._meta.app_label}_{obj._meta.model_name}_change", args=[obj.pk])


def list_url(model: str, **query: object) -> str:
    return reverse(f"admin:{model}_changelist") + "?" + urlencode(query)


def links(*links: tuple[str, str]) -> str:
    return format_html_join(
        " · ", '<a class="{}" href="{}">{}</a>', ((LINK, url, label) for label, url in links)
    )
