"""What a person fills in to give, extend, revoke and question a grant, or to end a request."""

from __future__ import annotations

import os
from datetime import datetime, time, timedelta
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminRadioSelectWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanWidget,
)

from proxy.models import LEVELS, AgentGrant, AllowedRoot, ApiKey, is_inside
from proxy.policy import load_options

HOURS = {"1": timedelta(hours=1), "8": timedelta(hours=8)}
BY_FORM = "until"
"""The choice that takes its end from the field beside it."""

DEFAULT_PERIOD = timedelta(days=15)
"""Before and after now."""


def opens(key: ApiKey, root: AllowedRoot) -> bool:
    """Tell whether a grant for this root would let the key do anything."""
    own = [other.path for other in key.allowed_roots.all()]
    paths = own or [other.path for other in load_options().roots]
    real = os.path.realpath(root.path)
    # Either way round: a grant covers what lies below its root, and so may a key's root.
    return any(
        is_inside(real, os.path.realpath(path)) or is_inside(os.path.realpath(path), real)
        for path in paths
    )


class _MomentInput(UnfoldAdminTextInputWidget):  # type: ignore[misc] # unfold has no types
    """The browser's own picker of a day and a time."""

    input_type = "datetime-local"

    def format_value(self, value: object) -> object:
        if isinstance(value, datetime):
            return f"{timezone.localtime(value) if value.tzinfo else value:%Y-%m-%dT%H:%M}"
        return value


class _DayInput(UnfoldAdminTextInputWidget):  # type: ignore[misc] # unfold has no types
    input_type = "date"


def _zone() -> str:
    return f"{timezone.localtime():%Z}"


class _RootsField(forms.ModelMultipleChoiceField):  # type: ignore[type-arg] # generic in stubs only
    widget = UnfoldAdminCheckboxSelectMultipleWidget

    def label_from_instance(self, root: AllowedRoot) -> str:
        return f"{root.alias} ({root.path})"


class GiveGrantForm(forms.Form):
    """A grant for one key, in one step."""

    roots = _RootsField(queryset=AllowedRoot.objects.none(), label="Where")
    level = forms.ChoiceField(
        choices=LEVELS,
        initial="write",
        label="What commands may do there",
        widget=UnfoldAdminRadioSelectWidget,
    )
    period = forms.ChoiceField(
        choices=[("1", "1 hour"), ("8", "8 hours"), (BY_FORM, "until the time below")],
        initial="1",
        label="For how long",
        widget=UnfoldAdminRadioSelectWidget,
    )
    until = forms.DateTimeField(required=False, widget=_MomentInput, label="Until")
    reason = forms.CharField(max_length=300, widget=UnfoldAdminTextInputWidget)
    reads_agents_md = forms.BooleanField(
        required=False,
        label="Reads AGENTS.md",
        help_text="Let the agent take instructions from AGENTS.md files in the folder.",
        widget=UnfoldBooleanWidget,
    )

    def __init__(self, key: ApiKey, data: Any = None) -> None:  # noqa: ANN401 - a QueryDict
        super().__init__(data)
        self.key = key
        fitting = [root.pk for root in AllowedRoot.objects.all() if opens(key, root)]
        field = self.fields["roots"]
        assert isinstance(field, forms.ModelMultipleChoiceField)  # noqa: S101 - declared above
        field.queryset = AllowedRoot.objects.filter(pk__in=fitting)
        if len(fitting) == 1:
            field.initial = fitting
        self.has_roots = bool(fitting)
        self.fields["until"].help_text = f"In {_zone()}; only for the last of the choices."

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        self.ends_at = _end(self, cleaned, timezone.now())
        return cleaned

    def give(self, by: Any) -> AgentGrant:  # noqa: ANN401 - the user model is a setting
        """Make the grant, signed by who gives it."""
        told = self.cleaned_data
        with transaction.atomic():
            grant = AgentGrant.objects.create(
                key=self.key,
                level=told["level"],
                reads_agents_md=told["reads_agents_md"],
                reason=told["reason"],
                granted_by=by,
                ends_at=self.ends_at,
            )
            grant.roots.set(told["roots"])
        return grant


