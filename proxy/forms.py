"""The admin's forms: what a person types, checked at the field where it stands."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from unfold.widgets import UnfoldAdminRadioSelectWidget, UnfoldAdminTextareaWidget

from proxy.checks import find_program
from proxy.models import AllowedRoot, is_inside
from proxy.policy import load_options
from proxy.redaction import redact_url

GRACE_PERIODS = {
    "0": ("None: the old secret stops working now", timedelta()),
    "1": ("1 hour", timedelta(hours=1)),
    "24": ("24 hours", timedelta(hours=24)),
    "168": ("7 days", timedelta(days=7)),
}


class LinesField(forms.Field):
    """A list of strings, edited as one a line."""

    widget = UnfoldAdminTextareaWidget

    def prepare_value(self, value: object) -> object:
        return "\n".join(map(str, value)) if isinstance(value, list) else value

    def to_python(self, value: str | None) -> list[str]:
        return [line.strip() for line in (value or "").splitlines() if line.strip()]


class ApiKeyForm(forms.ModelForm):  # type: ignore[type-arg] # generic only in the stubs
    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        default, allowed = cleaned.get("default_root"), cleaned.get("allowed_roots")
        if default is None or allowed is None:
            return cleaned
        if allowed and default not in allowed:
            self.add_error("default_root", "This is none of the key's allowed roots.")
        elif not allowed and not _is_general_root(default):
            self.add_error(
                "default_root",
                "This is none of the roots of the proxy settings, which a key without roots of "
                "its own may use.",
            )
        return cleaned


def _is_general_root(root: AllowedRoot) -> bool:
    real = os.path.realpath(root.path)
    return any(is_inside(real, os.path.realpath(other.path)) for other in load_options().roots)


class RotateForm(forms.Form):
    grace = forms.ChoiceField(
        label="How long does the old secret still work?",
        choices=[(value, label) for value, (label, _) in GRACE_PERIODS.items()],
        initial="0",
        widget=UnfoldAdminRadioSelectWidget,
    )

    @property
    def period(self) -> timedelta:
        return GRACE_PERIODS[self.cleaned_data["grace"]][1]


class ProxySettingsForm(forms.ModelForm):  # type: ignore[type-arg] # generic only in the stubs
    def clean_codex_bin(self) -> str:
        name: str = self.cleaned_data["codex_bin"]
        if name and find_program(name) is None:
            raise ValidationError("There is no such program that this server can run.")
        return name

    def clean_proxy(self) -> str:
        url: str = self.cleaned_data["proxy"]
        if redact_url(url) != url:
            raise ValidationError(
                "Auditors read this page. Give a URL with a login in the variable "
                "CODEX_PROXY_PROXY instead."
            )
        return url

    def clean_default_cwd(self) -> str:
        path: str = self.cleaned_data["default_cwd"]
        if path:
            try:
                AllowedRoot(path=path).clean()
            except ValidationError as error:
                raise ValidationError(error.messages) from error
        return path

    def clean_app_server_codex_home(self) -> str:
        path: str = self.cleaned_data["app_server_codex_home"]
        if path and not os.path.isabs(os.path.expanduser(path)):
            raise ValidationError("The path must be absolute.")
        return path
