from __future__ import annotations

from django.apps import AppConfig


class ProxyConfig(AppConfig):
    name = "proxy"
    verbose_name = "Access and settings"

    def ready(self) -> None:
        from proxy import changelog, checks  # noqa: F401 - registers the system checks

        changelog.register()
