"""The project as an app: it brings `runserver` in our own form."""

from __future__ import annotations

from django.apps import AppConfig


class CodexsiteConfig(AppConfig):
    name = "codexsite"
    label = "codexsite"
