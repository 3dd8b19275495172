"""Every change of the policy on record: who, when, from where, before and after (django-auditlog).

Bulk `update()` leaves no entry, on purpose: that is how "last used" is written behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

from auditlog.middleware import AuditlogMiddleware
from auditlog.registry import auditlog
from django.conf import settings
from django.contrib.auth.models import Group, User
from django.db.models import Model
from django.http import HttpRequest

from proxy.addresses import client_address
from proxy.models import AgentGrant, AllowedRoot, ApiKey, KillOrder, ProxySettings


def register() -> None:
    """Put the models that decide who may do what under auditlog's watch."""
    _watch(ApiKey, without=("digest", "previous_digest", "last_used_at"), many=("allowed_roots",))
    _watch(AllowedRoot)
    _watch(AgentGrant, many=("roots",))
    _watch(KillOrder)
    _watch(ProxySettings, many=("allowed_roots",), mask=("proxy", "codex_configs"))
    _watch(User, without=("password", "last_login"), many=("groups", "user_permissions"))
    _watch(Group, many=("permissions",))


def _watch(
    model: type[Model],
    *,
    without: Sequence[str] = (),
    many: Sequence[str] = (),
    mask: Sequence[str] = (),
) -> None:
    # The columns by name: auditlog would otherwise note the reverse relations of a new row too.
    columns = [field.name for field in model._meta.fields if field.name not in ("id", *without)]
    auditlog.register(
        model,
        include_fields=columns,
        m2m_fields=list(many),
        mask_fields=list(mask),
        mask_callable="proxy.redaction.redact",
    )


class ChangelogMiddleware(AuditlogMiddleware):  # type: ignore[misc] # it has no types
    """Give each entry its actor and address; auditlog itself believes any forwarded header."""

    @staticmethod
    def _get_remote_addr(request: HttpRequest) -> str | None:
        address = client_address(
            request.META.get("REMOTE_ADDR", ""),
            request.META.get("HTTP_X_FORWARDED_FOR", ""),
            settings.TRUSTED_PROXIES,
        )
        try:
            return str(ip_address(address))
        except ValueError:
            return None  # a unix socket: the column takes addresses only

    @staticmethod
    def _get_remote_port(request: HttpRequest) -> None:
        return None
