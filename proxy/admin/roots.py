"""The folders that keys may be allowed to work in."""

from __future__ import annotations

import os

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest

from proxy.admin.base import PolicyAdmin
from proxy.models import AllowedRoot, ProxySettings


@admin.register(AllowedRoot)
class AllowedRootAdmin(PolicyAdmin):
    list_display = ("alias", "path", "is_there", "description")
    search_fields = ("alias", "path")
    fields = ("alias", "path", "description")

    def get_readonly_fields(
        self, request: HttpRequest, obj: AllowedRoot | None = None
    ) -> tuple[str, ...]:
        """Another folder under a grant is another grant: for those who may give one."""
        if obj is None or request.user.has_perm("proxy.change_agentgrant"):
            return ()
        return ("path",) if any(grant.is_open for grant in obj.grants.all()) else ()

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
