"""The policy as it is managed: keys, roots, grants, the server's options, people.

Nothing that a request was judged by can be deleted here: keys and grants are revoked instead.
"""

from __future__ import annotations

from auditlog.models import LogEntry
from django.contrib import admin

from proxy import changelog_admin as changelog_admin
from proxy.admin import grants, keys, options, people, proofs, roots

__all__ = ["changelog_admin", "grants", "keys", "options", "people", "proofs", "roots"]

admin.site.unregister(LogEntry)
