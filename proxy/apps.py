from __future__ import annotations

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class ProxyConfig(AppConfig):
    name = "proxy"
    verbose_name = "Access and settings"

    def ready(self) -> None:
        from proxy import changelog, checks, policyversion  # noqa: F401 - registers the checks

        changelog.register()
        post_migrate.connect(policyversion.install, sender=self)