class ExtendForm(forms.Form):
    """A later end for one grant."""

    period = forms.ChoiceField(
        choices=[("1", "1 hour more"), ("8", "8 hours more"), (BY_FORM, "until the time below")],
        initial="1",
        label="For how long",
        widget=UnfoldAdminRadioSelectWidget,
    )
    until = forms.DateTimeField(required=False, widget=_MomentInput, label="Until")

    def __init__(self, grant: AgentGrant, data: Any = None) -> None:  # noqa: ANN401 - a QueryDict
        super().__init__(data)
        self.grant = grant
        self.fields["until"].help_text = f"In {_zone()}; only for the last of the choices."

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        self.ends_at = _end(self, cleaned, self.grant.ends_at or timezone.now())
        return cleaned


def _end(form: forms.Form, cleaned: dict[str, Any], since: datetime) -> datetime | None:
    """Return the end that was chosen, later than `since`; an error stands at the field."""
    if cleaned.get("period") in HOURS:
        return since + HOURS[cleaned["period"]]
    until: datetime | None = cleaned.get("until")
    if until is None and "until" not in form.errors:
        form.add_error("until", "Say until when.")
    elif until is not None and until <= max(since, timezone.now()):
        form.add_error("until", "This is not later.")
    return until


class RevokeForm(forms.Form):
    """Whether what runs is ended as well."""

    kill = forms.BooleanField(required=False, widget=UnfoldBooleanWidget)

    def __init__(self, running: int, data: Any = None) -> None:  # noqa: ANN401 - a QueryDict
        super().__init__(data)
        what = {0: "anything that may run", 1: "the 1 request that runs"}.get(
            running, f"the {running} requests that run"
        )
        self.fields["kill"].label = f"End {what} under it now"


class KillForm(forms.Form):
    reason = forms.CharField(
        max_length=300,
        help_text="It is kept in the request's row; the caller does not see it.",
        widget=UnfoldAdminTextInputWidget(attrs={"autofocus": True}),
    )


class QuestionForm(forms.Form):
    """Was this key allowed to write here at that moment?"""

    ask_key = forms.ModelChoiceField(
        ApiKey.objects.order_by("name"), label="Key", widget=UnfoldAdminSelectWidget
    )
    place = forms.CharField(
        max_length=1000, label="Folder or alias", widget=UnfoldAdminTextInputWidget
    )
    moment = forms.DateTimeField(widget=_MomentInput, label="When")

    def __init__(self, data: Any = None) -> None:  # noqa: ANN401 - a QueryDict
        super().__init__(data, initial={"moment": timezone.now()})
        self.fields["moment"].label = f"When ({_zone()})"

    def clean_place(self) -> str:
        place: str = self.cleaned_data["place"].strip()
        if "\x00" in place:
            raise ValidationError("This is no path.")
        return place


class PeriodForm(forms.Form):
    """Which part of the timeline to draw."""

    since = forms.DateField(required=False, label="From", widget=_DayInput)
    until = forms.DateField(required=False, label="To", widget=_DayInput)
    key = forms.ModelChoiceField(
        ApiKey.objects.order_by("name"),
        required=False,
        empty_label="all keys",
        widget=UnfoldAdminSelectWidget,
    )
    root = forms.ModelChoiceField(
        AllowedRoot.objects.all(),
        required=False,
        empty_label="all roots",
        widget=UnfoldAdminSelectWidget,
    )

    def __init__(self, data: Any) -> None:  # noqa: ANN401 - a QueryDict
        now = timezone.now()
        days = {
            "since": f"{timezone.localtime(now - DEFAULT_PERIOD):%Y-%m-%d}",
            "until": f"{timezone.localtime(now + DEFAULT_PERIOD):%Y-%m-%d}",
        }
        given = {name: data.get(name) or days.get(name, "") for name in self.base_fields}
        super().__init__(given)

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        since, until = cleaned.get("since"), cleaned.get("until")
        if since and until and until < since:
            self.add_error("until", "This is before the beginning.")
        elif since and until and (until - since).days > 3660:
            self.add_error("until", "Ten years at most.")
        return cleaned

    @property
    def moments(self) -> tuple[datetime, datetime]:
        """The period, its last day included."""
        since, until = self.cleaned_data["since"], self.cleaned_data["until"]
        return (
            timezone.make_aware(datetime.combine(since, time.min)),
            timezone.make_aware(datetime.combine(until + timedelta(days=1), time.min)),
        )
